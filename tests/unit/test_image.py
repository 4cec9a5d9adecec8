from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.media.image import (
    center_crop,
    crop_box,
    crop_size,
    crop_size_original,
    fit_frame,
    read_image,
    to_frames,
    to_pixels,
)
from tests.oracles import golden

CROPS = golden.facts("center_crop")["cases"]


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, 256, (h, w, 3), dtype=np.uint8)


# the crop


def test_original_sizes_and_boxes():
    assert len(CROPS) == 221 and sum(c["short"] for c in CROPS) == 45
    for case in CROPS:
        resized = crop_size_original(case["size"], case["target"])
        assert list(resized) == case["resized"], case
        assert list(crop_box(resized, case["target"])) == case["box"], case


def test_our_sizes_cover_the_target_and_are_the_original_s_where_those_do():
    for case in CROPS:
        resized = crop_size(case["size"], case["target"])
        (w, h), (left, top, right, bottom) = resized, crop_box(resized, case["target"])
        assert left >= 0 and top >= 0 and right <= w and bottom <= h, case
        if not case["short"]:
            assert list(resized) == case["resized"], case


def test_our_sizes_are_the_original_s_or_one_pixel_more():
    rng = np.random.default_rng(0)
    short = 0
    for w, h, to_w, to_h in rng.integers(1, 3000, (20000, 4)).tolist():
        ours, theirs = crop_size((w, h), (to_w, to_h)), crop_size_original((w, h), (to_w, to_h))
        if theirs[0] >= to_w and theirs[1] >= to_h:
            assert ours == theirs
        else:
            short += 1
            assert min(theirs[0] - to_w, theirs[1] - to_h) == -1
            assert ours[0] >= to_w and ours[1] >= to_h
    assert short > 1000


def test_crops_equal_the_original_s_pixels():
    truth = golden.tensors("center_crop")
    short = {(*c["size"], *c["target"]): c["short"] for c in CROPS}
    names = {name.rpartition(".")[0] for name in truth}
    seen = []
    for name in names:
        size, target = (tuple(map(int, s.split("x"))) for s in name.split("_to_"))
        image, cropped = (truth[f"{name}.{k}"].numpy() for k in ("image", "cropped"))
        np.testing.assert_array_equal(center_crop(image, target, black_edge=True), cropped, name)
        seen.append(short[size + target])
        ours = center_crop(image, target)
        if seen[-1]:
            assert not cropped[0].any() or not cropped[:, 0].any()
            assert ours[0].any() and ours[:, 0].any()
        else:
            np.testing.assert_array_equal(ours, cropped, name)
    assert len(names) == 9 and True in seen and False in seen


@pytest.mark.parametrize("name", ["photo", "first_frame", "edited"])
def test_crops_of_the_model_s_inputs(name):
    inputs, truth = golden.tensors("inputs"), golden.tensors("image")
    image = inputs["frames"][0] if name == "first_frame" else inputs[name]
    for kind, size in (("wide_crop", (128, 64)), ("square_crop", (128, 128))):
        np.testing.assert_array_equal(center_crop(image.numpy(), size), truth[f"{name}.{kind}"])
    wide = to_pixels(truth[f"{name}.wide_crop"][None])
    assert torch.equal(wide, truth[f"{name}.vae_input"])


def test_stretch_is_the_original_s_resize_of_the_edited_frame():
    inputs = golden.tensors("inputs")
    ours = fit_frame(inputs["edited_raw"].numpy(), (128, 64), "stretch")
    np.testing.assert_array_equal(ours, inputs["edited"])


def test_fit_crop_is_the_centre_and_the_same_size_changes_nothing():
    image = noise(50, 90)
    np.testing.assert_array_equal(fit_frame(image, (50, 50), "crop"), image[:, 20:70])
    for fit in ("crop", "stretch"):
        np.testing.assert_array_equal(fit_frame(image, (90, 50), fit), image)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), 8, (8.5, 8), ("a", 8), (float("inf"), 8)])
def test_sizes_that_are_none(size):
    for fit in ("crop", "stretch"):
        with pytest.raises(InputError, match="^size: .* is not"):
            fit_frame(noise(4, 4), size, fit)


def test_an_unknown_fit_names_the_known():
    with pytest.raises(InputError, match="'bend' is not one of crop, stretch, pad"):
        fit_frame(noise(4, 4), (4, 4), "bend")


