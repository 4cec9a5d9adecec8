"""The clips that bench/to_and_fro.py makes: one take, upright, with a sound, of its length."""

import numpy as np
import pytest

from anyv2v.media.cuts import find_cuts
from anyv2v.media.psnr import psnr
from anyv2v.media.video import read_video, write_video
from anyv2v.weights.demo.scenes import draw_edit
from tests.clips import av, clip, heard

# the clips above are skipped without PyAV, which this needs from the beginning
from bench import to_and_fro as module  # isort: skip


def test_there_and_back():
    assert list(module.to_and_fro(8, 3)) == [0, 1, 2, 1, 0, 1, 2, 1]
    assert list(module.to_and_fro(6, 2, 0.5)) == [0, 0.5, 1, 0.5, 0, 0.5]


@pytest.mark.parametrize("of", ["scene", "clip"])
def test_a_take_is_upright_whole_and_has_sound(tmp_path, of):
    path, options = tmp_path / "a.mp4", ["--seconds", "2", "--fps", "20", "--size", "64"]
    if of == "clip":
        write_video(tmp_path / "b.mp4", clip(9, 64, 64), 8)
        module.main([str(path), *options, "--of", str(tmp_path / "b.mp4")])
        expected = module.of_clip(tmp_path / "b.mp4", 64, 40, 20)
    else:
        module.main([str(path), *options])
        scene = draw_edit("colour", "held-out", 6_000_000)
        expected = module.of_scene(scene.source, 64, 40, 20)
        truth = read_video(tmp_path / "a-truth.mp4").frames
        edited = np.stack(list(module.of_scene(scene.truth, 64, 40, 20)))
        assert psnr(truth, edited) > 25
    video = read_video(path)
    assert (len(video.frames), video.fps) == (40, 20)
    assert psnr(video.frames, np.stack(list(expected))) > 25
    assert find_cuts(video.frames) == []
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation != 0
    samples, begin = heard(path)
    # whole packets of AAC
    assert (begin, samples.shape[1]) == (0, 1024 * -(-2 * module.SAMPLES // 1024))
    # root mean square; that of the tone is 0.2
    error = samples[:, :90_000] - module.tone(2)[:, :90_000]
    assert np.sqrt(np.mean(error**2)) < 0.03
