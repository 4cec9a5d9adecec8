"""The blocks of code of README and the documents, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from anyv2v.cli.options import parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^(?P<ticks>```+)(?P<language>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=ticks)$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = (
    *("demo", "convert", "weights verify", "weights fetch", "edit", "batch", "compare"),
    *("edit-frame", "plan", "invert", "reconstruct", "evaluate", "info", "ui"),
)


@dataclass(frozen=True)
class Block:
    document: str
    """Name of the document."""
    language: str
    text: str
    not_run: str | None
    """Why it is not run."""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a bash block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(*languages: str) -> list[Block]:
    """All blocks in order, of these languages or of all."""
    return [
        Block(path.name, found["language"], found["text"], found["reason"])
        for path in DOCUMENTS
        for found in FENCE.finditer(path.read_text(encoding="utf-8"))
        if not languages or found["language"] in languages
    ]


def command_parser():
    return parser({name: lambda args: None for name in COMMANDS})
