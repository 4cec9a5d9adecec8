"""Masks as people draw them and tools write them: what they select."""

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.cli import main as cli
from anyv2v.errors import InputError
from anyv2v.frame_editors.mask import as_mask
from anyv2v.media.image import read_image
from anyv2v.media.mask import fit_mask, read_mask

cv2 = pytest.importorskip("cv2")

H, W = 24, 36
Y, X = np.mgrid[:H, :W]
INSIDE = (X - 20) ** 2 + (Y - 10) ** 2 < 49
LEVELS = np.where(INSIDE, 255, 0).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def flat(*color):
    return np.broadcast_to(np.uint8(color), (H, W, len(color)))


def palette(indices, *colors):
    image = Image.fromarray(indices.astype(np.uint8), "L").copy()
    image = Image.frombytes("P", (W, H), image.tobytes())
    image.putpalette([value for color in colors for value in color])
    return image


def with_alpha(colors, alpha=LEVELS):
    return Image.fromarray(np.dstack([colors, alpha]))


def cut_out(inside, outside):
    return np.where(INSIDE[..., None], np.uint8(inside), np.uint8(outside))


CLASSES = np.where(INSIDE, np.where(X < 20, 1, 2), 0)
VOC = ((0, 0, 0), (128, 0, 0), (0, 128, 0))

PICTURES = {
    "white under alpha": with_alpha(flat(255, 255, 255)),
    "black under alpha": with_alpha(flat(0, 0, 0)),
    "red under alpha": with_alpha(flat(200, 30, 30)),
    "white on nothing": with_alpha(cut_out((255, 255, 255), (0, 0, 0))),
    "black on nothing": with_alpha(cut_out((0, 0, 0), (255, 255, 255))),
    "alpha of 0 and 1": with_alpha(flat(9, 9, 9), INSIDE.astype(np.uint8)),
    "gray and alpha": Image.fromarray(np.dstack([flat(255)[..., 0], LEVELS]), "LA"),
    "white on opaque black": with_alpha(cut_out((255, 255, 255), (0, 0, 0)), flat(255)[..., 0]),
    "white and its own alpha": with_alpha(
        np.dstack([LEVELS] * 3), np.where(X < 9, 255, LEVELS).astype(np.uint8)
    ),
    "0 and 255": Image.fromarray(LEVELS),
    "0 and 1": Image.fromarray(INSIDE.astype(np.uint8)),
    "0 and 1 in RGB": Image.fromarray(np.dstack([INSIDE.astype(np.uint8)] * 3)),
    "one bit": Image.fromarray(LEVELS).convert("1"),
    "16 bits": Image.fromarray(np.where(INSIDE, 65535, 0).astype(np.uint16)),
    "0 and 1 of 16 bits": Image.fromarray(INSIDE.astype(np.uint16)),
    "0 and 255 of 16 bits": Image.fromarray(LEVELS.astype(np.uint16)),
    "0 and 1 of 32 bits": Image.fromarray(INSIDE.astype(np.int32)),
    "0 and 255 of 32 bits": Image.fromarray(LEVELS.astype(np.int32)),
    "0 and 1 of floats": Image.fromarray(INSIDE.astype(np.float32)),
    "0 and 255 of floats": Image.fromarray(LEVELS.astype(np.float32)),
    "palette of classes": palette(CLASSES, *VOC),
    "palette of one class": palette(INSIDE, *VOC[:2]),
    "palette of a dim class": palette(INSIDE, (0, 0, 0), (1, 1, 1)),
    "palette of gray": palette(INSIDE, *([i] * 3 for i in (0, 255))),
    "palette turned round": palette(~INSIDE, (255, 255, 255), (0, 0, 0)),
    "palette of two colors": palette(INSIDE, (0, 0, 200), (200, 0, 0)),
    "classes in RGB": Image.fromarray(np.uint8(VOC)[CLASSES]),
}
SUFFIXES = {"RGBA": ("png", "tif", "webp"), "P": ("png", "tif"), "L": ("png", "bmp", "tif", "jp2")}
SUFFIXES |= {"1": ("png", "tif"), "I;16": ("png", "tif"), "I": ("tif",), "F": ("tif",)}
SUFFIXES |= {"LA": ("png",), "RGB": ("png", "ppm", "webp")}


