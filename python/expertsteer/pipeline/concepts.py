"""Vectors for many concepts at once: one model pair, a folder of contrast sets, each text once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..contrast.contrast_set import ContrastSet
from ..contrast.examples import Example
from ..contrast.rows import ContrastSetError
from ..contrast.stream import InMemory
from ..fitting.holdout import LEAST_PER_CLASS
from ..states.states import StoredStates
from ..support.artifact_files import to_json
from ..support.paths import local_path
from ..support.progress import progress
from ..support.ranks import Ranks
from ..support.reading import ArtifactError
from ..support.telling import about
from ..support.tensors import integers
from ..support.writing import made_folder, write_text
from ..vectors.metadata import concept_of
from ..vectors.vectors import KIND, SteeringVectors
from .concept_files import INDEX, Sources, sources
from .effects import AtHand
from .pipeline import ExpertSteer

# What changes no vector, or is not a plain value.
_NOT_SETTINGS = {"progress", "captures", "batch_size", "health", "rfm", "effect", "neutral"}


@dataclass(frozen=True)
class Concept:
    """One contrast set among many, without its texts.

    Attributes:
        name: of the file without its ending, and of the folder of its vectors.
        rows: ``[N]``, where its texts are among the different texts of all concepts.
        labels, keys, pairs: ``[N]`` as in `HiddenStates`.
        digest: `ContrastSet.digest`.
    """

    name: str
    rows: Tensor
    labels: Tensor
    keys: Tensor
    pairs: Tensor | None
    digest: str

    def states(self, stored: StoredStates):
        """This concept's `HiddenStates` out of those of all texts."""
        taken = stored.take(self.rows)
        return replace(taken, labels=self.labels, keys=self.keys, pairs=self.pairs)


def fit_concepts(
    contrasts: str | os.PathLike | Mapping[str, ContrastSet],
    expert_model: Any,
    target_model: Any,
    out: str | os.PathLike,
    settings: ExpertSteer | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    **fit_options: Any,
) -> dict[str, Any]:
    """Fit steering vectors for every contrast set of a folder, from one pair of models.

    A text is captured once, in however many sets it stands. Run again, it makes only what is
    missing; with ``torch.distributed`` running, texts and concepts are shared out over the
    processes.

    Args:
        contrasts: a folder of jsonl and parquet files, one per concept, or sets by name.
        expert_model, target_model, fit_options: see `ExpertSteer.fit`.
        out: folder; the vectors of concept c go to ``out/c``, the list of all to
            ``out/index.json``. The states stay in ``settings.captures``, by default
            a folder of ``out/captures``, for the next run; they may be deleted.
        settings: of every fit.
        columns: see `ContrastSet.from_file`.

    Returns:
        The index, with ``concepts``, an entry each with its name, folder, layers, examples and
        figures, and ``texts``, how many different ones were captured.

    Raises:
        ContrastSetError: no contrast set, or malformed ones, all of them named, before any model
            is loaded.
        ArtifactError: ``out`` holds vectors of the same name from other data, settings or models.
        ValueError: see `ExpertSteer.fit`; of concepts whose fit fails, after all others are done.
    """
    out, ranks = local_path(out, "out"), Ranks.here()
    settings = settings or ExpertSteer()
    texts = _Texts(sources(contrasts, columns or {}))
    concepts = ranks.first(texts.concepts)
    texts.told(ranks.first(texts.summary))
    # Other texts make another capture, so that concepts can be added later.
    captures = settings.captures or out / "captures" / texts.summary().digest[:12]
    settings = replace(settings, captures=captures)
    captured = settings.capture_both(expert_model, target_model, texts, **fit_options)
    made = _fingerprint(settings, captured[0].model, captured[1].model)
    # Every process sees the same folders before any of them writes.
    pending = ranks.first(lambda: [c.name for c in concepts if not _is_there(out, c, made)])
    failed: dict[str, str] = {}
    mine = ranks.share([c for c in concepts if c.name in set(pending)])
    for concept in progress(mine, "fit concepts", settings.progress and ranks.rank == 0):
        try:
            read = texts.contrast(concept.name)
            _fit(concept, read, settings, captured, out / concept.name, made)
        except ValueError as error:
            failed[concept.name] = str(error)
    failed = {name: why for part in ranks.gather(failed) for name, why in part.items()}
    return ranks.first(lambda: _write_index(out, concepts, failed, texts, captured))


def _fit(
    concept: Concept,
    contrast: InMemory,
    settings: ExpertSteer,
    captured: tuple,
    folder: Path,
    made: str,
) -> None:
    expert, target, loaded = captured
    fitter = replace(settings)
    with about(f"concept {concept.name}"):
        at_hand = AtHand.of(settings, contrast, loaded)
        states = concept.states(expert), concept.states(target)
        vectors = fitter.fit_states(*states, at_hand=at_hand)
    if settings.neutral is not None:
        vectors = fitter.calibrated(vectors, *loaded)
    origin = {"concept": {"name": concept.name, "contrast": concept.digest, "made": made}}
    fitter.pairing_.save_pretrained(folder)
    replace(vectors, metadata=vectors.metadata | origin).save_pretrained(folder)


