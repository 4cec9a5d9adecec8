"""ICC profiles (ICC.1:2001-04) of few bytes, for tests."""

from __future__ import annotations

import struct

import numpy as np

# linear RGB to CIE XYZ under D50, by columns: as such profiles have it
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
ADOBE = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
D50 = (0.9642, 1.0, 0.8249)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def rgb(to_xyz, gamma: float | tuple[float, ...]) -> bytes:
    """Of primaries, and a gamma or sRGB's parameters."""
    columns = zip(*to_xyz, strict=True)
    tags = {f"{c}XYZ": _xyz(x) for c, x in zip("rgb", columns, strict=True)}
    tags |= {f"{c}TRC": _curve(gamma) for c in "rgb"}
    return _profile("RGB ", "XYZ ", tags)


def gray(gamma: float) -> bytes:
    return _profile("GRAY", "XYZ ", {"kTRC": _curve(gamma)})


def cmyk(lab_of_magenta: tuple[float, float, float]) -> bytes:
    """Paper is white, any black ink is black, and magenta alone is of one color; so are others."""
    clut = []
    for corner in range(16):
        black, magenta = corner & 1, corner >> 2 & 1
        light, a, b = (0, 0, 0) if black else lab_of_magenta if magenta else (100, 0, 0)
        clut += [round(light * 2.55), round(a + 128), round(b + 128)]
    table = bytes(range(256))
    identity = struct.pack(">9i", *(np.eye(3, dtype=int).ravel() * 65536))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + table * 4 + bytes(clut) + table * 3
    return _profile("CMYK", "Lab ", {"A2B0": lut}, "prtr")


def _profile(space: str, pcs: str, tags: dict[str, bytes], kind: str = "mntr") -> bytes:
    text = b"test"
    tags = {"wtpt": _xyz(D50), "cprt": b"text" + bytes(4) + text + b"\0", **tags}
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(79)
    tags = {"desc": desc, **tags}
    place, index, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        index += name.encode() + struct.pack(">2I", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI", place + len(body), b"lcms", 0x02400000)
    head += (kind + space + pcs).encode() + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head += bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def _curve(gamma: float | tuple[float, ...]) -> bytes:
    if isinstance(gamma, tuple):
        numbers = (round(v * 65536) for v in gamma)
        return b"para" + bytes(4) + struct.pack(">2H5i", 3, 0, *numbers)
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
