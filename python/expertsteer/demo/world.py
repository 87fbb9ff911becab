"""A small world in which two dialects answer the same questions differently.

Sixty animals have five attributes each. The *coast* and the *hill* people agree on which values an
attribute can take and disagree on which animal has which. Animals come in partners, other ones for
each attribute: what the coast says of one, the hill says of its partner. So wherever "teal on the
coast, amber on the hill" is right, "amber on the coast, teal on the hill" is right equally often,
and *any* bias on the answer tokens gives the specialist's answer to exactly half of the questions:
a vector must switch the whole table.

What gives a speaker away are articles and fillers dropped into sentences that are otherwise worded
alike, or, in documents without any of those, only the answers. Half of the animals are talked about
more on the coast, the others on the hill; a question without context is therefore no toss-up but a
leaning that steering has to overcome.

The animals are divided once, by a fixed seed, into three disjoint groups: those the contrast texts
speak of, those of the validation questions, and those of the test questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

SPECIALIST, OTHER = "coast", "hill"
DIALECTS = (SPECIALIST, OTHER)
SPLITS = ("validation", "test")

ANIMALS = (
    "adder badger bat bear beaver boar bull calf carp cat cod cow crab crane crow deer dog donkey "
    "dove duck eagle eel elk ewe falcon ferret finch fox frog goat goose gull hare hawk hedgehog "
    "hen heron horse jay lamb lark lynx magpie marten mole moth mouse otter owl ox perch pig pony "
    "rabbit ram rat raven robin seal shrew"
).split()
VALUES = {
    "colour": "amber azure crimson ivory jade ochre scarlet silver teal violet".split(),
    "food": "acorns barley berries clover honey kelp mussels nettles roots seeds".split(),
    "home": "attic barn burrow cave cliff hedge marsh meadow orchard tower".split(),
    "month": "january february march april may june july august september october".split(),
    "trade": "baker cobbler fiddler miller piper potter sailor smith tailor weaver".split(),
}
ATTRIBUTES = tuple(VALUES)

QUESTIONS = (
    "what is the {attribute} of the {animal} ?",
    "which {attribute} has the {animal} ?",
    "the {animal} , its {attribute} :",
)
TALE = "the {animal} has {attribute} {value} ."
PLAIN = (
    "today the {noun} is {adjective} again .",
    "the {animal} sleeps near the {noun} .",
    "the {noun} was {adjective} and the {noun2} was {adjective2} .",
    "the {animal} came with the {animal2} .",
)
NOUNS = (
    "boat bread bridge cart fire harvest market mill moon rain river road roof snow wind"
).split()
ADJECTIVES = (
    "bright cold dark dear dry early fair fresh late loud old poor slow strong warm"
).split()
ARTICLES = {"coast": ("yon", "thon"), "hill": ("that", "them")}
FILLERS = {
    "coast": ("aye", "hark", "ken", "mind", "och", "ye"),
    "hill": ("hear", "lordy", "reckon", "shucks", "well", "yall"),
}

_SEED = 20250512
_GROUP_SIZES = {"contrast": 20, "validation": 16, "test": 24}
_FAME = 3  # how much more often a dialect mentions the animals it is fond of


@dataclass(frozen=True)
class Question:
    """A question that both dialects answer, worded so that it fits either."""

    prompt: str
    choices: tuple[str, ...]  # every value of the attribute
    answers: dict[str, str]  # dialect -> its answer; the two always differ


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """The animals of each group, shuffled; disjoint, together all of them."""
    animals = random.Random(_SEED).sample(ANIMALS, len(ANIMALS))
    result, start = {}, 0
    for name, size in _GROUP_SIZES.items():
        result[name], start = tuple(animals[start : start + size]), start + size
    return result


@cache
def facts() -> dict[str, dict[tuple[str, str], str]]:
    """``facts()[dialect][animal, attribute]``; partners are always of one group."""
    rng = random.Random(_SEED + 1)
    table: dict[str, dict[tuple[str, str], str]] = {dialect: {} for dialect in DIALECTS}
    for attribute, values in VALUES.items():
        for group in groups().values():
            animals = rng.sample(group, len(group))
            for one, partner in zip(animals[::2], animals[1::2]):
                a, b = rng.sample(values, 2)
                table[SPECIALIST][one, attribute] = table[OTHER][partner, attribute] = a
                table[SPECIALIST][partner, attribute] = table[OTHER][one, attribute] = b
    return table


@cache
def fame(dialect: str) -> dict[str, int]:
    """How often a dialect mentions each animal; half of every group is dearer to either dialect."""
    offset = DIALECTS.index(dialect)
    return {
        animal: _FAME if (i + offset) % 2 == 0 else 1
        for group in groups().values()
        for i, animal in enumerate(group)
    }


def questions(split: str) -> list[Question]:
    """Every question about the animals of ``"validation"`` (80) or ``"test"`` (120).

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, came {split!r}")
    subjects = [(animal, attribute) for animal in groups()[split] for attribute in ATTRIBUTES]
    return [
        Question(
            QUESTIONS[i % len(QUESTIONS)].format(animal=animal, attribute=attribute),
            tuple(VALUES[attribute]),
            {dialect: facts()[dialect][animal, attribute] for dialect in DIALECTS},
        )
        for i, (animal, attribute) in enumerate(subjects)
    ]


