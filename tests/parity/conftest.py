"""What parity is tested on: --reference HF_FOLDER, or folders with random weights."""

import gc
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from anyv2v.convert.published import convert
from anyv2v.loading import builders, expected_shapes
from anyv2v.weights.checkpoint import Checkpoint
from tests.oracles import snapshot as hf


@dataclass(frozen=True)
class Reference:
    """A Hugging Face folder, and where the same weights lie converted."""

    folder: Path
    scratch: Path

    @cached_property
    def weights(self) -> Path:
        target = self.scratch / "converted"
        convert(self.folder, target, expected_shapes, torch.float32)
        return target

    def ours(self, component: str) -> torch.nn.Module:
        gc.collect()  # the oracle's weights are gone before ours come
        checkpoint = Checkpoint.open(self.weights)
        return checkpoint.load(component, builders(checkpoint.config)[component])

    @cached_property
    def is_real(self) -> bool:
        return not (self.folder / "random").exists()

    def variant(self, component: str) -> str | None:
        whole = [f for f in (self.folder / component).iterdir() if ".fp16" not in f.name]
        return None if any(f.suffix in (".safetensors", ".bin") for f in whole) else "fp16"


def pytest_generate_tests(metafunc):
    if "reference" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--reference")
    cases = [given] if given else ["tiny", "odd", pytest.param("full", marks=pytest.mark.slow)]
    metafunc.parametrize("reference", cases, indirect=True, scope="session", ids=str)


@pytest.fixture(scope="session")
def reference(request, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("reference")
    if isinstance(request.param, Path):
        if not request.param.is_dir():
            raise pytest.UsageError(f"--reference {request.param}: no such folder")
        yield Reference(request.param, scratch)
    else:
        hf.write_snapshot(scratch / "huggingface", request.param, seed=7)
        yield Reference(scratch / "huggingface", scratch)
    # gigabytes, for the full size
    shutil.rmtree(scratch)
