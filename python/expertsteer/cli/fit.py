"""``expertsteer fit``."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..support.console import SafeConsole
from ..support.numbers import count
from ..support.paths import local_path
from ..support.writing import made_folder
from .options import (
    BatchSize,
    Columns,
    Device,
    Dtype,
    Json,
    LayersPath,
    MaxLength,
    Position,
    Revision,
    Seed,
    TrustRemoteCode,
    columns_of,
    integer,
    lines,
    print_json,
    show,
    torch_dtype,
)


class Rule(str, Enum):
    lowest = "lowest"
    highest = "highest"
    random = "random"


class Align(str, Enum):
    autoencoder = "autoencoder"
    ridge = "ridge"
    identity = "identity"


class Estimator(str, Enum):
    gaussian = "gaussian"
    ksg = "ksg"
    renyi2 = "renyi2"


class Solver(str, Enum):
    closed_form = "closed_form"
    adam = "adam"


class Rotation(str, Enum):
    procrustes = "procrustes"
    none = "none"


class Direction(str, Enum):
    rfm = "rfm"
    mean_difference = "mean_difference"
    pca = "pca"
    logistic = "logistic"


def fit(
    expert: Annotated[str, typer.Option(help="Path or Hub id of the model that knows.")],
    target: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    contrast: Annotated[Path, typer.Option(help="jsonl or parquet file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the steering vectors.")],
    pairs: Annotated[int | None, typer.Option(help="Layer pairs; by default up to 4.")] = None,
    rule: Annotated[Rule, typer.Option(help="Which pairs, by mutual information.")] = Rule.lowest,
    align: Annotated[Align, typer.Option(help="Alignment method.")] = Align.autoencoder,
    solver: Annotated[Solver, typer.Option(help="Auto-encoder solver.")] = Solver.closed_form,
    rotation: Annotated[Rotation, typer.Option(help="Basis of the code.")] = Rotation.procrustes,
    estimator: Annotated[
        Estimator, typer.Option(help="How mutual information is estimated.")
    ] = Estimator.gaussian,
    components: Annotated[
        int | None, typer.Option(help="Principal components for the information.")
    ] = None,
    null: Annotated[int, typer.Option(help="Permutations for the floor; 0 for none.")] = 20,
    direction: Annotated[
        Direction, typer.Option(help="How directions are fitted.")
    ] = Direction.rfm,
    bandwidth: Annotated[float, typer.Option(help="RFM bandwidth, x median distance.")] = 3.0,
    reg: Annotated[float, typer.Option(help="RFM ridge.")] = 0.1,
    iters: Annotated[int, typer.Option(help="RFM iterations.")] = 3,
    validation: Annotated[float, typer.Option(help="Share held out by the RFM.")] = 0.2,
    position: Position = "last",
    batch_size: BatchSize = 16,
    max_length: MaxLength = None,
    neutral: Annotated[
        Path | None, typer.Option(help="Neutral texts, one a line: calibrate the strength.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="With --neutral: KL from unsteered, nats per token.")
    ] = 0.1,
    health: Annotated[
        bool, typer.Option(help="Check the fit on rows it did not see, before anyone steers.")
    ] = True,
    device: Device = None,
    dtype: Dtype = None,
    expert_revision: Revision = None,
    target_revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    expert_layers: LayersPath = None,
    target_layers: LayersPath = None,
    columns: Columns = None,
    captures: Annotated[
        Path | None,
        typer.Option(help="Keep states there; by default in memory, OUT/captures with torchrun."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit steering vectors for TARGET from what EXPERT knows, over a contrast set.

    A folder of contrast sets gives vectors for each, and every text is read once. Several processes
    share the work: torchrun --nproc-per-node 8 -m expertsteer fit ...
    """
    from ..pipeline.pipeline import ExpertSteer
    from ..rfm import RFM
    from ..support.ranks import ranks_of_torchrun

    pipeline = ExpertSteer(
        pairs=pairs,
        rule=rule.value,
        method=align.value,
        solver=solver.value,
        rotation=rotation.value,
        estimator=estimator.value,
        components=components,
        null=null or None,
        direction=direction.value,
        rfm=RFM(bandwidth=bandwidth, reg=reg, iters=iters),
        validation=validation,
        position=position if position in ("last", "mean") else integer("position", position),
        batch_size=batch_size,
        max_length=max_length,
        neutral=None if neutral is None else lines("neutral", neutral),
        budget=budget,
        health=health,
        seed=seed,
        progress=not as_json,
    )
    named, out, contrast = columns_of(columns), local_path(out, "out"), local_path(contrast)
    options = {
        "expert_options": {"revision": expert_revision, "decoder_layers": expert_layers},
        "target_options": {"revision": target_revision, "decoder_layers": target_layers},
        "device": device,
        "dtype": torch_dtype(dtype),
        "trust_remote_code": trust_remote_code,
    }
    with ranks_of_torchrun() as ranks:
        pipeline.captures = captures or (out / "captures" if ranks.size > 1 else None)
        if contrast.is_dir():
            _fit_folder(pipeline, ranks, contrast, expert, target, out, named, options, as_json)
            return
        source = _source(contrast, named, pipeline, ranks)
        made_folder(out)  # now, not after the whole fit
        with _table_tells(not as_json):
            vectors = pipeline.fit(expert, target, source, **options)
        if ranks.rank == 0:
            vectors.save_pretrained(out)
            pipeline.pairing_.save_pretrained(out)
            show(vectors, out, as_json)


@contextmanager
def _table_tells(shown: bool):
    """Leave it to the table below a fit to tell what its health check found, if one is shown."""
    from ..fitting.health_report import HealthWarning

    with warnings.catch_warnings():
        if shown:
            warnings.simplefilter("ignore", HealthWarning)
        yield


def _source(contrast: Path, columns, pipeline, ranks):
    """The contrast set in memory, or as a stream where its states lie on disk too."""
    from ..contrast.contrast_set import ContrastSet
    from ..contrast.stream import ContrastStream

    if pipeline.captures is None:
        return ContrastSet.from_file(contrast, columns)
    stream = ContrastStream.from_file(contrast, columns)
    stream.told(ranks.first(stream.summary))  # before a model is loaded
    return stream


def _fit_folder(pipeline, ranks, contrasts, expert, target, out, columns, options, as_json):
    from ..pipeline.concepts import INDEX, fit_concepts

    index = fit_concepts(contrasts, expert, target, out, pipeline, columns=columns, **options)
    if ranks.rank:
        return
    if as_json:
        print_json(index)
    else:
        SafeConsole(soft_wrap=True).print(
            f"{out / INDEX}: vectors of {len(index['concepts'])} concepts, from "
            f"{count(index['texts'])} different texts"
        )
