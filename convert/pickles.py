"""Inspection of a file written by torch.save before anything in it is unpickled."""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from anyv2v.errors import InputError
from anyv2v.weights.tensors import open_file

LARGEST = 8 * 2**20
"""The most bytes that a pickle may have. The pickle of 1,511 tensors has 0.2 MB, because their data
is in other entries of the zip archive."""

DEEPEST = 50
"""How deeply containers may be nested in one another. A checkpoint with its optimizer's state nests
them 5 deep."""

ALLOWED = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor_v2|parameter)|torch\.\w+Storage"
)
"""Matches the classes and functions of which torch.save builds a dict of plain tensors."""

PICKLE = re.compile(r"[^/\\]+/data\.pkl")
"""Matches the name that the pickle has in the zip archive."""

ZIP = b"PK\3\4"
"""First bytes of a file that torch.load reads as a zip archive."""

MARK = object()
"""Stands on the simulated stack of the unpickler where the pickle sets a mark."""


def check_pickle(path: Path, ignored_globals: tuple[str, ...] = ()) -> None:
    """Checks that a file written by torch.save needs only tensors, without running any of it.

    ignored_globals: full names of classes and functions that the pickle may refer to as well,
    because the loader replaces them with a stand-in.

    Raises InputError if the pickle refers to anything else, is too long, or nests too deeply.
    torch.load(weights_only=True), which is to read the file afterwards, would not suffice: hashing
    deeply nested tuples overflows the stack of the process, and a bytearray, which it allows, can
    take all memory. A file that is not a zip archive passes, because torch.load refuses it without
    unpickling it.
    """
    try:
        problem = _problem(path, ignored_globals)
    # a broken archive makes zipfile and its decompressors raise exceptions of any kind
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        problem = f"is malformed: {reason}"
    if problem:
        raise InputError(f"{path}: cannot be read as tensors alone: its pickle {problem}")


def _problem(path: Path, ignored_globals: tuple[str, ...]) -> str:
    """What is wrong with a pickle, as the end of a sentence; "" if nothing is."""
    with open_file(path) as stream:
        if stream.read(len(ZIP)) != ZIP:
            return ""
    with zipfile.ZipFile(path) as file:
        if problem := _names_problem(file.namelist()):
            return problem
        (name,) = (name for name in file.namelist() if PICKLE.fullmatch(name))
        with file.open(name) as stream:
            data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        return f"is longer than {LARGEST} bytes"
    for operation, argument in _operations(data):
        # pickletools gives "module name"
        name = str(argument).replace(" ", ".") if operation in ("GLOBAL", "INST") else ""
        if name and name not in ignored_globals and not ALLOWED.fullmatch(name):
            return f"wants {name}; nothing was run"
        if operation in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            return f"has {operation}, which torch.save does not write"
    if _depth(data) > DEEPEST:
        return f"nests deeper than {DEEPEST} containers"
    # torch.load reads zip archives by code of its own, so make sure that it finds the same bytes
    if torch._C.PyTorchFileReader(str(path)).get_record("data.pkl") != data:
        return "is another one to torch.load than to zipfile"
    return ""


def _names_problem(names: list[str]) -> str:
    """What in the names two readers of zip archives may understand differently; "" if nothing.

    torch's reader ignores the case of letters, and takes the first entry's folder for that of all.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) is not name:
            return f"lies in an archive with entries {other!r} and {name!r}"
    pickles = [name for name in names if name.lower().split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or not PICKLE.fullmatch(pickles[0]):
        found = ", ".join(map(repr, pickles[:3])) or "none"
        return f"should be called */data.pkl, as torch.save does it; there is {found}"
    root = pickles[0].partition("/")[0]
    if elsewhere := [name for name in names if name.partition("/")[0] != root]:
        return f"is in {root}/, but the archive also has {elsewhere[0]!r}"
    return ""


def _depth(data: bytes) -> int:
    """How deeply the containers nest that a pickle builds; counting stops above DEEPEST.

    Simulates the unpickling with depths in place of values. A depth is a list of one number, so
    that the memo and the stack share it, as they would share a container that grows later.
    """
    stack: list = []
    memo: dict = {}
    deepest = 0

    def to_mark() -> list:
        values = []
        while (value := stack.pop()) is not MARK:
            values.append(value)
        return values

    def put(values: list, into: list | None = None) -> None:
        nonlocal deepest
        cell = [0] if into is None else into
        cell[0] = max([cell[0], *(value[0] + 1 for value in values)])
        deepest = max(deepest, cell[0])
        if into is None:
            stack.append(cell)

    for name, argument in _operations(data):
        if name == "MARK":
            stack.append(MARK)
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET", "OBJ", "INST"):
            put(to_mark())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "BINPERSID"):
            count = {"TUPLE1": 1, "BINPERSID": 1, "TUPLE3": 3}.get(name, 2)
            put([stack.pop() for _ in range(count)])
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            values = to_mark()
            put(values, stack[-1])
        elif name in ("APPEND", "SETITEM", "BUILD"):
            values = [stack.pop() for _ in range(2 if name == "SETITEM" else 1)]
            put(values, stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("POP", "POP_MARK"):
            stack.pop() if name == "POP" else to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "STOP", "FRAME"):
            stack.append([0])
        if deepest > DEEPEST:
            break
    return deepest


def _operations(data: bytes) -> Iterator[tuple[str, object]]:
    for operation, argument, _ in pickletools.genops(data):
        yield operation.name, argument
