"""Evaluate steering on a task: every control, curves, examples and the verdict, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..calibration.calibrating import BudgetError
from ..rfm import RFM
from ..states.states import Captured
from ..support.numbers import setting
from ..support.progress import quietable
from ..tasks import Perplexity, Task, TaskOnModel
from ..vectors.vectors import SteeringVectors
from .beside import (
    answered_items,
    fit_health,
    harness_rows,
    measured_pairing,
    neutral_price,
    perplexities,
)
from .comparing import Compared, compared
from .comparison import PROMPT
from .curves import strength_curves
from .evaluation import Evaluation
from .harness import require_tasks
from .kept import kept_in
from .methods import METHODS, OWN, PAPER
from .provenance import about_task, neutral_excluded, provenance
from .session import Session

GIVEN = "given vectors"
EXAMPLES = 30


@quietable
def evaluate(
    model: nn.Module,
    tokenizer: Any,
    task: Task | TaskOnModel,
    expert: Captured | None = None,
    target: Captured | None = None,
    neutral: Sequence[str] = (),
    *,
    vectors: SteeringVectors | Mapping[str, SteeringVectors] | None = None,
    method: str | None = None,
    budget: float = 0.1,
    measure: str = "kl",
    methods: Sequence[str] | None = None,
    random: int = 5,
    prompts: Sequence[str] = (),
    layers: Sequence[Sequence[int]] | None = None,
    pairs: int | None = None,
    shortlist: int | None = None,
    rfm: RFM | None = None,
    validation: float = 0.4,
    curves: bool | str | Sequence[str] = True,
    examples: int = EXAMPLES,
    lm_eval: Mapping[str, Any] | None = None,
    health: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    max_minutes: float | None = None,
    keep: str | os.PathLike | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure what steering does to a task, against every control, all at one divergence budget.

    A perplexity task also has the loss on the neutral texts for a price, in nats per token.

    `compare` on the task, and what a report shows beside it: each method's effect against its
    divergence at shares of its strength, test items answered with and without the method that the
    verdict is about, the layer pairs with the effects that were measured, and the provenance.

    Args:
        model, tokenizer: the target, not steered.
        task: a task of `expertsteer.tasks`; or ``task.on(model, tokenizer, ...)``, whose split,
            batches and context then hold.
        expert, target: captures over one contrast set. Without the expert's the target's own
            vectors are fitted beside the given ones; without both, random directions are the
            only control.
        neutral: texts that steering should leave alone, at least two.
        vectors: fitted already, one or several by name: methods beside the others.
        method: the row that the verdict, the examples and the pairing are about; by default the
            given vectors, else the expert's by the paper's pairing, else the target's own mean
            difference.
        validation: share of the items on which layers are chosen.
        curves: for all methods, for none (``False``), for ``"method"`` alone, or for those of
            these names.
        examples: test items kept, as equally many wins, losses and ties as there are, the first
            of each in the order of the task: not chosen by how much they changed.
        lm_eval: options of `evaluation.harness.evaluate_lm_eval`, ``tasks`` among them: these
            tasks of lm-evaluation-harness are then measured under the same vectors at the same
            strength.
        health: of the fit, json values, kept as it is; by default that which the given vectors
            carry, or what `expertsteer.health` says of the expert's vectors with Procrustes.
        settings: what else should be told of the run, json values, such as the command.
        batch_size: sequences per forward pass of the task; `compare` has twice as many.
        max_minutes: no row and no curve is begun that would probably end later; the unsteered
            model, one random direction and the method of the verdict are measured in any case,
            and that method first. What is missing is told (``comparison.skipped``).
        keep: a file of json lines that every result is written to at once, and that the same call
            takes them from: a stopped evaluation goes on. Results of other models, captures,
            texts or options in it are not touched.
        budget, measure, methods, random, prompts, layers, pairs, shortlist, rfm: see `compare`.
        seed, max_length, decoder_layers, progress: see `compare`.

    Raises:
        ValueError: no strength of the method meets the budget, a task that does not fit the model
            (`TaskError`, by file and line), or what `compare` raises.
    """
    if type(examples) is not int or examples < 0:
        raise ValueError(f"examples must be a whole number from 0 on, came {examples!r}")
    named = {GIVEN: vectors} if isinstance(vectors, SteeringVectors) else dict(vectors or {})
    _require_known(method, curves, named)
    if lm_eval is not None:  # now, not after the whole comparison
        require_tasks(lm_eval["tasks"], lm_eval.get("include_path"), lm_eval.get("limit"))
    on = task
    if isinstance(task, Task):
        options = {"seed": seed, "batch_size": batch_size, "max_length": max_length}
        on = task.on(model, tokenizer, validation=validation, progress=progress, **options)
    wanted = (None if curves else ()) if isinstance(curves, bool) else curves
    decisive = (budget, measure, pairs, shortlist, rfm, seed, batch_size, max_length, layers,
                validation, list(prompts), list(neutral), about_task(on))  # fmt: skip
    session = Session(
        max_minutes,
        _likely(method, named, expert, target, methods),
        kept_in(keep, model, (expert, target), named, decisive),
        1 if wanted == "method" else None if wanted is None else len(wanted),
        progress,
    )
    made = compared(
        model,
        expert,
        target,
        on.score,
        neutral,
        tokenizer,
        budget=budget,
        measure=measure,
        methods=methods,
        vectors=named,
        random=random,
        prompts=prompts,
        prices=neutral_price(model, tokenizer, neutral, on, max_length)
        if isinstance(on.task, Perplexity)
        else None,
        layers=layers,
        pairs=pairs,
        shortlist=shortlist,
        rfm=rfm,
        seed=seed,
        batch_size=2 * batch_size,
        max_length=max_length,
        decoder_layers=decoder_layers,
        progress=progress,
        session=session,
    )
    name = _method(made, method, named)
    answered, outcomes = answered_items(on, made, name, examples)
    wanted = [name] if wanted == "method" else wanted
    drawn = strength_curves(
        made.equal_price, made.comparison, wanted, progress=progress, session=session
    )
    return Evaluation(
        task=on.title,
        method=name,
        comparison=made.comparison,
        curves=drawn,
        pairing=measured_pairing(made, name),
        examples=tuple(answered),
        health=fit_health(made, name, named, progress) if health is None else dict(health),
        excluded=on.excluded | neutral_excluded(made),
        settings=provenance(model, on, expert, target, named, neutral, made)
        | {"validation": validation, "batch_size": batch_size}
        | ({"perplexity": perplexities(made)} if isinstance(on.task, Perplexity) else {})
        | dict(settings or {}),
        outcomes=outcomes,
        harness=harness_rows(made, name, tokenizer, lm_eval, seed, batch_size, progress),
    )


