"""Memory that a program frees stays with it, and only where nobody has said otherwise."""

import platform

import pytest

from helpers.command import python

BLOCKS = """
import resource, sys
import torch
from expertsteer.support.allocator import keep_freed_memory

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = keep_freed_memory() if "keep" in sys.argv else False
torch.set_num_threads(1)
take = lambda: torch.empty(48 << 20, dtype=torch.uint8).fill_(1)
for _ in range(20):
    take()
before = faults()
for _ in range(20):
    take()
print(int(kept), faults() - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def kept_and_faults(*arguments, **environment):
    return map(int, python("-c", BLOCKS, *arguments, **environment).split())


def test_a_large_block_is_not_cleared_again_each_time():
    _, faults = kept_and_faults()
    kept, fewer = kept_and_faults("keep")
    assert kept and fewer < faults / 10


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_what_the_environment_says_stands(environment):
    kept, _ = kept_and_faults("keep", **environment)
    assert not kept
