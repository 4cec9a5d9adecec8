"""What the numbers of picture files mean: colors, depths, formats."""

import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from anyv2v.errors import InputError
from anyv2v.media import picture
from anyv2v.media.image import read_image
from tests import icc

cv2 = pytest.importorskip("cv2")

RGB = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

# linear sRGB to others, as published (CSS Color 4, and Lindbloom's Adobe RGB 1998)
TO_P3 = np.array(
    [[0.8224621, 0.1775380, 0], [0.0331941, 0.9668058, 0], [0.0170827, 0.0723974, 0.9105199]]
)
TO_ADOBE = np.array([[0.7151256, 0.2848744, 0], [0, 1, 0], [0, 0.0411619, 0.9588381]])


def patches() -> np.ndarray:
    """(64, 64, 3): sixteen colors, so that lossy files keep their middles."""
    colors = np.random.default_rng(1).integers(30, 236, (4, 4, 3))
    colors[0, :3] = (220, 30, 30), (30, 180, 30), (235, 235, 235)
    return colors.repeat(16, 0).repeat(16, 1).astype(np.uint8)


def linear(levels):
    v = np.asarray(levels) / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encode(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def p3(levels):
    return np.rint(255 * encode(linear(levels) @ TO_P3.T)).astype(np.uint8)


def adobe(levels):
    light = np.clip(linear(levels) @ TO_ADOBE.T, 0, 1)
    return np.rint(255 * light ** (256 / 563)).astype(np.uint8)


def middles(image):
    return image[8::16, 8::16].astype(int)


def off(ours, truth):
    return np.abs(middles(ours) - middles(truth)).max()


def png(*chunks, image=None) -> bytes:
    """A PNG with further chunks, (name, data), after its header."""
    data = BytesIO()
    (Image.fromarray(patches()) if image is None else image).save(data, "PNG")
    return with_chunks(data.getvalue(), *chunks)


def with_chunks(data: bytes, *chunks) -> bytes:
    added = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return data[:33] + added + data[33:]


def gama(gamma: float):
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def chrm(*values):
    return b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in values))


P3_CHRM = chrm(0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


# colors


FORMATS = {
    "png": {},
    "jpg": {"quality": 100, "subsampling": 0},
    "webp": {"lossless": True},
    "tif": {},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_display_p3_becomes_srgb(tmp_path, suffix):
    path, profile = tmp_path / f"a.{suffix}", icc.rgb(icc.P3, icc.SRGB_CURVE)
    Image.fromarray(p3(patches())).save(path, icc_profile=profile, **FORMATS[suffix])
    # AVIF is 8-bit YCbCr in between
    close = 8 if suffix == "avif" else 4
    assert off(read_image(path), patches()) <= close
    assert off(p3(patches()), patches()) > 20
    with Image.open(path) as image:
        assert off(read_image(image), patches()) <= close
        assert off(read_image(image.resize((64, 64))), patches()) <= close


def test_profiles_of_other_curves_and_spaces(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(adobe(patches())).save(path, icc_profile=icc.rgb(icc.ADOBE, 563 / 256))
    assert off(read_image(path), patches()) <= 4

    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    truth = np.rint(255 * encode((gray / 255) ** 1.8))
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.fromarray(gray).save(tmp_path / name, icc_profile=icc.gray(1.8), quality=100)
        ours = read_image(tmp_path / name).astype(int)
        assert np.abs(ours - truth[..., None]).max() <= 6
        assert np.abs(gray - truth).max() > 10


def test_a_profile_of_inks(tmp_path):
    """L*a*b* of sRGB's red under D50, so that full magenta is to become red."""
    profile = icc.cmyk((54.3, 80.8, 69.9))
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16, 1] = 255
    inks[:, 16:, 3] = 255
    for name, options in (("a.tif", {}), ("a.jpg", {"quality": 100, "subsampling": 0})):
        Image.fromarray(inks, "CMYK").save(tmp_path / name, icc_profile=profile, **options)
        ours = read_image(tmp_path / name).astype(int)
        truth = [(255, 255, 255), (255, 0, 0), (0, 0, 0)]
        assert np.abs(ours[4, 4::8] - truth).max() <= 6
    naive = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)
    assert np.abs(naive[4, 4::8] - truth).max() > 200


def test_srgb_by_name_changes_nothing(tmp_path):
    path = tmp_path / "a.png"
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, icc.rgb(icc.SRGB, icc.SRGB_CURVE)):
        Image.fromarray(RGB).save(path, icc_profile=profile)
        np.testing.assert_array_equal(read_image(path), RGB)
    srgb = chrm(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    image = Image.fromarray(RGB)
    for chunks in ((gama(0.45455), srgb), ((b"sRGB", b"\0"), gama(1.0)), (gama(1 / 2.2),)):
        path.write_bytes(png(*chunks, image=image))
        np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (b"no profile", "RGB"),
        (icc.rgb(icc.P3, 2.2)[:300], "RGB"),
        (icc.gray(2.2), "RGB"),
        (icc.rgb(icc.P3, 2.2), "CMYK"),
    ],
)
def test_a_profile_that_cannot_be_applied_is_left_out_and_said(tmp_path, caplog, profile, mode):
    image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "a.tif", icc_profile=profile)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))
    assert "color profile is left out" in caplog.text


