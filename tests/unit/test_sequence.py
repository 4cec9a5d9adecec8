"""Clips as pictures: folders, numbered files, GIF, WebP, APNG; read and written."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from anyv2v.cli import main as cli
from anyv2v.errors import InputError
from anyv2v.media import container, sequence, sequence_stream, stream
from anyv2v.media.image import FITS, fit_frame
from anyv2v.media.sequence import check_sequence_output, is_sequence, moves
from anyv2v.media.video import read_video, write_video
from tests import icc

av = pytest.importorskip("av")

SMOOTH = np.linspace(0, 200, 24 * 40 * 3).reshape(24, 40, 3)
FRAMES = np.stack([SMOOTH + 5 * i for i in range(11)]).astype(np.uint8)


def levels(frames):
    """Each a frame of one gray, larger than its number."""
    return [np.full((16, 16, 3), 20 * i + 10, np.uint8) for i in frames]


def numbers(video) -> list[int]:
    return [int(round((frame.mean() - 10) / 20)) for frame in video.frames]


def write(folder, names, suffix="png"):
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, levels(range(len(names))), strict=True):
        Image.fromarray(frame).save(folder / f"{name}.{suffix}")
    return folder


def animation(path, durations, **options):
    first, *rest = map(Image.fromarray, levels(range(len(durations))))
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
@pytest.mark.parametrize(("wanted", "start"), [(16, 0.0), (16, 0.5), (300, 0.0)])
def test_the_rate_that_is_said_to_do_does(tmp_path, name, wanted, start):
    path = animation(tmp_path / name, [100, 250, 30, 100, 110, 500])
    with pytest.raises(InputError) as caught:
        read_video(path, frames=wanted, start_time=start)
    rate = float(str(caught.value).partition(" fps (--sample-fps)")[0].split()[-1])
    assert len(read_video(path, frames=wanted, start_time=start, fps=rate).frames) == wanted


# folders and patterns


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_folder_is_read_in_natural_order(tmp_path, suffix):
    folder = write(tmp_path / "frames", ["a1", "a2", "a3", "a10", "a20", "b1"], suffix)
    for other in (".hidden.png", "notes.txt", "edit.json"):
        (folder / other).write_text("no picture")
    (folder / "more.png").mkdir()
    (folder / "more.png").rmdir()
    video = read_video(folder)
    assert numbers(video) == [0, 1, 2, 3, 4, 5] and video.fps == 8
    # a picture is a frame, whatever the rate
    video = read_video(folder, fps=25, frames=3, start_time=0.08, size=(8, 4))
    assert numbers(video) == [2, 3, 4] and video.fps == 25 and video.frames.shape[1:3] == (4, 8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", ["folder", "pattern", "webp"])
def test_pictures_get_to_the_size_as_is_asked(tmp_path, kind, fit):
    """And so do those of a part of the clip."""
    pattern = tmp_path / "f" / "%02d.png"
    pattern.parent.mkdir()
    path = {"folder": pattern.parent, "pattern": pattern, "webp": tmp_path / "a.webp"}[kind]
    write_video(path if kind == "webp" else pattern, FRAMES, fps=8)
    size = (20, 24)
    whole = np.stack([fit_frame(frame, size, fit) for frame in FRAMES])
    assert np.array_equal(read_video(path, size, fit=fit).frames, whole)
    part = read_video(path, size, frames=3, fps=8, start_time=0.5, fit=fit)
    assert np.array_equal(part.frames, whole[4:7]) and part.fps == 8


@pytest.mark.parametrize("first", [0, 1, 37])
def test_a_pattern_is_read_from_the_first_number_there_is(tmp_path, first):
    for pattern in ("f-%05d.png", "%d.png", "%02d_x.png"):
        before, _, after = pattern.partition("%")
        digits, _, after = after.partition("d")
        names = [f"{before}{n:{digits or 0}}{after[:-4]}" for n in range(first, first + 4)]
        folder = write(tmp_path / before.join("ab"), names)
        # another series, and a name of other digits
        write(folder, ["g-00001", f"{before}0000000001{after[:-4]}x"])
        assert numbers(read_video(folder / pattern)) == [0, 1, 2, 3]
        for path in folder.iterdir():
            path.unlink()


def test_a_gap_names_the_first_missing(tmp_path):
    folder = write(tmp_path / "frames", ["003", "004", "006", "009"])
    with pytest.raises(InputError, match=r"frames/005.png is missing, of 003.png to 009.png"):
        read_video(folder / "%03d.png")
    with pytest.raises(InputError, match="no such file, such as .*frames/1.png"):
        read_video(folder / "%d.png")
    with pytest.raises(InputError, match="frames2 cannot be read: No such file"):
        read_video(tmp_path / "frames2" / "%d.png")


def test_a_file_that_is_called_so_is_no_pattern(tmp_path):
    write(tmp_path, ["b1", "b2"])
    Image.fromarray(levels([7])[0]).save(tmp_path / "b%d.png")
    assert numbers(read_video(tmp_path / "b%d.png")) == [7]


def test_what_is_no_clip_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is a folder without pictures; .* 00001.png"):
        read_video(tmp_path / "empty")
    folder = write(tmp_path / "frames", ["1", "2", "3"])
    Image.new("RGB", (8, 16)).save(folder / "2.png")
    with pytest.raises(InputError, match=r"frames/2.png is 8x16, the frames before 16x16"):
        read_video(folder)
    assert numbers(read_video(folder, frames=1)) == [0]
    (folder / "2.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"frames/2.png cannot be read as an image"):
        read_video(folder)
    with pytest.raises(
        InputError,
        match=r"on, fewer than the 2 asked for; 1 frame \(--frames\), or a start at 0.125 s ",
    ):
        read_video(folder, frames=2, start_time=0.25)
    with pytest.raises(InputError, match="start_time 9 s is past the end"):
        read_video(folder, start_time=9)
    with pytest.raises(InputError, match=r"frames/1.png has 1 frame at 8 fps .* the 16 asked for"):
        read_video(folder / "1.png", frames=16, fps=8)


def test_frames_are_read_as_they_are_needed(tmp_path, monkeypatch):
    folder, read = write(tmp_path / "frames", [str(n) for n in range(10)]), []
    whole = sequence_stream._read
    monkeypatch.setattr(
        sequence_stream, "_read", lambda path: read.append(path.name) or whole(path)
    )
    read_video(folder, frames=2, start_time=0.5)
    assert read == ["4.png", "5.png"]
    monkeypatch.setattr(stream, "free_bytes", lambda device: 4 * 16 * 16 * 3)
    with pytest.raises(InputError, match="more than 3 frames of 16x16 do not fit into memory"):
        read_video(folder)


def test_frames_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("anyv2v.media.picture.MOST_PIXELS", 255)
    folder = write(tmp_path / "frames", ["1", "2"])
    for path in (folder, animation(tmp_path / "a.gif", [100, 100])):
        with pytest.raises(InputError, match="is 16x16, too large"):
            read_video(path)


def test_frames_in_other_colors_become_srgb(tmp_path):
    """Gray of gamma 1.8."""
    profile = icc.gray(1.8)
    for name in ("1.png", "2.png"):
        Image.new("L", (8, 8), 100).save(tmp_path / name, icc_profile=profile)
    light = (100 / 255) ** 1.8
    truth = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(read_video(tmp_path).frames - truth).max() <= 2


# pictures that move


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_pictures_that_move_have_times(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = animation(tmp_path / f"a.{suffix}", [100, 200, 300, 400], **options)
    own = read_video(path)
    assert numbers(own) == [0, 1, 2, 3] and own.fps == 4
    assert numbers(read_video(path, fps=10)) == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert numbers(read_video(path, fps=10, start_time=0.25, frames=3)) == [1, 2, 2]
    assert numbers(read_video(path, start_time=0.3)) == [2, 3]
    assert read_video(path, size=(8, 4), frames=2).frames.shape == (2, 4, 8, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_no_duration_is_a_tenth_of_a_second(tmp_path, suffix):
    path = animation(tmp_path / f"a.{suffix}", [0, 0, 0])
    assert read_video(path).fps == 10
    assert numbers(read_video(path, fps=20)) == [0, 0, 1, 1, 2, 2]


def test_the_still_of_an_animated_png_is_no_frame(tmp_path):
    frames = [Image.fromarray(frame) for frame in levels(range(4))]
    frames[3].save(
        tmp_path / "a.png", save_all=True, default_image=True, append_images=frames[:3], duration=50
    )
    assert numbers(read_video(tmp_path / "a.png")) == [0, 1, 2]


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_parts_of_frames_are_composed_as_ffmpeg_does(tmp_path, disposal):
    still = np.full((32, 32, 3), 40, np.uint8)
    frames = [still.copy() for _ in range(5)]
    for i, frame in enumerate(frames):
        frame[4 * i : 4 * i + 8, 8:16] = (200, 30 * i, 90)
    first, *rest = map(Image.fromarray, frames)
    first.save(
        tmp_path / "a.gif", save_all=True, append_images=rest, duration=80, disposal=disposal
    )
    with av.open(str(tmp_path / "a.gif")) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(read_video(tmp_path / "a.gif").frames, truth)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_what_comes_before_damage_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(path, save_all=True, append_images=rest, duration=80)
    whole = read_video(path).frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    some = read_video(path).frames
    assert 2 <= len(some) < 5
    np.testing.assert_array_equal(some[:2], whole[:2])


def test_films_of_pictures_are_left_to_ffmpeg(tmp_path):
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.mjpeg").write_bytes(data * 3)
    assert is_sequence(tmp_path / "a.jpg") and not is_sequence(tmp_path / "a.mjpeg")
    assert is_sequence(tmp_path) and is_sequence(tmp_path / "%d.jpg")
    for name in ("x" * 300 + "%d.png", "missing.mp4", "\0"):
        assert is_sequence(tmp_path / name) == ("%d" in name)


def test_what_moves(tmp_path):
    folder = write(tmp_path / "frames", ["1", "2"])
    animation(tmp_path / "a.webp", [100, 100])
    Image.new("RGB", (8, 8)).save(tmp_path / "still.webp")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    for path in (folder, folder / "%d.png", tmp_path / "a.webp"):
        assert moves(path)
        facts = container.facts(path)
        assert (facts.width, facts.height, facts.audio) == (16, 16, False)
    for path in (folder / "1.png", tmp_path / "still.webp", tmp_path / "broken.gif", "a.mp4"):
        assert not moves(path)


# writing


@pytest.mark.parametrize("pattern", ["%05d.png", "f-%d.png"])
def test_numbered_pngs_come_back_to_the_bit(tmp_path, pattern):
    write_video(tmp_path / pattern, FRAMES, 12)
    first, last = (pattern.replace("%05d", f"{n:05}").replace("%d", f"{n}") for n in (1, 11))
    assert {first, last} <= set(os.listdir(tmp_path)) and len(os.listdir(tmp_path)) == 11
    np.testing.assert_array_equal(read_video(tmp_path / pattern).frames, FRAMES)
    np.testing.assert_array_equal(read_video(tmp_path, fps=12).frames, FRAMES)
    assert read_video(tmp_path, fps=12).fps == 12


def test_a_shorter_run_leaves_nothing_of_a_longer_one(tmp_path):
    pattern = tmp_path / "%02d.png"
    write_video(pattern, FRAMES, 8)
    (tmp_path / "0001.png").write_bytes(b"of another pattern")
    with pytest.raises(InputError, match="01.png already exists; --force"):
        write_video(pattern, FRAMES[:3], 8, force=False)
    assert len(os.listdir(tmp_path)) == 12
    write_video(pattern, FRAMES[:3], 8)
    assert sorted(os.listdir(tmp_path)) == ["0001.png", "01.png", "02.png", "03.png"]


@pytest.mark.parametrize("at", [0, 4, 12])
def test_numbered_pngs_appear_whole_or_not_at_all(tmp_path, monkeypatch, at):
    pattern = tmp_path / "%02d.png"
    write_video(pattern, FRAMES[:6], 8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    moves, replace = [], os.replace

    def failing(source, target):
        moves.append(source)
        if len(moves) == at + 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(sequence.os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        write_video(pattern, FRAMES[::-1], 8)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("fps", [8, 12.5, 24, 30])
def test_gif_has_its_colors_and_times(tmp_path, fps):
    path = tmp_path / "a.gif"
    write_video(path, FRAMES, fps)
    video = read_video(path)
    error = video.frames.astype(int) - FRAMES
    assert np.abs(error).max() <= 16 and np.abs(error).mean() < 2
    assert np.abs(error.mean((1, 2))).max() < 1
    assert video.fps == pytest.approx(fps, rel=0.02)
    assert numbers_of(read_video(path, fps=fps).frames) == list(range(11))
    with av.open(str(path)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    truth = [Fraction(i) / Fraction(fps) for i in range(11)]
    assert max(abs(a - b) for a, b in zip(times, truth, strict=True)) <= Fraction(1, 200)


def numbers_of(frames):
    """Which of FRAMES each is nearest to."""
    return [
        int(np.argmin([np.abs(f.astype(int) - g).mean() for g in FRAMES.astype(int)]))
        for f in frames
    ]


def test_a_gif_of_few_colors_is_exact_and_repeats(tmp_path, caplog):
    write_video(tmp_path / "a.gif", np.stack(levels(range(5))), 8)
    np.testing.assert_array_equal(read_video(tmp_path / "a.gif").frames, levels(range(5)))
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
    write_video(tmp_path / "a.gif", FRAMES, 60)
    assert read_video(tmp_path / "a.gif").fps == 50
    assert "has 50 fps, the most that players show, not 60" in caplog.text


# the second is one file of that name
@pytest.mark.parametrize("name", ["a.webp", "%d.webp"])
def test_webp_comes_back_to_the_bit(tmp_path, name):
    write_video(tmp_path / name, FRAMES, 24)
    assert os.listdir(tmp_path) == [name]
    video = read_video(tmp_path / name, fps=24)
    np.testing.assert_array_equal(video.frames, FRAMES)
    assert read_video(tmp_path / name).fps == 24


def test_outputs_that_cannot_be(tmp_path):
    for name in ("a/%d.png", "a/a.gif"):
        with pytest.raises(InputError, match="there is no folder"):
            write_video(tmp_path / name, FRAMES, 8)
    with pytest.raises(InputError, match="must end in one of .mp4"):
        write_video(tmp_path / "%d.jpg", FRAMES, 8)
    with pytest.raises(InputError, match="a number in the name, such as a-%05d.png"):
        write_video(tmp_path / "a.png", FRAMES, 8)
    (tmp_path / "1.png").mkdir()
    with pytest.raises(InputError, match="1.png: it is a folder"):
        write_video(tmp_path / "%d.png", FRAMES, 8)
    assert os.listdir(tmp_path) == ["1.png"]


def test_inputs_are_not_among_the_outputs(tmp_path):
    folder = write(tmp_path / "frames", ["1", "2", "other"])
    out = folder / "%d.png"
    for given in (folder, folder / "%03d.png", folder / "2.png"):
        with pytest.raises(InputError, match="which is not overwritten"):
            check_sequence_output(out, True, [given])
    check_sequence_output(out, True, [folder / "other.png", tmp_path / "frames2"])


def test_the_command_line_takes_and_gives_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = np.kron(FRAMES[:8, ::2, ::2], np.ones((1, 4, 4, 1), np.uint8))
    os.mkdir("in")
    os.mkdir("out")
    write_video("in/%03d.png", shown, 8)
    command = "reconstruct {} -o {} --frames 3 --steps 1 --inversion-steps 1 --quiet"
    for source, output in (("in/%03d.png", "out.gif"), ("out.gif", "out/%05d.png")):
        assert cli.main(command.format(source, output).split()) == 0, capsys.readouterr().err
        assert read_video(output).frames.shape == (3, 32, 32, 3)
    # a file beside them says how they were made, and is no frame
    assert sorted(os.listdir("out")) == ["00001.png", "00002.png", "00003.png", "edit.json"]
    assert len(read_video("out").frames) == 3
    capsys.readouterr()
    for source, output, says in (
        ("in", "out/%05d.png", "out/00001.png already exists"),
        ("in", "in/%03d.png --force", "is not overwritten"),
        ("in/%03d.png", "missing/%d.png", "there is no folder"),
    ):
        assert cli.main(command.format(source, output).split()) == 2
        assert says in capsys.readouterr().err
