"""What every table says of itself, machine, commit and date, and the markdown it is written in."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def processor() -> str:
    """As Linux names it; elsewhere what Python knows."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def commit() -> str:
    """Seven digits, with a ``+`` where files differ from it; ``unknown`` outside a checkout."""
    found = git("rev-parse", "--short=7", "HEAD")
    return found + "+" * bool(git("status", "--short")) if found else "unknown"


def today() -> str:
    return date.today().isoformat()


def provenance() -> dict[str, Any]:
    """Machine, threads of torch, commit, date and torch: what a figure is nothing without."""
    return {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "date": today(),
        "torch": torch.__version__,
    }


def told(known: dict[str, Any]) -> str:
    """`provenance` in one line."""
    return (
        f"{known['machine']}, {known['threads']} thread(s), torch {known['torch']}, commit "
        f"{known['commit']}, {known['date']}"
    )


def command() -> str:
    """What the running table was called by, from the root of the repository."""
    spec = sys.modules["__main__"].__spec__
    name = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return " ".join(["python", *name, *sys.argv[1:]])


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown, without a newline at its end."""
    lines = [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
