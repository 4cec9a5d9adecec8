"""What all commands' parsers have in common: errors in one line, --config, help that is grouped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import anyv2v
from anyv2v.cli.config_file import options_of
from anyv2v.errors import InputError

NOT_IN_FILES = ("help", "list", "config")
"""Options that a file of --config cannot have."""
NOT_SETTINGS = (*NOT_IN_FILES, "force", "quiet", "debug")
"""Options that say nothing of what comes out."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, and which fills options from the file of --config."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage and ending the process."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The options; InputError names the first word that no option takes."""
        known, rest = self.parse_known_args(args, namespace)
        if rest and not rest[0].startswith("-"):
            raise InputError(f"{rest[0]!r} is one argument too many (see {known.prog} --help)")
        if rest:
            raise InputError(f"there is no option {rest[0]} (see {known.prog} --help)")
        return known

    def parse_known_args(self, args=None, namespace=None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does; options that are not given come from the file of --config first."""
        args = sys.argv[1:] if args is None else args
        if "--config" not in self._option_string_actions:
            return super().parse_known_args(args, namespace)
        # no option may be abbreviated, and none may stand where a value is due
        given = {word[2:].partition("=")[0] for word in args if word.startswith("--")}
        if (path := _config_of(args)) is None:
            known, rest = super().parse_known_args(args, namespace)
            known.given, known.filed = given, set()
            return known, rest
        mine = [a for a in self._actions if a.dest not in NOT_IN_FILES]
        found, unused = options_of(path, mine, self.names)
        filed = {a.dest.replace("_", "-") for a, value in found.items() if value != a.default}
        for action in found:
            # None where it is not given; nobody can give that
            action.required, action.default = False, None
            if not action.option_strings:
                action.nargs = "?"
        known, rest = super().parse_known_args(args, namespace)
        for action, value in found.items():
            if getattr(known, action.dest) is None and not action.option_strings:
                # argparse fills all that may be left out before the first option
                later = [word for word in rest if not word.startswith("-")]
                value = later[0] if later else value
                rest = [word for word in rest if word not in later[:1]]
            if getattr(known, action.dest) is None:
                setattr(known, action.dest, value)
        known.unused, known.given, known.filed = unused, given | filed, filed - given
        return known, rest

    names: frozenset[str] = frozenset()
    """Of the options of all commands, in a file of --config."""

    @property
    def settable(self) -> list[str]:
        """The options of this command that say what comes out, as a sidecar has them."""
        return [a.dest for a in self._actions if a.dest not in NOT_SETTINGS]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says what is required, and a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required and action.option_strings:
            return f"{action.help} (required)"
        text = action.help or ""
        stated = action.default in (None, False) or "(default" in text
        return text if stated else super()._get_help_string(action)


class ByName(argparse.Action):
    """An option of values by their names, to which giving it again adds."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Sets the values, or adds them to those that the option had."""
        before = getattr(namespace, self.dest)
        if isinstance(before, dict) and isinstance(values, dict):
            values = {**before, **values}
        setattr(namespace, self.dest, values)


def _config_of(args) -> str | None:
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        return only.parse_known_args(args)[0].config
    except argparse.ArgumentError:
        return None


class Commands:
    """The parsers of all commands, and the options that each of them has."""

    def __init__(self, run: dict[str, Callable[[argparse.Namespace], None]]):
        self.top = Parser(prog="anyv2v", description=anyv2v.__doc__)
        version = f"anyv2v {anyv2v.__version__}"
        self.top.add_argument("--version", action="version", version=version)
        self._run, self._made = run, []
        self._below = {"": self.top.add_subparsers(metavar="COMMAND", required=True)}

    def group(self, name: str, text: str) -> None:
        """Adds a first word, such as weights, that commands of two words share."""
        parser = self._below[""].add_parser(name, help=text, description=text)
        self._below[name] = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        self, name: str, text: str, *groups: Callable[[Parser], None], usage: str | None = None
    ) -> Parser:
        """A command, with the groups of options that come first and those that all commands have.

        text: a sentence or more of what the command does, the first of which the list of commands
        shows. usage: its call with what is required.
        """
        first, _, last = name.rpartition(" ")
        short = text.partition(". ")[0].rstrip(".")
        sub = self._below[first].add_parser(
            last,
            help=short[0].lower() + short[1:],
            description=text,
            usage=usage,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        sub.set_defaults(run=self._run[name], prog=sub.prog, command=name)
        for group in groups:
            group(sub)
        text = "YAML or JSON file of options that are not given here; a sidecar of an output is one"
        sub.add_argument("--config", metavar="FILE", help=text)
        sub.add_argument("--force", action="store_true", help="overwrite existing outputs")
        sub.add_argument("-q", "--quiet", action="store_true", help="show no progress")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self._made.append(sub)
        return sub

    def finish(self) -> Parser:
        """The parser of all commands that were added."""
        names = frozenset(name for each in self._made for name in each.settable)
        for sub in self._made:
            sub.names = names
            sub.set_defaults(settable=sub.settable, unused=[])
        return self.top
