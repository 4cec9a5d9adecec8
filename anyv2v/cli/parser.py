"""What the parsers of all commands share: one-line errors, --config, and grouped help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import anyv2v
from anyv2v.cli.config_file import options_among, options_of
from anyv2v.errors import InputError

NOT_IN_FILES = ("help", "list", "config", "verbose")
"""Options that a file of --config cannot have."""
NOT_SETTINGS = (*NOT_IN_FILES, "force", "quiet", "debug")
"""Options that do not affect the contents of what is written."""


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError for errors, and also reads options from --config's file."""

    names: frozenset[str] = frozenset()
    """Names of the options of all commands that a file of --config may have."""
    commands: Mapping[str, Parser] = {}
    """Name of a command -> its parser; empty for the parser of a command."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage and ending the process."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parses `args` (None: those of the process) into a namespace.

        Raises InputError, which names the first word that no option or argument takes.
        """
        known, rest = self.parse_known_args(args, namespace)
        if rest and not rest[0].startswith("-"):
            raise InputError(f"{rest[0]!r} is one argument too many (see {known.prog} --help)")
        if rest:
            raise InputError(f"there is no option {rest[0]} (see {known.prog} --help)")
        return known

    def parse_known_args(self, args=None, namespace=None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parses as argparse does, and takes options that were not given from the file of --config.

        Returns the namespace and the words that no option takes. Raises InputError for a bad file.
        See `options.parser` for what the namespace holds besides options.
        """
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
        filed = _names(found)
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

    def parse_mapping(self, where: str, values: Mapping[str, Any]) -> argparse.Namespace:
        """Returns the namespace of options that a mapping tells, as a file of --config does.

        where: where the mapping is from, for messages. values: option (with _ for -) -> value.
        Raises InputError, which begins with `where`, for a name or a value that is wrong, and for
        an option that is required and missing.
        """
        mine = [a for a in self._actions if a.dest not in NOT_IN_FILES]
        found, unused = options_among(where, values, mine, self.names)
        if lacking := [a for a in mine if a.required and a not in found]:
            raise InputError(f"{where}: it needs {' and '.join(a.dest for a in lacking)}")
        known = argparse.Namespace(**self._defaults)
        for action in self._actions:
            if action.default is not argparse.SUPPRESS:
                setattr(known, action.dest, found.get(action, action.default))
        known.unused, known.given, known.filed = unused, _names(found), _names(found)
        return known

    @property
    def settable(self) -> list[str]:
        """Names of this command's options that affect its outputs; a sidecar records them."""
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
    """Action of an option of values by name, such as text=35,image=1; repeated use adds to them."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Sets the values, or merges them into those that the option has from earlier use."""
        before = getattr(namespace, self.dest)
        if isinstance(before, dict) and isinstance(values, dict):
            values = {**before, **values}
        setattr(namespace, self.dest, values)


def _names(found: Mapping[argparse.Action, Any]) -> set[str]:
    """The options that have another value than the default, which is not yet replaced."""
    return {a.dest.replace("_", "-") for a, value in found.items() if value != a.default}


def _config_of(args) -> str | None:
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        return only.parse_known_args(args)[0].config
    except argparse.ArgumentError:
        return None


class Commands:
    """Builds the parsers of all commands, with the options that every command has.

    run: name of a command -> its function.
    """

    def __init__(self, run: dict[str, Callable[[argparse.Namespace], None]]):
        self.top = Parser(prog="anyv2v", description=anyv2v.__doc__)
        """The parser of the program, to which those of the commands belong."""
        version = f"anyv2v {anyv2v.__version__}"
        self.top.add_argument("--version", action="version", version=version)
        self._run, self._made = run, []
        self._below = {"": self.top.add_subparsers(metavar="COMMAND", required=True)}

    def group(self, name: str, text: str) -> None:
        """Adds the first word, such as "weights", of commands of two words; `text` is its help."""
        parser = self._below[""].add_parser(name, help=text, description=text)
        self._below[name] = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        self, name: str, text: str, *groups: Callable[[Parser], None], usage: str | None = None
    ) -> Parser:
        """Adds a command and returns its parser.

        name: a key of `run`; the first of two words must have been added by `group`. text: a
        sentence or more that says what the command does; the list of commands shows the first
        sentence. groups: functions that add options to the parser, before the options that all
        commands have. usage: the line of usage; None lets argparse make it.
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
        sub.set_defaults(sharing=None, progress=None)
        for group in groups:
            group(sub)
        text = "YAML or JSON file of options that are not given here; a sidecar of an output is one"
        sub.add_argument("--config", metavar="FILE", help=text)
        sub.add_argument("--force", action="store_true", help="overwrite existing outputs")
        sub.add_argument("-q", "--quiet", action="store_true", help="show no progress")
        text = "say on stderr what is done, with seconds, memory and kernels; -vv: in detail"
        sub.add_argument("-v", "--verbose", action="count", default=0, help=text)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self._made.append(sub)
        return sub

    def finish(self) -> Parser:
        """Returns the parser of the program, once all commands were added."""
        names = frozenset(name for each in self._made for name in each.settable)
        for sub in self._made:
            sub.names = names
            sub.set_defaults(settable=sub.settable, unused=[])
        self.top.commands = {str(sub.get_default("command")): sub for sub in self._made}
        return self.top