def test_a_line_is_not_blown_up_to_gigabytes():
    with pytest.raises(InputError, match="60000x1"):
        center_crop(noise(1, 60000), (512, 512))


# reading


def test_path_array_and_pil_are_read_alike(tmp_path):
    image = noise(7, 5)
    Image.fromarray(image).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, Image.fromarray(image)):
        ours = read_image(source)
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, image)


def test_exif_orientation(tmp_path):
    image = noise(8, 6)
    exif = Image.Exif()
    # 6: the camera was turned, show it a quarter turn clockwise
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(image, -1))
    with Image.open(tmp_path / "a.png") as pil:
        np.testing.assert_array_equal(read_image(pil), np.rot90(image, -1))


def test_grey_palette_and_alpha(tmp_path):
    image = noise(6, 6)
    grey = image[..., 0]
    read = {}
    alpha = np.dstack([image, grey])
    pictures = {
        "grey": Image.fromarray(grey),
        "grey_alpha": Image.fromarray(np.dstack([grey, image[..., 1]])),
        "alpha": Image.fromarray(alpha),
        "palette": Image.fromarray(image).quantize(200),
        "bits": Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        read[name] = read_image(tmp_path / f"{name}.png")
        assert read[name].dtype == np.uint8 and read[name].shape[2] == 3
    np.testing.assert_array_equal(read["grey"], np.dstack([grey] * 3))
    np.testing.assert_array_equal(read["grey_alpha"], np.dstack([grey] * 3))
    # dropped, not composited
    np.testing.assert_array_equal(read["alpha"], image)
    np.testing.assert_array_equal(read["palette"], image)
    np.testing.assert_array_equal(read["bits"][..., 1], [[0, 255]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    ours = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(ours, np.dstack([[[0, 0, 1, 1, 128, 255]]] * 3))


def files_that_are_no_image(folder):
    whole = BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:3000])
    # the header says 60000 x 60000, with the checksum that goes with it
    bomb = b"II*\0" + (8).to_bytes(4, "little") + (5).to_bytes(2, "little")
    for tag, value in ((256, 60000), (257, 60000), (258, 8), (262, 1), (273, 8)):
        bomb += tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
    (folder / "bomb.tif").write_bytes(bomb + bytes(4))
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    return {
        "cut.png": "truncated",
        "bomb.tif": "decompression bomb",
        "text.png": "none of the picture formats that are read, PNG, JPEG",
        "empty.png": "it is empty",
        "folder.png": "is a folder",
        "missing.png": "no such file",
    }


def test_no_image_is_one_line_naming_the_path(tmp_path):
    for name, says in files_that_are_no_image(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message and says in message and "\n" not in message


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind(array):
    with pytest.raises(InputError, match=r"must be uint8 \(h, w, 3\)"):
        read_image(array)


# between uint8 and the networks


def test_pixels_equal_the_original_s():
    frames, truth = golden.tensors("inputs")["frames"], golden.tensors("vae")["pixels"]
    for given in (frames, frames.numpy()):
        ours = to_pixels(given)
        assert ours.dtype == torch.float32 and ours.is_contiguous()
        assert torch.equal(ours, truth)


def test_decoded_frames_equal_the_original_s():
    truth = golden.tensors("vae")
    ours = to_frames(truth["decode"][0].transpose(0, 1))
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, truth["decode.frames"])


def test_frames_survive_the_way_there_and_back():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(to_frames(to_pixels(frames)), frames)


def test_frames_are_clamped_and_halves_go_to_even():
    # -0.25 is level 95.625 and 0.0 is 127.5
    values = torch.tensor([-9.0, -1.0, -0.25, 0.0, 1.0, 9.0])
    ours = to_frames(values.reshape(6, 1, 1, 1).expand(6, 3, 1, 1))
    assert ours[:, 0, 0, 0].tolist() == [0, 0, 96, 128, 255, 255]
    # levels 64.5 and 65.5, exactly
    halves = torch.tensor([2 * 64.5 / 255 - 1, 2 * 65.5 / 255 - 1]).reshape(2, 1, 1, 1)
    assert to_frames(halves)[:, 0, 0, 0].tolist() == [64, 66]
    assert to_frames(torch.zeros(1, 3, 2, 2, dtype=torch.float16)).max() == 128
