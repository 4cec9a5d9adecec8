import os
import sys
from pathlib import Path

import pytest
import torch

# the checkout comes last on the search path: where anyv2v is installed, what is installed is tested
ROOT = Path(__file__).parents[1]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT] + [str(ROOT)]

import anyv2v
from anyv2v.convert.published import convert
from anyv2v.loading import expected_shapes
from tests.oracles import consisti2v_snapshot, golden, seine_golden, seine_snapshot
from tests.oracles import snapshot as hf

# kernels look for it when triton is imported, and diffusers imports triton
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# two threads on a busy two-core machine can be twenty times slower than one: they wait at barriers
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        # the suite leaves the folder in which it was begun
        type=lambda text: Path(text).absolute(),
        metavar="HF_FOLDER",
        help="a Hugging Face folder of I2VGen-XL that tests/parity compares with, "
        "in place of a tiny one with random weights",
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def outside(tmp_path_factory):
    """The suite runs outside the checkout, where Python would find this anyv2v first."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("outside"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory):
    """The tiny model in Hugging Face layout that the goldens were made with."""
    folder = tmp_path_factory.mktemp("huggingface") / "tiny"
    hf.write_snapshot(folder, "tiny", seed=1)
    return folder


@pytest.fixture(scope="session")
def weights(snapshot, tmp_path_factory):
    """The tiny model as a folder of ours."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    convert(snapshot, folder, expected_shapes)
    return folder


@pytest.fixture(scope="session")
def editor(weights):
    return anyv2v.load(weights, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def consisti2v_snapshot_folder(tmp_path_factory):
    """The tiny ConsistI2V in Hugging Face layout that its goldens were made with."""
    return consisti2v_snapshot.write(tmp_path_factory.mktemp("huggingface") / "consisti2v")


@pytest.fixture(scope="session")
def consisti2v_weights(consisti2v_snapshot_folder, tmp_path_factory):
    """The tiny ConsistI2V as a folder of ours."""
    folder = tmp_path_factory.mktemp("weights") / "consisti2v"
    convert(consisti2v_snapshot_folder, folder, expected_shapes)
    return folder


@pytest.fixture(scope="session")
def consisti2v(consisti2v_weights):
    """An editor with the tiny ConsistI2V."""
    return anyv2v.load(consisti2v_weights, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def video():
    """The clip that the goldens are of."""
    return anyv2v.Video(golden.tensors("inputs")["frames"].numpy(), golden.facts("about")["fps"])


@pytest.fixture(scope="session")
def edited_frame():
    return golden.tensors("inputs")["edited"].numpy()


@pytest.fixture(scope="session")
def sources(editor, video):
    """Inversions of the clip, by number of steps."""
    return {steps: editor.invert(video, "ddim", steps) for steps in (10, 20)}


@pytest.fixture(scope="session")
def seine_folder(tmp_path_factory):
    """SEINE as it is published, small: the model that its goldens were made with."""
    return seine_snapshot.write(tmp_path_factory.mktemp("seine") / "published")


@pytest.fixture(scope="session")
def seine_weights(seine_folder):
    """The same as a folder of ours."""
    folder = seine_folder.parent / "weights"
    convert(seine_folder, folder, expected_shapes, torch.float32)
    return folder


@pytest.fixture(scope="session")
def seine(seine_weights):
    return anyv2v.load(seine_weights, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def seine_video():
    """The clip that SEINE's goldens are of."""
    return anyv2v.Video(seine_golden.tensors("inputs")["frames"].numpy(), 8)
