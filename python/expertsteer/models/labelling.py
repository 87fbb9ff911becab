"""The expert as labeller: what it answers to a question about each text, kept where it is sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contrast.contrast_set import ContrastSet
from ..support.numbers import fixed
from .scoring import choice_probabilities

PLACE = "{text}"


@dataclass(frozen=True, eq=False, repr=False)
class ExpertLabels:
    """Texts with the labels that a model gave them, and how sure it was.

    Attributes:
        contrast: the K kept texts with its labels, in the order they came.
        rows: ``[K]`` int64, where these stand among the N texts.
        log_odds: ``[N]`` float64, nats by which it prefers the positive answer, for every text.
        centre: the log-odds from which a text counts as positive.
    """

    contrast: ContrastSet
    rows: Tensor
    log_odds: Tensor
    centre: float

    @property
    def certainty(self) -> Tensor:
        """``[K]`` float64, .5 to 1: the probability of the label, with odds counted from centre."""
        return (self.log_odds[self.rows] - self.centre).abs().sigmoid()

    def describe(self) -> dict[str, Any]:
        """Json values: how many texts came, were kept and are positive, and the certainties."""
        sure = self.certainty
        return {
            "texts": len(self.log_odds),
            "kept": len(self.contrast),
            "positive": sum(self.contrast.labels),
            "certainty": {"least": float(sure.min()), "median": float(sure.median())},
            "centre": self.centre,
        }

    def __repr__(self) -> str:
        told = self.describe()
        return (
            f"ExpertLabels({told['kept']} of {told['texts']} texts kept, {told['positive']} "
            f"positive, certainty {fixed(told['certainty']['least'])} or more)"
        )


def label_by_expert(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    question: str,
    answers: tuple[str, str],
    *,
    keep: float = 0.5,
    least: float = 0.5,
    centred: bool = False,
    batch_size: int = 64,
) -> ExpertLabels:
    """Label texts by what a model answers about them, and keep those of which it is sure.

    The target's own vectors from the expert's labels are then those of any contrast set:
    ``fit_vectors(target, target, align(target, target, "identity"), LayerPairing.same(layers))``
    with ``target = capture(model, tokenizer, labels.contrast)``.

        x_i = log P(positive answer | question with text i) - log P(negative answer | the same)

    A text gets label 1 where x is above the centre, 0 where it is below; its certainty is
    ``1 / (1 + exp(-|x - centre|))``.

    Args:
        model, tokenizer: of the expert; it is asked as it is, steered or not.
        texts: N texts.
        question: what is asked of each, with ``{text}`` in the place of the text, for example
            ``"Review: {text}\\nSentiment:"``. Of a model for chats, rendered by its template.
        answers: what the model would go on with, for label 1 and for label 0, with the leading
            space that most tokenizers need: ``(" positive", " negative")``. The log-probabilities
            are summed over the tokens of an answer, so answers of equal length are fairest.
        keep: share of the texts of each label that is kept, the surest first, rounded up.
        least: certainty below which no text is kept, .5 to 1.
        centred: count from the median of x, not from 0: for models that favour one answer whatever
            they read. It takes half of the texts to be positive.
        batch_size: token sequences per forward pass.

    Raises:
        ValueError: no texts, a question without ``{text}``, not two different answers, a share or
            certainty out of its range, one label for all the texts that are kept.
    """
    texts = _checked(texts, question, answers, keep, least)
    prompts = [question.replace(PLACE, text) for text in texts]
    tiny = torch.finfo(torch.float64).tiny
    told = choice_probabilities(model, tokenizer, prompts, list(answers), batch_size)
    told = told.clamp(min=tiny).log()
    log_odds = told[:, 0] - told[:, 1]
    centre = float(log_odds.quantile(0.5)) if centred else 0.0
    from_centre = log_odds - centre
    kept = [_surest(side * from_centre, keep, least) for side in (1, -1)]
    if not all(map(len, kept)):
        counts = [int((side * from_centre > 0).sum()) for side in (1, -1)]
        raise ValueError(
            f"the expert says {answers[0]!r} of {counts[0]} and {answers[1]!r} of {counts[1]} of "
            f"{len(texts)} texts, with certainty {fixed(least)} or more of {len(kept[0])} and "
            f"{len(kept[1])} that keep={keep} leaves, and both labels are needed; lower least, "
            "ask another question or, for a model that favours one answer whatever it reads, pass "
            "centred=True"
        )
    rows = torch.cat(kept).sort().values
    labels = (from_centre[rows] > 0).long().tolist()
    contrast = ContrastSet.from_texts([texts[row] for row in rows.tolist()], labels)
    return ExpertLabels(contrast, rows, log_odds, centre)


def _surest(certain: Tensor, keep: float, least: float) -> Tensor:
    """Rows whose value is above 0: the share with the largest, those sure enough of them."""
    own = (certain > 0).nonzero().flatten()
    count = math.ceil(round(keep * len(own), 9))  # .7 of 10 are 7, whatever rounding says
    order = certain[own].sort(descending=True, stable=True).indices[:count]
    rows = own[order]
    return rows[certain[rows].sigmoid() >= least]


def _checked(
    texts: Sequence[str], question: str, answers: tuple[str, str], keep: float, least: float
) -> list[str]:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a non-empty list of texts, came {texts!r}")
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(
            f"texts must be strings, came {type(texts[wrong]).__name__} as text {wrong}; render "
            "chat messages by the tokenizer's template"
        )
    if not isinstance(question, str) or PLACE not in question:
        raise ValueError(f"question must hold {PLACE}, where the text stands, came {question!r}")
    if isinstance(answers, str) or len(answers) != 2:
        raise ValueError(
            f"answers must be two texts, the positive one and the negative, came {answers!r}"
        )
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0, at most 1, came {keep}")
    if not 0.5 <= least < 1:
        raise ValueError(f"least must be a probability from 0.5 to below 1, came {least}")
    return list(texts)
