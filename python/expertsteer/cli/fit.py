"""``expertsteer fit``."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..support.console import SafeConsole
from ..support.numbers import count
from ..support.paths import local_path
from ..support.writing import made_folder
from . import options

Rule = Literal["effect", "lowest", "highest", "random"]
Align = Literal["autoencoder", "ridge", "low_rank", "identity"]
Estimator = Literal["gaussian", "ksg", "renyi2"]
Solver = Literal["closed_form", "adam"]
Rotation = Literal["procrustes", "none"]
Direction = Literal["rfm", "mean_difference", "pca", "logistic"]


def fit(
    expert: Annotated[str, typer.Option(help="Path or Hub id of the model that knows.")],
    target: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    contrast: Annotated[Path, typer.Option(help="jsonl or parquet file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the steering vectors.")],
    pairs: Annotated[
        int | None,
        typer.Option(help="Layer pairs; by default up to 4, as far as they do something."),
    ] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            help="Which pairs: by what the expert tells apart and the effect on held-out texts, or "
            "by mutual information."
        ),
    ] = "effect",
    align: Annotated[Align, typer.Option(help="Alignment method.")] = "autoencoder",
    solver: Annotated[Solver, typer.Option(help="Auto-encoder solver.")] = "closed_form",
    rotation: Annotated[Rotation, typer.Option(help="Basis of the code.")] = "procrustes",
    estimator: Annotated[
        Estimator, typer.Option(help="How mutual information is estimated.")
    ] = "gaussian",
    components: Annotated[
        int | None, typer.Option(help="Principal components for the information.")
    ] = None,
    null: Annotated[int, typer.Option(help="Permutations for the floor; 0 for none.")] = 20,
    direction: Annotated[Direction, typer.Option(help="How directions are fitted.")] = "rfm",
    bandwidth: Annotated[float, typer.Option(help="RFM bandwidth, x median distance.")] = 3.0,
    reg: Annotated[float, typer.Option(help="RFM ridge.")] = 0.1,
    iters: Annotated[int, typer.Option(help="RFM iterations.")] = 3,
    validation: Annotated[float, typer.Option(help="Share held out by the RFM.")] = 0.2,
    position: options.Position = "last",
    batch_size: options.BatchSize = 16,
    max_length: options.MaxLength = None,
    neutral: Annotated[
        Path | None,
        typer.Option(help="Texts to calibrate on, one a line; a dozen come with the package."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Find the strength at which neutral texts cost the budget.")
    ] = True,
    budget: Annotated[
        float,
        typer.Option(
            help="KL from unsteered, nats per token, at which pairs are tried and strengths found."
        ),
    ] = 0.1,
    health: Annotated[
        bool, typer.Option(help="Check the fit on rows it did not see, before anyone steers.")
    ] = True,
    device: options.Device = None,
    dtype: options.Dtype = None,
    expert_revision: options.Revision = None,
    target_revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    expert_layers: options.LayersPath = None,
    target_layers: options.LayersPath = None,
    columns: options.Columns = None,
    captures: Annotated[
        Path | None,
        typer.Option(help="Keep states there; by default in memory, OUT/captures with torchrun."),
    ] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
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
        rule=rule,
        method=align,
        solver=solver,
        rotation=rotation,
        estimator=estimator,
        components=components,
        null=null or None,
        direction=direction,
        rfm=RFM(bandwidth=bandwidth, reg=reg, iters=iters),
        validation=validation,
        position=options.position_of(position),
        batch_size=batch_size,
        max_length=max_length,
        neutral=_neutral(neutral, calibrate),
        budget=budget,
        health=health,
        seed=seed,
    )
    named, out, contrast = options.columns_of(columns), local_path(out, "out"), local_path(contrast)
    loading = {
        "expert_options": {"revision": expert_revision, "decoder_layers": expert_layers},
        "target_options": {"revision": target_revision, "decoder_layers": target_layers},
        "device": device,
        "dtype": options.torch_dtype(dtype),
        "trust_remote_code": trust_remote_code,
    }
    with ranks_of_torchrun() as ranks:
        pipeline.captures = captures or (out / "captures" if ranks.size > 1 else None)
        if contrast.is_dir():
            _fit_folder(pipeline, ranks, contrast, expert, target, out, named, loading, as_json)
            return
        source = _source(contrast, named, pipeline, ranks)
        made_folder(out)  # now, not after the whole fit
        with _table_tells(not as_json):
            vectors = pipeline.fit(expert, target, source, **loading)
        if ranks.rank == 0:
            vectors.save_pretrained(out)
            pipeline.pairing_.save_pretrained(out)
            options.show(vectors, out, as_json)


def _neutral(path: Path | None, calibrate: bool):
    from ..calibration.neutral import NEUTRAL_TEXTS

    if path is not None and not calibrate:
        raise ValueError("neutral names texts to calibrate on; leave out one of it, --no-calibrate")
    if path is not None:
        return options.lines("neutral", path)
    return NEUTRAL_TEXTS if calibrate else None


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


def _fit_folder(pipeline, ranks, contrasts, expert, target, out, columns, loading, as_json):
    from ..pipeline.concepts import INDEX, fit_concepts

    index = fit_concepts(contrasts, expert, target, out, pipeline, columns=columns, **loading)
    if ranks.rank:
        return
    if as_json:
        options.print_json(index)
    else:
        SafeConsole(soft_wrap=True).print(
            f"{out / INDEX}: vectors of {len(index['concepts'])} concepts, from "
            f"{count(index['texts'])} different texts"
        )
