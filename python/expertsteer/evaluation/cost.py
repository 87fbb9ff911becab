"""What steering costs on a model and a machine of one's own: whole decodes beside unsteered ones.

The ways of steering take turns in rounds, each round is a ratio to the unsteered decode of the
same round, and a way whose logits differ from a plain hook's gets no speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ..models.decoder import find_decoder
from ..models.description import hidden_size
from ..models.forward import evaluating
from ..steering.steering import attach
from ..support.numbers import short
from ..support.progress import progress
from ..support.tensors import normal_draws
from ..vectors.vectors import SteeringVectors
from .statistics import Interval

WAYS = ("unsteered", "hook", "fold", "slot", "slot, generated")
STRENGTH = 0.05  # small: sizes of the vectors do not matter here, that they do something does


@dataclass(frozen=True)
class Cost:
    """One way of steering.

    Attributes:
        way: one of `WAYS`.
        tokens_per_second: of all sequences together, the median over rounds; ``None`` where it
            was not timed.
        ratio: time over the unsteered one's, the median over rounds with its 95 % interval.
        reason: why it was not timed.
    """

    way: str
    tokens_per_second: float | None = None
    ratio: Interval | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Json values."""
        return asdict(self) | {"ratio": None if self.ratio is None else self.ratio._asdict()}


def bench(
    model: nn.Module,
    vectors: SteeringVectors | None = None,
    *,
    batch: int = 1,
    prompt: int = 16,
    tokens: int = 32,
    rounds: int = 9,
    seed: int = 0,
    decoder_layers: str | None = None,
    show_progress: bool = True,
) -> list[Cost]:
    """Time greedy decoding with every way of steering.

    Args:
        model: a causal language model of transformers, on the device to measure.
        vectors: what to add; by default random unit directions at every layer.
        batch, prompt, tokens: sequences, random tokens before each, and tokens to decode.
        rounds: every way is timed once in each, after a round that is not counted.

    Returns:
        One `Cost` for each of `WAYS`.

    Raises:
        ValueError: a count that is not positive, or a vector that does not fit the model.
    """
    counts = {"batch": batch, "prompt": prompt, "tokens": tokens, "rounds": rounds}
    for name, value in counts.items():
        least = 3 if name == "rounds" else 1
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, came {value!r}")
    decode = _Decode(model, batch, prompt, tokens, seed)
    vectors = _random(model, decoder_layers, seed) if vectors is None else vectors
    ways = _ways(model, vectors, decoder_layers)
    with evaluating(model), torch.inference_mode():
        refused = _refused(ways, decode)
        timed = [way for way in ways if way not in refused]
        seconds = {way: [] for way in timed}
        for turn in progress(range(rounds + 1), "bench", show_progress):
            for way in timed[turn % len(timed) :] + timed[: turn % len(timed)]:
                with ways[way]():
                    elapsed = decode.seconds()
                if turn:  # the first round warms up
                    seconds[way].append(elapsed)
    return [
        Cost(way, reason=refused[way])
        if way in refused
        else _cost(way, seconds[way], seconds["unsteered"], batch * tokens)
        for way in ways
    ]


class _Decode:
    """One greedy decode of a fixed number of tokens."""

    def __init__(self, model: nn.Module, batch: int, prompt: int, tokens: int, seed: int):
        embedding = model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(embedding), (batch, prompt), generator=generator, device="cpu")
        self.model, self.ids = model, ids.to(embedding.device)
        self.mask = torch.ones_like(self.ids)
        fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        self.options = fixed | {"pad_token_id": 0}

    def logits(self) -> Tensor:
        return self.model(self.ids, attention_mask=self.mask, use_cache=False).logits.float()

    def seconds(self) -> float:
        on_gpu = self.ids.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.ids.device)
        started = time.perf_counter()
        self.model.generate(self.ids, attention_mask=self.mask, **self.options)
        if on_gpu:
            torch.cuda.synchronize(self.ids.device)
        return time.perf_counter() - started


def _ways(model: nn.Module, vectors: SteeringVectors, path: str | None) -> dict[str, Callable]:
    """Context managers by name, in which the model is steered that way."""
    options = {"strength": STRENGTH, "decoder_layers": path}
    return {
        "unsteered": nullcontext,
        "hook": lambda: _hooked(model, vectors, path),
        "fold": lambda: attach(model, vectors, mode="fold", **options),
        "slot": lambda: attach(model, vectors, mode="slot", **options),
        "slot, generated": lambda: attach(model, vectors, positions="generated", **options),
    }


@contextmanager
def _hooked(model: nn.Module, vectors: SteeringVectors, path: str | None) -> Iterator[None]:
    """A forward hook on every steered layer: the usual way, and the check of the others."""
    layers = find_decoder(model, path).layers
    with ExitStack() as stack:
        for layer in vectors.layers:
            added = STRENGTH * vectors.displacement(layer)
            hook = layers[layer].register_forward_hook(_adding(added))
            stack.callback(hook.remove)
        yield


def _adding(added: Tensor) -> Callable:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal added
        hidden = output[0] if isinstance(output, tuple) else output
        added = added.to(hidden)  # moves it once
        steered = hidden + added
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return hook


def _refused(ways: dict[str, Callable], decode: _Decode) -> dict[str, str]:
    """Why a way is not timed: it cannot serve the model, or does something else than the hook."""
    with ways["slot"]():  # serves every model, so what it refuses are the vectors
        found = {"slot": decode.logits()}
    with ways["hook"]():
        expected = decode.logits()
    refused = {}
    try:
        with ways["fold"]():
            found["fold"] = decode.logits()
    except ValueError as error:
        refused["fold"] = str(error)
    tolerance = 1e-3 if decode.model.dtype in (torch.float32, torch.float64) else 5e-2
    for way, logits in found.items():
        off = float((logits - expected).abs().max() / expected.abs().max())
        if not off <= tolerance:
            refused[way] = (
                f"its logits differ from a plain hook's by {short(off, 2)} of the largest"
            )
    return refused


def _cost(way: str, seconds: list[float], unsteered: list[float], tokens: int) -> Cost:
    ratios = np.asarray(seconds) / np.asarray(unsteered)
    low, high = float(ratios.min()), float(ratios.max())
    if low < high:
        rng = np.random.default_rng(0)
        drawn = stats.bootstrap((ratios,), np.median, method="percentile", rng=rng)
        low, high = map(float, drawn.confidence_interval)
    ratio = Interval(float(np.median(ratios)), low, high)
    return Cost(way, tokens / float(np.median(seconds)), ratio)


def _random(model: nn.Module, path: str | None, seed: int) -> SteeringVectors:
    layers, width = len(find_decoder(model, path)), hidden_size(model)
    drawn = normal_draws(layers, width, seed=seed)
    return SteeringVectors(dict(enumerate(drawn / drawn.norm(dim=1, keepdim=True))))
