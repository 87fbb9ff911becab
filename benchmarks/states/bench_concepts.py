"""Vectors for many concepts, beside the forward passes that they cannot do without.

python -m pytest benchmarks/states/bench_concepts.py --benchmark-only
python -m benchmarks.states.table                                     # with 200 concepts
"""

import pytest

from benchmarks.states.gates import CONCEPTS

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = {"pair": "demo", "concepts": 6, "examples": 100, "compared": 1}


@pytest.mark.parametrize("work", ["fit_concepts", "passes"])
def bench_many_concepts(benchmark, work):
    group = f"{SIZE['concepts']} concepts of {SIZE['examples']} texts"
    CONCEPTS.time(benchmark, work, group, SIZE)
