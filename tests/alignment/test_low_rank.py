"""Reduced-rank ridge: the optimum, the rank that is found, and states with huge coordinates."""

import pytest
import torch

import expertsteer as es
from expertsteer.fitting.figures import unseen_alignment


def capture(states, **more):
    labels = torch.arange(states.shape[1]) % 2
    return es.HiddenStates(states, labels, keys=torch.arange(states.shape[1]), **more)


def related(rank, noise, examples=150, d_expert=14, d_target=11, layers=2):
    """An expert, and a target that is a map of the given rank of it, plus noise."""
    h = torch.randn(layers, examples, d_expert).double()
    left = torch.randn(layers, d_expert, rank).double()
    t = h @ left @ torch.randn(layers, rank, d_target).double()
    t = t / t.std() + noise * torch.randn(layers, examples, d_target).double()
    return capture(h + 5.0), capture(t - 3.0)


def standardised(states):
    return (states - states.mean(0)) / states.std(0, correction=0)


def penalised(a, expert, target, row, reg):
    """The loss of a row's map between standardised states."""
    h, t = expert.layer(a.expert_layers[row]), target.layer(a.target_layers[row])
    weight = a.encoder_weight[row] * h.std(0, correction=0).unsqueeze(1) / t.std(0, correction=0)
    error = standardised(t) - standardised(h) @ weight
    return error.square().sum() + reg * len(h) * weight.square().sum()


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_rank_of_a_relation_is_found(rank, noise):
    expert, target = related(rank, noise)
    a = es.align(expert, target, "low_rank", reg=1e-9 if noise == 0 else 1e-2)
    assert a.rank.tolist() == [rank, rank]
    assert torch.linalg.matrix_rank(a.encoder_weight, rtol=1e-9).tolist() == [rank, rank]
    if noise == 0:
        torch.testing.assert_close(a.encode(expert.states), target.states, rtol=1e-6, atol=1e-6)


def descended(x, y, rank, penalty):
    """The least loss that gradient descent finds over products of two factors."""
    u, v = (torch.randn(m.shape[1], rank).double().requires_grad_() for m in (x, y))

    def loss():
        weight = u @ v.mT
        value = (y - x @ weight).square().sum() + penalty * weight.square().sum()
        optimiser.zero_grad()
        value.backward()
        return value

    optimiser = torch.optim.LBFGS([u, v], max_iter=500, line_search_fn="strong_wolfe")
    optimiser.step(loss)
    return float(loss().detach())


@pytest.mark.parametrize("examples", [9, 60])  # the N x N and the d x d system
def test_no_map_of_the_rank_does_better(examples):
    expert, target = related(4, 0.5, examples)
    best = es.align(expert, target, "low_rank", rank=2, reg=0.05)
    for row in range(2):
        sides = standardised(expert.layer(row)), standardised(target.layer(row))
        closed = float(penalised(best, expert, target, row, 0.05))
        found = descended(*sides, 2, 0.05 * examples)
        assert found * (1 - 1e-3) <= closed <= found * (1 + 1e-9)


def test_full_rank_is_the_ridge_of_standardised_states():
    expert, target = related(4, 0.5)
    whole = es.align(expert, target, "low_rank", rank=11, reg=0.03)
    alike = [capture(torch.stack([standardised(x) for x in c.states])) for c in (expert, target)]
    ridge = es.align(*alike, "ridge", reg=0.03)
    spread = target.states.std(1, correction=0, keepdim=True)
    codes = ridge.encode(alike[0].states) * spread + target.states.mean(1, keepdim=True)
    torch.testing.assert_close(whole.encode(expert.states), codes)


def test_units_of_single_coordinates_change_nothing_but_the_codes_units():
    """One coordinate of real states is 100 times larger than the others."""
    expert, target = related(3, 0.3)
    units_e, units_t = torch.ones(14).double(), torch.ones(11).double()
    units_e[3], units_t[5] = 300.0, 200.0
    plain = es.align(expert, target, "low_rank")
    huge = capture(expert.states * units_e), capture(target.states * units_t)
    scaled = es.align(*huge, "low_rank")
    assert torch.equal(scaled.rank, plain.rank)
    torch.testing.assert_close(scaled.encode(huge[0].states), plain.encode(expert.states) * units_t)


