"""When a figure of the health check is a finding, and what to say about it.

The thresholds separate what was measured on the bundled pair (four contrast sets; expert layers 1
and 2, which tell the classes apart) from nulls: shuffled labels, random expert states, rows
permuted on one side, expert layer 0 (where the classes coincide; no null of the aligner). A bare
auto-encoder explains as little as a null. The most extreme pair of each:

    examples                healthy, 600 / 160 / 80 / 40      null, 600 / 160 / 80 / 40
    explained_variance      least .38 / .24 / .16 / .04       most .00 / .00 / .01 / .01
    auc                     least .89 / .74 / .67 / .61       most .54 / .61 / .60 / .76
    target_auc              least .99 / .89 / .72 / .64       most .51 / .58 / .56 / .60
    stability               least .97 / .87 / .80 / .62       most .46 / .52 / .29 / .38
    nats over floor         least 87 / 21 / 7 / 1.4           95 % below 1, by definition
    reconstruction_error    most 0 / 0 / 0 / .36              most 0 / 0 / 0 / .56
    distinct                least .98                         layer 0: .5; copies of ten: .01
    agreement               least .79                         -.28 to .90
    share                   least .50                         .15 to .98

``target_auc`` is no finding: the notes tell by the limit of ``auc`` (the same rows and method) what
the target tells apart by itself; of 40 examples the limit is .68, which sound layers may miss.
``auc`` below the limit at every pair is one finding about the fit as a whole.

``agreement`` and ``share`` overlap: a high value proves nothing, only a low one is told. Labels
flipped at random in 20, 30 and 40 % of 600 examples: AUC .74, .63, .54; stability .49, .31, .11.
200 examples of which 100, 20, 10 and 4 have the rarer label: stability .90, .77, .57, .30, as with
twice as many balanced examples, so it is the rarer label that counts.

How little of their length the target's states differ, and whether one coordinate holds most of it
(90 % in Gemma 3 270M), is no finding: scales measure how far apart states are.

Whole fits with these thresholds, 80 to 600 examples: 28 of 28 healthy ones silent, 112 of 112 with
shuffled labels, random states, permuted rows or a bare auto-encoder told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..support.numbers import percent, short
from .health_report import MOST, Finding, PairHealth
from .wording import layers_named, value_range

LEAST_EXAMPLES = 20  # of the rarer label; stability .74 there, .58 with 10
LEAST_BALANCE = 0.1  # share of the rarer label; below it, most examples are spent in vain
LEAST_SPREAD = 0.01  # a capture in bfloat16 is rounded at .004 of an entry
LEAST_DISTINCT = 0.6
MOST_ERROR = 0.5
LEAST_EXPLAINED = 0.03
LEAST_AUC = 0.65  # and two standard errors of chance
LEAST_STABILITY = 0.6
LEAST_SHARE = 0.3
MOST_NORM = 8.0  # in medians: where `RFM` calls a row an outlier


@dataclass(frozen=True)
class Check:
    """A figure with its limit; ``text`` says what a miss means and what to do.

    Attributes:
        name: of the finding; figure: of `PairHealth`.
        limit: the last bad value, or the name of the figure that holds it.
        side: whose layers the text names, ``"expert"``, ``"target"`` or ``"pair"``.
        text: may hold {value}, {where}, {limit}, {few} (examples against width) and {other} (a
            better alignment) and {copies} (rows that are alike).
    """

    name: str
    figure: str
    limit: float | str
    side: str
    text: str

    def misses(self, pair: PairHealth) -> bool:
        value = getattr(pair, self.figure)
        limit = getattr(pair, self.limit) if isinstance(self.limit, str) else self.limit
        if value is None or limit is None:
            return False
        return value >= limit if self.figure in MOST else value <= limit


def findings(
    pairs: tuple[PairHealth, ...],
    counts: dict[str, int],
    alignment: dict[str, Any],
    alike: dict[int, str],
) -> tuple[Finding, ...]:
    """What is wrong, the examples first, then each figure with all the pairs that miss it.

    ``alike``: of each expert layer, the largest group of copies among the rows in words.
    """
    found = _of_examples(counts)
    alive = pairs
    if counts["half_rows"]:
        lost = [p for p in pairs if p.auc is None and not _CONSTANT_CHECK.misses(p)]
        if lost:
            layers = tuple((p.expert_layer, p.target_layer) for p in lost)
            found.append(
                Finding("refit", _NO_REFIT.format(where=layers_named(lost, "pair")), "auc", layers)
            )
    for check in _checks(counts):
        bad = [p for p in alive if check.misses(p)]
        if not bad:
            continue
        if check.name == "constant":  # the other figures there would only repeat it
            alive = tuple(p for p in pairs if p not in bad)
        words = check.text
        if check.name == "auc" and len(bad) == sum(p.auc is not None for p in pairs):
            words = _NOWHERE
        text = words.format(
            value=value_range([getattr(p, check.figure) for p in bad]),
            where=layers_named(bad, check.side),
            limit=check.limit if isinstance(check.limit, str) else short(float(check.limit), 2),
            few=_few(counts),
            other=_other_alignment(alignment),
            copies=next((f" ({alike[p.expert_layer]})" for p in bad if alike[p.expert_layer]), ""),
        )
        layers = tuple((p.expert_layer, p.target_layer) for p in bad)
        found.append(Finding(check.name, text, check.figure, layers))
    return tuple(found)


def limits(counts: dict[str, int]) -> dict[str, float]:
    """The last bad value of every figure that has a limit of its own."""
    numbers = [c for c in _checks(counts) if not isinstance(c.limit, str)]
    return {check.figure: check.limit for check in numbers}


def least_auc(counts: dict[str, int]) -> float:
    """What chance passes once in forty: two standard errors of the AUC of unrelated scores."""
    positive = counts["positive"]
    negative = counts["examples"] - positive
    error = ((positive + negative + 1) / (12 * positive * negative)) ** 0.5
    return min(max(LEAST_AUC, 0.5 + 2 * error), 0.99)


def _of_examples(counts: dict[str, int]) -> list[Finding]:
    n = counts["examples"]
    rarer = min(counts["positive"], n - counts["positive"])
    found = []
    if rarer < LEAST_EXAMPLES:
        text = (
            f"{n} examples, {rarer} of the rarer label, are too few: other examples would give "
            f"another direction; use at least {LEAST_EXAMPLES} of each label, better 100"
        )
        found.append(Finding("examples", text))
    if rarer < LEAST_BALANCE * n:
        text = (
            f"only {percent(rarer / n, 1)} of the {n} examples have the rarer label: a direction "
            "is as uncertain as that label leaves it; add examples of it"
        )
        found.append(Finding("balance", text))
    if not counts["half_rows"]:
        text = (
            "AUC and stability could not be measured: no two halves of the examples hold two of "
            "each label; use more examples, and pair no more than belongs together"
        )
        found.append(Finding("halves", text))
    return found


def _checks(counts: dict[str, int]) -> tuple[Check, ...]:
    random = 2 * counts["target_width"] ** -0.5  # two standard deviations of its cosines
    return (
        _CONSTANT_CHECK,
        Check("duplicates", "distinct", LEAST_DISTINCT, "expert", _DUPLICATES),
        Check("reconstruction_error", "reconstruction_error", MOST_ERROR, "pair", _LOST),
        Check("explained_variance", "explained_variance", LEAST_EXPLAINED, "pair", _APART),
        Check("information", "nats", "floor", "pair", _STRANGERS),
        Check("auc", "auc", least_auc(counts), "pair", _INSEPARABLE),
        Check("stability", "stability", LEAST_STABILITY, "pair", _UNSTABLE),
        Check("share", "share", LEAST_SHARE, "pair", _MANY),
        Check("agreement", "agreement", random, "pair", _ODDS),
        Check("scale", "largest_norm", MOST_NORM, "target", _LONG),
    )


_CONSTANT = (
    "the states of all examples nearly coincide at {where} (they differ by {value} of their "
    "length): there is nothing to learn from; choose another layer, or a position where the texts "
    "differ"
)
_CONSTANT_CHECK = Check("constant", "expert_spread", LEAST_SPREAD, "expert", _CONSTANT)
_NO_REFIT = (
    "no direction was found on halves of the examples at {where}: most of their states coincide, "
    "or the bandwidth does not fit them; look at the examples, or choose another layer"
)
_DUPLICATES = (
    "only a share of {value} of the rows differ at {where}: the others are near-copies{copies}, "
    "which makes AUC and stability look better than they are; remove duplicates, vary the texts, "
    "or capture at a position where they differ"
)
_LOST = (
    "reconstruction error {value} on held-out rows at {where}: the aligner loses that share of the "
    "expert's variance{few}, and the direction with it; use more examples"
)
_APART = (
    "the aligned expert states explain {value} of the target's variance on held-out rows at "
    "{where}{few}: they are not in the target's basis, and a vector from them steers like a random "
    "one; {other}"
)
_STRANGERS = (
    "information {value} nats at {where} is not above what chance gives: these layers share "
    "nothing that can be measured on these examples; check that both captures hold the same "
    "texts, use more examples or another layer"
)
_INSEPARABLE = (
    "AUC {value} on held-out rows (wanted: above {limit}) at {where}: the expert's layer does not "
    "separate the classes; check the labels, use more examples or another layer"
)
_NOWHERE = (
    "no paired expert layer tells the classes apart: AUC {value} on held-out rows (wanted: above "
    "{limit}, guessing gives 0.5) at {where}; this fit has nothing of the expert's to give, so "
    "check the labels first, then use more examples, other layers or another expert"
)
_UNSTABLE = (
    "directions from two halves of the examples have cosine {value} (wanted: above {limit}) at "
    "{where}: the direction depends on which examples were drawn; use more examples or another "
    "layer"
)
_MANY = (
    "the first eigenvalue is a share of {value} of the AGOP (wanted: above {limit}) at {where}: "
    "one vector leaves most of what the machine uses out; check the labels, or split the "
    "behaviour into simpler ones"
)
_ODDS = (
    "cosine {value} between the vector and the difference of the class means at {where}, no more "
    "than a random direction has ({limit}): adding it need not lead from label 0 to label 1; try "
    "direction='mean_difference', or check its sign by steering"
)
_LONG = (
    "the longest state is {value} times the median at {where}: some examples end in a token with "
    "massive activations; remove them, or capture at another position"
)


def _few(counts: dict[str, int]) -> str:
    width = max(counts["expert_width"], counts["target_width"])
    n = counts["examples"]
    return f" ({n} examples for a width of {width})" if n < width else ""


def _other_alignment(settings: dict[str, Any]) -> str:
    if settings.get("rotation") == "none":
        return "align with rotation='procrustes'"
    if settings.get("method") == "identity":
        return "align with method='autoencoder' or 'ridge'"
    return "use more examples, another layer or another expert"