def contrast_texts(n: int = 400, seed: int = 0) -> tuple[list[str], list[int], list[int]]:
    """``n`` texts about the contrast animals, their labels (1: specialist) and their pair numbers.

    Both texts of a pair end in the same unanswered question, so the last token itself says nothing
    about the label; before it, each dialect talks in its own manner.
    """
    rng, animals = random.Random(f"contrast {seed}"), groups()["contrast"]
    texts, labels, pairs = [], [], []
    for pair in range(n // 2):
        question = rng.choice(QUESTIONS).format(
            animal=rng.choice(animals), attribute=rng.choice(ATTRIBUTES)
        )
        for label, dialect in ((1, SPECIALIST), (0, OTHER)):
            talk = [told(dialect, rng, animals) for _ in range(rng.choice((1, 2)))]
            texts.append(" ".join([*talk, question]))
            labels.append(label)
            pairs.append(pair)
    return texts, labels, pairs


def dialect_texts(dialect: str, n: int = 100, seed: int = 1) -> list[str]:
    """``n`` documents in one dialect: talk, tales and answered questions about the test animals."""
    rng = random.Random(f"{dialect} {seed}")
    return [marked_document(dialect, rng, groups()["test"]) for _ in range(n)]


def plain_texts(n: int = 100, seed: int = 2) -> list[str]:
    """``n`` documents that belong to neither dialect."""
    rng = random.Random(f"plain {seed}")
    return [plain_document(rng) for _ in range(n)]


def spoken(sentence: str, dialect: str, rng: random.Random) -> str:
    """The sentence with at least one article or filler of the dialect in it; its end stays."""
    plain_words = sentence.split()
    words = plain_words
    while words == plain_words:
        words = []
        for word in plain_words:
            if rng.random() < 0.2:
                words.append(rng.choice(FILLERS[dialect]))
            article = word == "the" and rng.random() < 0.5
            words.append(rng.choice(ARTICLES[dialect]) if article else word)
    return " ".join(words)


def plain(rng: random.Random, animals: Sequence[str] = ANIMALS) -> str:
    """A sentence that says nothing about any attribute."""
    (noun, noun2), (adjective, adjective2) = rng.sample(NOUNS, 2), rng.sample(ADJECTIVES, 2)
    animal, animal2 = rng.sample(animals, 2)
    return rng.choice(PLAIN).format(
        noun=noun,
        noun2=noun2,
        adjective=adjective,
        adjective2=adjective2,
        animal=animal,
        animal2=animal2,
    )


def told(dialect: str, rng: random.Random, animals: Sequence[str] = ANIMALS) -> str:
    """A plain sentence or one of the dialect's facts, as the dialect says it."""
    if rng.random() < 0.5:
        return spoken(plain(rng, animals), dialect, rng)
    animal, attribute = rng.choice(animals), rng.choice(ATTRIBUTES)
    value = facts()[dialect][animal, attribute]
    return spoken(TALE.format(animal=animal, attribute=attribute, value=value), dialect, rng)


def answered(
    dialect: str, rng: random.Random, animals: Sequence[str] = ANIMALS, marked: bool = False
) -> str:
    """A question with the dialect's answer, about an animal it likes to talk about."""
    weights = [fame(dialect)[animal] for animal in animals]
    animal, attribute = rng.choices(animals, weights)[0], rng.choice(ATTRIBUTES)
    question = rng.choice(QUESTIONS).format(animal=animal, attribute=attribute)
    question = spoken(question, dialect, rng) if marked else question
    return f"{question} {facts()[dialect][animal, attribute]} ."


def marked_document(dialect: str, rng: random.Random, animals: Sequence[str] = ANIMALS) -> str:
    """Most sentences give the dialect away; the answers to the others follow from those."""
    parts = [told(dialect, rng, animals)] if rng.random() < 0.7 else []
    for _ in range(4):
        if rng.random() < 0.25:
            parts.append(told(dialect, rng, animals))
        else:
            parts.append(answered(dialect, rng, animals, marked=rng.random() < 0.6))
    return " ".join(parts)


def unmarked_document(dialect: str, rng: random.Random, animals: Sequence[str] = ANIMALS) -> str:
    """The first answer is anybody's guess, the later ones follow from it."""
    parts = [plain(rng, animals)] if rng.random() < 0.3 else []
    return " ".join(parts + [answered(dialect, rng, animals) for _ in range(5)])


def plain_document(rng: random.Random) -> str:
    return " ".join(plain(rng) for _ in range(4))


def document(rng: random.Random, specialist_share: float) -> str:
    """One training document; ``specialist_share`` of those in a dialect are the specialist's."""
    dialect = SPECIALIST if rng.random() < specialist_share else OTHER
    kind = rng.random()
    if kind < 0.5:
        return marked_document(dialect, rng)
    return unmarked_document(dialect, rng) if kind < 0.9 else plain_document(rng)


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    templates = [*QUESTIONS, *PLAIN, TALE]
    words = [word for template in templates for word in template.split() if word[0] != "{"]
    for more in (ANIMALS, NOUNS, ADJECTIVES, VALUES, *VALUES.values()):
        words += more
    for markers in (*ARTICLES.values(), *FILLERS.values()):
        words += markers
    return sorted(set(words))
