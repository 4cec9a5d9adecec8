"""Conversion of HDR and wide-gamut videos to the colors of an SDR screen.

Matrices, primaries and transfer characteristics are given by their code points in ITU-T H.273,
which FFmpeg uses as well.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from anyv2v.errors import InputError

UNSPECIFIED = 2
BT709, BT2020, DCI_P3, DISPLAY_P3 = 1, 9, 11, 12
PQ, HLG = 16, 18
# screens, phones and synthetic pictures; IEC 61966-2-1
SRGB = 13
BT2020_MATRIX = 9

# cd/m2 of diffuse white in HDR, and of its highlights (ITU-R BT.2408: reference white, nominal
# peak). brighter ones are clipped
WHITE, PEAK = 203.0, 1000.0
# of SDR white; what is darker stays as it is
KNEE = 0.6
# of a reference SDR screen (ITU-R BT.1886)
GAMMA = 2.4

# x, y of red, green, blue and white (ITU-R BT.709, BT.2020, SMPTE RP 431-2, EG 432-1)
D65 = (0.3127, 0.3290)
CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
# cone responses of Bradford's chromatic adaptation
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

REFUSED_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "Y'D'zD'x (SMPTE ST 2085)",
    12: "nonconstant luminance derived from the primaries",
    13: "constant luminance derived from the primaries",
    14: "ICtCp",
    15: "IPT-PQ-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
REFUSED_TRANSFERS = {
    8: "linear light",
    9: "a logarithmic curve (100:1)",
    10: "a logarithmic curve (316:1)",
    17: "the gamma of digital cinema (SMPTE ST 428-1)",
}
REFUSED_PRIMARIES = {10: "CIE XYZ (SMPTE ST 428-1)"}
LAST_TRANSFER = 18

# pixels that are worked on together: few enough for a processor's cache
CHUNK = 2**16


def check(name, matrix: int | None, primaries: int, transfer: int) -> None:
    """Raises InputError if colors with these H.273 code points cannot be converted to SDR.

    name: the video's name, with which the message begins. matrix: that of YUV; None for RGB.
    """
    what = None if matrix is None else REFUSED_MATRICES.get(matrix)
    what = what or REFUSED_PRIMARIES.get(primaries) or REFUSED_TRANSFERS.get(transfer)
    if transfer > LAST_TRANSFER:
        what = what or f"the unknown transfer curve {transfer}"
    if what:
        raise InputError(
            f"{name}: its colors are in {what}, which is not understood; "
            "convert them to BT.709 first"
        )


def is_foreign(primaries: int, transfer: int) -> bool:
    """Whether a video needs `to_sdr`: it is HDR (PQ, HLG) or has a wide gamut (BT.2020, P3).

    primaries, transfer: code points of H.273.
    """
    return transfer in (PQ, HLG) or primaries in (BT2020, DCI_P3, DISPLAY_P3)


def to_sdr(signal: np.ndarray, white: int, primaries: int, transfer: int) -> np.ndarray:
    """Converts an R'G'B' picture, uint16 (h, w, 3), to uint8 (h, w, 3) for an SDR screen.

    white: the uint16 level of signal 1.0. primaries, transfer: code points of H.273.

    HDR (PQ of SMPTE ST 2084, HLG of ARIB STD-B67 with the OOTF of ITU-R BT.2100 for 1000 cd/m2) is
    shown with 203 cd/m2 as SDR white. Its highlights up to 1000 cd/m2 are compressed by `mobius`,
    applied to the largest of the three channels, which keeps hues. Primaries are converted to
    BT.709 in linear light, and colors outside its gamut are clipped. SDR is decoded, and the result
    encoded, with the gamma of 2.4 of BT.1886; a video with sRGB's curve keeps that curve.
    """
    table = _linear(transfer, white)
    to_709 = None if primaries not in CHROMATICITIES else _between(primaries, BT709)
    flat = signal.reshape(-1, 3)
    out = np.empty(flat.shape, np.uint8)
    for begin in range(0, len(flat), CHUNK):
        light = table.take(flat[begin : begin + CHUNK])
        if transfer == HLG:
            light *= (PEAK / WHITE) * (light @ _luminance(BT2020))[:, None] ** np.float32(0.2)
        if to_709 is not None and primaries != BT709:
            light = light @ to_709.T
        np.maximum(light, 0, out=light)
        if transfer in (PQ, HLG):
            # numpy's maximum along so short an axis would take half of all the time
            brightest = np.maximum(np.maximum(light[:, :1], light[:, 1:2]), light[:, 2:])
            light *= mobius(brightest) / np.maximum(brightest, np.float32(1e-6))
        np.minimum(light, 1, out=light)
        shown = srgb_signal(light) if transfer == SRGB else light ** np.float32(1 / GAMMA)
        out[begin : begin + CHUNK] = 255 * shown + np.float32(0.5)
    return out.reshape(signal.shape)


def mobius(light: np.ndarray, knee: float = KNEE, peak: float = PEAK / WHITE) -> np.ndarray:
    """Compresses highlights of linear light by the curve "mobius" of FFmpeg's filter `tonemap`.

    Light is relative to SDR white. The curve is the identity up to `knee`, smooth beyond it, and
    reaches 1 at `peak`.
    """
    a = -(knee**2) * (peak - 1) / (knee**2 - 2 * knee + peak)
    b = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
    scale = (b**2 + 2 * b * knee + knee**2) / (b - a)
    return np.where(light > knee, scale * (light + a) / (np.maximum(light, knee) + b), light)


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """Converts a PQ signal in 0..1 to light in cd/m2, up to 10,000: the EOTF of SMPTE ST 2084."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """Converts an HLG signal in 0..1 to scene light in 0..1: the inverse OETF of ITU-R BT.2100."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    """Converts linear light in 0..1 to an sRGB signal in 0..1 (IEC 61966-2-1)."""
    curve = np.float32(1.055) * light ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(light <= 0.0031308, np.float32(12.92) * light, curve)


@lru_cache(maxsize=4)
def _linear(transfer: int, white: int) -> np.ndarray:
    """float32 (65536,): light for each 16-bit level, 1.0 being SDR white; for HLG, scene light."""
    signal = np.minimum(np.arange(2**16) / white, 1)
    if transfer == PQ:
        light = pq_to_light(signal) / WHITE
    elif transfer == HLG:
        light = hlg_to_scene(signal)
    elif transfer == SRGB:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    else:
        light = signal**GAMMA
    return light.astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """The matrix (3, 3) from linear RGB to CIE XYZ (SMPTE RP 177)."""
    *colors, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in CHROMATICITIES[primaries])
    columns = np.stack(colors, axis=1)
    return columns * np.linalg.solve(columns, white)


def _luminance(primaries: int) -> np.ndarray:
    return _to_xyz(primaries)[1].astype(np.float32)


@lru_cache(maxsize=8)
def _between(source: int, target: int) -> np.ndarray:
    """The float32 matrix (3, 3) from linear RGB of one gamut to another; white stays white."""
    from_source, from_target = _to_xyz(source), _to_xyz(target)
    cones = (BRADFORD @ from_target.sum(axis=1)) / (BRADFORD @ from_source.sum(axis=1))
    adapted = np.linalg.inv(BRADFORD) @ (cones[:, None] * BRADFORD) @ from_source
    return (np.linalg.inv(from_target) @ adapted).astype(np.float32)
