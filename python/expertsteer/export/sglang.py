"""Steering in SGLang by its forward hooks: a folder with vectors, a hook and its settings.

``--forward-hooks`` takes a list of ``{"name", "target_modules", "hook_factory", "config"}``; each
factory gives a hook for the modules whose names match. The folder holds ``hooks.json`` with one
entry per steered layer, ``steering.npz`` and ``expertsteer_hook.py``, a copy of
`expertsteer.export.sglang_hook`; a server needs no more, and the folder can be moved:

    PYTHONPATH=FOLDER python -m sglang.launch_server --model-path MODEL \\
        --cuda-graph-backend-decode=disabled --cuda-graph-backend-prefill=disabled \\
        --forward-hooks "$(cat FOLDER/hooks.json)"

SGLang registers hooks after it has recorded its CUDA graphs, and a graph that is replayed calls
none: without the two options (those of 0.5.23) the server says nothing and steers nothing. It also
steers nothing, with a warning, where a name matches no module: look for ``Registered forward hook``
in its log. This was written from SGLang's source and is tested on modules that return what
its layers do; it has not been run in a server here.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from ..support.artifact_files import to_json
from ..support.paths import folder_or_id, local_path
from ..support.reading import ArtifactError
from ..support.writing import appearing, require_new
from ..vectors.vectors import SteeringVectors
from . import sglang_hook
from .directions import checked_vectors, directions
from .npz import export_npz
from .sglang_hook import make_hook as make_hook

# A replayed graph calls no hook. Servers before these options had --disable-cuda-graph and
# --disable-piecewise-cuda-graph.
WITHOUT_GRAPHS = "--cuda-graph-backend-decode=disabled --cuda-graph-backend-prefill=disabled"

SETTINGS, ARCHIVE, MODULE = "hooks.json", "steering.npz", "expertsteer_hook"


def export_sglang(
    vectors: SteeringVectors,
    out: str | os.PathLike,
    *,
    strength: float | str = 1.0,
    layers_path: str = "model.layers",
) -> Path:
    """Write the folder; its hooks are made and called once before it appears under its name.

    Args:
        vectors: what to add, at all positions.
        out: the new folder; must not exist, or be empty.
        strength: a finite number other than 0, or ``"auto"`` for that of the stored calibration;
            it stands in ``hooks.json``, entry by entry.
        layers_path: where SGLang's model keeps its decoder layers; ``model.layers`` in most
            families, as in transformers.

    Raises:
        ValueError: vectors of zeros, entries beyond float32, a folder that exists, a path that
            is no dotted name.
        ArtifactError: the folder cannot be written, or its hooks add something else.
    """
    strength = checked_vectors(vectors, strength)
    expected = directions(vectors, strength)
    if not all(part.isidentifier() or part.isdecimal() for part in layers_path.split(".")):
        raise ValueError(
            f"layers_path must be a dotted name such as 'model.layers', came {layers_path!r}"
        )
    out = require_new(out)
    entries = [
        {
            "name": f"expertsteer-{layer}",
            "target_modules": [f"{layers_path}.{layer}"],
            "hook_factory": f"{MODULE}:make_hook",
            "config": {"vectors": ARCHIVE, "layer": layer, "strength": strength},
        }
        for layer in vectors.layers
    ]
    with appearing(out) as folder:
        export_npz(vectors, folder / ARCHIVE)
        shutil.copyfile(sglang_hook.__file__, folder / f"{MODULE}.py")
        (folder / SETTINGS).write_text(to_json(entries) + "\n", "utf-8")
        _check(folder, layers_path, expected)
    return out


def launch_command(folder: str | os.PathLike, model: str | None = None) -> str:
    """What starts a server, in a shell, whose every pass calls the hooks of an exported folder."""
    name = shlex.quote(str(local_path(folder, "folder")))
    model = shlex.quote(folder_or_id(model, "model")) if model else "MODEL"
    return (
        f"PYTHONPATH={name} python -m sglang.launch_server --model-path {model} {WITHOUT_GRAPHS} "
        f'--forward-hooks "$(cat {name}/hooks.json)"'
    )


def _check(folder: Path, layers_path: str, expected: dict[int, Any]) -> None:
    """Make the hooks as the server does, and call each on both kinds of output."""
    factory = runpy.run_path(str(folder / f"{MODULE}.py"))["make_hook"]  # leaves no __pycache__
    entries = json.loads((folder / SETTINGS).read_text("utf-8"))
    for layer, array in expected.items():
        hooks = [
            factory(entry["config"])
            for entry in entries
            if any(fnmatch(f"{layers_path}.{layer}", p) for p in entry["target_modules"])
        ]
        wanted = torch.from_numpy(array)
        nothing = torch.zeros(1, len(array), dtype=torch.float32, device="cpu")
        for output in (nothing, (nothing, nothing)):
            for hook in hooks:
                output = hook(None, (), output)
            stream = output if isinstance(output, torch.Tensor) else output[0] + output[1]
            if not torch.allclose(stream[0], wanted, rtol=2e-7, atol=1e-38):
                raise ArtifactError(f"{folder}: the hooks of layer {layer} add another vector")
