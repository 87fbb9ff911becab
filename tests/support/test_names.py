"""Names that become files: what passes stays in its folder and is read back as itself."""

from __future__ import annotations

import pytest

from expertsteer.support.names import LONGEST, checked_name

REFUSED = {
    "": "empty",
    ".": "folder itself",
    "..": "the one above",
    "a/b": "separator",
    "..\\b": "separator",
    "/etc": "separator",
    "nul\0": "control",
    "two\nlines": "control",
    "\x1b[2J": "control",
    "\x85": "control",
    "\udcff": "surrogate",
    " leading": "white space",
    "trailing ": "white space",
    "\u3000": "white space",
    "x" * (LONGEST + 1): "255 bytes",
    "é" * LONGEST: "255 bytes",
}


@pytest.mark.parametrize("name", REFUSED, ids=repr)
def test_a_name_that_no_file_should_have_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="^concept becomes the name of a file") as error:
        checked_name("concept", name)
    assert REFUSED[name] in str(error.value)
    assert all(character.isprintable() for character in str(error.value))


@pytest.mark.parametrize("name", [None, 3, b"bytes", ("a",)], ids=repr)
def test_what_is_no_string_is_refused(name):
    with pytest.raises(ValueError, match=f"not {type(name).__name__}"):
        checked_name("concept", name)


@pytest.mark.parametrize(
    "name", ["truth", "...", "..x", ".hidden", "a.b", "café au lait", "日本語", "-x", "x" * LONGEST]
)
def test_other_names_become_one_file_in_their_folder(name, tmp_path):
    folder = tmp_path / checked_name("concept", name)
    folder.mkdir()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
