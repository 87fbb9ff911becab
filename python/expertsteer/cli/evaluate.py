"""``expertsteer evaluate``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..support.console import SafeConsole
from ..support.paths import local_path
from . import options
from .evaluate_input import (
    MEASURED,
    how_to_go_on,
    matching,
    only,
    require_own_folder,
    require_sources,
    task_options,
)

TaskType = Literal["choice", "next-token", "generation", "perplexity"]
Measure = Literal["kl", "perplexity_ratio"]
Curves = Literal["all", "method", "none"]


def evaluate(
    target: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    task: Annotated[Path, typer.Option(help="jsonl task; see --task-type for its rows.")],
    neutral: Annotated[
        Path | None,
        typer.Option(
            help="Texts, one a line, that steering should leave alone; by default a dozen short "
            "English ones."
        ),
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="Path or Hub id of the model that knows.")
    ] = None,
    contrast: Annotated[
        Path | None, typer.Option(help="jsonl contrast set, to fit the expert's and own vectors.")
    ] = None,
    vectors: Annotated[
        list[str] | None, typer.Option(help="Folder or Hub id of fitted vectors; may be repeated.")
    ] = None,
    task_type: Annotated[
        TaskType,
        typer.Option(
            help="choice: rows {question, choices, answer}; next-token and generation: {prompt, "
            "answer}; perplexity: {text}, or a .txt of one text a line."
        ),
    ] = "choice",
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for page, json and table. Results are kept there as they come, and the "
            "same command goes on from them."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Target layers that may be steered, for example 4,9-12; else all."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Row of the table to measure, or a pattern such as 'expert*'; may be repeated. "
            "By default all; the controls and --vectors always are."
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Begin nothing that would end later; the method of the verdict comes first.",
        ),
    ] = None,
    budget: Annotated[float, typer.Option(help="Divergence that steering may cost.")] = 0.1,
    measure: Annotated[
        Measure, typer.Option(help="kl: nats per token; perplexity_ratio: from 1 on.")
    ] = "kl",
    method: Annotated[
        str | None, typer.Option(help="Row of the table that the verdict is about.")
    ] = None,
    random: Annotated[int, typer.Option(help="Random directions.")] = 5,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts, one a line, each tried on a line of its own before the text."),
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Layer pairs; by default every layer.")] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the task that settings are chosen on.")
    ] = 0.4,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="choice: log-probability per token.")
    ] = False,
    scoring: Annotated[
        str, typer.Option(help="generation: exact, contains, or package.module:function.")
    ] = "exact",
    max_new_tokens: Annotated[int, typer.Option(help="generation: tokens to write.")] = 32,
    stop: Annotated[
        list[str] | None, typer.Option(help="generation: text that ends it; may be repeated.")
    ] = None,
    curves: Annotated[Curves, typer.Option(help="Methods with a strength curve.")] = "all",
    examples: Annotated[int, typer.Option(help="Test items shown in the report.")] = 30,
    lm_eval_tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, with commas between.")
    ] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(help="Folder of lm-eval task files; may be repeated.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Items of each lm-eval task, or a share below 1.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each item of the lm-eval tasks.")
    ] = None,
    position: Annotated[str, typer.Option(help="Of the states: last, mean, or an index.")] = "last",
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 32,
    max_length: Annotated[int | None, typer.Option(help="Tokens kept, below the context.")] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    expert_revision: options.Revision = None,
    target_revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    expert_layers: options.LayersPath = None,
    target_layers: options.LayersPath = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure what steering does to a task, beside every control, all at one price."""
    from ..calibration.neutral import NEUTRAL_TEXTS
    from ..contrast.contrast_set import ContrastSet
    from ..evaluation.evaluating import evaluate as run
    from ..evaluation.harness import require_tasks
    from ..evaluation.methods import METHODS
    from ..models.loading import load
    from ..reporting.page import write_report
    from ..reporting.terminal import print_evaluation
    from ..reporting.words import finite
    from ..states.in_memory import capture
    from ..tasks import load_task
    from ..vectors.vectors import SteeringVectors

    # Everything that can be wrong is read before a model is loaded.
    started = time.perf_counter()
    require_sources(expert, contrast, vectors)
    wanted = None if methods is None else matching(methods, METHODS, method)
    steerable = options.layers_of(layers)
    require_own_folder(report)
    if ":" in scoring and "" not in sys.path:
        sys.path.insert(0, "")  # a scoring function's file in this folder, as python -m finds it
    loaded = load_task(task, task_type, **task_options(task_type, locals()))
    texts = NEUTRAL_TEXTS if neutral is None else options.lines("neutral", neutral)
    tried = [] if prompts is None else options.lines("prompts", prompts)
    given = {f"vectors {name}": SteeringVectors.from_pretrained(name) for name in vectors or ()}
    given = {name: only(one, steerable, name) for name, one in given.items()}
    harness = None
    if lm_eval_tasks is not None:
        names = [name.strip() for name in lm_eval_tasks.split(",") if name.strip()]
        count = int(limit) if limit is not None and limit >= 1 else limit
        harness = {"tasks": names, "include_path": include_path or None, "limit": count}
        require_tasks(names, harness["include_path"], count)
        harness["num_fewshot"] = num_fewshot
    reading = {
        "position": options.position_of(position),
        "batch_size": batch_size,
        "max_length": max_length,
    }
    loading = {"device": device, "dtype": options.torch_dtype(dtype)}
    loading["trust_remote_code"] = trust_remote_code
    examples_of = None if contrast is None else ContrastSet.from_jsonl(contrast)
    knowing = own = None
    if expert is not None:
        network, tokenizer = load(expert, revision=expert_revision, **loading)
        knowing = capture(network, tokenizer, examples_of, decoder_layers=expert_layers, **reading)
        del network  # only its states are kept
    network, tokenizer = load(target, revision=target_revision, **loading)
    if examples_of is not None:
        own = capture(
            network, tokenizer, examples_of, layers=steerable, decoder_layers=target_layers,
            **reading,
        )  # fmt: skip
    with how_to_go_on(report):
        result = run(
            network,
            tokenizer,
            loaded,
            knowing,
            own,
            texts,
            vectors=given,
            method=method,
            budget=budget,
            measure=measure,
            random=random,
            prompts=[line + "\n" for line in tried],
            pairs=pairs,
            validation=validation,
            curves={"all": True, "none": False}.get(curves, "method"),
            examples=examples,
            lm_eval=harness,
            settings={"command": ["expertsteer", *sys.argv[1:]]},
            seed=seed,
            batch_size=batch_size,
            max_length=max_length,
            decoder_layers=target_layers,
            methods=wanted,
            max_minutes=None
            if max_minutes is None
            else max(0.0, max_minutes - (time.perf_counter() - started) / 60),
            keep=None if report is None else local_path(report, "--report") / MEASURED,
        )
    # Before the report: a full disk must not cost what was measured.
    if as_json:
        options.print_json(finite(result.to_dict()))
    else:
        print_evaluation(result)
    page = None if report is None else write_report(result, report)
    if page is not None and not as_json:
        SafeConsole(soft_wrap=True).print(f"Report: {page}")
