"""Zip archives of arrays (``.npz``, torch's ``.pt``), looked at before anything is taken out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from ..support.numbers import count
from ..support.reading import ArtifactError, read_bytes, reading

_LEAST, _TIMES = 64 << 20, 10


def checked_archive(path: Path, what: str) -> tuple[io.BytesIO, bytes]:
    """An archive whose members are whole and no larger than it can mean.

    A megabyte of zip can unpack to a thousand: the sizes that it declares must stay below ten
    times its own, or 64 MiB. Every member is then read once, which checks its name and its CRC, and
    packed again: other readers of zip do not look at those, and take a damaged directory otherwise.

    Returns:
        The new archive, and the comment of the old one.

    Raises:
        ArtifactError: no archive, a member that is damaged, or one that is too large.
    """
    data = read_bytes(path, what)
    with reading(path, what), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        declared, most = sum(m.file_size for m in members), max(_LEAST, _TIMES * len(data))
        if declared > most:
            raise ArtifactError(
                f"{path} has {count(len(data))} bytes and unpacks to {count(declared)}, expected "
                f"at most {count(most)}: it was made to fill the memory; do not use it"
            )
        names = [m.filename for m in members]
        if len(set(names)) < len(names):
            raise ArtifactError(f"{path} holds two members of one name: {sorted(names)}")
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as whole:
            for member in members:
                whole.writestr(member.filename, archive.read(member))
        comment = archive.comment
    made.seek(0)
    return made, comment
