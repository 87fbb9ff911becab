"""The command line: the Python calls, with readable errors (exit code 2) instead of tracebacks.

One file per command; they import the package where they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from ..support.console import SafeConsole
from ..support.progress import bars
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


@app.callback()
def before_a_command(
    context: typer.Context,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Show progress bars on stderr.")
    ] = True,
) -> None:
    """What stands before the name of a command."""
    context.with_resource(bars(progress))


def _with_quiet_json(command: Callable[..., None]) -> Callable[..., None]:
    """With ``--json`` a command shows no bar: what reads the document reads stderr too."""

    @wraps(command)
    def call(**options: Any) -> None:
        with bars(not options.get("as_json", False)):
            command(**options)

    return call


for command in (capture, demo, fit, evaluate, generate, inspect, export, bench):
    app.command()(_with_quiet_json(command))
app.command("import")(_with_quiet_json(import_vectors))


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
