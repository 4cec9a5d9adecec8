"""Wan 2.2 TI2V-5B as it is published: a folder for diffusers, and the original release."""

from dataclasses import replace
from pathlib import Path

import torch

from anyv2v.backbones.wan.precision import FLOAT32
from anyv2v.backbones.wan.sites import chosen_sites
from anyv2v.convert.detect import detect_foreign
from anyv2v.convert.files import SameTensor, Weights, open_files, open_weights
from anyv2v.convert.formats import wan_config, wan_names
from anyv2v.convert.formats.huggingface import INDEX, TOKENIZER, Component, open_network, translate
from anyv2v.convert.formats.wan_sizes import resnets, text_sizes, transformer_sizes, vae_sizes
from anyv2v.convert.model import Model, PublishedNetwork
from anyv2v.errors import InputError
from anyv2v.umt5.tokenizer import FILE, Tokenizer
from anyv2v.weights.manifest import FORMAT, UNIGRAM_TOKENIZER, read_json

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""The classes that model_index.json may name: that of the published folder, and the one that takes
a first frame."""
STEM = "diffusion_pytorch_model"
"""Stem of the transformer's files in both layouts."""
COMPONENTS = {
    "transformer": Component("transformer", STEM, lambda names: wan_names.TRANSFORMER),
    "vae": Component("vae", STEM, lambda names: wan_names.VAE),
    "text": Component("text_encoder", "model", lambda names: wan_names.TEXT),
}
"""Our name of each network -> where it is in the folder for diffusers."""

CONFIG = "config.json"
"""The config of the transformer in the original release."""
VAE_FILE, TEXT_FILE = "Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
"""The files of the other networks in the original release, which torch.save wrote."""
ORIGINAL_TOKENIZER = "google/umt5-xxl"
"""The folder of the tokenizer in the original release."""
OLD_VAE_FILE = "Wan2.1_VAE.pth"
"""The file of the autoencoder in the releases of Wan 2.1, and of 2.2's A14B."""
OLD = f"is Wan 2.1 or the A14B of 2.2, as it holds {OLD_VAE_FILE}; {wan_config.ONLY}"
"""The end of a message about such a release."""

OVERFLOWS = "Wan's text encoder overflows in float16; take bfloat16 (--dtype bfloat16)"
"""The end of a message about a conversion to float16."""


def is_original(src: Path) -> bool:
    """Whether `src` is a folder of an original release of Wan, judged by its files' names."""
    return any((src / name).is_file() for name in (VAE_FILE, OLD_VAE_FILE, TEXT_FILE))


def read(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a folder for diffusers. dtype: the dtype to convert to.

    Raises InputError if a file is missing, if the folder holds another network of Wan, if a config
    contradicts the weights, or if dtype is float16, in which the text encoder overflows.
    """
    _check_dtype(src, dtype)
    networks = {name: open_network(src, each, False) for name, each in COMPONENTS.items()}
    text = networks["text"]
    networks["text"] = replace(text, weights=_embedding_once(text.weights))
    _check_own(networks)
    wan_config.check_index(str(src / INDEX), read_json(src / INDEX))

    def section(component: str, sizes: dict) -> dict:
        path = src / COMPONENTS[component].folder / "config.json"
        check = wan_config.HUB[component]
        return translate(path, lambda where, values: check(where, values, sizes))

    schedule = translate(src / "scheduler/scheduler_config.json", wan_config.schedule_config)
    sections = {
        "transformer": section("transformer", transformer_sizes(networks["transformer"])),
        "vae": section("vae", vae_sizes(networks["vae"])),
        "text": section("text", text_sizes(networks["text"])),
    }
    return _model(src, sections, schedule, networks, src / TOKENIZER)


def read_original(src: Path, dtype: torch.dtype | None) -> Model:
    """Opens a folder of the original release. dtype: the dtype to convert to.

    Raises InputError as `read` does.
    """
    _check_dtype(src, dtype)
    if (src / OLD_VAE_FILE).is_file() and not (src / VAE_FILE).is_file():
        raise InputError(f"{src}: {OLD}")
    files = (CONFIG, VAE_FILE, TEXT_FILE)
    if missing := [name for name in files if not (src / name).is_file()]:
        raise InputError(f"{src}: has no {', '.join(missing)}; {', '.join(files)} go together")
    vae, text = (open_files([src / name], src / name) for name in (VAE_FILE, TEXT_FILE))
    transformer = open_weights(src, STEM, prefer_half=False)
    networks = {
        "transformer": PublishedNetwork(transformer, wan_names.ORIGINAL_TRANSFORMER),
        "vae": PublishedNetwork(vae, wan_names.original_vae(resnets(vae.layout))),
        "text": PublishedNetwork(text, wan_names.ORIGINAL_TEXT),
    }
    _check_own(networks)
    sizes = transformer_sizes(networks["transformer"])
    sections = {
        "transformer": translate(
            src / CONFIG, lambda where, values: wan_config.original_config(where, values, sizes)
        ),
        "vae": {**vae_sizes(networks["vae"]), **wan_config.MOMENTS},
        "text": {**text_sizes(networks["text"]), **wan_config.TEXT},
    }
    return _model(src, sections, wan_config.SCHEDULE, networks, src / ORIGINAL_TOKENIZER)


def _check_dtype(src: Path, dtype: torch.dtype | None) -> None:
    if dtype == torch.float16:
        raise InputError(f"{src}: {OVERFLOWS}")


def _embedding_once(weights: Weights) -> Weights:
    """Returns a text encoder's weights with the embedding under one of its two names.

    What stands under both must be equal, which is checked when it is read.
    """
    first, second = wan_names.EMBEDDING, wan_names.SECOND_NAME
    if not {first, second} <= weights.layout.keys():
        return weights
    if weights.layout[first] != weights.layout[second]:
        raise InputError(f"{weights.origin}: {first} and {second} should be equal, and are not")
    same = SameTensor(weights.files[first], first, weights.files[second], second)
    layout = {name: form for name, form in weights.layout.items() if name != second}
    return Weights(weights.origin, layout, {**weights.files, first: same})


def _check_own(networks: dict[str, PublishedNetwork]) -> None:
    """Raises InputError if a network is another one of Wan, or of something else."""
    for component, network in networks.items():
        shapes = {name: shape for name, (_, shape) in network.weights.layout.items()}
        if foreign := detect_foreign(component, shapes, {}):
            raise InputError(f"{network.weights.origin}: {foreign}; {wan_config.ONLY}")


def _model(
    src: Path,
    sections: dict[str, dict],
    schedule: dict,
    networks: dict[str, PublishedNetwork],
    tokenizer: Path,
) -> Model:
    """Puts a model together; raises InputError if its parts do not fit each other."""
    wan_config.check_fit(src, sections)
    # checked here, because the text is copied as it is
    Tokenizer.load(tokenizer, vocab_size=sections["text"]["vocab_size"])
    text = (tokenizer / FILE).read_text(encoding="utf-8")
    config = {
        "format": FORMAT,
        "backbone": "wan",
        "components": [*COMPONENTS],
        "defaults": {"size": [1280, 704], "frames": 121, "fps": 24},
        **sections,
        "schedule": schedule,
        "injection": chosen_sites(sections["transformer"]["layers"]),
    }
    networks["transformer"] = replace(networks["transformer"], float32=FLOAT32)
    return Model(config, dict(zip(UNIGRAM_TOKENIZER, (text,), strict=True)), networks)
