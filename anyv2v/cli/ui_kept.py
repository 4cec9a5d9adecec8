"""What the edits of a page share: the networks, and the clips that were inverted last."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

from anyv2v.cli.sharing import Shared, widest
from anyv2v.injection.fractions import Injection
from anyv2v.pipeline.source import Source, Unfinished


@dataclass
class _Entry:
    """An inverted clip, or one that is about to be inverted."""

    injection: Injection
    """Where edits may inject: there the features of the clip were recorded."""
    source: Source | None = None


class KeptSources(Shared):
    """Keeps the clips that several users have inverted, a few for each of them.

    An edit takes a clip that is kept only if its inversion would be the same to the bit, and holds
    all that it needs. If an edit injects in more steps than those before, its clip is inverted
    again, for them as well.
    """

    def __init__(self, each: int, most: int):
        """each: the most clips of one user. most: those of all users together."""
        super().__init__()
        self._each, self._most = each, most
        # the one that was used last comes last
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._place = ("", "")

    def has(self, user: str, key: str, injection: Injection) -> bool:
        """Whether the clip need not be inverted; see `prepare` for the arguments."""
        entry = self._entries.get((user, key))
        return entry is not None and entry.source is not None and _covers(entry, injection)

    def prepare(self, user: str, key: str, args: argparse.Namespace) -> None:
        """Makes room for the source of the next command.

        user: a key of the user. key: what the inversion depends on, see `inversion_key`. args: the
        options of the command.
        """
        self._place = user, key
        entry = self._entries.pop(self._place, None)
        if entry is None or not _covers(entry, args.injection):
            before = [] if entry is None else [entry.injection]
            # the old source goes before a new one is made: memory may not hold both
            entry = _Entry(widest([*before, args.injection]))
        self._entries[self._place] = entry
        mine = [place for place in self._entries if place[0] == user]
        for place in mine[: -self._each]:
            del self._entries[place]
        for place in [*self._entries][: -self._most]:
            del self._entries[place]
        wide = copy.copy(args)
        wide.injection = entry.injection
        self.alike = [args, wide]

    def source(self, obtain: Callable[[Unfinished | None], Source]) -> Source:
        """Returns the inverted clip of the command that was prepared; see `Shared.source`."""
        entry = self._entries[self._place]
        if entry.source is None:
            entry.source = obtain(None)
        return entry.source

    def forget(self, user: str) -> None:
        """Frees the sources of a user."""
        for place in [place for place in self._entries if place[0] == user]:
            del self._entries[place]


def _covers(entry: _Entry, injection: Injection) -> bool:
    known = entry.injection.fractions
    return all(until <= known.get(name, 0.0) for name, until in injection.fractions.items())