@pytest.mark.parametrize("name", PICTURES)
def test_a_mask_selects_what_it_means(tmp_path, name):
    image = PICTURES[name]
    np.testing.assert_array_equal(read_mask(image), INSIDE)
    for suffix in SUFFIXES[image.mode]:
        path = tmp_path / f"m.{suffix}"
        image.save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
        mask = read_mask(path)
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, INSIDE, suffix)


@pytest.mark.parametrize(
    "array",
    [
        INSIDE,
        LEVELS,
        INSIDE.astype(np.uint8),
        INSIDE.astype(np.int64),
        INSIDE.astype(np.float64),
        LEVELS.astype(np.float32),
        np.where(INSIDE, 65535, 0).astype(np.uint16),
        INSIDE.astype(np.uint16),
        LEVELS[..., None],
        np.dstack([LEVELS] * 3),
        np.dstack([flat(255, 255, 255), LEVELS]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}{array.max()}",
)
def test_a_mask_may_be_an_array(array):
    np.testing.assert_array_equal(read_mask(array), INSIDE)


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_what_jpeg_leaves_around_edges_is_not_selected(tmp_path, quality):
    big = LEVELS.repeat(8, 0).repeat(8, 1)
    Image.fromarray(big).save(tmp_path / "m.jpg", quality=quality)
    far = np.asarray(Image.fromarray(big).reduce(16)) == 0
    mask = np.asarray(Image.fromarray(read_mask(tmp_path / "m.jpg"))).reshape(
        H // 2, 16, W // 2, 16
    )
    assert not mask.max((1, 3))[far].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [("m.webp", {"quality": 60}), ("m.avif", {"quality": 60}), ("m.jp2", {"quality_layers": [20]})],
)
def test_nor_what_other_lossy_formats_leave(tmp_path, name, options):
    big = LEVELS.repeat(8, 0).repeat(8, 1)
    far = np.asarray(Image.fromarray(big).reduce(32)) == 0
    gray, alpha = Image.fromarray(np.dstack([big] * 3)), Image.new("RGBA", big.shape[::-1], "white")
    alpha.putalpha(Image.fromarray(big))
    for image in (gray, alpha):
        image.save(tmp_path / name, **options)
        mask = read_mask(tmp_path / name)[: 32 * far.shape[0], : 32 * far.shape[1]]
        assert not mask.reshape(far.shape[0], 32, far.shape[1], 32).max((1, 3))[far].any()


def test_levels_between_are_kept(tmp_path):
    soft = np.rint(np.linspace(0, 255, H * W)).reshape(H, W)
    for name, image in (
        ("a.png", Image.fromarray(soft.astype(np.uint8))),
        ("b.png", with_alpha(flat(255, 255, 255), soft.astype(np.uint8))),
        ("c.png", Image.fromarray((soft * 257).astype(np.uint16))),
        ("d.tif", Image.fromarray((soft / 255).astype(np.float32))),
    ):
        image.save(tmp_path / name)
        np.testing.assert_allclose(read_mask(tmp_path / name), soft / 255, atol=1e-4)


def test_the_orientation_holds_for_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("0 and 255", "white under alpha", "16 bits", "palette of classes"):
        PICTURES[name].save(tmp_path / "m.png", exif=exif)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.rot90(INSIDE, -1))


