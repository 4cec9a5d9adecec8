"""`anyv2v ui`: a page in the browser that edits clips on this machine."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from anyv2v.cli.console import tell
from anyv2v.cli.source import without_effect
from anyv2v.cli.ui_studio import Studio
from anyv2v.ui import server
from anyv2v.ui.streams import divided_streams


def run_ui(args: argparse.Namespace) -> None:
    """Runs `anyv2v ui`: serves the page until a signal ends it, and removes all its files then.

    Raises InputError without gradio, for wrong weights, and for a port that is in use.
    """
    server.check(args.host, args.port)
    tell(without_effect(args))
    with tempfile.TemporaryDirectory(prefix="anyv2v-ui-", ignore_cleanup_errors=True) as folder:
        studio = Studio(args, Path(folder))
        with divided_streams(), server.served(studio, Path(folder), args.host, args.port) as url:
            if not args.quiet:
                print(f"anyv2v ui: {url} (Ctrl-C ends it)", flush=True)
            server.wait()
