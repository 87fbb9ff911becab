"""Experts averaged in anchor coordinates: what leaves these alone, and what averaging gains."""

import pytest
import torch

import expertsteer as es
from expertsteer.fitting.figures import unseen_alignment

TEXTS = 160


def capture(states, name="a"):
    labels, keys = torch.arange(states.shape[1]) % 2, torch.arange(states.shape[1])
    return es.HiddenStates(states, labels, keys=keys, model={"name": name})


def experts(count, noise, cause, widths=(20, 26, 23, 31)):
    """Models that read one cause, each in its own coordinates and with noise of its own."""
    some = []
    for i in range(count):
        mixing = torch.randn(cause.shape[1], widths[i]).double()
        states = cause @ mixing + noise * torch.randn(TEXTS, widths[i]).double()
        some.append(capture(states.unsqueeze(0), f"m{i}"))
    return some


def test_coordinates_are_cosines_of_standardised_states():
    a, b = experts(2, 0.5, torch.randn(TEXTS, 4).double())
    anchors = [3, 70, -1]
    found = es.average_experts([a, b], anchors)
    for i in (0, 9, 70):
        for j, anchor in enumerate(anchors):
            told = []
            for states in (a.states[0], b.states[0]):
                z = (states - states.mean(0)) / states.std(0, correction=0)
                told.append(torch.cosine_similarity(z[i], z[anchor], dim=0))
            assert float(found.states[0, i, j]) == pytest.approx(float(sum(told) / 2))
    assert found.width == 3 and torch.equal(found.keys, a.keys)
    assert [m["name"] for m in found.model["experts"]] == ["m0", "m1"]


def test_neither_units_nor_offsets_of_coordinates_matter():
    (a,) = experts(1, 0.5, torch.randn(TEXTS, 4).double())
    units = torch.logspace(-2, 4, 20).double() * (-1.0) ** torch.arange(20)
    moved = capture(a.states * units + 7 * units)
    one, other = (es.average_experts([x], 32) for x in (a, moved))
    torch.testing.assert_close(one.states, other.states)


def test_neither_the_order_of_experts_nor_their_repetition_matters():
    a, b = experts(2, 0.5, torch.randn(TEXTS, 4).double())
    torch.testing.assert_close(es.average_experts([a, b]).states, es.average_experts([b, a]).states)
    torch.testing.assert_close(es.average_experts([a, a]).states, es.average_experts([a]).states)


@pytest.mark.parametrize("method", ["low_rank", "ridge"])
def test_several_noisy_experts_tell_more_of_a_target_than_each(method):
    cause = torch.randn(TEXTS, 4).double()
    some = experts(4, 4.0, cause)
    target = capture((cause @ torch.randn(4, 15).double()).unsqueeze(0))
    train, held = torch.arange(110), torch.arange(110, TEXTS)

    def told(*chosen):
        states = es.average_experts(chosen, 48)
        aligned = es.align(states, target, method, reg=0.1)
        return unseen_alignment(states, target, [(0, 0)], aligned, train, held)[0][
            "explained_variance"
        ]

    alone = [told(expert) for expert in some]
    assert told(*some[:2]) > max(alone[:2])
    assert told(*some) > told(*some[:2]) > 0.2


def test_vectors_come_of_the_mean_as_of_one_expert(make_states):
    """Experts of other depths and widths; the direction is the cause's that the labels follow."""
    some = make_states(layers=4, width=9, seed=1), make_states(layers=2, width=17, seed=3)
    target = make_states(seed=2)
    mean = es.average_experts(some, 40)
    assert mean.layers == (0, 1, 2, 3) and mean.states.shape == (4, 80, 40)
    pairing = es.LayerPairing(((3, 1, 0.0),))
    vectors = es.fit_vectors(
        mean, target, es.align(mean, target, "low_rank"), pairing, "mean_difference"
    )
    own = es.fit_vectors(
        target,
        target,
        es.align(target, target, "identity"),
        es.LayerPairing.same([1]),
        "mean_difference",
    )
    assert float(vectors.vectors[1] @ own.vectors[1]) > 0.95
    assert "m" in vectors.metadata["expert"]["name"]
    assert es.health(
        mean, target, es.align(mean, target, "low_rank"), pairing, vectors
    ).pairs[0].explained_variance > 0.5  # fmt: skip


def test_a_state_at_the_mean_is_like_none():
    states = torch.randn(1, 9, 5).double()
    states[0, 0] = states[0, 1:].mean(0)
    states = torch.cat([states, states.new_ones(1, 9, 2)], dim=2)  # and columns that do not vary
    found = es.average_experts([capture(states)], [0, 4]).states[0]
    assert bool(found.isfinite().all())
    assert float(found[:, 1].abs().max()) == pytest.approx(1)


def test_what_cannot_be_averaged_is_refused(make_states):
    a, b = make_states(seed=1), make_states(seed=2)
    with pytest.raises(ValueError, match="experts must hold at least one"):
        es.average_experts([])
    with pytest.raises(ValueError, match=r"experts\[0\] holds 80 examples and experts\[1\] 20"):
        es.average_experts([a, b.take(range(20))], 10)
    for wrong in (0, 81):
        with pytest.raises(ValueError, match=f"anchors must be from 1 .*80, came {wrong}"):
            es.average_experts([a, b], wrong)
    with pytest.raises(ValueError, match="anchors must name different rows"):
        es.average_experts([a, b], [1, 1])
