"""What a user gets from `import expertsteer`, and what the build must deliver."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import expertsteer
from expertsteer.steering.contradictions import TESTED
from helpers import ROOT
from helpers.command import python

CSRC = ROOT / "csrc"


def test_import_loads_neither_transformers_nor_matplotlib():
    code = "import sys, expertsteer; print({'transformers', 'matplotlib'} & set(sys.modules))"
    assert python("-c", code).strip() == "set()"


def test_the_operations_resolve_and_load_no_triton():
    code = (
        "import sys, expertsteer.ops as ops\n"
        "print(all(hasattr(ops, name) for name in ops.__all__), 'triton' in sys.modules)"
    )
    assert python("-c", code).split() == ["True", "False"]


def test_every_public_name_resolves_and_no_submodule_hides_one():
    code = (
        "import expertsteer as es, expertsteer.pipeline\n"
        "assert callable(es.align) and callable(es.capture) and callable(es.attach)\n"
        "print(all(getattr(es, name) is not None for name in es.__all__), 'align' in dir(es))"
    )
    assert python("-c", code).split() == ["True", "True"]


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'steer_everything'"):
        expertsteer.steer_everything  # noqa: B018


def test_the_installed_package_is_typed_and_licensed():
    package = Path(expertsteer.__file__).parent
    assert (package / "py.typed").is_file() and (package / "_C.pyi").is_file()
    metadata = importlib.metadata.metadata("expertsteer")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert expertsteer.__version__ == metadata["Version"]


def test_the_stub_names_what_the_extension_has():
    from expertsteer import _C

    stub = (Path(expertsteer.__file__).parent / "_C.pyi").read_text()
    functions = {name for name in dir(_C) if not name.startswith("_")}
    assert all(name in stub for name in functions)
    assert _C.with_cuda == hasattr(_C, "steer_cuda")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_cuda_sources_compile_ahead_of_time_without_spills(tmp_path, architecture):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    for source in sorted(CSRC.rglob("*.cu")):
        command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas=-v"]
        command += ["-DEXPERTSTEER_WITH_CUDA", "-o", tmp_path / "out.cubin", source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spilled = [line for line in done.stderr.splitlines() if "spill stores" in line]
        assert spilled, "ptxas reported no kernel"
        assert all("0 bytes stack frame, 0 bytes spill stores" in line for line in spilled)


def test_the_releases_called_tested_are_those_that_are_tested():
    oldest = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    pinned = re.search(r"transformers==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"))
    assert f"{oldest[1]} to {pinned[1]}" == TESTED
