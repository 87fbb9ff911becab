"""The command line: the Python calls, with readable errors (exit code 2) instead of tracebacks.

One file per command; they import the package where they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
import warnings

import typer

from ..support.console import SafeConsole
from .bench import bench
from .capture import capture
from .demo import demo
from .evaluate import evaluate
from .export import export, import_vectors
from .fit import fit
from .generate import generate
from .inspect import inspect

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Steer one language model with what another one knows.",
)
for command in (capture, demo, fit, evaluate, generate, inspect, export, bench):
    app.command()(command)
app.command("import")(import_vectors)


def _show_warning(message, *unused) -> None:
    """A warning as a person reads it: its text, without the line of code that it came from."""
    SafeConsole(stderr=True, soft_wrap=True).print(f"warning: {message}", style="yellow")


def main() -> None:
    """Entry point of ``expertsteer``; bad input ends in one line on stderr and exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except (ValueError, OSError) as error:
        if getattr(error, "shown_elsewhere", False):  # one process of many tells
            sys.exit(2)
        SafeConsole(stderr=True, soft_wrap=True).print(f"error: {error}", style="red")
        sys.exit(2)
