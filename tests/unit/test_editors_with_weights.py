"""Both stages in one command, with small random weights of every editor that has some."""

import gc

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.convert.published import convert
from anyv2v.frame_editors import registry
from anyv2v.stable_diffusion import loading
from anyv2v.weights_folders import expected_shapes
from tests.oracles import sd_snapshot


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("stage-one")
    (at / "hf").mkdir()
    sources = {
        "ip2p": sd_snapshot.write(at / "hf" / "ip2p", 8),
    }
    for name, source in sources.items():
        convert(source, at / name, expected_shapes)
    return at


@pytest.fixture(scope="module")
def clip(tmp_path_factory, video):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    anyv2v.write_video(path, np.concatenate([video.frames] * 2), fps=8)
    return path


EDITORS = {
    "instruct-pix2pix": ("ip2p", {}),
}


@pytest.mark.parametrize("name", EDITORS)
def test_both_stages_in_one_command(name, folders, clip, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 120, 20)).save("reference.png")
    own, options = EDITORS[name]
    paths = {"adapter": str(folders / options["adapter"])} if "adapter" in options else {}
    options = {**options, **paths, "steps": "2", "size": "64"}
    told = [x for o, v in options.items() for x in ("--editor-option", f"{o}={v}")]
    if name == "ip-adapter":
        told += ["--reference", "reference.png"]
    small = ["--size", "64x64", "--frames", "3", "--steps", "2", "--inversion-steps", "4"]
    status = main(
        [
            *("edit", str(clip), "--editor", name, "--editor-weights", str(folders / own)),
            *("--instruction", "make it red", "--prompt", "a red robot", "--seed", "3", *told),
            *("--weights", str(weights), *small, "--device", "cpu", "--save-frame", "f.png"),
            *("-o", "out.mp4"),
        ]
    )
    assert status == 0
    assert anyv2v.read_video("out.mp4").frames.shape == (3, 64, 64, 3)
    first = anyv2v.read_video(clip, size=(64, 64), frames=3, fps=8).frames[0]
    editor = registry.make(name, {"weights": str(folders / own), **options}, device="cpu")
    reference = "reference.png" if name == "ip-adapter" else None
    frame = anyv2v.edit_frame(first, editor, "make it red", reference, seed=3)
    assert np.array_equal(np.array(Image.open("f.png")), frame)
    assert not np.array_equal(frame, first)


def test_models_of_stage_one_are_gone_before_stage_two_loads(folders, clip, weights, monkeypatch):
    first = anyv2v.read_video(clip, size=(64, 64), frames=3, fps=8).frames[0]
    options = {"weights": str(folders / "ip2p"), "steps": 1, "size": 64}
    anyv2v.edit_frame(first, "instruct-pix2pix", "make it red", **options)
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is loading.StableDiffusion]