REFUSED = {
    "black": (np.zeros((H, W), np.uint8), "selects nothing .* 36x24 of mode L"),
    "white": (np.full((H, W), 255, np.uint8), "selects everything .* 36x24 of mode L"),
    "ones": (np.ones((H, W), np.uint8), "selects everything"),
    "half everywhere": (np.full((H, W), 128, np.uint8), "everything .* 50% of white everywhere"),
    "nearly white": (np.uint8(245 + X % 10), "everything .* 100% of white everywhere"),
    "labels": (CLASSES.astype(np.uint8), "its values are 0, 1, 2, of 0 to 255"),
    "deep labels": ((CLASSES * 100).astype(np.uint16), "its values are 0, 100, 200, of 0 to 65535"),
    "labels with edges": (
        np.where(X == 1, 255, CLASSES).astype(np.uint8),
        "its values are 0, 1, 2, 255, of 0 to 255",
    ),
    "photo": (NOISE, "in color, of 864 colors"),
    "cut-out photo": (np.dstack([NOISE, LEVELS]), "alpha varies, from 0 to 255, and so do its"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_without_meaning_is_refused_with_what_was_found(tmp_path, name):
    array, says = REFUSED[name]
    for suffix in ("png", "tif"):
        Image.fromarray(array).save(tmp_path / f"m.{suffix}")
        with pytest.raises(InputError, match=f"m.{suffix} .*{says}"):
            read_mask(tmp_path / f"m.{suffix}")
    with pytest.raises(InputError, match="^mask: an array "):
        read_mask(array)


def test_a_mask_that_pillow_reads_wrong_is_refused(tmp_path):
    """White of 16 bits a channel becomes black in its JPEG 2000."""
    deep = np.dstack([LEVELS.repeat(4, 0).repeat(4, 1).astype(np.uint16) * 257] * 3)
    cv2.imwrite(str(tmp_path / "m.jp2"), deep)
    with pytest.raises(InputError, match="m.jp2 is JPEG 2000 of 3 channels of 16 bits"):
        read_mask(tmp_path / "m.jp2")
    with Image.open(tmp_path / "m.jp2") as image, pytest.raises(InputError, match="^mask: a pic"):
        read_mask(image)


def test_a_mask_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("anyv2v.media.picture.MOST_PIXELS", H * W - 1)
    PICTURES["0 and 1"].save(tmp_path / "m.png")
    with pytest.raises(InputError, match="m.png is 36x24, too large"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 4)), np.zeros(4), np.zeros((2, 2, 2)), [["a"]], np.full((4, 4), np.nan)],
    ids=str,
)
def test_arrays_that_are_no_mask(array):
    with pytest.raises(InputError, match="mask: an array "):
        as_mask(array, (4, 4))


def test_a_mask_is_cut_as_the_frame_is():
    mask = fit_mask(INSIDE, (H, H), "crop")
    np.testing.assert_array_equal(mask, INSIDE[:, 6:-6])
    corner = np.zeros((H, W))
    corner[:, :4] = 1
    with pytest.raises(InputError, match="selects nothing .* crop to 24x24"):
        fit_mask(corner, (H, H), "crop")


class Negative:
    needs = frozenset()

    def __call__(self, request, seeds):
        return [255 - request.frame for _ in seeds]


@pytest.mark.parametrize("name", ["white under alpha", "0 and 1", "palette of classes", "16 bits"])
def test_what_a_mask_does_not_select_stays_to_the_bit(tmp_path, name):
    PICTURES[name].save(tmp_path / "m.png")
    found = anyv2v.edit_frame(NOISE, Negative(), mask=tmp_path / "m.png")
    np.testing.assert_array_equal(found[~INSIDE], NOISE[~INSIDE])
    np.testing.assert_array_equal(found[10, 20], 255 - NOISE[10, 20])


@pytest.mark.parametrize("name", ["white under alpha", "palette of classes", "0 and 1"])
def test_the_command_line_keeps_the_meaning(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("frame.png", NOISE[..., ::-1])
    PICTURES[name].save("m.png")
    command = "edit-frame frame.png --editor recolour --mask m.png -o out.png --editor-option"
    assert cli.main([*command.split(), "lightness=1", "--instruction", "black"]) == 0
    out = read_image("out.png")
    np.testing.assert_array_equal(out[~INSIDE], NOISE[~INSIDE])
    assert (out[INSIDE] != NOISE[INSIDE]).mean() > 0.5
    Image.fromarray(LEVELS * 0).save("m.png")
    assert cli.main([*command.split(), "lightness=1", "--instruction", "black", "--force"]) == 2
