"""The command line: runs a command, and turns an exception into a message and an exit status."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeGuard

from anyv2v import loading
from anyv2v.cli import settings
from anyv2v.cli.batch import run_batch
from anyv2v.cli.clip import is_source
from anyv2v.cli.compare import run_compare
from anyv2v.cli.console import explained, say, tell, verbose
from anyv2v.cli.demo import run_demo
from anyv2v.cli.edit import SomeFailed, run_edit, run_edit_frame
from anyv2v.cli.evaluate import run_evaluate
from anyv2v.cli.info import run_info
from anyv2v.cli.invert import run_invert, run_plan, run_reconstruct
from anyv2v.cli.notices import PRINTING
from anyv2v.cli.options import parser
from anyv2v.cli.process import Signals, Unfailing, unfailing_streams
from anyv2v.cli.ui import run_ui
from anyv2v.cli.weights import run_convert, run_fetch, run_verify


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    argv: the arguments after the name of the program; None takes those of the process. The status
    is 0 on success, 2 for a mistake of the caller (such as a bad option or too little memory), 128
    + n after signal n, and 1 for any other error. `--help` and `--version` raise SystemExit.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = {
        "demo": run_demo,
        "convert": run_convert,
        "weights verify": run_verify,
        "weights fetch": run_fetch,
        "edit": run_edit,
        "batch": run_batch,
        "compare": run_compare,
        "edit-frame": run_edit_frame,
        "plan": run_plan,
        "invert": run_invert,
        "reconstruct": run_reconstruct,
        "evaluate": run_evaluate,
        "info": run_info,
        "ui": run_ui,
    }
    with unfailing_streams() as out, Signals() as signals:
        status = _run(argv, commands, signals, out)
        out.flush()
        if status == 0 and out.needed and _is_lost(out.failure):
            status = _fail(out.failure, "stdout: ")
    return status


def _is_lost(failure: Exception | None) -> TypeGuard[OSError]:
    """Whether nobody got what was printed; a reader that closes a pipe has what it wants."""
    return isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError)


def _run(argv: list[str], commands: dict[str, Callable], signals: Signals, out: Unfailing) -> int:
    debug = "--debug" in argv
    try:
        # --help, --version and --list end here, and do nothing but print
        out.needed = True
        args = parser(commands).parse_args(argv)
        out.needed = args.command in PRINTING or getattr(args, "output", "") is None
        args.signals, debug = signals, args.debug
        with verbose(args.verbose):
            if args.unused:
                say(f"{args.config}: {args.command} has no {', '.join(args.unused)}")
            if hasattr(args, "paper"):
                known = loading.peek(args.weights)
                tell(settings.fill(args, known.defaults, known.original, is_source(args.video)))
            return args.run(args) or 0
    except SystemExit:
        out.flush()
        if _is_lost(out.failure):
            raise SystemExit(_fail(out.failure, "stdout: ")) from None
        raise
    except KeyboardInterrupt:
        say("interrupted")
        return signals.status
    except SomeFailed as error:
        failures = error.failures.items()
        statuses = [_fail(why, _before(output, why), debug) for output, why in failures]
        return 2 if set(statuses) == {2} else 1
    except Exception as error:
        return _fail(error, debug=debug)


def _before(output: str, why: Exception) -> str:
    """The name of an output before what went wrong with it, unless that has it already."""
    return "" if output in str(why) else f"{output}: "


def _fail(error: Exception, prefix: str = "", debug: bool = False) -> int:
    """Says what went wrong, in one line; gives the exit status."""
    if debug:
        traceback.print_exception(error)
    message, status = explained(error)
    say(f"{prefix}{message}")
    return status
