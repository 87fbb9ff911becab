"""Rows of files and data sets, one at a time: ``(where, row)`` for `rows.parse_all`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ..support.reading import reading
from ..support.rows import json_lines
from .rows import ContrastSetError

FIELDS = ("text", "messages", "label", "pair", "prompt", "positive", "negative")
JSON_LINES, PARQUET = (".jsonl", ".ndjson", ".json"), (".parquet",)

NamedRows = Iterator[tuple[str, Any]]


def file_rows(path: Path, columns: Mapping[str, str]) -> NamedRows:
    """The rows of a jsonl or parquet file, never more than some of them in memory.

    Raises:
        ContrastSetError: no such file, another kind of file, a column that is not there.
    """
    if not path.is_file():
        raise ContrastSetError(f"path must name a jsonl or parquet file, there is none at {path}")
    if path.suffix.lower() in PARQUET:
        yield from _parquet_rows(path, columns)
    elif path.suffix.lower() in JSON_LINES:
        with lines_of(path), path.open("rb") as stream:
            for where, row in json_lines(stream):
                yield where, _renamed(row, columns)
    else:
        kinds = ", ".join(JSON_LINES + PARQUET)
        raise ContrastSetError(
            f"path must end in one of {kinds}, came {path.name!r}; rename the file, or load it "
            "with the datasets library and pass ContrastSet.from_dataset(...)"
        )


def lines_of(path: Path) -> AbstractContextManager[None]:
    return reading(path, "JSON-lines file", error_type=ContrastSetError)


def dataset_rows(dataset: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> NamedRows:
    """The rows of a `datasets.Dataset` or of any iterable of mappings."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, dict):
        raise ContrastSetError(
            f"dataset must be one split, came all of {', '.join(map(repr, names))}; "
            "pass for example dataset['train']"
        )
    if isinstance(names, list):  # an IterableDataset may not know them
        _require_columns("dataset", names, columns)
    for index, row in enumerate(dataset):
        yield f"row {index}", _tabular(row, columns)


def checked_dataset(dataset: Any) -> Iterable[Mapping[str, Any]]:
    """The data set, if it is one, and can be read again and again.

    Raises:
        ContrastSetError: something else, or an iterator.
    """
    if not isinstance(dataset, Iterable) or isinstance(dataset, (str, bytes, Mapping)):
        raise ContrastSetError(
            f"dataset must be a data set or rows by name, came {type(dataset).__name__}; "
            "for a file there is from_file, for a dictionary of splits choose one of them"
        )
    if isinstance(dataset, Iterator):
        raise ContrastSetError(
            "dataset must be readable more than once, came a one-time "
            f"{type(dataset).__name__}; pass a list, a datasets.Dataset or an IterableDataset"
        )
    return dataset


def checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """``{field: what the file calls it}``.

    Raises:
        ContrastSetError: a field that rows do not have.
    """
    columns = dict(columns or {})
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise ContrastSetError(
            f"columns: {', '.join(map(repr, unknown))} is no field of a row; "
            f"fields are {', '.join(FIELDS)}, given as field=column"
        )
    return columns


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> NamedRows:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ContrastSetError(
            f"{path}: parquet files need pyarrow: pip install 'expertsteer[data]'"
        ) from error
    index = 0
    # Read as it comes: a row group may be the whole file.
    opening = partial(ParquetFile, path, pre_buffer=False, buffer_size=1 << 20)
    with reading(path, "parquet file", error_type=ContrastSetError), opening() as table:
        names = table.schema_arrow.names
        _require_columns(str(path), names, columns)
        wanted = {columns.get(name, name) for name in FIELDS} & set(names)
        for batch in table.iter_batches(batch_size=64, columns=sorted(wanted)):
            for row in batch.to_pylist():
                yield f"row {index}", _tabular(row, columns)
                index += 1


def _require_columns(source: str, names: Iterable[str], columns: Mapping[str, str]) -> None:
    missing = [f"{field}={name}" for field, name in columns.items() if name not in names]
    if missing:
        raise ContrastSetError(
            f"{source}: columns {', '.join(missing)} not there; it has {', '.join(names)}"
        )
    if not {columns.get(field, field) for field in FIELDS} & set(names):
        raise ContrastSetError(
            f"{source}: none of its columns ({', '.join(names)}) is a field of a row; name those "
            f"that stand for one of {', '.join(FIELDS)}, such as columns={{'positive': 'chosen'}} "
            "or --columns positive=chosen"
        )


def _tabular(row: Any, columns: Mapping[str, str]) -> Any:
    """A table has every column in every row: an empty cell is a key that is not there."""
    row = _renamed(row, columns)
    if not isinstance(row, Mapping):
        return row
    kept = {name: _messages(row[name]) for name in FIELDS if name in row and row[name] is not None}
    if {"positive", "negative"} <= kept.keys():
        kept.setdefault("prompt", None)
    return kept or row


def _messages(cell: Any) -> Any:
    """Some tables keep a list of messages as ``{"role": [...], "content": [...]}``."""
    if isinstance(cell, Mapping) and set(cell) == {"role", "content"}:
        roles, contents = cell["role"], cell["content"]
        if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
            return [{"role": role, "content": text} for role, text in zip(roles, contents)]
    return cell


def _renamed(row: Any, columns: Mapping[str, str]) -> Any:
    if not columns or not isinstance(row, Mapping):
        return row
    taken = set(columns.values())
    # A column that was renamed is not also there under its own name.
    kept = {name: value for name, value in row.items() if name not in taken | columns.keys()}
    return kept | {field: row[name] for field, name in columns.items() if name in row}