@pytest.mark.parametrize("gamma", [1.0, 0.55, 0.3])
def test_gama_is_honored(tmp_path, gamma):
    path, values = tmp_path / "a.png", np.arange(256, dtype=np.uint8)
    ramp = Image.fromarray(np.stack([values, values[::-1], values], -1)[None])
    path.write_bytes(png(gama(gamma), image=ramp))
    truth = np.rint(255 * encode((np.asarray(ramp) / 255) ** (1 / gamma)))
    assert np.abs(read_image(path) - truth).max() <= 1
    with Image.open(path) as image:
        assert np.abs(read_image(image) - truth).max() <= 1
    gray = ramp.getchannel(0)
    path.write_bytes(png(gama(gamma), image=gray))
    assert np.abs(read_image(path)[..., 0] - truth[..., 0]).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_linear_light_of_sixteen_bits_keeps_its_shadows(tmp_path, channels):
    shape = (16, 16) if channels == 1 else (16, 16, channels)
    values = np.random.default_rng(2).integers(0, 2000, shape, dtype=np.uint16)
    done, data = cv2.imencode(".png", values)
    assert done
    (tmp_path / "a.png").write_bytes(with_chunks(data.tobytes(), gama(1.0)))
    rgb = np.dstack([values] * 3) if channels == 1 else values[..., 2::-1]
    truth = np.rint(255 * encode(rgb / 65535))
    assert np.abs(read_image(tmp_path / "a.png") - truth).max() <= 1


def test_primaries_by_chunk_by_code_point_and_by_exif(tmp_path):
    path, wide = tmp_path / "a.png", Image.fromarray(p3(patches()))
    for chunks in (
        (gama(0.45455), P3_CHRM),
        (P3_CHRM,),
        ((b"cICP", bytes([12, 13, 0, 1])), gama(1.0)),
    ):
        path.write_bytes(png(*chunks, image=wide))
        assert off(read_image(path), patches()) <= 3

    data = BytesIO()
    wide.save(data, "AVIF", quality=100, subsampling="4:4:4")
    box = data.getvalue().index(b"colrnclx") + 8
    for transfer in (13, 1, 2):
        changed = bytearray(data.getvalue())
        changed[box : box + 4] = struct.pack(">2H", 12, transfer)
        (tmp_path / "a.avif").write_bytes(changed)
        assert off(read_image(tmp_path / "a.avif"), patches()) <= 8

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    for name in ("a.jpg", "a.webp"):
        image = Image.fromarray(adobe(patches()))
        image.save(tmp_path / name, exif=exif, quality=100, subsampling=0, lossless=True)
        assert off(read_image(tmp_path / name), patches()) <= 5
        assert off(adobe(patches()), patches()) > 15


def test_what_is_no_color_is_left_out_and_hdr_refused(tmp_path, caplog):
    path, image = tmp_path / "a.png", Image.fromarray(RGB)
    for chunks in ((gama(0),), (chrm(*[0] * 8),), (chrm(0.3, 0.3, *[0.3, 0.3] * 3),)):
        caplog.clear()
        path.write_bytes(png(*chunks, image=image))
        np.testing.assert_array_equal(read_image(path), RGB)
        assert "is left out" in caplog.text
    for points, says in (((9, 16), r"HDR picture \(PQ\)"), ((9, 18), "HLG"), ((99, 13), "99")):
        path.write_bytes(png((b"cICP", bytes([*points, 0, 1])), image=image))
        with pytest.raises(InputError, match=f"a.png .*{says}"):
            read_image(path)


# depths