def _likely(
    wanted: str | None,
    given: Mapping[str, SteeringVectors],
    expert: Captured | None,
    target: Captured | None,
    methods: Sequence[str] | None,
) -> str | None:
    """The row that the verdict will be about, unless no strength of it meets the budget."""
    if wanted is not None:
        return wanted
    fitted = (PAPER,) if expert is not None else ()
    fitted += tuple(OWN) if target is not None else ()
    listed = (*given, *(name for name in fitted if methods is None or name in methods))
    return next(iter(listed), None)


def _method(made: Compared, wanted: str | None, given: Mapping[str, SteeringVectors]) -> str:
    rows = [row.name for row in made.comparison.rows if row.against]
    skipped = made.comparison.skipped
    for name in (*given, PAPER, *OWN, *rows) if wanted is None else (wanted,):
        if name in rows:
            return name
        if _unmet(skipped, name):
            budget = setting(made.comparison.budget)
            raise BudgetError(f"budget={budget} is met by no strength of {name!r}; raise it")
    reason = skipped.get(wanted, "was not asked for")
    raise ValueError(f"method: {wanted or 'none'} was not measured, since it {reason}")


def _require_known(method: str | None, curves: Any, given: Mapping[str, SteeringVectors]) -> None:
    """Names that no row can have, before anything is measured."""
    known = (*given, *METHODS, PROMPT)
    if method is not None and method not in known:
        raise ValueError(f"method must be one of {known}, came {method!r}")
    if isinstance(curves, bool) or curves == "method":
        return
    unknown = [n for n in curves if n not in known and not n.startswith("random directions")]
    if isinstance(curves, str) or unknown:
        raise ValueError(
            f"curves must be True, False, 'method', or some of {known}, came {curves!r}"
        )


def _unmet(skipped: Mapping[str, str], name: str) -> bool:
    return "no strength meets the budget" in skipped.get(name, "")
