"""The health check is silent on a good fit, fires on every kind of bad one, and says why."""

import io
import json
from dataclasses import fields, replace

import pytest
import torch
from rich.console import Console

import expertsteer as es
from expertsteer import demo
from expertsteer.fitting.halves import draw_halves
from expertsteer.fitting.health_report import PairHealth
from expertsteer.reporting.vectors_table import vectors_table


@pytest.fixture(scope="module")
def captures():
    """The demo pair over its own contrast set."""
    contrast = demo.contrast_set(600)
    return tuple(
        es.capture(*demo.load(name), contrast, progress=False, batch_size=64)
        for name in ("expert", "target")
    )


def fitted(expert, target, **settings):
    """With pairs that were not chosen by what the expert tells apart."""
    pipeline = es.ExpertSteer(progress=False, rule="lowest", **settings)
    return pipeline, pipeline.fit_states(expert, target)


def checks(found):
    return {finding.check for finding in found.findings}


@pytest.fixture(scope="module")
def healthy(captures):
    return fitted(*captures)


def test_the_default_fit_of_the_demo_is_healthy(healthy):
    found = healthy[0].health_
    assert found.ok and found.warnings == () and found.findings == ()
    assert (found.examples, found.positive, found.half_rows) == (600, 300, 300)
    for pair, chosen in zip(found.pairs, healthy[0].pairing_, strict=True):
        assert (pair.expert_layer, pair.target_layer, pair.nats) == tuple(chosen)
        known = {f.name for f in fields(PairHealth)} - {"effect"}  # which the rule did not measure
        assert all(getattr(pair, name) is not None for name in known)
        assert (
            pair.explained_variance < pair.explained_variance_seen
        )  # others than it was fitted on
        assert pair.nats > pair.floor and pair.z_score > 3


def shuffled(expert, target):
    order = torch.randperm(len(expert), generator=torch.Generator().manual_seed(0))
    return tuple(replace(side, labels=side.labels[order]) for side in (expert, target))


def random_expert(expert, target):
    noise = torch.randn(expert.states.shape, generator=torch.Generator().manual_seed(0))
    return replace(expert, states=noise), target


def ten(expert, target):
    return expert.take(range(10)), target.take(range(10))


def near_copies(expert, target):
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(600) % 10
    sides = (replace(side.take(rows), pairs=None) for side in (expert, target))
    return tuple(
        replace(s, states=s.states * (1 + 1e-3 * torch.randn(s.states.shape, generator=generator)))
        for s in sides
    )


def one_in_twenty(expert, target):
    kept = torch.cat(
        [(expert.labels == 0).nonzero()[:190], (expert.labels == 1).nonzero()[190:200]]
    )
    return tuple(replace(side.take(kept.flatten()), pairs=None) for side in (expert, target))


def massive(expert, target):
    states = target.states.clone()
    states[:, :, 7] = 2000.0
    return expert, replace(target, states=states)


def one_massive_row(expert, target):
    states = target.states.clone()
    states[:, 3] *= 30
    return expert, replace(target, states=states)


