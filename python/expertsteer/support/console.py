"""The console of every command: text of others is shown in it, and obeyed never."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .text import UNPRINTABLE, clean


class SafeConsole(Console):
    """A console that shows text as it is: no markup in it, and no control character from it.

    Everything that a command prints goes through one, so that a name from a file cannot colour,
    move or clear a terminal.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None):
        for segment in super().render(renderable, options):
            if segment.control or not UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(clean(segment.text), segment.style)
