"""An expert that reads the texts another model writes, and only what is new of them.

Its key-value cache only ever grows. What no longer holds (the end of a text that is cut into other
tokens now that more of it is there) is masked out, and texts that changed places, as beams do,
take their rows along.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.caches import find_cache
from ..models.decoder import find_decoder, first_integer, text_config, unwrapped
from ..models.encoding import encode, text_tokenizer
from ..models.forward import evaluating, input_device

_HOLES = 0.5  # of the cache's columns that are masked out, beyond which the texts are read anew


class ReadingAlong:
    """The states of a model at the ends of texts that grow.

    Args:
        model, tokenizer: the expert's.
        layers: of the decoder, counted from 0, whose states are wanted.
        decoder_layers: see `attach`.

    Attributes:
        read: tokens that have gone through the model, padding among them.

    Raises:
        ValueError: no decoder layers found, a layer out of range, a model whose cache cannot be
            masked or whose rows cannot change places.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        layers: Sequence[int],
        decoder_layers: str | None = None,
    ):
        self.model, self.tokenizer = unwrapped(model), text_tokenizer(tokenizer)
        self.found = find_decoder(self.model, decoder_layers)
        depth = len(self.found)
        if not layers or not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers must be some of 0..{depth - 1}, came {list(layers)}")
        self.layers, self.read = tuple(layers), 0
        named = inspect.signature(self.model.forward).parameters
        if "position_ids" not in named:
            raise self._cannot()
        # The argument's name is another one from transformers 5.24 on.
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        self._window = first_integer(text_config(self.model), ("sliding_window",))
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in named else {}
        self._forget()

    def _forget(self) -> None:
        self._cache: Any = None
        self._rows: list[list[int]] = []  # tokens of each row that hold
        self._columns: list[list[int]] = []  # where in the cache they are
        self._mask = torch.zeros(0, 0, dtype=torch.int64, device="cpu")  # [rows, columns]

    def states(self, texts: Sequence[str]) -> Tensor:
        """``[L, N, d]`` at the end of each text, on the expert's device in its type.

        Raises:
            ValueError: a text without tokens.
        """
        rows = encode(self.tokenizer, texts)
        empty = next((text for text, ids in zip(texts, rows) if not ids), None)
        if empty is not None:
            raise ValueError(f"texts: {empty!r} has no tokens under the expert's tokenizer")
        kept = self._followed(rows)
        if self._worn_out([len(ids) - n for ids, n in zip(rows, kept)], kept):
            self._forget()
            kept = [0] * len(rows)
        return self._passed(rows, [ids[n:] for ids, n in zip(rows, kept)], kept)

    def _followed(self, rows: list[list[int]]) -> list[int]:
        """Give every text the row of the cache that it goes on from; how many tokens hold.

        At least the last token of each is read again: its state is what is wanted.
        """
        if not self._rows:
            return [0] * len(rows)
        before, shared = [], []
        for i, ids in enumerate(rows):
            own = [i] if i < len(self._rows) else []
            others = (j for j in range(len(self._rows)) if j != i)
            best, length = 0, -1
            for j in (*own, *others):
                n = _common(self._rows[j], ids)
                if n > length:
                    best, length = j, n
                if n == len(self._rows[j]):  # nothing of that row is lost
                    break
            before.append(best)
            shared.append(min(length, len(ids) - 1))
        if before != list(range(len(self._rows))):
            chosen = torch.tensor(before, dtype=torch.int64, device="cpu")
            self._cache = _reordered(self._cache, chosen.to(input_device(self.model)))
            self._mask = self._mask[chosen]
            self._columns = [list(self._columns[j]) for j in before]
        for i, n in enumerate(shared):
            self._mask[i, self._columns[i][n:]] = 0
            del self._columns[i][n:]
        return shared

    def _worn_out(self, new: Sequence[int], kept: Sequence[int]) -> bool:
        """Whether the cache has too many holes, or any where attention counts columns.

        A sliding window reaches back so many columns, masked out or not.
        """
        columns = self._mask.shape[1]
        if not columns:
            return False
        if 1 - sum(kept) / (len(kept) * columns) > _HOLES:
            return True
        if self._window is None or columns + max(new) <= self._window:
            return False
        begun = self._mask.cumsum(dim=1) > 0  # what stands before a text is no hole
        return bool((begun & (self._mask == 0)).any()) or len(set(new)) > 1

    def _passed(self, rows: list[list[int]], new: list[list[int]], kept: list[int]) -> Tensor:
        """One pass over what is new, padded on the left so that every text ends in the last one."""
        width, columns = max(map(len, new)), self._mask.shape[1]
        ids = torch.zeros(len(rows), width, dtype=torch.int64, device="cpu")
        mask, places = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, some in enumerate(new):
            first = width - len(some)
            ids[i, first:] = torch.tensor(some, dtype=torch.int64, device="cpu")
            mask[i, first:] = 1
            places[i, first:] = torch.arange(kept[i], len(rows[i]), device="cpu")
            self._columns[i : i + 1] = [
                [*(self._columns[i] if columns else []), *range(columns + first, columns + width)]
            ]
        whole = torch.cat([self._mask, mask], dim=1) if columns else mask
        device = input_device(self.model)
        with torch.no_grad(), evaluating(self.model), self._kept() as found:
            output = self.model(
                input_ids=ids.to(device),
                attention_mask=whole.to(device),
                position_ids=places.to(device),
                use_cache=True,
                **self._options,
                **{self._cache_name: self._cache},
            )
        self._cache, self._mask, self._rows = self._cache_of(output), whole, rows
        self.read += ids.numel()
        first = found[self.layers[0]]
        return torch.stack([found[layer].to(first) for layer in self.layers])

    def _cache_of(self, output: Any) -> Any:
        cache = find_cache(output)
        grows = not getattr(cache, "is_compileable", False)  # else its length is fixed
        if not (hasattr(cache, "reorder_cache") and grows) and not isinstance(cache, tuple):
            raise self._cannot()
        return cache

    def _cannot(self) -> ValueError:
        return ValueError(
            f"the expert, {type(self.model).__name__}, cannot read along: that takes position_ids, "
            "and a key-value cache that grows and whose rows can change places; give an attention "
            "model, or a newer transformers"
        )

    @contextmanager
    def _kept(self) -> Iterator[dict[int, Tensor]]:
        """The last states of the layers, ``[N, d]`` each, of the pass within."""
        found: dict[int, Tensor] = {}

        def keep(layer: int):
            def hook(module: Any, args: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, (tuple, list)) else output
                found[layer] = hidden[:, -1].clone()

            return hook

        handles = [self.found.layers[i].register_forward_hook(keep(i)) for i in set(self.layers)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _reordered(cache: Any, rows: Tensor) -> Any:
    """The cache with these of its rows; nested tuples are what some models had before 5.0."""
    if not isinstance(cache, tuple):
        cache.reorder_cache(rows)
        return cache
    return tuple(tuple(t.index_select(0, rows) for t in layer) for layer in cache)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