@pytest.mark.parametrize(
    ("spoil", "settings", "expected"),
    [
        (shuffled, {}, {"auc", "stability"}),
        (random_expert, {}, {"explained_variance", "information", "auc", "stability"}),
        (None, {"rotation": "none"}, {"explained_variance"}),
        (ten, {}, {"examples", "stability"}),
        (near_copies, {}, {"duplicates"}),
        (one_in_twenty, {}, {"examples", "balance"}),
        (one_massive_row, {}, {"scale"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of too few examples, from the information
def test_it_fires_on_what_is_wrong(captures, spoil, settings, expected):
    sides = spoil(*captures) if spoil else captures
    found = fitted(*sides, **settings)[0].health_
    assert expected <= checks(found) and not found.ok
    for finding in found.findings:
        assert finding.message in found.warnings and ";" in finding.message  # and what to do
    if settings:  # one thing is wrong: one is reported
        assert checks(found) == expected
    if settings:
        assert "rotation='procrustes'" in found.warnings[0]


def test_a_massive_coordinate_that_does_not_move_changes_neither_scales_nor_health(
    captures, healthy
):
    pipeline, vectors = fitted(*massive(*captures))
    assert pipeline.health_.ok
    both = set(vectors.layers) & set(healthy[1].layers)
    for layer in both:
        assert vectors.scales[layer] == pytest.approx(healthy[1].scales[layer], rel=0.01)
    assert both


@pytest.mark.filterwarnings("ignore::UserWarning")  # of layers without information
def test_a_constant_layer_is_told_once_and_the_others_are_still_checked(captures, healthy):
    expert, target = captures
    pipeline, vectors = healthy
    states = expert.states.clone()
    states[1] = states[1, 0]
    found = es.health(
        replace(expert, states=states), target, pipeline.alignment_, pipeline.pairing_, vectors
    )
    (finding,) = found.findings
    assert finding.check == "constant" and "expert layer 1 " in finding.message
    assert finding.pairs == tuple(p[:2] for p in pipeline.pairing_ if p.expert_layer == 1)
    assert [p.auc is None for p in found.pairs] == [p.expert_layer == 1 for p in found.pairs]
    # Rounding alone is no more than a constant.
    states = states * (1 + 1e-4 * torch.randn(states.shape))
    states[0], states[2] = expert.states[0], expert.states[2]
    again = fitted(replace(expert, states=states), target)[0].health_
    assert checks(again) == {"constant"}


@pytest.mark.parametrize("method", ["autoencoder", "ridge"])
def test_rotating_and_scaling_the_expert_changes_nothing(captures, method):
    expert, target = (side.take(range(160)) for side in captures)
    expert, target = (replace(side, states=side.states.double()) for side in (expert, target))
    turn = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    turned = replace(expert, states=37.5 * expert.states @ turn)
    pairing = es.LayerPairing(((1, 3, 2.0), (2, 0, 1.0)))
    results = []
    for side in (expert, turned):
        alignment = es.align(side, target, method, pairing=pairing)
        vectors = es.fit_vectors(side, target, alignment, pairing)
        results.append(es.health(side, target, alignment, pairing, vectors))
    for one, other in zip(results[0].pairs, results[1].pairs, strict=True):
        for f in fields(PairHealth):
            a, b = getattr(one, f.name), getattr(other, f.name)
            assert (a is None and b is None) or a == pytest.approx(b, rel=1e-5, abs=1e-7), f.name
    assert checks(results[0]) == checks(results[1])


def test_equal_seeds_give_equal_results_and_others_other_cuts(captures, healthy):
    pipeline, vectors = healthy
    arguments = (*captures, pipeline.alignment_, pipeline.pairing_, vectors)
    again = es.health(*arguments, pipeline.information_)
    assert again == pipeline.health_
    other = es.health(*arguments, pipeline.information_, seed=1, cuts=2)
    assert other.cuts == 2 and other.pairs[0].stability != again.pairs[0].stability
    assert other.pairs[0].agreement == again.pairs[0].agreement
    bounded = es.health(*arguments, most_rows=100, cuts=1)
    plain = es.health(*arguments, pipeline.information_.nats, cuts=1).pairs[0]
    assert plain.nats == again.pairs[0].nats and plain.floor is None
    assert bounded.half_rows == 50 and bounded.pairs[0].floor == again.pairs[0].floor


def test_a_pair_alone_has_the_figures_it_has_among_others(captures, healthy):
    pipeline, vectors = healthy
    together = pipeline.health_.pairs[1]  # shares its expert layer with the pair before it
    assert together.expert_layer == pipeline.health_.pairs[0].expert_layer
    alone = replace(pipeline.pairing_, pairs=(pipeline.pairing_.pairs[1],))
    (found,) = es.health(*captures, pipeline.alignment_, alone, vectors).pairs
    for name in ("auc", "stability", "share", "explained_variance", "validation_auc"):
        assert getattr(found, name) == pytest.approx(getattr(together, name), abs=1e-4)


def test_the_aligner_is_judged_on_rows_it_has_not_seen(make_states):
    expert, target = make_states(width=60, examples=40), make_states(width=50, examples=40, seed=1)
    pairing = es.LayerPairing(((0, 0, float("nan")),))
    alignment = es.align(expert, target, pairing=pairing)
    vectors = es.fit_vectors(expert, target, alignment, pairing)
    (pair,) = es.health(expert, target, alignment, pairing, vectors).pairs
    assert float(alignment.reconstruction_error) < 1e-9 < 5e-3 < pair.reconstruction_error
    assert pair.nats is None and pair.floor is None  # a pairing by hand has no information


def test_it_is_saved_with_the_vectors_and_shown_again(captures, healthy, tmp_path):
    with pytest.warns(es.HealthWarning):
        pipeline, vectors = fitted(*shuffled(*captures))
    vectors.save_pretrained(tmp_path)
    loaded = es.SteeringVectors.from_pretrained(tmp_path)
    kept = es.Health.from_dict(loaded.metadata["health"])
    assert kept == pipeline.health_ and not kept.ok
    document = json.loads(json.dumps(loaded.metadata["health"], allow_nan=False))
    assert document["ok"] is False and document["warnings"] == list(kept.warnings)
    shown = table_of(loaded)
    assert "warning: no paired expert layer" in shown and "!" in shown and "wanted" in shown
    assert "as wanted" in table_of(healthy[1])
    broken = replace(loaded, metadata=loaded.metadata | {"health": {"pairs": 3}})
    with pytest.raises(es.ArtifactError, match="health"):
        table_of(broken)


def table_of(vectors):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(vectors_table(vectors, "mine"))
    text = console.export_text()
    assert "…" not in text.split("health:")[1]  # fits a terminal of 80 columns
    return text


def test_it_can_be_left_out(captures):
    pipeline, vectors = fitted(*captures, health=False)
    assert "health" not in vectors.metadata and not hasattr(pipeline, "health_")
    assert "health:" not in str(vectors_table(vectors, "mine"))


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
@pytest.mark.filterwarnings("ignore::expertsteer.HealthWarning")  # said below
def test_other_directions_are_refitted_by_their_own_method(captures, method):
    found = fitted(*captures, direction=method)[0].health_
    assert all(p.share is None and p.validation_auc is None for p in found.pairs)
    assert found.ok == (method == "mean_difference")  # the first component is not the label's


def test_halves_keep_pairs_together_and_hold_both_labels():
    labels = torch.tensor([1, 0] * 20 + [1, 1, 0, 0, 0, 1, 0])
    pairs = torch.tensor([i // 2 for i in range(40)] + [20, 20, 20, -1, -1, -1, -1])
    halves = draw_halves(labels, pairs, 5, 2000, seed=3)
    assert halves.rows.shape == halves.rest.shape == (10, halves.rows.shape[1])
    for rows, rest in zip(halves.rows, halves.rest, strict=True):
        assert not set(rows.tolist()) & set(rest.tolist())
        paired = {int(p) for p in pairs[rows] if p >= 0}, {int(p) for p in pairs[rest] if p >= 0}
        assert not paired[0] & paired[1]
        assert 2 <= int(labels[rows].sum()) <= len(rows) - 2
    assert len({tuple(rows.tolist()) for rows in halves.rows}) == 10
    assert draw_halves(labels, pairs, 2, 20, seed=3).rows.shape[1] <= 12
    assert draw_halves(labels, torch.zeros(47, dtype=torch.int64), 2, 2000, seed=3) is None


def test_examples_that_cannot_be_halved_are_told(make_states):
    expert, target = (replace(make_states(seed=s), pairs=torch.zeros(80).long()) for s in (0, 1))
    pairing = es.LayerPairing(((0, 0, float("nan")),))
    alignment = es.align(expert, target)
    vectors = es.fit_vectors(expert, target, alignment, pairing, validation=0)
    found = es.health(expert, target, alignment, pairing, vectors)
    assert checks(found) == {"halves"} and found.pairs[0].auc is None


def test_every_limit_belongs_to_a_figure(healthy):
    known = {f.name for f in fields(PairHealth)}
    assert healthy[0].health_.limits.keys() <= known


def test_bad_arguments_are_named(captures, healthy):
    expert, target = captures
    pipeline, vectors = healthy
    given = (pipeline.alignment_, pipeline.pairing_)
    with pytest.raises(ValueError, match="expert holds 600 examples and target 10"):
        es.health(expert, target.take(range(10)), *given, vectors)
    with pytest.raises(ValueError, match="at least 4 examples of each label"):
        es.health(expert.take(range(4)), target.take(range(4)), *given, vectors)
    layer = vectors.layers[0]
    with pytest.raises(ValueError, match=f"vectors must hold .* none at .{layer}"):
        es.health(expert, target, *given, vectors.select(vectors.layers[1:]))
    narrow = es.SteeringVectors({i: torch.ones(5) for i in vectors.layers})
    with pytest.raises(ValueError, match="vectors have width 5"):
        es.health(expert, target, *given, narrow)
    fewer = replace(pipeline.information_, nats=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"information holds \(2, 2\) layers"):
        es.health(expert, target, *given, vectors, fewer)
    for wrong in ({"cuts": 0}, {"cuts": 2.0}, {"most_rows": 7}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be an integer"):
            es.health(expert, target, *given, vectors, **wrong)
    strange = replace(vectors, metadata=vectors.metadata | {"settings": {"depth": 3}})
    with pytest.raises(es.ArtifactError, match="settings"):
        es.health(expert, target, *given, strange)
