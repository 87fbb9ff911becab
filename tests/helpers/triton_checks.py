"""What the tests of every Triton kernel share: the interpreter's own process, and compilation.

The interpreter has to be chosen before triton is imported, so its checks run in their own process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="runs in the interpreter's own process (the first test of this file starts it)",
)
compiles = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
starts_the_interpreter = pytest.mark.skipif(INTERPRETED, reason="this test starts that process")


def run_interpreted(file, least):
    """Run a test file under the interpreter; at least ``least`` tests must have passed there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"\b(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= least, done.stdout  # it did run them


def compiled_usage(kernel, types, constants, architecture, folder, *, options, attributes=None):
    """Registers and local memory of a kernel, from the cubin the bundled cuobjdump reads."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-res-usage", cubin]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL")}
