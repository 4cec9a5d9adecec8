"""Valid files made invalid: every function takes a random generator and gives new bytes."""

from __future__ import annotations

import json
import struct
import zlib
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image


class Raw(str):
    """JSON text that stands for itself: what no Python value is written as."""


class Pairs(list):
    """An object as (key, value) pairs, so that a key can be there twice."""


HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**300)
NUMBERS = (0, -1, 1, 2, 3, 7, 100, 1000, 65536, 10**6, 10**9, *HUGE, *(-n for n in HUGE))
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"), -float("inf"))
TEXTS = (
    "",
    " ",
    "1",
    "0x10",
    "x" * 300,
    "x" * 100_000,
    "\0",
    "a\nb",
    "\ud800",
    "\udfff\ud800",
    "é" * 50,
    "\u202e\u0000",
    "../../../etc/passwd",
    "/dev/zero",
    "/etc/hostname",
    "__class__",
    "__metadata__",
    "NaN",
    "\U0010ffff",
)
RAWS = ("1e999", "-1e999", "9" * 5000, "9" * 4000, "-0", "1E400", "0.1e-400", "tru", "'a'", "")


def any_bytes(random: Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """A few changes anywhere."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        data = random.choice(_BYTE_CHANGES)(random, data, others) if data else b"\0"
    return data


def any_json(random: Random, value: Any) -> Any:
    """A few changes to a tree of JSON values."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        value = _change(random, value)
    return value


def dump(value: Any) -> bytes:
    """JSON that may hold `Raw` and `Pairs`; lone surrogates are escaped or, rarely, written out."""
    return _dump(value).encode("utf-8", "surrogatepass")


def json_file(random: Random, data: bytes) -> bytes:
    if random.random() < 0.2:
        return any_bytes(random, data)
    return dump(any_json(random, json.loads(data)))


def safetensors(random: Random, data: bytes) -> bytes:
    """Header, facts in the metadata, tensors, or bytes anywhere."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = random.random()
    if kind < 0.15:
        return any_bytes(random, data)
    if kind < 0.25:
        return data[: 8 + length] + any_bytes(random, body)
    if kind < 0.3:
        wrong = random.choice((0, length - 1, length + 8, *HUGE[:6], random.randrange(2**20)))
        return struct.pack("<Q", wrong % 2**64) + data[8:]
    if kind < 0.45:
        body = _poisoned(random, header, body)
    elif kind < 0.6:
        header = _retyped(random, header)
    elif kind < 0.8 and "source" in header.get("__metadata__", {}):
        facts = any_json(random, json.loads(header["__metadata__"]["source"]))
        text = _dump(facts).encode("utf-8", "replace").decode()
        header["__metadata__"]["source"] = text
    else:
        header = any_json(random, header)
    text = dump(header)
    return struct.pack("<Q", len(text)) + text + body


def png(random: Random, data: bytes) -> bytes:
    """Chunks with right sums, else bytes anywhere; now and then a whole picture that is huge."""
    if random.random() < 0.002:
        return _bomb(random)
    if random.random() < 0.4:
        return any_bytes(random, data)
    chunks = _chunks(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(chunks))
        name, body = chunks[at]
        kind = random.randrange(6)
        if kind == 0 and name == b"IHDR":
            chunks[at] = (name, _sizes(random, body))
        elif kind == 1:
            chunks[at] = (name, any_bytes(random, body))
        elif kind == 2:
            chunks.insert(random.randrange(len(chunks) + 1), chunks[at])
        elif kind == 3 and len(chunks) > 1:
            del chunks[at]
        elif kind == 4:
            chunks.insert(random.randrange(1, len(chunks) + 1), _odd_chunk(random))
        else:
            chunks[0] = (chunks[0][0], _sizes(random, chunks[0][1]))
    return data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def profiled(random: Random, data: bytes) -> bytes:
    """A picture with another color profile: its own with changes, that of another, or none such."""
    if random.random() < 0.25:
        return any_bytes(random, data)
    new = BytesIO()
    with Image.open(BytesIO(data)) as image:
        profile = image.info["icc_profile"]
        kind = random.random()
        if kind < 0.5:
            profile = _table(random, profile)
        elif kind < 0.9:
            profile = any_bytes(random, profile)
        else:
            profile = random.randbytes(random.choice((1, 127, 128, 132, 1000)))
        image.save(new, image.format, icc_profile=profile)
    return new.getvalue()


def gif(random: Random, data: bytes) -> bytes:
    """Sizes and places of the screen and of frames, delays and disposals, else bytes anywhere."""
    places = [4, *(i + 1 for i in range(len(data)) if data[i : i + 2] in (b"\x2c\0", b"\x21\xf9"))]
    if random.random() < 0.5:
        return any_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.choice(places) + random.randrange(9)
        number = random.choice((0, 1, 255, 256, 65535, random.randrange(65536)))
        data = data[:at] + struct.pack("<H", number) + data[at + 2 :]
    return data


def tiff(random: Random, data: bytes) -> bytes:
    """Tags: their names, kinds, counts and values; else bytes anywhere."""
    (at,) = struct.unpack("<I", data[4:8])
    if random.random() < 0.4 or at + 2 > len(data):
        return any_bytes(random, data)
    (count,) = struct.unpack("<H", data[at : at + 2])
    for _ in range(random.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * random.randrange(max(1, count))
        place, form, values = random.choice(
            (
                (0, "<H", (256, 257, 258, 259, 262, 274, 277, 278, 284, 317, 338, 339, 34675)),
                (2, "<H", range(14)),
                (4, "<I", (0, 1, 2, 3, 2**16, 2**31, 2**32 - 1)),
                (8, "<I", (*range(9), 12, 16, 24, 32, 64, 999, 2**16, 2**31, 2**32 - 1)),
            )
        )
        new = struct.pack(form, random.choice(values))
        data = data[: entry + place] + new + data[entry + place + len(new) :]
    return data


def jpeg(random: Random, data: bytes) -> bytes:
    """Sizes, lengths of segments, else bytes anywhere."""
    markers = [i for i in range(len(data) - 9) if data[i] == 0xFF and data[i + 1] in _SEGMENTS]
    if not markers or random.random() < 0.5:
        return any_bytes(random, data)
    at = random.choice(markers)
    if data[at + 1] in (0xC0, 0xC2) and random.random() < 0.7:
        height, width = (random.choice((0, 1, 65535, 20000, 300)) for _ in range(2))
        return data[: at + 5] + struct.pack(">2H", height, width) + data[at + 9 :]
    length = random.choice((0, 1, 2, 3, 65535, random.randrange(65536)))
    return data[: at + 2] + struct.pack(">H", length) + data[at + 4 :]


def mp4(random: Random, data: bytes) -> bytes:
    """Boxes' sizes, names and numbers, else bytes anywhere."""
    if random.random() < 0.35:
        return any_bytes(random, data)
    places = [i for i in (data.find(name) for name in _BOXES) if i >= 4]
    for _ in range(random.choice((1, 1, 2, 3))):
        if not places:
            break
        at = random.choice(places)
        kind = random.randrange(4)
        if kind == 0:
            size = random.choice((0, 1, 7, 8, 2**31, 2**32 - 1, random.randrange(65536)))
            data = data[: at - 4] + struct.pack(">I", size) + data[at:]
        elif kind == 1:
            data = data[:at] + random.choice(_BOXES) + data[at + 4 :]
        else:
            # full boxes hold versions, counts and times in fours
            (size,) = struct.unpack(">I", data[at - 4 : at])
            span = max(4, min(size - 8, 160, len(data) - at - 8))
            place = at + 4 + 4 * random.randrange(max(1, span // 4))
            place += random.choice((0, 0, 0, 1, 2))
            number = random.choice((0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1))
            if random.random() < 0.3:
                number = random.randrange(2**32)
            data = data[:place] + struct.pack(">I", number) + data[place + 4 :]
    return data


def lines(random: Random, data: bytes) -> bytes:
    """Lines lost, doubled, swapped, split; odd characters; else bytes anywhere."""
    if random.random() < 0.2:
        return any_bytes(random, data)
    text = data.decode().split("\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(text)), random.randrange(len(text))
        kind = random.randrange(7)
        if kind == 0:
            text[at], text[other] = text[other], text[at]
        elif kind == 1:
            text.insert(at, text[other])
        elif kind == 2 and len(text) > 1:
            del text[at]
        elif kind == 3:
            text[at] += random.choice((" x", " ", "\t", "\r", "\u2028", "\x85", "\0", "</w>"))
        elif kind == 4:
            text[at] = random.choice(TEXTS).encode("utf-8", "replace").decode()
        elif kind == 5:
            text[at] = text[at].replace(" ", random.choice(("", "\u00a0", "  ", "\n")))
        else:
            text = text[: max(1, at)] if random.random() < 0.5 else text * 30
    return "\n".join(text).encode()


def _change(random: Random, value: Any) -> Any:
    """The value with one of its parts replaced, or with one key more, less, or twice."""
    if isinstance(value, Pairs) and value:
        at = random.randrange(len(value))
        key, inner = value[at]
        return Pairs([*value[:at], (key, _change(random, inner)), *value[at + 1 :]])
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        kind = random.random()
        if kind < 0.7:
            return {**value, key: _change(random, value[key])}
        if kind < 0.78:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.85:
            return {**value, random.choice(TEXTS): value[key]}
        if kind < 0.93:
            other = random.choice(list(value))
            return {**value, key: value[other], other: value[key]}
        return Pairs([*value.items(), (key, _change(random, value[key]))])
    if isinstance(value, list) and value and random.random() < 0.75:
        at = random.randrange(len(value))
        kind = random.random()
        if kind < 0.7:
            return [*value[:at], _change(random, value[at]), *value[at + 1 :]]
        if kind < 0.8:
            return value[:at] + value[at + 1 :]
        if kind < 0.95:
            return [*value, value[at]]
        return value * random.choice((2, 10, 3000)) if len(value) < 10 else value
    if type(value) is int and random.random() < 0.4:
        return value + random.choice((-1, 1, 8, -8, value, -2 * value))
    return _odd(random)


def _odd(random: Random) -> Any:
    kind = random.randrange(9)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice(FLOATS)
    if kind < 5:
        return random.choice(TEXTS)
    if kind == 5:
        return Raw(random.choice(RAWS))
    if kind == 6:
        depth = random.choice((2, 50, 400, 700, 900, 990, 1100, 5000, 100_000))
        open_, close = random.choice((("[", "]"), ('{"a":', "}")))
        return Raw(open_ * depth + "1" + close * depth)
    return random.choice((None, True, False, [], {}, [None], {"": 0}, [[1, 2], [3]], [1] * 5000))


def _dump(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, (dict, Pairs)):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(f"{json.dumps(k)}:{_dump(v)}" for k, v in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and len(value) % 2))


def _flip(random, data, others):
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _set(random, data, others):
    at = random.randrange(len(data))
    return data[:at] + random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) + data[at + 1 :]


def _number(random, data, others):
    at, size = random.randrange(len(data)), random.choice((2, 4, 8))
    number = random.choice((0, 1, 2**15, 2**31, 2**63, 2**64 - 1, 10**6)) % 2 ** (8 * size)
    return data[:at] + number.to_bytes(size, random.choice(("little", "big"))) + data[at + size :]


def _truncate(random, data, others):
    return data[: random.randrange(len(data))]


def _cut(random, data, others):
    at = random.randrange(len(data))
    return data[:at] + data[at + random.choice((1, 2, 4, 16, 256)) :]


def _repeat(random, data, others):
    at = random.randrange(len(data))
    return data[:at] + data[max(0, at - random.choice((1, 4, 64, 1024))) : at] + data[at:]


def _insert(random, data, others):
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice((1, 3, 8, 100))) + data[at:]


def _splice(random, data, others):
    other = random.choice(others) if others else data
    return data[: random.randrange(len(data))] + other[random.randrange(max(1, len(other))) :]


def _zeros(random, data, others):
    at, size = random.randrange(len(data)), random.choice((4, 32, 512))
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


_BYTE_CHANGES = (_flip, _flip, _set, _number, _truncate, _cut, _repeat, _insert, _splice, _zeros)


def _tensors(header: dict) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _poisoned(random: Random, header: dict, body: bytes) -> bytes:
    """NaN, infinity or huge values among a tensor's."""
    entry = header[random.choice(_tensors(header))]
    start, end = entry["data_offsets"]
    values = struct.pack("<f", random.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
    at = start + 4 * random.randrange(max(1, (end - start) // 4))
    return body[:at] + values + body[at + 4 :]


DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64")
DTYPES += ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "C128", "Q4", "")


def _retyped(random: Random, header: dict) -> dict:
    """Tensors of other dtypes, shapes, places or names that may still fit together."""
    names = _tensors(header)
    a, b = random.choice(names), random.choice(names)
    header = {name: dict(value) for name, value in header.items()}
    shape = list(header[a]["shape"])
    kind = random.randrange(7)
    if kind == 0:
        header[a]["dtype"] = random.choice(DTYPES)
    elif kind == 1:
        header[a]["dtype"] = random.choice(("I32", "U32", "F32"))
    elif kind == 2:
        random.shuffle(shape)
        header[a]["shape"] = shape
    elif kind == 3:
        header[a]["shape"] = random.choice(([*shape, 1], [1, *shape], [-1, *shape[1:]], shape[1:]))
    elif kind == 4:
        header[a], header[b] = header[b], header[a]
    elif kind == 5:
        header[a]["data_offsets"] = header[b]["data_offsets"]
    else:
        head, dot, tail = a.rpartition(".")
        odd = random.choice(("-1", "5", "00", "٣", "1e3", "9" * 30, "9" * 5000, "x", ""))
        header[random.choice((head + dot + odd, a.replace("1", odd), odd))] = header.pop(a)
    return header


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def _table(random: Random, profile: bytes) -> bytes:
    """The header's fields, and places and sizes of the tags of an ICC profile."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.choice((*range(0, 128, 4), *range(128, min(len(profile) - 4, 260), 4)))
        number = random.choice((0, 1, 128, 132, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
        new = random.choice(_SPACES) if random.random() < 0.3 else struct.pack(">I", number)
        profile = profile[:at] + new + profile[at + 4 :]
    return profile


_SPACES = (b"RGB ", b"GRAY", b"CMYK", b"Lab ", b"XYZ ", b"link", b"nmcl", b"abst", b"prtr", b"6CLR")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _sizes(random: Random, body: bytes) -> bytes:
    """Another IHDR, often of a huge picture."""
    fields = list(struct.unpack(">2I5B", body[:13].ljust(13, b"\0")))
    sizes = (0, 1, 31, 33, 9000, 13_000, 20_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)
    at = random.randrange(6)
    if at < 2:
        fields[at] = random.choice(sizes)
    elif at == 2:
        fields[:2] = [random.choice(sizes), random.choice(sizes)]
    else:
        fields[2:4] = [random.choice((1, 2, 4, 8, 16, 3)), random.choice((0, 2, 3, 4, 6, 1))]
    return struct.pack(">2I5B", *fields)


def _bomb(random: Random) -> bytes:
    """A valid picture of few bytes, as large as decoders take one to be, or larger."""
    side, (depth, colour, size) = random.choice((9000, 13_000, 20_000)), random.choice(_FORMATS)
    packer = zlib.compressobj(1)
    row = bytes(1 + side * size)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">2I5B", side, side, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _odd_chunk(random: Random) -> tuple[bytes, bytes]:
    bomb = zlib.compress(bytes(random.choice((100, 10**6, 70 * 10**6))), 9)
    return random.choice(
        (
            (b"zTXt", b"a\0\0" + bomb),
            (b"iCCP", b"a\0\0" + bomb),
            (b"iTXt", b"a\0\1\0\0\0" + bomb),
            (b"tEXt", b"a\0" + random.randbytes(50)),
            (b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + random.randbytes(8)),
            (b"eXIf", random.randbytes(40)),
            (b"gAMA", struct.pack(">I", random.choice((0, 1, 45455, 10**5, 2**32 - 1)))),
            (b"cHRM", struct.pack(">8I", *random.choices((0, 1, 31270, 64000, 2**31), k=8))),
            (b"cICP", random.randbytes(random.choice((1, 4)))),
            (b"acTL", struct.pack(">2I", random.choice((0, 1, 2**31, 2**32 - 1)), 0)),
            (b"fcTL", random.randbytes(26)),
            (b"tRNS", random.randbytes(random.choice((1, 2, 6, 300)))),
            (b"PLTE", random.randbytes(random.choice((1, 3, 768, 3000)))),
            (b"IDAT", bomb),
            (b"IEND", b""),
            (random.randbytes(4), random.randbytes(10)),
        )
    )


# of a PNG: bits, kind of colour, bytes of a pixel
_FORMATS = ((16, 0, 2), (8, 2, 3), (8, 6, 4), (8, 0, 1))
_SEGMENTS = (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xE0, 0xE1, 0xDD)
_BOXES = (
    b"ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr minf vmhd dinf dref stbl stsd avc1 avcC "
    b"stts stss ctts stsc stsz stco mdat free udta meta colr pasp"
).split()
