"""What the benchmarks of captures and of many concepts compare before they time."""

from __future__ import annotations

from functools import partial
from itertools import count as counted
from pathlib import Path
from tempfile import TemporaryDirectory

import expertsteer as es
from benchmarks import timing
from benchmarks.registry import Case, Gate, benchmark, called, require
from benchmarks.states import alone, cases
from expertsteer import demo

OURS, LOOP = "capture_to", "plain loop"


def folders(stack):
    """A function that names a new folder at each call; all are removed with the stack."""
    root, numbers = Path(stack.enter_context(TemporaryDirectory())), counted()
    return lambda: root / str(next(numbers))


def relative(found, expected) -> float:
    """The largest, without the last layer: the loop's has passed the norm."""
    found, expected = found[:-1], expected[:-1]
    return float((found - expected).norm(dim=-1).div(expected.norm(dim=-1)).max())


STATES = Gate("states with the usual loop's", 1e-4, relative, "of a state's norm")


@benchmark("states.capture", gate=STATES, smallest={"count": 5, "shortest": 4, "longest": 9})
def CAPTURE(stack, count, shortest=16, longest=128) -> Case:
    """Both captures beside the loop over ``output_hidden_states``, plain and as the careful write
    it."""
    network, words = cases.model(), cases.tokenizer()
    texts, folder = cases.contrast(count, shortest, longest), folders(stack)
    works = {
        OURS: lambda: cases.ours(network, words, texts, folder()).read().states,
        "capture": lambda: es.capture(network, words, texts, progress=False).states,
        LOOP: lambda: cases.plain(network, words, texts),
        "plain loop, sorted, no head": lambda: cases.plain(network, words, texts, True, False),
    }
    results = called(works)
    return Case(works, expected=results["found"][LOOP], **results)


@benchmark(
    "states.ranks",
    gate=STATES,
    smallest={"count": 6, "runs": {"1 process": (1, 1)}},
)
def RANKS(stack, count, runs) -> Case:
    """Processes that torchrun starts, ``(how many, threads of each)``; their seconds, start-up
    apart, are figures."""
    network, words, texts = cases.model(), cases.tokenizer(), cases.contrast(count)
    expected = es.capture(network, words, texts, progress=False).states
    results = {name: alone.by_ranks(*run, count) for name, run in runs.items()}
    found = {name: states for name, (_, states) in results.items()}
    rates = {name: count / seconds for name, (seconds, _) in results.items()}
    return Case({}, found, expected, figures=rates)


def unlike(found, expected) -> float:
    """What the worst cosine lacks of 1; infinite where other layers are steered."""
    if any(f.keys() != e.keys() for f, e in zip(found, expected, strict=True)):
        return float("inf")
    pairs = [(f[layer], e[layer]) for f, e in zip(found, expected) for layer in e]
    return 1 - min(float(f @ e) for f, e in pairs)


PAIRS = {
    "demo": lambda: (demo.load("expert"), demo.load("target")),
    "larger": lambda: tuple((cases.model(4, 256, seed), cases.tokenizer()) for seed in (1, 2)),
}
SETS = {
    "demo": cases.demo_concepts,
    "larger": partial(cases.made_concepts, length=64),
}


@benchmark(
    "states.concepts",
    gate=Gate("vectors of the first concepts with fits of their own", 1e-3, unlike, "of a cosine"),
    smallest={"pair": "demo", "concepts": 2, "examples": 40, "compared": 1},
)
def CONCEPTS(stack, pair, concepts, examples, compared=3, part=64) -> Case:
    """Many concepts at once, all texts different, and beside them the bare forward passes."""
    (expert, target), folder = PAIRS[pair](), folders(stack)
    sets = SETS[pair](concepts, examples)
    cases.many(dict(list(sets.items())[:2]), expert, target, folder())  # what is made once
    checked = folder()
    index, seconds = timing.once(lambda: cases.many(sets, expert, target, checked))
    texts = es.ContrastSet(tuple(e for contrast in sets.values() for e in contrast))
    missing = index["failed"] or len(index["concepts"]) != len(sets)
    require(not missing, "concepts are missing")
    require(len({e.text for e in texts}) == index["texts"] == len(texts), "texts are shared")
    names = list(sets)[:compared]
    found = [es.SteeringVectors.from_pretrained(checked / name).vectors for name in names]
    expected = [cases.alone(sets[name], expert, target).vectors for name in names]
    works = {
        "fit_concepts": lambda: cases.many(sets, expert, target, folder()),
        "passes": lambda: sum(cases.forward_passes(*m, texts, part) for m in (expert, target)),
    }
    figures = {"concepts": len(sets), "texts": len(texts)}
    first = {"fit_concepts": seconds}
    return Case(works, {"fit_concepts": found}, expected, ("passes",), figures, first)