def test_a_huge_coordinate_does_not_hide_the_others_on_rows_not_seen():
    expert, target = related(3, 0.3)
    target.states[..., 0] = 500 * torch.randn(2, 150).double()  # noise with most of the variance
    train, held = torch.arange(100), torch.arange(100, 150)
    a = es.align(expert.take(train), target.take(train), "low_rank", rank=3)
    codes, states = a.encode(expert.take(held).states), target.take(held).states
    error = (codes - states)[..., 1:].square().sum()
    assert float(error / (states - states.mean(1, True))[..., 1:].square().sum()) < 0.3


def test_few_examples_gain_from_a_low_rank():
    """The reason for it: on rows not seen, a map of few dimensions errs less than ridge."""
    expert, target = related(2, 0.8, examples=60, d_expert=40, d_target=40)
    train, held, pairs = torch.arange(40), torch.arange(40, 60), [(0, 0), (1, 1)]
    few, many = (
        unseen_alignment(expert, target, pairs, es.align(expert, target, m), train, held)
        for m in ("low_rank", "ridge")
    )
    for one, other in zip(few, many):
        assert one["explained_variance"] > other["explained_variance"] + 0.1


def test_sides_of_a_pair_are_held_out_together():
    """Copies on both sides of a split would make every rank look right."""
    h, t = torch.randn(1, 20, 30).double(), torch.randn(1, 20, 30).double()
    twice = [x.repeat_interleave(2, dim=1) for x in (h, t)]
    pairs = torch.arange(20).repeat_interleave(2)
    kept = es.align(*(capture(x, pairs=pairs) for x in twice), "low_rank").rank
    loose = es.align(*(capture(x) for x in twice), "low_rank").rank
    assert int(kept) == 1 < int(loose)


def test_the_rank_survives_a_round_trip_and_serves_vectors(tmp_path, make_states):
    expert, target = make_states(width=9, seed=1), make_states(seed=2)
    a = es.align(expert, target, "low_rank")
    a.save_pretrained(tmp_path)
    back = es.Alignment.from_pretrained(tmp_path)
    assert torch.equal(back.rank, a.rank) and back.settings == a.settings
    pairing = es.LayerPairing(((2, 0, 0.1), (1, 1, 0.1)))
    vectors = es.fit_vectors(expert, target, back, pairing, "mean_difference")
    assert vectors.metadata["alignment"]["method"] == "low_rank"
    assert es.health(expert, target, back, pairing, vectors).pairs[0].explained_variance > 0.5


def test_states_that_do_not_vary_are_mapped_to_the_mean(make_states):
    expert = make_states(width=6, seed=1)
    flat = es.HiddenStates(torch.full((3, 80, 5), 0.1), expert.labels, keys=expert.keys)
    a = es.align(expert, flat, "low_rank")
    torch.testing.assert_close(a.encode(expert.states), flat.states.double())
    b = es.align(flat, expert, "low_rank", rank=2)
    assert bool(b.encoder_weight.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number from 1 to 9, .*came 0"),
        ({"rank": 10}, "rank must be a whole number from 1 to 9, .*came 10"),
        ({"reg": 0.0}, "reg must be positive"),
    ],
)
def test_bad_options_name_the_argument(make_states, options, message):
    with pytest.raises(ValueError, match=message):
        es.align(make_states(width=9, seed=1), make_states(seed=2), "low_rank", **options)


def test_one_pair_is_too_little_to_choose_a_rank_by():
    sides = [capture(torch.randn(1, 2, 4).double(), pairs=torch.zeros(2).long()) for _ in "ab"]
    with pytest.raises(ValueError, match="rank: choosing it needs rows of at least 2 pairs"):
        es.align(*sides, "low_rank")
    assert es.align(*sides, "low_rank", rank=1).rank.tolist() == [1]
