"""Forward hooks that steer a model in SGLang; the export copies this file beside the vectors.

It needs torch and NumPy, and nothing of expertsteer.

SGLang calls ``make_hook(config)`` for each entry of ``--forward-hooks`` and registers what it
returns with ``register_forward_hook``, after it has recorded its CUDA graphs. A graph that is
replayed calls no hook, so start the server without graphs:

    --cuda-graph-backend-decode=disabled --cuda-graph-backend-prefill=disabled
"""

from pathlib import Path

import numpy as np
import torch


def make_hook(config):
    """A hook that adds ``strength * scale * vector`` to the residual stream after a layer.

    Args:
        config: ``vectors``, an archive of ``expertsteer.export.npz`` (a relative path is looked
            for beside this file); ``layer``, which of its layers; ``strength``, a number.

    Most layers of SGLang return ``(hidden_states, residual)`` and leave their sum, which is the
    residual stream, to the next norm. The vector is added to ``residual``: with tensor
    parallelism ``hidden_states`` may be a part that is summed over the ranks later. A layer that
    returns the stream itself has the vector added to that.
    """
    delta = _displacement(config)
    width = delta.shape[0]
    placed = {}

    def added(states):
        key = (states.device, states.dtype)
        if key not in placed:
            placed[key] = delta.to(*key)
        return states + placed[key]

    def is_stream(value):
        return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[-1] == width

    def hook(module, inputs, output):
        if is_stream(output):
            return added(output)
        if isinstance(output, (tuple, list)) and output and is_stream(output[0]):
            hidden, *rest = output
            if rest and is_stream(rest[0]):
                return type(output)([hidden, added(rest[0]), *rest[1:]])
            if not rest or rest[0] is None:
                return type(output)([added(hidden), *rest])
        raise TypeError(
            f"{type(module).__name__} returned {_shapes(output)}; expected hidden states "
            f"[tokens, {width}], alone or with a residual of that width. The vectors belong to "
            "another model, or target_modules names something that is no decoder layer"
        )

    return hook


def _displacement(config):
    missing = [name for name in ("vectors", "layer", "strength") if name not in config]
    if missing:
        raise ValueError(f"config lacks {missing}; expected vectors, layer and strength")
    path = Path(__file__).parent / config["vectors"]
    with np.load(path, allow_pickle=False) as archive:
        layers = archive["layers"].tolist()
        if config["layer"] not in layers:
            raise ValueError(f"{path} has no vector for layer {config['layer']!r}, only {layers}")
        row = layers.index(config["layer"])
        wide = archive["scales"][row] * archive["vectors"][row].astype(np.float64)
    delta = torch.from_numpy(float(config["strength"]) * wide).float()
    if not bool(delta.isfinite().all()):
        raise ValueError(f"config: strength {config['strength']!r} makes an infinite vector")
    return delta


def _shapes(value):
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_shapes, value)) + ")"
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
