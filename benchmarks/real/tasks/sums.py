"""Arithmetic and values of Python expressions: what has to be worked out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.real.tasks.task import Row, parted

NUMBERS = range(11, 100)
WORDS = (
    "apple orange banana cherry lemon grape melon papaya table chair window garden carpet mirror "
    "pillow blanket hammer ladder bucket shovel wagon engine rocket planet comet desert island "
    "forest river valley meadow harbour castle tower bridge tunnel market school church library "
    "doctor farmer sailor painter baker tailor singer dancer writer teacher yellow purple silver "
    "golden crimson violet monday friday august october winter summer spring autumn rabbit tiger "
    "monkey parrot spider beetle dolphin penguin turtle lizard butter cheese pepper sugar cookie "
    "noodle coffee bottle basket candle ribbon button pocket jacket sweater"
).split()
DRAWS = 1200  # of expressions, some of which are the same


def sum_rows(part: str) -> list[Row]:
    """``60 - 23 =`` with the right number and one near it."""
    combinations = [(a, sign, b) for a in NUMBERS for sign in "+-" for b in NUMBERS]
    possible = [c for c in combinations if c[1] == "+" or c[0] > c[2]]
    rng = random.Random("wrong sums")
    rows = {}
    for a, sign, b in possible:
        value = a + b if sign == "+" else a - b
        rows[a, sign, b] = Row(f"{a} {sign} {b} = ", str(value), str(near(value, rng)))
    return [rows[c] for c in parted("arithmetic", possible)[part]]


def python_rows(part: str) -> list[Row]:
    """``assert len('orange') + 8 ==`` with the right value and one near it.

    Words are apart between the parts, and so are whole expressions; two of the forms are in the
    test alone.
    """
    words = parted("words", WORDS)[part]
    rng, forms = random.Random(f"python {part}"), SEEN + (NEW if part == "test" else ())
    rows = {}
    for _ in range(DRAWS):
        expression = rng.choice(forms)(words, rng)
        value = eval(expression, {})  # made here, from numbers and words
        rows.setdefault(expression, (value, near(value, rng)))
    return [Row(f"assert {e} == ", str(value), str(wrong)) for e, (value, wrong) in rows.items()]


def near(value: int, rng: random.Random) -> int:
    """Another number, at most ten away, not below 0."""
    others = [value + step for step in (-10, -2, -1, 1, 2, 10) if value + step >= 0]
    return rng.choice(others)


Form = Callable[[Sequence[str], random.Random], str]


def _length(words: Sequence[str], rng: random.Random) -> str:
    return f"len('{rng.choice(words)}') {rng.choice('+*')} {rng.randint(2, 9)}"


def _two_lengths(words: Sequence[str], rng: random.Random) -> str:
    one, other = rng.sample(words, 2)
    return f"len('{one}') + len('{other}')"


def _letters(words: Sequence[str], rng: random.Random) -> str:
    word = rng.choice(words)
    return f"'{word}'.count('{rng.choice(word)}') + {rng.randint(2, 9)}"


def _place(words: Sequence[str], rng: random.Random) -> str:
    word = rng.choice(words)
    return f"'{word}'.index('{rng.choice(word)}')"


def _repeated(words: Sequence[str], rng: random.Random) -> str:
    return f"len('{rng.choice(words)}' * {rng.randint(2, 9)})"


def _longest(words: Sequence[str], rng: random.Random) -> str:
    one, other = rng.sample(words, 2)
    return f"max(len('{one}'), len('{other}'))"


SEEN: tuple[Form, ...] = (_length, _two_lengths, _letters, _place)
NEW: tuple[Form, ...] = (_repeated, _longest)
