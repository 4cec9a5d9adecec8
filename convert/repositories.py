"""Which repositories of the Hugging Face hub hold a model, and which of their files are read."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from anyv2v.convert.files import STEMS
from anyv2v.convert.formats import (
    adapters,
    consisti2v,
    huggingface,
    open_clip,
    seine,
    stable_diffusion,
    wan,
    wan_config,
    whole_clip,
)
from anyv2v.convert.formats.huggingface import INDEX, TOKENIZER, Component
from anyv2v.errors import InputError

TEXTS = (".json", ".txt")
"""Suffixes of configs and of the tokenizer's files."""
CONFIG = "config.json"
"""The file that describes a model that is a single network, or a CLIP."""
ADAPTERS = ("ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin")
"""Names of the file that is taken of a repository with several IP-Adapters, the preferred first."""
VIDEOS, EDITOR, ADAPTER, SCORES = (
    "--weights",
    "--editor-weights",
    "--editor-option adapter",
    "--clip",
)
"""The options of the command line that take models: of videos, of the first frame, adapters to
these, and CLIPs."""


class Network(NamedTuple):
    """Where a repository holds the weights of a network."""

    folder: str
    """The folder, "" for the top of the repository."""
    stem: str
    """The stem of the files' names, a key of `STEMS`."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub, and what conversion reads of it."""

    name: str
    """OWNER/NAME on the hub."""
    networks: tuple[Network, ...] = ()
    """The networks whose weights and configs are read."""
    folders: tuple[str, ...] = ()
    """Further folders, of which configs and texts alone are read."""
    files: tuple[str, ...] = ()
    """Files that are read besides."""
    place: str = ""
    """Name of the folder in which `convert` looks for it, inside of the folder that `convert` is
    given; "" (the default) if it is that folder."""

    @property
    def page(self) -> str:
        """Address of its page."""
        return f"https://huggingface.co/{self.name}"


@dataclass(frozen=True)
class Published:
    """A published model: its repositories, and what becomes of them."""

    repositories: tuple[Repository, ...]
    """The repositories that it consists of; the first gives it its name."""
    option: str = VIDEOS
    """The option that takes the converted weights."""
    source: str = ""
    """What `convert` is given, as a path in the folder of the downloads; "" for that folder."""
    dtype: torch.dtype | None = torch.float16
    """The dtype of the converted weights unless another is asked for. Wan has bfloat16, as its text
    encoder overflows in float16. None, of a CLIP, is that of the published files: scores are
    compared with those of other programs."""


def _pipeline(
    components: Mapping[str, Component], folders: tuple[str, ...], option: str, name: str
) -> Published:
    networks = tuple(Network(each.folder, each.stem) for each in components.values())
    return Published((Repository(name, networks, (TOKENIZER, *folders), (INDEX,)),), option)


I2VGEN = partial(_pipeline, huggingface.COMPONENTS, ("feature_extractor", "scheduler"), VIDEOS)
CONSISTI2V = partial(_pipeline, consisti2v.COMPONENTS, ("scheduler",), VIDEOS)
WAN_NETWORKS = tuple(Network(each.folder, each.stem) for each in wan.COMPONENTS.values())


def _wan(name: str) -> Published:
    files = Repository(name, WAN_NETWORKS, (TOKENIZER, "scheduler"), (INDEX,))
    return Published((files,), dtype=torch.bfloat16)


def _wan_original(name: str) -> Published:
    files = (wan.CONFIG, wan.VAE_FILE, wan.TEXT_FILE)
    repository = Repository(name, (Network("", wan.STEM),), (wan.ORIGINAL_TOKENIZER,), files)
    return Published((repository,), dtype=torch.bfloat16)


STABLE_DIFFUSION = partial(_pipeline, stable_diffusion.COMPONENTS, ("scheduler",), EDITOR)
PIPELINES: dict[str, Callable[[str], Published]] = {
    "I2VGenXLPipeline": I2VGEN,
    **dict.fromkeys(consisti2v.PIPELINES, CONSISTI2V),
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionInstructPix2PixPipeline": STABLE_DIFFUSION,
    **dict.fromkeys(wan.PIPELINES, _wan),
}
"""The "_class_name" in the model_index.json of a repository -> function of the repository's name
that returns the model."""


def _seine(name: str) -> Published:
    # of Stable Diffusion's UNet its config alone: the file of SEINE has all of its weights
    texts = (TOKENIZER, "scheduler", "unet")
    networks = tuple(Network(each.folder, each.stem) for each in seine.COMPONENTS.values())
    frozen = Repository("CompVis/stable-diffusion-v1-4", networks, texts, place=seine.FOLDER)
    return Published((Repository(name, files=(seine.UNET_FILE,)), frozen))


