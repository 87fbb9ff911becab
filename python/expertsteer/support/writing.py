"""Files and folders that appear whole or not at all, whatever ends the process that writes them.

Everything is written inside a folder of its own beside its destination, ``.NAME.xxxxxxxx.tmp``,
which its process holds locked, and is renamed from there. The system gives the lock up when the
process ends, so the next writer of the same name can tell what a killed one left, and removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .paths import local_path
from .reading import ArtifactError

try:
    import fcntl
except ImportError:  # Windows: nothing tells there whether a process lives
    fcntl = None

_TRIES = 100
_AGAIN = "write it again"


@contextmanager
def replacing(
    path: Path, durable: bool = False, then: str = _AGAIN, tidy: bool = True
) -> Iterator[Path]:
    """Where to write what then takes the place of ``path``; on failure the old file stays.

    Args:
        durable: the contents reach the disk before the name does, so that a machine that stops
            leaves no named file without contents.
        then: what to do once there is room, as the error says it.
        tidy: remove what killed writers of this name left, for which the folder is listed.

    Raises:
        ArtifactError: the disk is full, or there is no right to write; it names ``path``.
    """
    with _told(path, then), _scratch(path, tidy) as folder:
        temporary = folder / path.name
        yield temporary
        _share(temporary)
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)


def write_text(path: Path, text: str, **options: bool) -> None:
    """A text in UTF-8, lines ending in one character, in the place of a file; see `replacing`."""
    with replacing(path, **options) as temporary:
        temporary.write_text(text, "utf-8", newline="\n")


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``out`` when that is done; ``out`` must not exist, or
    be empty.

    Raises:
        ArtifactError: as `replacing`.
    """
    with _told(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(out) as folder:
            temporary = folder / out.name
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _share(file)
            temporary.replace(out)


def require_new(out: str | os.PathLike) -> Path:
    """The path of a folder that does not exist, or is empty; a ``ValueError`` for another."""
    out = local_path(out, "out")
    remove_leftovers(out.parent, out.name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out {str(out)!r} exists already; name a new folder or remove that one")
    return out


@contextmanager
def saving_into(folder: Path) -> Iterator[None]:
    """The right to replace several files of one folder (made if absent) that belong together.

    A second writer waits for the first.
    """
    with _told(made_folder(folder)):
        descriptor = None
        try:
            if fcntl is not None:
                with suppress(OSError):  # no right to read the folder, or no locks on its disk
                    descriptor = os.open(folder, os.O_RDONLY)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def made_folder(folder: Path) -> Path:
    """``folder``, made if absent, or an `ArtifactError` that names it."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed writers of ``folder / name`` left; those that live keep theirs."""
    pattern = re.compile(re.escape(_prefix(name)) + r"[^.]+\.tmp")
    with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                _remove_if_left(Path(entry.path))


@contextmanager
def _told(path: Path, then: str = _AGAIN) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}; what was there before stays. Make room or mend "
            f"the folder's permissions, and {then}"
        ) from error


@contextmanager
def _scratch(path: Path, tidy: bool = True) -> Iterator[Path]:
    """A locked temporary folder beside ``path``."""
    if tidy:
        remove_leftovers(path.parent, path.name)
    folder, lock = _made(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(path: Path) -> tuple[Path, int | None]:
    for _ in range(_TRIES):
        made = tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path.name), suffix=".tmp")
        folder = Path(made)
        if fcntl is None:
            return folder, None
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # between its making and its lock another writer took it for left over
        if _locked(lock) is not False and _is(folder, lock):
            return folder, lock
        os.close(lock)
    raise OSError(f"no temporary folder could be made beside {path}")


def _locked(descriptor: int) -> bool | None:
    """Whether the lock could be had; ``None`` where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_if_left(path: Path) -> None:
    if fcntl is None:
        return
    with suppress(OSError):  # gone meanwhile, or not ours to remove
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if not _locked(descriptor):
                return
            if path.is_dir():
                shutil.rmtree(path)
            else:  # earlier versions wrote files, not folders
                path.unlink()
        finally:
            os.close(descriptor)


def _prefix(name: str) -> str:
    # A name may be as long as the system allows, and this one is longer.
    return f".{os.fsdecode(os.fsencode(name)[:200])}."


def _share(file: Path) -> None:
    """Give a file the rights of any new one: some libraries make private files."""
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
