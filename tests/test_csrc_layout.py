"""The two folders of the extension: kernels get raw pointers, the slots know Python."""

import re
from pathlib import Path

from helpers import ROOT

CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.is_file())
# C++'s own headers have no suffix; the others are those of the processor and of the CUDA toolkit.
PLAIN = re.compile(r"\w+|immintrin\.h|cuda_\w+\.h")


def included(path: Path) -> list[tuple[str, str]]:
    """Of every include, ``<`` or a quotation mark, and what stands behind it."""
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text("utf-8"), re.M)


def test_kernels_know_neither_python_nor_torch():
    kernels = [path for path in SOURCES if path.parent == CSRC / "kernels"]
    own = {path.name for path in kernels}
    found = [
        f"{path.name} includes {name}"
        for path in kernels
        for mark, name in included(path)
        if not (PLAIN.fullmatch(name) if mark == "<" else name in own)
    ]
    assert any(included(path) for path in kernels) and not found
    assert not [path.name for path in kernels if "PyObject" in path.read_text("utf-8")]


def test_every_source_has_its_folder_and_is_compiled():
    build = (ROOT / "CMakeLists.txt").read_text("utf-8")
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        assert place == "csrc/bindings.cpp" or path.parent.name in ("kernels", "slots"), place
        assert place in build or path.suffix in (".h", ".inl"), f"{place} is not compiled"
