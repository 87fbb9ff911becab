"""A target that is guided while it runs: the expert reads along, and its states take effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.caches import cached_tokens, find_cache
from ..models.decoder import find_decoder, unwrapped
from .guidance import Guidance
from .reading_along import ReadingAlong
from .readings import texts_of

_GUIDED = "_expertsteer_guided"


@contextmanager
def guide(
    target: nn.Module,
    guidance: Guidance,
    expert: nn.Module,
    *,
    target_tokenizer: Any,
    expert_tokenizer: Any,
    strength: float | None = None,
    decoder_layers: str | None = None,
    expert_decoder_layers: str | None = None,
) -> Iterator[Live]:
    """Guide ``target`` by an expert that reads what it reads and writes; restored on the way out.

    Guided are the tokens that answers are predicted from: the prompt's last one and every one
    that is written. Outside of ``generate`` a pass over whole texts is guided at the last token of
    each, or from ``live.prompt_length - 1`` on where that is set.

    Args:
        target, expert: causal language models of transformers, on any devices.
        guidance: fitted for this pair.
        target_tokenizer, expert_tokenizer: what the one writes is read by the other as text.
        strength: the share of the target's states that is replaced; by default the guidance's
            own. At 0 the expert does not read and the target runs as it is.
        decoder_layers, expert_decoder_layers: see `attach`.

    Raises:
        ValueError: models of other widths or depths than the guidance, a strength out of range,
            a model that is guided already, an expert that cannot read along.
        RuntimeError: within a pass: a cache whose text cannot be known, as outside ``generate``.
    """
    target = unwrapped(target)
    if getattr(target, _GUIDED, False):
        raise ValueError("model is guided already; leave the other guide(...) first")
    decoder = find_decoder(target, decoder_layers)
    if max(guidance.target_layers) >= len(decoder):
        raise ValueError(
            f"guidance is for target layers {guidance.target_layers}, the model has {len(decoder)}"
        )
    reading = ReadingAlong(expert, expert_tokenizer, guidance.expert_layers, expert_decoder_layers)
    live = Live(guidance, reading, target_tokenizer)
    live.strength = guidance.strength if strength is None else strength
    with ExitStack() as stack:
        setattr(target, _GUIDED, True)
        stack.callback(delattr, target, _GUIDED)
        for name, around in (
            ("generate", live.generating),
            ("prepare_inputs_for_generation", live.preparing),
        ):
            if hasattr(target, name):
                stack.callback(_put_back, target, name, vars(target).get(name))
                setattr(target, name, around(getattr(target, name)))
        hook = target.register_forward_pre_hook(live.before_pass, with_kwargs=True)
        stack.callback(hook.remove)
        for place, layer in enumerate(guidance.target_layers):
            handle = decoder.layers[layer].register_forward_hook(live.replacing(place))
            stack.callback(handle.remove)
        yield live


class Live:
    """A guided model. Made by `guide`.

    Attributes:
        prompt_length: where the prompt ends in passes outside ``generate``, in tokens with padding;
            ``None`` guides the last token alone.
    """

    def __init__(self, guidance: Guidance, reading: ReadingAlong, tokenizer: Any):
        self.guidance, self.reading, self.tokenizer = guidance, reading, tokenizer
        self.prompt_length: int | None = None
        self._strength = 1.0
        self._prompt: int | None = None  # of the running `generate`
        self._whole: tuple[Tensor, Tensor | None] | None = None  # its tokens so far, and the mask
        self._rows = self._columns = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._states: Tensor | None = None  # [layers, places, width] of this pass

    @property
    def strength(self) -> float:
        """The share of a guided state that is replaced."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"strength must be a share from 0 to 1, came {value!r}")
        self._strength = float(value)

    def generating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``generate``, whose first pass tells where the prompt ends."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            before, self._prompt = (self._prompt, self._whole), -1
            try:
                return original(*args, **kwargs)
            finally:
                self._prompt, self._whole = before

        return generate

    def preparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``prepare_inputs_for_generation``, which is given all tokens of every sequence."""

        def prepare(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._whole = input_ids, kwargs.get("attention_mask")
            if self._prompt == -1:
                self._prompt = input_ids.shape[1]
            return original(input_ids, *args, **kwargs)

        return prepare

    def before_pass(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Work out what the layers of the pass that begins shall have, and where."""
        self._states = None
        if self.strength == 0:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise RuntimeError("a guided model must be given input_ids [batch, tokens]")
        whole, mask = self._text_of(ids, kwargs)
        chosen = self._chosen(mask, ids.shape[1])
        found = [self._read(whole, mask, chosen, c) for c in range(chosen.shape[1])]
        found = [some for some in found if some is not None]
        if found:
            self._rows, self._columns = (torch.cat([f[i] for f in found]) for i in (0, 1))
            self._states = torch.cat([f[2] for f in found], dim=1)

    def replacing(self, place: int) -> Callable[..., Any]:
        """A hook that puts the states of the pass into the output of a layer."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            if self._states is None:
                return None
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            rows, columns = self._rows.to(hidden.device), self._columns.to(hidden.device)
            own = hidden[rows, columns]
            wanted = self._states[place].to(own)
            guided = hidden.clone()
            guided[rows, columns] = torch.lerp(own, wanted, self.strength)
            if isinstance(output, (tuple, list)):
                return type(output)((guided, *output[1:]))
            return guided

        return hook

    def _text_of(self, ids: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """All tokens ``[B, T]`` that the pass goes on from, its own last, and which are text."""
        if self._prompt is not None and self._whole is not None:
            whole, mask = self._whole
            if whole.shape[1] >= ids.shape[1] and torch.equal(whole[:, -ids.shape[1] :], ids):
                fits = mask is not None and mask.shape == whole.shape
                return whole.cpu(), mask.cpu() if fits else torch.ones_like(whole).cpu()
        cache = find_cache(kwargs)
        if cache is not None and cached_tokens(cache) != 0:
            raise RuntimeError(
                "a guided pass goes on from a cache, and what text is in it cannot be known; use "
                "generate, or run whole texts"
            )
        mask = kwargs.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.shape == ids.shape
        return ids.cpu(), mask.cpu() if fits else torch.ones_like(ids).cpu()

    def _chosen(self, mask: Tensor, tokens: int) -> Tensor:
        """Which tokens of the pass are guided, bool ``[B, tokens]``."""
        real = mask[:, -tokens:] != 0
        end = self._prompt if self._prompt not in (None, -1) else self.prompt_length
        if end is not None:
            places = torch.arange(mask.shape[1] - tokens, mask.shape[1], device="cpu")
            return real & (places >= end - 1)
        later = real.flip(1).cumsum(1).flip(1)
        return real & (later == 1)

    def _read(
        self, whole: Tensor, mask: Tensor, chosen: Tensor, column: int
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows and columns guided at one token of the pass, and their states."""
        rows = chosen[:, column].nonzero().flatten()
        end = whole.shape[1] - chosen.shape[1] + column + 1
        kept = [whole[r, :end][mask[r, :end] != 0].tolist() for r in rows.tolist()]
        texts: Sequence[str] = texts_of(self.tokenizer, kept) if kept else []
        told = [i for i, text in enumerate(texts) if text]  # before any text nothing is known
        if not told:
            return None
        states = self.guidance(self.reading.states([texts[i] for i in told]))
        return rows[told], torch.full_like(rows[told], column), states


def _put_back(model: nn.Module, name: str, before: Any) -> None:
    if before is None:
        delattr(model, name)
    else:
        setattr(model, name, before)