def tiff(samples: bytes, size, tags, order="<") -> bytes:
    """One strip; a tag is an int, or a tuple of shorts."""
    width, height = size
    tags = {256: width, 257: height, 259: 1, 277: 1, 278: height, 279: len(samples), **tags}
    tags[273] = data_at = 8 + 2 + 12 * (len(tags) + 1) + 4 + 64
    entries, extra = b"", b""
    for tag, value in sorted(tags.items()):
        value = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(value)}{'H' if len(value) > 1 else 'I'}", *value)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(f"{order}I", data_at - 64 + len(extra))
        kind = 3 if len(value) > 1 else 4
        entries += struct.pack(f"{order}HHI", tag, kind, len(value)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    return head + extra.ljust(64, b"\0") + samples


def packed_12(values) -> bytes:
    a, b = values.reshape(-1, 2).T.astype(np.uint16)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()


def test_gray_of_12_bits(tmp_path):
    values = np.arange(4096).reshape(64, 64)
    truth = np.rint(values * 255 / 4095)
    tags = {258: 12, 262: 1}
    (tmp_path / "a.tif").write_bytes(tiff(packed_12(values), (64, 64), tags))
    deflated = zlib.compress(packed_12(values))
    (tmp_path / "b.tif").write_bytes(tiff(deflated, (64, 64), {**tags, 259: 8}))
    header = b"P5 64 64 4095\n"
    (tmp_path / "c.pgm").write_bytes(header + values.astype(">u2").tobytes())
    for name in ("a.tif", "b.tif", "c.pgm"):
        ours = read_image(tmp_path / name)
        assert np.abs(ours - truth[..., None]).max() <= 1, name


def test_samples_of_16_bits_are_rounded(tmp_path):
    values = np.random.default_rng(3).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    truth = np.rint(values / 257)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    for name, compression in (("a.tif", 1), ("b.tif", 5), ("c.tif", 8)):
        options = [cv2.IMWRITE_TIFF_COMPRESSION, compression]
        cv2.imwrite(str(tmp_path / name), values[..., ::-1], options)
    big = values.astype(">u2").tobytes()
    tags = {258: (16, 16, 16), 262: 2, 277: 3}
    (tmp_path / "d.tif").write_bytes(tiff(big, (64, 64), tags, ">"))
    for name in ("a.png", "a.tif", "b.tif", "c.tif", "d.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), truth, name)
    Image.fromarray(values[..., 0]).save(tmp_path / "a.jp2")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jp2")[..., 0], truth[..., 0])


def test_white_may_be_zero(tmp_path):
    values = np.random.default_rng(4).integers(0, 65536, (8, 8), dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(values.tobytes(), (8, 8), {258: 16, 262: 0}))
    truth = 255 - np.rint(values / 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], truth)


def test_floats_of_0_to_1(tmp_path):
    values = np.random.default_rng(5).random((16, 16), dtype=np.float32)
    truth = np.rint(values * 255)
    Image.fromarray(values).save(tmp_path / "a.tif")
    cv2.imwrite(str(tmp_path / "b.tif"), values, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    cv2.imwrite(str(tmp_path / "c.pfm"), values)
    for name in ("a.tif", "b.tif", "c.pfm"):
        assert np.abs(read_image(tmp_path / name)[..., 0] - truth).max() <= 1
    assert np.abs(read_image(Image.fromarray(values))[..., 0] - truth).max() <= 1


REFUSED = {
    "floats.tif": (lambda: saved(np.float32([[0, 254.5]])), "floats of 0 to 254.5"),
    "negative.tif": (lambda: saved(np.float32([[-1, 1]])), "floats of -1 to 1"),
    "nan.tif": (lambda: saved(np.float32([[np.nan, 1]])), "floats of 1 to 1 and NaN"),
    "deep.tif": (lambda: tiff(bytes(range(16)), (2, 2), {258: 32, 262: 1}), "of 32 bits"),
    "signed.tif": (lambda: tiff(b"\1\x80" * 4, (2, 2), {258: 16, 262: 1, 339: 2}), "signed.*-3276"),
    "signed8.tif": (lambda: tiff(b"\1\x80" * 2, (2, 2), {258: 8, 262: 1, 339: 2}), "signed"),
    "planes.tif": (
        lambda: tiff(bytes(24), (2, 2), {258: (16, 16, 16), 262: 2, 277: 3, 284: 2}),
        "separate planes",
    ),
    "odd.tif": (lambda: tiff(bytes(10), (8, 1), {258: 10, 262: 1}), "kind of TIFF"),
    "floats3.tif": (lambda: cv2_saved(".tif", np.float32([[[0, 1, 1]]])), "kind of TIFF"),
    "deep.jp2": (lambda: cv2_saved(".jp2", RGB.astype(np.uint16) * 257), "3 channels of 16 bits"),
}


def saved(values) -> bytes:
    data = BytesIO()
    Image.fromarray(values).save(data, "TIFF")
    return data.getvalue()


def cv2_saved(suffix, values) -> bytes:
    done, data = cv2.imencode(suffix, values)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_mean_nothing_certain_are_refused(tmp_path, name):
    make, says = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=f"{name} .*{says}"):
        read_image(tmp_path / name)


def test_pil_images_of_32_bits():
    values = np.array([[0, 65535, 257]], np.int32)
    assert read_image(Image.fromarray(values))[0, :, 0].tolist() == [0, 255, 1]
    for wrong, says in (([[0, 70000]], "0 to 70000"), ([[-1, 9]], "-1 to 9"), ([[0, 200]], "200")):
        with pytest.raises(InputError, match=f"an image has integers of .*{says}"):
            read_image(Image.fromarray(np.array(wrong, np.int32)))


def test_dark_pictures_of_16_bits_are_said(tmp_path, caplog):
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 1, 0] == 16
    assert "only 0 to 4095" in caplog.text


