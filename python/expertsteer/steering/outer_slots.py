"""What stands in for methods of the whole model while it is steered."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..models.caches import find_cache
from ..models.decoder import text_config
from ..models.stand_ins import MethodSlot
from .given_positions import UnsteeredWarning
from .positions import Outer
from .prompt import Prompt
from .state import State

# Methods of transformers that share one row out to many requests.
CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


class GenerateSlot(MethodSlot):
    """``generate``: remembers the prompt, so that later passes know which tokens are new."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.off:
            return self.original(*args, **kwargs)
        steering = self.steering
        prompt = Prompt.of_generate(steering.model, args, kwargs)
        _require_batch(steering, prompt)
        with steering.generating(prompt):
            output = self.original(*args, **kwargs)
        steering.watched.require_finite(steering.bank)
        if not self.off:  # else another thread has put the model back meanwhile
            _tell_unsteered(steering, prompt, _written(output, args, kwargs))
        return output


class OuterSlot(MethodSlot):
    """The forward of a model that prepares what its decoder gets: notes what came from outside.

    Models with several modalities make the decoder's masks themselves, and adapters put virtual
    tokens before the text.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.off:
            return self.original(*args, **kwargs)
        inputs = self.inputs(args, kwargs)
        mask = inputs.get("attention_mask")
        if torch.compiler.is_compiling():
            positions = self.steering.traced
            positions.outer_mask = mask
            output = self.original(*args, **kwargs)
            positions.outer_mask = None
            return output
        here = self.steering.current
        before, here.outer = here.outer, Outer(mask, _width(inputs), find_cache(inputs) is not None)
        try:
            return self.original(*args, **kwargs)
        finally:
            here.outer = before


class ContinuousSlot(MethodSlot):
    """A method of continuous batching: refused where steering needs to know each prompt."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reason = None if self.off else self.steering.why_not_everywhere()
        if reason:
            raise ValueError(f"{self.original.__name__} on a steered model: {reason}")
        return self.original(*args, **kwargs)


def prepares_inputs(model: nn.Module) -> bool:
    """Whether what a model is called with may differ from what its decoder gets."""
    nested = text_config(model) is not getattr(model, "config", None)
    # Stock models hand their arguments on; wrappers (adapters) and several modalities do not.
    return nested or not type(model).__module__.startswith("transformers.")


def _require_batch(steering: State, prompt: Prompt) -> None:
    """What is given per sequence is for those of this ``generate``.

    Raises:
        ValueError: it is for another number of them.
    """
    positions = steering.positions
    given = {"set_rows was given": steering.bank.sequences}
    if isinstance(positions, Tensor):
        given["positions are a mask for"] = len(positions)
    for what, count in given.items():
        if count not in (1, prompt.batch):
            raise ValueError(
                f"{what} {count} sequences and generate was given {prompt.batch}; give one entry "
                "per sequence of the batch (beams and samples follow the sequence they are of)"
            )


def _width(inputs: Any) -> int | None:
    """How many tokens per sequence were given."""
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(inputs.get(name), Tensor) and inputs[name].ndim > 1:
            return inputs[name].shape[1]
    return None


def _written(output: Any, args: tuple, kwargs: Any) -> Tensor | None:
    """The tokens that a ``generate`` added, ``None`` where its output does not say."""
    sequences = getattr(output, "sequences", output)
    if not isinstance(sequences, Tensor) or sequences.ndim != 2:
        return None
    given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    return sequences[:, given.shape[1] if isinstance(given, Tensor) else 0 :]


def _tell_unsteered(steering: State, prompt: Prompt, tokens: Tensor | None) -> None:
    """Warn of positions that never chose a token.

    Compiled passes are not counted. Drafts that run within another ``generate`` may well be too
    short for any; the outer one tells. Texts that the model ends at once have nothing to steer.
    """
    written = 0 if tokens is None else tokens.shape[1]
    counted = prompt.passes > 1 or prompt.passes == written == 1
    if prompt.chose or prompt.nested or steering.silent or not counted or written < 1:
        return
    if written == 1 and set(tokens.flatten().tolist()) <= prompt.ends:
        return
    named = steering.positions
    shown = repr(named) if isinstance(named, str) else f"a {type(named).__name__.lower()}"
    why = " (a token counts as generated once the model reads it, which the last one never is)"
    warnings.warn(
        f"positions={shown} chose no token in any of {prompt.passes} forward passes while generate "
        f"wrote {written} tokens: nothing was steered{why if isinstance(named, str) else ''}",
        UnsteeredWarning,
        stacklevel=3,
    )


class TrainSlot(MethodSlot):
    """The decoder's ``train`` where vectors are biases: dropout would drop them from now on.

    Each pass looks as well, but one that is compiled could no longer go over to slots then.
    """

    def __call__(self, mode: bool = True) -> Any:
        module, steering = self.original(mode), self.steering
        # An error would leave half of the model in the other mode: the next pass raises it.
        if not self.off and not steering.fixed and (reason := steering.why_fold_no_longer()):
            steering.leave_fold(reason)
        return module
