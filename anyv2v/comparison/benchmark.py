"""A benchmark of one's own: a folder of clips, each with the edits that are wanted of it.

    BENCH/
      ballet/                          one folder for each clip, named as you like
        clip.mp4                       the clip: any video, or clip/ with a picture for each frame
        caption.txt                    what the clip shows, for the inversions of our methods
        edits/
          van-gogh/                    one folder for each edit
            prompt.txt                 what the edited clip shows
            frame.png                  the edited first frame, for the editor "given"
            instruction.txt            what editors of the first frame are told to do
            instruction.recolour.txt   the same, for the editor of that name alone
            reference.png              a picture of the style or subject, for editors that use one
            mask.png                   white where the first frame may change
            truth.mp4                  the clip as the edit should be, or truth/ with its frames

Only the clip, `edits/` with one edit and its prompt.txt are required. The clip and truth may have
any suffix of a video, and a picture any that Pillow knows. Names of clips and edits are letters,
digits, "-", "_" and ".". Files whose names begin with a dot are ignored; any other file is a fault,
because it may be a misspelled one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyv2v.errors import InputError

CLIP, CAPTION, EDITS = "clip", "caption.txt", "edits"
"""What the folder of a clip holds; `CLIP` is the name before the suffix."""
PROMPT, INSTRUCTION = "prompt.txt", "instruction"
"""Texts in the folder of an edit; `INSTRUCTION` is the name before its suffixes."""
PICTURES = ("frame", "reference", "mask")
"""Pictures in the folder of an edit: their names before the suffix."""
TRUTH = "truth"
"""The true clip in the folder of an edit: its name before the suffix, or that of its folder."""
LONGEST = 2**16
"""The most bytes of a text file."""
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""What names of clips, edits, editors and methods look like: they are parts of paths."""


class FaultyBenchmark(InputError):
    """A folder is no benchmark, or parts of it are wrong."""

    def __init__(self, faults: list[str]):
        super().__init__("; ".join(faults))
        self.faults = faults
        """One line for each fault: what is wrong with which file, and what would be right."""


@dataclass(frozen=True)
class BenchmarkEdit:
    """An edit that is wanted of a clip."""

    clip: str
    """Name of the clip."""
    name: str
    """Name of the edit."""
    prompt: str
    """Text that describes the edited clip."""
    instructions: dict[str, str]
    """Editor -> its instruction; "" -> that of all editors that have none of their own."""
    frame: Path | None = None
    """The edited first frame."""
    reference: Path | None = None
    """A picture of the style or subject."""
    mask: Path | None = None
    """White where the first frame may change."""
    truth: Path | None = None
    """The true edited clip: a video, or a folder of pictures."""

    def instruction(self, editor: str) -> str:
        """Returns what an editor of the first frame is told; "" if there is nothing."""
        return self.instructions.get(editor) or self.instructions.get("", "")


@dataclass(frozen=True)
class BenchmarkClip:
    """A clip with the edits that are wanted of it."""

    name: str
    """Name of the clip."""
    video: Path
    """A video, or a folder of pictures."""
    caption: str
    """Text that describes the clip as it is; "" if there is none."""
    edits: tuple[BenchmarkEdit, ...]
    """The edits, at least one, by name."""


def read_benchmark(folder: str | os.PathLike, limit: int | None = None) -> list[BenchmarkClip]:
    """Reads a benchmark, laid out as this module says; clips and edits are sorted by name.

    limit: the most clips that are read; None reads all. The clips and pictures themselves are not
    opened. Raises FaultyBenchmark, with a line for every fault of the clips that are read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FaultyBenchmark([f"{folder}: there is no such folder"])
    faults: list[str] = []
    clips = []
    for path in _entries(folder)[:limit]:
        if not path.is_dir():
            faults.append(f"{path}: a benchmark has one folder for each clip, and no files")
        elif _named(path, faults):
            clips += _clip(path, faults)
    if not clips and not faults:
        faults.append(f"{folder}: holds no clip: a clip is a folder with clip.mp4 and edits/")
    if faults:
        raise FaultyBenchmark(faults)
    return clips


def _clip(folder: Path, faults: list[str]) -> Iterator[BenchmarkClip]:
    videos, edits, caption = [], [], ""
    for path in _entries(folder):
        if path.name == EDITS and path.is_dir():
            edits = [e for each in _entries(path) for e in _edit(each, folder.name, faults)]
            if not _entries(path):
                faults.append(f"{path}: holds no edit: an edit is a folder with {PROMPT}")
        elif path.name == CAPTION:
            caption = _text(path, faults)
        elif _stem(path) == CLIP:
            videos.append(path)
        else:
            faults.append(f"{path}: unknown; a clip has {CLIP}.mp4, {CAPTION} and {EDITS}/")
    if not (folder / EDITS).is_dir():
        faults.append(f"{folder}: has no folder {EDITS}")
    if video := _only(folder, CLIP, videos, faults, needed=True):
        yield BenchmarkClip(folder.name, video, caption, tuple(edits))


def _edit(folder: Path, clip: str, faults: list[str]) -> Iterator[BenchmarkEdit]:
    if not folder.is_dir():
        faults.append(f"{folder}: {EDITS}/ has one folder for each edit, and no files")
        return
    if not _named(folder, faults):
        return
    files: dict[str, list[Path]] = {name: [] for name in (*PICTURES, TRUTH)}
    prompt, instructions = None, {}
    for path in _entries(folder):
        stem = _stem(path)
        if path.name == PROMPT:
            prompt = _text(path, faults)
        elif path.suffix == ".txt" and stem.partition(".")[0] == INSTRUCTION:
            instructions[stem.partition(".")[2]] = _text(path, faults)
        elif stem == TRUTH or (stem in PICTURES and path.is_file()):
            files[stem].append(path)
        else:
            known = f"{PROMPT}, {INSTRUCTION}.txt, {', '.join(f'{x}.png' for x in PICTURES)}"
            faults.append(f"{path}: unknown; an edit has {known} and {TRUTH}.mp4")
    if prompt is None:
        faults.append(f"{folder}: has no {PROMPT}, which says what the edited clip shows")
    found = {name: _only(folder, name, paths, faults) for name, paths in files.items()}
    yield BenchmarkEdit(clip, folder.name, prompt or "", instructions, **found)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _stem(path: Path) -> str:
    """The name without the suffix; a folder's name is whole."""
    return path.name if path.is_dir() else path.stem


def _named(folder: Path, faults: list[str]) -> bool:
    if NAME.fullmatch(folder.name):
        return True
    faults.append(f"{folder}: a name is made of letters, digits, '-', '_' and '.'")
    return False


def _only(
    folder: Path, name: str, paths: list[Path], faults: list[str], needed: bool = False
) -> Path | None:
    if len(paths) > 1:
        faults.append(f"{folder}: has both {paths[0].name} and {paths[1].name}; remove one")
    elif needed and not paths:
        faults.append(f"{folder}: has no {name}.mp4, nor a folder {name} of pictures")
    return paths[0] if paths else None


def _text(path: Path, faults: list[str]) -> str:
    """The text of a file in one line."""
    try:
        if path.stat().st_size > LONGEST:
            faults.append(f"{path}: is larger than {LONGEST} bytes, which no text here is")
            return ""
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except OSError as error:
        faults.append(f"{path}: {error.strerror or error}")
        return ""
    except UnicodeDecodeError:
        faults.append(f"{path}: is not text in UTF-8")
        return ""
    if not text:
        faults.append(f"{path}: is empty; write the text, or remove the file")
    return text