class _Texts(InMemory):
    """The different texts of all concepts as one stream, in the order they are first met."""

    def __init__(self, sources: Sources):
        super().__init__(f"{len(sources)} concepts", self._different)
        self._sources = sources

    def contrast(self, name: str) -> InMemory:
        """The examples of one concept."""
        return InMemory(name, self._sources[name])

    def _different(self) -> Iterator[Example]:
        seen: set[bytes] = set()
        for source in self._sources.values():
            for example in source():
                mark = _mark(example)
                if mark not in seen:
                    seen.add(mark)
                    yield Example(example.text, 0)

    def concepts(self) -> list[Concept]:
        """Every concept with the places of its texts.

        Raises:
            ContrastSetError: of all malformed concepts at once.
        """
        places: dict[bytes, int] = {}
        concepts, problems = [], []
        for name, source in self._sources.items():
            try:
                concepts.append(_concept(name, ContrastSet(tuple(source())), places))
            except ContrastSetError as error:
                problems.append((name, str(error)))
        if problems:
            raise ContrastSetError(
                f"{len(problems)} of {len(self._sources)} contrast sets cannot be used", problems
            )
        return concepts


def _concept(name: str, contrast: ContrastSet, places: dict[bytes, int]) -> Concept:
    positive = sum(contrast.labels)
    if min(positive, len(contrast) - positive) < LEAST_PER_CLASS:
        raise ContrastSetError(
            f"fitting needs at least {LEAST_PER_CLASS} examples of each label, came "
            f"{len(contrast) - positive} with label 0 and {positive} with label 1"
        )
    pairs = integers(-1 if pair is None else pair for pair in contrast.pairs)
    return Concept(
        name,
        integers(places.setdefault(_mark(e), len(places)) for e in contrast),
        integers(contrast.labels),
        integers(contrast.keys),
        None if bool((pairs < 0).all()) else pairs,
        contrast.digest,
    )


def _mark(example: Example) -> bytes:
    """Equal for equal texts, whatever their labels."""
    document = json.dumps(example.text, sort_keys=True).encode("ascii")
    return hashlib.blake2b(document, digest_size=16).digest()


def _fingerprint(settings: ExpertSteer, *models: dict[str, Any]) -> str:
    """What else than its contrast set decides a concept's vectors."""
    names = {field.name for field in fields(settings)} - _NOT_SETTINGS
    plain = {name: getattr(settings, name) for name in names}
    plain["rfm"] = settings.rfm.settings if settings.rfm else None
    plain["neutral"] = None if settings.neutral is None else list(settings.neutral)
    told = [{n: v for n, v in model.items() if n != "name" or not model.get("fingerprint")}
            for model in models]  # fmt: skip
    document = json.dumps([plain, told], sort_keys=True, default=str)
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def _is_there(out: Path, concept: Concept, made: str) -> bool:
    folder = out / concept.name
    if not (folder / f"{KIND}.json").is_file():  # written last
        return False
    about = concept_of(SteeringVectors.from_pretrained(folder).metadata, folder)
    if (about.get("contrast"), about.get("made")) != (concept.digest, made):
        raise ArtifactError(
            f"folder {str(folder)!r} holds vectors that were fitted from another contrast set, "
            "with other settings or models; choose another folder, or delete it"
        )
    return True


def _write_index(
    out: Path, concepts: list[Concept], failed: dict[str, str], texts: _Texts, captured: tuple
) -> dict[str, Any]:
    index = {
        "format": "expertsteer.concepts",
        "format_version": 1,
        "expert": captured[0].model,
        "target": captured[1].model,
        "texts": texts.summary().examples,
        "concepts": [_entry(out, c) for c in concepts if c.name not in failed],
        "failed": failed,
    }
    write_text(made_folder(out) / INDEX, to_json(index) + "\n")
    if failed:
        listed = "".join(f"\n  {name}: {why}" for name, why in sorted(failed.items()))
        raise ValueError(
            f"{len(failed)} of {len(concepts)} concepts could not be fitted, the others are in "
            f"{out}; correct these and run it again:{listed}"
        )
    return index


def _entry(out: Path, concept: Concept) -> dict[str, Any]:
    vectors = SteeringVectors.from_pretrained(out / concept.name)
    return {
        "name": concept.name,
        "folder": concept.name,
        "layers": list(vectors.layers),
        "examples": vectors.metadata["examples"],
        "contrast": concept.digest,
        "figures": vectors.metadata["figures"],
    }
