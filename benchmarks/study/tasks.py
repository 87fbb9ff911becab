"""What the study measures on: the demo's two dialects, and sad against glad stories.

A task holds a target model, draws contrast sets by seed and size, and scores the model as it is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expertsteer import demo
from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.demo import world
from expertsteer.models.loading import load
from expertsteer.models.scoring import choice_sequences, log_probabilities

NEUTRAL_TEXTS = 24
STORIES_SEED = 7


@dataclass(frozen=True)
class Items:
    """Prompts with their continuations, the wanted one first, as token ids."""

    sequences: tuple[tuple[list[int], int], ...]
    choices: int

    @classmethod
    def of(cls, tokenizer: Any, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> Items:
        """Tokenized once: a study scores the same items thousands of times."""
        rows = choice_sequences(tokenizer, prompts, choices)
        return cls(tuple(sequence for row in rows for sequence in row), len(choices[0]))

    def beliefs(self, model: Any) -> Tensor:
        """``[N, C]`` as `choice_probabilities` gives them."""
        total = log_probabilities(model, self.sequences, 256)
        return total.view(-1, self.choices).softmax(dim=1)


@dataclass(frozen=True)
class Task:
    """A target with everything it is measured on.

    Attributes:
        contrast: ``contrast(size, seed)``, a fresh contrast set.
        items: by split; neutral: texts that steering should leave alone.
        layers: how many the target has.
        counts: whether right and wrong is what choices are made by; otherwise the share is.
    """

    name: str
    model: Any
    tokenizer: Any
    contrast: Callable[[int, int], ContrastSet]
    items: dict[str, Items]
    neutral: tuple[str, ...]
    layers: int
    counts: bool

    def score(self, split: str, prompt: str = "") -> Tensor:
        """``[N, 2]``: whether the wanted continuation is the most probable one, and its share
        among all of them; twice the share where nothing is counted."""
        if prompt:
            raise ValueError("prompt: the study has none")
        beliefs = self.items[split].beliefs(self.model)
        share = beliefs[:, 0]
        first = (beliefs.argmax(dim=1) == 0).double() if self.counts else share
        return torch.stack((first, share), dim=1)


def demo_task(model: Any = None, tokenizer: Any = None, name: str = "demo") -> Task:
    """The bundled target, or one given in its place; wanted is the coast's answer among all values
    of the attribute."""
    if model is None:
        model, tokenizer = demo.load("target")
    items = {split: demo_items(tokenizer, split) for split in world.SPLITS}
    neutral = tuple(world.plain_texts(NEUTRAL_TEXTS, seed=3))
    return Task(name, model, tokenizer, demo.contrast_set, items, neutral, 4, counts=True)


def demo_items(tokenizer: Any, split: str, before: Sequence[str] = ("",)) -> Items:
    """The questions of a split, each behind a text of ``before`` in turn."""
    prompts, choices = [], []
    for question, context in zip(world.questions(split), itertools.cycle(before)):
        wanted = question.answers[world.SPECIALIST]
        others = [choice for choice in question.choices if choice != wanted]
        prompts.append(f"{context} {question.prompt}".strip())
        choices.append([f" {choice}" for choice in (wanted, *others)])
    return Items.of(tokenizer, prompts, choices)


def demo_contexts(tokenizer: Any) -> dict[str, Items]:
    """The test questions, bare and behind a sentence that one of the dialects gives away."""
    items = {"no context": demo_items(tokenizer, "test")}
    for dialect in world.DIALECTS:
        rng = random.Random(f"context {dialect}")
        before = [world.spoken(world.plain(rng), dialect, rng) for _ in range(40)]
        items[f"after a sentence of the {dialect}"] = demo_items(tokenizer, "test", before)
    return items


def stories_task(folder: Path) -> Task:
    """A small model of children's stories; wanted is the sad continuation of two.

    Names, things and places of the contrast texts, of validation and of test are disjoint.
    """
    model, tokenizer = load(folder, device="cpu", dtype=torch.float32)
    items = {}
    for split, count in (("validation", 32), ("test", 64)):
        prompts, choices = story_prompts(split, count)
        items[split] = Items.of(tokenizer, prompts, choices)
    neutral = tuple(plain_stories(NEUTRAL_TEXTS))
    layers = model.config.num_hidden_layers
    # Of two continuations each frame has one that nearly always leads, so a count moves in steps.
    return Task("stories", model, tokenizer, story_contrast, items, neutral, layers, counts=False)


NAMES = {
    "contrast": "Tom Lily Ben Anna Max Sue Tim Mia Sam Lucy".split(),
    "validation": "Jack Sara Leo Emma".split(),
    "test": "Bob Amy Joe Mary Dan Kate".split(),
}
THINGS = {
    "contrast": "ball,doll,kite,car,hat,book,cake,boat,drum,bike,cup,shell".split(","),
    "validation": "bear,train,ring,flower".split(","),
    "test": "box,bird,stone,toy,bag,coat".split(","),
}
PLACES = {
    "contrast": "park,house,garden,shop,school,beach".split(","),
    "validation": "farm,lake".split(","),
    "test": "zoo,forest,river,hill".split(","),
}
SAD = (
    "{name} lost the {thing} at the {place}.",
    "{name} broke the {thing} and could not fix it.",
    "{friend} took the {thing} away from {name}.",
    "{name} wanted a {thing} but did not get one.",
    "The {thing} fell into the water at the {place} and was gone.",
    "{name} fell down at the {place} and hurt a leg.",
    "{friend} did not want to play with {name} at the {place}.",
)
GLAD = (
    "{name} found the {thing} at the {place}.",
    "{name} made a {thing} and it was the best.",
    "{friend} gave a big {thing} to {name}.",
    "{name} wanted a {thing} and got two.",
    "The {thing} was a gift and it was just right for the {place}.",
    "{name} ran fast at the {place} and won the game.",
    "{friend} wanted to play with {name} at the {place} all day.",
)
BRIDGES = (
    "It was late in the day.",
    "There was a tree near the road.",
    "Then {name} went home.",
    "{friend} was there too.",
    "Mom came to look.",
)
ENDS = ("{name} sat down.", "{name} looked at mom.", "{name} went to the room.")
SCENES = (
    "{name} went to the {place} with {friend}. They saw a {thing}.",
    "One day, {name} had a {thing}. {friend} came to the {place}.",
    "{name} and {friend} were at the {place}. There was a {thing} on the ground.",
    "{friend} saw {name} at the {place} with a {thing}.",
)
FEELINGS = (" {name} was very", " {name} felt", " {name} was so", ' {name} said, "I am')
CHOICES = (" sad", " happy")
PLAIN_STORIES = (
    "The {thing} is on the table.",
    "There is a {place} near the road.",
    "The {place} has a door and a wall.",
    "The {thing} is big and red.",
    "The sun is up and the {thing} is in the {place}.",
)


def story_contrast(size: int, seed: int) -> ContrastSet:
    """``size`` short texts, sad (label 1) and glad (0) in pairs that end in the same words."""
    rng = random.Random(f"stories {seed}")
    texts, labels, pairs = [], [], []
    for pair in range(size // 2):
        words = _words("contrast", rng)
        event = rng.randrange(len(SAD))
        rest = f"{rng.choice(BRIDGES)} {rng.choice(ENDS)}"
        for label, events in ((1, SAD), (0, GLAD)):
            texts.append(f"{events[event]} {rest}".format(**words))
            labels.append(label)
            pairs.append(pair)
    return ContrastSet.from_texts(texts, labels, pairs)


def story_prompts(split: str, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Scenes that fit either feeling, and the two continuations of each, the sad one first."""
    rng = random.Random(f"{split} {STORIES_SEED}")
    frames = itertools.cycle(itertools.product(SCENES, FEELINGS))
    prompts = [
        (scene + feeling).format(**_words(split, rng))
        for scene, feeling in itertools.islice(frames, count)
    ]
    return prompts, [CHOICES] * count


def plain_stories(count: int) -> list[str]:
    """Texts about things, without people or feelings."""
    rng = random.Random(f"plain {STORIES_SEED}")
    things, places = sum(THINGS.values(), []), sum(PLACES.values(), [])
    return [
        " ".join(rng.sample(PLAIN_STORIES, 2)).format(
            thing=rng.choice(things), place=rng.choice(places)
        )
        for _ in range(count)
    ]


def _words(split: str, rng: random.Random) -> dict[str, str]:
    name, friend = rng.sample(NAMES[split], 2)
    thing, place = rng.choice(THINGS[split]), rng.choice(PLACES[split])
    return {"name": name, "friend": friend, "thing": thing, "place": place}