PUBLISHED = {
    "i2vgen-xl": I2VGEN("ali-vilab/i2vgen-xl"),
    "consisti2v": CONSISTI2V("TIGER-Lab/ConsistI2V"),
    "seine": _seine("xinyuanc91/SEINE"),
    "wan2.2-ti2v-5b": _wan("Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
}
"""Name of a published video model -> the model; the first is the default."""


def recognize(
    name: str, files: Collection[str], read: Callable[[str], dict[str, Any]]
) -> Published:
    """Returns the model that a repository holds.

    name: of the repository. files: its files, as paths in it. read: returns the content of one of
    them, which holds a JSON object. Raises InputError if it holds no model that can be converted.
    """
    for known in PUBLISHED.values():
        if known.repositories[0].name == name:
            return known
    if INDEX in files:
        index = read(INDEX)
        pipeline = index.get("_class_name")
        if not isinstance(pipeline, str) or pipeline not in PIPELINES:
            raise InputError(
                f"{name}: is {pipeline!r}; one of {', '.join(PIPELINES)} can be converted"
            )
        if pipeline in wan.PIPELINES:
            wan_config.check_index(name, index)
        return PIPELINES[pipeline](name)
    if seine.UNET_FILE in files:
        return _seine(name)
    if wan.VAE_FILE in files:
        return _wan_original(name)
    if wan.OLD_VAE_FILE in files:
        raise InputError(f"{name}: {wan.OLD}")
    for file in ADAPTERS:
        if adapter := min((n for n in files if n.rpartition("/")[2] == file), default=None):
            return _ip_adapter(name, adapter)
    config = read(CONFIG) if CONFIG in files else {}
    if config.get("_class_name") == "T2IAdapter":
        networks = (Network("", "diffusion_pytorch_model"),)
        return Published((Repository(name, networks),), ADAPTER)
    # a repository may have both forms, and need not have the weights of both
    stems = [whole_clip.STEM] if config.get("model_type") == "clip" else []
    stems += [open_clip.STEM] if open_clip.CONFIG in files else []
    for stem in stems:
        if _weights(Network("", stem), files, half=False):
            return Published((Repository(name, (Network("", stem),)),), SCORES, dtype=None)
    raise InputError(
        f"{name}: holds no model that can be converted; these are "
        f"{', '.join(known.repositories[0].name for known in PUBLISHED.values())}, and "
        "repositories of Stable Diffusion 1, InstructPix2Pix, IP-Adapter, T2I-Adapter and CLIP"
    )


def _ip_adapter(name: str, file: str) -> Published:
    folder = f"{file.rpartition('/')[0]}/{adapters.VISION.folder}".lstrip("/")
    network = Network(folder, adapters.VISION.stem)
    return Published((Repository(name, (network,), files=(file,)),), ADAPTER, source=file)


def needed_files(repository: Repository, names: Iterable[str], half: bool) -> list[str]:
    """Returns the files of a repository that `convert` reads: configs, tokenizer and weights.

    names: all files of the repository, as paths in it. half: whether half-precision weights are
    preferred to full-precision ones, where the repository has both. Raises InputError if the
    repository lacks the weights of a network or one of its `files`.
    """
    names = list(names)
    folders = (*repository.folders, *(network.folder for network in repository.networks))
    texts = [n for n in names if n.endswith(TEXTS) and n.rpartition("/")[0] in folders]
    if missing := [n for n in repository.files if n not in names]:
        raise InputError(f"{repository.page}: publishes no {missing[0]}")
    chosen = list(repository.files)
    for network in repository.networks:
        weights = _weights(network, names, half)
        if not weights:
            raise InputError(f"{repository.page}: publishes no weights of {network.folder}")
        chosen += weights
    return list(dict.fromkeys([*chosen, *texts]))


def _weights(network: Network, names: Iterable[str], half: bool) -> list[str]:
    """The files of a network's weights in the form that `open_weights` prefers; [] if none are."""
    inside = {n.rpartition("/")[2]: n for n in names if n.rpartition("/")[0] == network.folder}
    shard = r"-\d+-of-\d+"
    full, halves = ("", shard), (r"\.fp16", rf"\.fp16{shard}", rf"{shard}\.fp16")
    for forms in (halves, full) if half else (full, halves):
        for file in STEMS[network.stem]:
            stem, _, suffix = file.rpartition(".")
            for form in forms:
                pattern = re.compile(rf"{stem}{form}\.{suffix}")
                if found := [inside[name] for name in inside if pattern.fullmatch(name)]:
                    return found
    return []
