"""`SteeringVectors`: one direction per steered layer, with its scale and where it came from."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..support.artifact_files import parsing, read_artifact, write_artifact
from ..support.hub import download, push
from ..support.paths import local_path
from ..support.reading import NUMBER, OBJECT, WHOLE, ArtifactError, by_name, checked_field, listed
from ..support.tensors import as_tensor, require_constants, require_finite
from ..support.versions import package_versions
from .arithmetic import Arithmetic
from .calibration import Calibration, stored_calibration, why_not_stored
from .card import model_card
from .document import described
from .metadata import CALIBRATION_KEY, EVALUATION_KEY, model_of

KIND = "steering_vectors"
_LAYERS = listed(WHOLE)


@dataclass(frozen=True, eq=False)
class SteeringVectors(Arithmetic):
    """What is added to a target model: ``h <- h + strength * scales[t] * vectors[t]`` at layer t.

    Attributes:
        vectors: ``{target_layer: [d_T]}``, layers counted from 0. Fitted vectors have unit norm;
            vectors by hand or by arithmetic may have any.
        scales: ``{target_layer: float}``, so that strength is a pure number: of fitted vectors how
            far apart the target's states are there, the length of their median deviations (in files
            whose metadata name no ``unit``, their median norm); 1.0 where not given.
        metadata: provenance (models, revisions, widths, pairing, method, settings, versions,
            measured figures); json values only.

    Supports ``0.5 * a + 0.5 * b``, ``a - b`` and ``-a``. A sum is taken over displacements
    (scale times vector); its scale is the left operand's where both steer a layer.

    Raises:
        ValueError: no layer, a negative layer, widths that differ, non-finite entries, vectors that
            require gradients, a scale that is not positive or belongs to no vector.
    """

    vectors: dict[int, Tensor]
    scales: dict[int, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.vectors:
            raise ValueError("vectors must hold at least one {layer: vector}, came an empty dict")
        numbered = [(_layer_index(layer), v) for layer, v in self.vectors.items()]
        vectors = {layer: as_tensor(v) for layer, v in sorted(numbered, key=lambda n: n[0])}
        if len(vectors) < len(numbered):
            raise ValueError(
                f"vectors must hold one vector for each layer, came {list(self.vectors)}: two of "
                "these are the same layer"
            )
        require_constants(vectors)
        if not isinstance(self.metadata, dict):
            raise ValueError(f"metadata must be a dict, came {type(self.metadata).__name__}")
        for layer, vector in vectors.items():
            if layer < 0:
                raise ValueError(f"vectors: layers count from 0, came layer {layer}")
            if vector.ndim != 1 or not vector.is_floating_point():
                raise ValueError(
                    f"vectors[{layer}] must be a floating-point tensor [width], came "
                    f"{tuple(vector.shape)} of {vector.dtype}"
                )
            require_finite(f"vectors[{layer}]", vector)
        widths = {layer: v.numel() for layer, v in vectors.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"vectors must share one width, came {widths}")
        unknown = sorted(set(map(int, self.scales)) - set(vectors))
        if unknown:
            raise ValueError(f"scales names layers {unknown} that have no vector")
        scales = {int(k): float(s) for k, s in self.scales.items()}
        if len(scales) < len(self.scales):
            raise ValueError(f"scales must hold one number for each layer, came {self.scales}")
        scales = {layer: scales.get(layer, 1.0) for layer in vectors}
        if not all(0 < s < float("inf") for s in scales.values()):
            raise ValueError(f"scales must be positive and finite, came {scales}")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "scales", scales)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.vectors)

    @property
    def width(self) -> int:
        return next(iter(self.vectors.values())).numel()

    def displacement(self, layer: int) -> Tensor:
        """What strength 1 adds at ``layer``: ``scale * vector``, ``[d_T]`` in float32 or wider."""
        vector = self.vectors[layer]
        # Half-precision vectors would overflow at scales that are usual for large models.
        wide = torch.float64 if vector.dtype == torch.float64 else torch.float32
        return self.scales[layer] * vector.to(wide)

    def select(self, layers: Iterable[int]) -> SteeringVectors:
        """The same vectors at some of the layers only."""
        layers = list(layers)
        missing = [i for i in layers if i not in self.vectors]
        if missing:
            raise ValueError(
                f"layers {missing} carry no vector; there are vectors at {self.layers}"
            )
        return replace(
            self,
            vectors={i: self.vectors[i] for i in layers},
            scales={i: self.scales[i] for i in layers},
        )

    @property
    def fingerprint(self) -> str:
        """What tells these displacements from others, whatever became of the metadata."""
        digest = hashlib.sha256()
        for layer in self.layers:
            digest.update(f"{layer}:".encode())
            digest.update(self.displacement(layer).double().cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """Json values: width, one entry per layer (norm, scale, partner, figures), metadata.

        Raises:
            ArtifactError: metadata of another kind than this package writes.
        """
        return described(self.vectors, self.scales, self.metadata)

    def calibrated_strength(self, operation: str = "add") -> float:
        """What ``strength="auto"`` stands for: of the calibration that the vectors carry.

        Raises:
            ValueError: none is of exactly these vectors, at these layers.
        """
        found = self.calibration(operation)
        if found is None:
            stored = self.metadata.get(CALIBRATION_KEY)
            raise ValueError(f"strength='auto': {why_not_stored(stored, self.layers, operation)}")
        return found["strength"]

    def calibration(self, operation: str = "add") -> dict[str, Any] | None:
        """The stored calibration of exactly these vectors at these layers, if there is one.

        Returns:
            `Calibration` as json values, or ``None``.

        Raises:
            ValueError: what is stored is damaged.
        """
        stored = self.metadata.get(CALIBRATION_KEY)
        return stored_calibration(stored, self.fingerprint, operation) if stored else None

    def with_calibration(self, *results: Calibration) -> SteeringVectors:
        """The same vectors, which then can be attached with ``strength="auto"``.

        Args:
            results: of `calibrate` for these vectors, at all or some of their layers; an earlier
                one for the same layers and operation is replaced.

        Raises:
            ValueError: a calibration of other vectors.
        """
        stored = {
            (e["fingerprint"], e["operation"]): e for e in self.metadata.get(CALIBRATION_KEY, [])
        }
        for result in results:
            here = set(result.layers) <= set(self.layers)
            if not here or result.fingerprint != self.select(result.layers).fingerprint:
                raise ValueError(
                    f"results: the calibration for layers {result.layers} was made of other "
                    f"vectors than these at layers {self.layers}; calibrate these"
                )
            stored[result.fingerprint, result.operation] = result.to_dict()
        return replace(self, metadata=self.metadata | {CALIBRATION_KEY: list(stored.values())})

    def with_evaluation(self, *results: Any) -> SteeringVectors:
        """The same vectors with the controls tables of their evaluations, as the model card has.

        An earlier evaluation of the same task is replaced. Scores of single items are left out.

        Args:
            results: `Evaluation`, or whatever has a ``task`` and a ``summary()`` of it.
        """
        stored = {entry["task"]: entry for entry in self.metadata.get(EVALUATION_KEY, [])}
        stored |= {result.task: result.summary() for result in results}
        return replace(self, metadata=self.metadata | {EVALUATION_KEY: list(stored.values())})

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``steering_vectors.safetensors`` and ``steering_vectors.json`` into ``folder``."""
        tensors = {f"layers.{i}": v for i, v in self.vectors.items()}
        header = {
            "width": self.width,
            "layers": self.layers,
            "scales": {str(i): s for i, s in self.scales.items()},
            "metadata": {"versions": package_versions(), **self.metadata},
        }
        write_artifact(folder, KIND, tensors, header)

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | os.PathLike, *, revision: str | None = None
    ) -> SteeringVectors:
        """Load from a folder, or from the Hub when no such folder exists.

        Raises:
            ArtifactError: the folder holds no steering vectors, or a truncated or foreign file.
            ValueError: neither a folder nor a reachable Hub repository.
        """
        folder = local_path(folder_or_hub_id, "folder_or_hub_id")
        if not folder.is_dir():
            at = "" if revision is None else f" with a revision {revision!r}"
            names = [f"{KIND}.safetensors", f"{KIND}.json"]
            name = str(folder_or_hub_id)
            folder = download("folder_or_hub_id", name, revision, at, allow_patterns=names)
        tensors, header = read_artifact(folder, KIND)
        where = folder / f"{KIND}.safetensors"
        width = checked_field(header, "width", WHOLE, where)
        layers = checked_field(header, "layers", _LAYERS, where)
        scales = checked_field(header, "scales", by_name(NUMBER), where)
        metadata = checked_field(header, "metadata", OBJECT, where)
        for side in ("expert", "target"):
            model_of(metadata, side, f"{where}: metadata")
        if set(tensors) != {f"layers.{i}" for i in layers} or set(scales) != set(map(str, layers)):
            raise ArtifactError(
                f"{where} holds the tensors {sorted(tensors)} and scales of {sorted(scales)}, "
                f"expected one each for the layers {layers}"
            )
        with parsing(folder, KIND):
            vectors = {i: tensors[f"layers.{i}"] for i in layers}
            loaded = cls(vectors, {i: scales[str(i)] for i in layers}, metadata)
            if loaded.width != width or loaded.layers != tuple(layers):
                raise ValueError(f"the file says width {width}, layers {layers}")
        return loaded

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        card: str | None = None,
        token: str | None = None,
        **upload: Any,
    ) -> str:
        """Create the Hub repository if needed and upload the vectors with a model card.

        Args:
            private: of a repository that is made now; by default as the account has it.
            revision: branch to write to, made if absent; the main one by default.
            card: text of the README; by default the model card of these vectors.
            token: by default the one you are logged in with.
            upload: for ``huggingface_hub.HfApi.upload_folder`` (commit_message, create_pr, ...).

        Returns:
            The address of the commit.

        Raises:
            ValueError: a repository that cannot be made or written.
        """
        upload = {"commit_message": "Upload steering vectors"} | upload
        card = card or model_card(self.describe(), repo_id)
        options = {"private": private, "revision": revision, "token": token}
        return push(self.save_pretrained, card, repo_id, **options, **upload)


def _layer_index(layer: Any) -> int:
    try:
        return operator.index(layer)
    except TypeError:
        raise ValueError(f"vectors: layers are whole numbers, came {layer!r}") from None