def test_other_color_models(tmp_path, caplog):
    for mode in ("LAB", "YCbCr", "CMYK", "HSV"):
        image = Image.fromarray(patches()).convert(mode)
        assert off(read_image(image), patches()) <= 8, mode
    Image.fromarray(patches()).convert("LAB").save(tmp_path / "lab.tif")
    assert off(read_image(tmp_path / "lab.tif"), patches()) <= 8
    assert not caplog.text
    premultiplied = tiff(bytes([40, 255, 100, 200]), (2, 1), {258: (8, 8), 262: 1, 277: 2, 338: 1})
    (tmp_path / "la.tif").write_bytes(premultiplied)
    if "La" in {mode for mode, _ in TiffImagePlugin.OPEN_INFO.values()}:
        assert np.abs(read_image(tmp_path / "la.tif")[0, :, 0] - [40, 127.5]).max() <= 1
    else:  # Pillow before 13
        with pytest.raises(InputError, match="a kind of TIFF that is not read"):
            read_image(tmp_path / "la.tif")


# formats


def test_formats_that_are_not_meant_are_refused_unread(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("was opened")

    for name in ("EPS", "FITS", "WMF", "PSD", "ICO"):
        Image.init()
        monkeypatch.setitem(Image.OPEN, name, (never, Image.OPEN[name][1]))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"
    icon, fits = BytesIO(), b"SIMPLE  =                    T".ljust(2880)
    Image.fromarray(RGB[:16, :16]).save(icon, "ICO")
    for name, data in (("a.png", postscript), ("b.jpg", icon.getvalue()), ("c.tif", fits)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} .*none of the picture formats.*JPEG 2000"):
            read_image(tmp_path / name)


def test_every_format_that_is_meant_is_read(tmp_path):
    image = Image.fromarray(patches())
    for suffix in ("png", "jpg", "webp", "avif", "tif", "bmp", "gif", "ppm", "jp2", "tga"):
        # by content, whatever its name
        for name in (f"a.{suffix}", f"{suffix}.dat"):
            image.save(tmp_path / name, image.format or Image.registered_extensions()[f".{suffix}"])
            assert off(read_image(tmp_path / name), patches()) <= 12, name
    assert picture.format_of(tmp_path / "a.jpg") == "JPEG"


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_names_a_converter(tmp_path, brand):
    body = b"ftyp" + brand + bytes(4) + b"mif1heic"
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 4 + len(body)) + body + bytes(100))
    with pytest.raises(InputError, match="HEIC.*heif-convert a.jpg a.png"):
        read_image(tmp_path / "a.jpg")


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="a.png cannot be read as an image: it is empty"):
        read_image(tmp_path / "a.png")


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/null"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            read_image(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_is_no_color(tmp_path):
    for broken in (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"):
        Image.fromarray(RGB).save(tmp_path / "a.png", exif=broken)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_a_length_that_a_file_only_claims_takes_no_memory(tmp_path):
    """Found by fuzzing: Pillow asks for as many bytes as a chunk of a PNG says it has."""
    import tracemalloc

    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    tracemalloc.start()
    try:
        with suppress(InputError):
            read_image(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_picture_that_is_too_large_is_refused(tmp_path, monkeypatch):
    """Found by fuzzing: half a megabyte may hold 170 million pixels, which took 4.5 GB and 17 s."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(picture, "MOST_PIXELS", 64 * 64 - 1)
    with pytest.raises(InputError, match="a.png is 64x64, too large"):
        read_image(tmp_path / "a.png")
