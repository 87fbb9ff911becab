import pytest
import torch

import expertsteer as es
from expertsteer.alignment.aligning import align_pairs
from expertsteer.alignment.subspace import principal_axes

WIDTHS = [(9, 14), (12, 12), (17, 10)]


@pytest.mark.parametrize(("d_expert", "d_target"), WIDTHS)
def test_procrustes_leaves_the_reconstruction_error_unchanged(make_states, d_expert, d_target):
    expert, target = make_states(width=d_expert, seed=1), make_states(width=d_target, seed=2)
    bare = es.align(expert, target, rotation="none")
    rotated = es.align(expert, target)
    torch.testing.assert_close(rotated.reconstruction_error, bare.reconstruction_error)
    if d_expert <= d_target:
        assert float(bare.reconstruction_error.max()) < 1e-20  # nothing has to be dropped


@pytest.mark.parametrize(("d_expert", "d_target"), WIDTHS)
def test_procrustes_is_the_nearest_of_all_rotations(make_states, d_expert, d_target):
    expert, target = make_states(width=d_expert, seed=1), make_states(width=d_target, seed=2)
    bare, best = es.align(expert, target, rotation="none"), es.align(expert, target)
    t = torch.stack([target.layer(i) for i in best.target_layers])
    centred = bare.encode(expert.states)
    centred = centred - centred.mean(dim=1, keepdim=True)
    t = t - t.mean(dim=1, keepdim=True)
    nearest = (best.encode(expert.states) - best.encode(expert.states).mean(1, True) - t).norm()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(d_target, d_target, generator=generator).double()).Q
        assert nearest <= (centred @ q - t).norm()


def test_closed_form_is_at_least_as_good_as_adam_and_adam_comes_close(make_states):
    expert, target = make_states(width=11, seed=1), make_states(width=5, seed=2)
    exact = es.align(expert, target)
    trained = es.align(expert, target, solver="adam")
    assert bool((exact.reconstruction_error <= trained.reconstruction_error + 1e-12).all())
    torch.testing.assert_close(
        trained.reconstruction_error, exact.reconstruction_error, rtol=0.03, atol=1e-4
    )


def test_adam_is_reproducible_for_a_seed(make_states):
    expert, target = make_states(width=6, seed=1), make_states(width=5, seed=2)
    runs = [es.align(expert, target, solver="adam", steps=20, seed=s) for s in (3, 3, 4)]
    assert torch.equal(runs[0].encoder_weight, runs[1].encoder_weight)
    assert not torch.equal(runs[0].encoder_weight, runs[2].encoder_weight)


def test_the_decoder_undoes_the_encoder_where_the_code_is_wide_enough(make_states):
    expert, target = make_states(width=7, seed=1), make_states(width=10, seed=2)
    for rotation in ("procrustes", "none"):
        a = es.align(expert, target, rotation=rotation)
        torch.testing.assert_close(a.decode(a.encode(expert.states)), expert.states)


def test_a_rotated_copy_is_recognised_exactly(make_states):
    expert = make_states(width=8, seed=1)
    q = torch.linalg.qr(torch.randn(8, 8).double()).Q
    copy = es.HiddenStates(expert.states @ q + 3.0, expert.labels, keys=expert.keys)
    a = es.align(expert, copy)
    torch.testing.assert_close(a.explained_variance, torch.ones(3).double())
    torch.testing.assert_close(a.encode(expert.states), copy.states)


def test_more_axes_than_examples_leave_the_optimum_what_it_is(make_states):
    """Fewer examples than widths: their span is all the auto-encoder can need."""
    rows = range(7)
    expert, target = make_states(width=13, seed=1).take(rows), make_states(seed=2).take(rows)
    for rotation in ("procrustes", "none"):
        a = es.align(expert, target, rotation=rotation)
        assert float(a.reconstruction_error.max()) < 1e-20
        kept = a.encoder_weight.mT @ a.encoder_weight  # a projection onto the six used dimensions
        torch.testing.assert_close(kept @ kept, kept)
        assert float(kept.diagonal(dim1=-2, dim2=-1).sum(-1).max()) == pytest.approx(6)


@pytest.mark.parametrize("examples", [5, 9, 40])
def test_axes_are_the_singular_vectors_of_the_rows(examples):
    scales = torch.logspace(0, -5, 9).double()
    x = torch.randn(examples, 9, generator=torch.Generator().manual_seed(3)).double() * scales
    x = x - x.mean(dim=0)
    axes = principal_axes(x, 6)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(axes.shape[1]).double())
    _, values, right = torch.linalg.svd(x, full_matrices=False)
    count = min(6, examples - 1)
    assert axes.shape[1] == count
    torch.testing.assert_close(
        (axes * right[:count].mT).sum(dim=0).abs(), torch.ones(count).double()
    )
    torch.testing.assert_close((x @ axes).norm(dim=0), values[:count])


@pytest.mark.parametrize("examples", [6, 60])  # the N x N and the d x d system
def test_ridge_is_the_penalised_least_squares_optimum(make_states, examples):
    rows = range(examples)
    expert, target = make_states(width=13, seed=1).take(rows), make_states(seed=2).take(rows)
    a = es.align(expert, target, method="ridge", reg=0.05)
    for row, (e, t) in enumerate(zip(a.expert_layers, a.target_layers)):
        h = expert.layer(e) - expert.layer(e).mean(0)
        y = target.layer(t) - target.layer(t).mean(0)
        weight = a.encoder_weight[row]
        gradient = h.mT @ (h @ weight - y) + 0.05 * h.square().sum() / 13 * weight
        assert float(gradient.abs().max()) < 1e-9 * float((h.mT @ y).abs().max())
    assert a.reconstruction_error is None and a.decoder_weight is None


def test_ridge_explains_at_least_what_a_rotation_explains(make_states):
    expert, target = make_states(width=9, seed=1), make_states(seed=2)
    ridge = es.align(expert, target, method="ridge", reg=1e-9).explained_variance
    assert bool((ridge >= es.align(expert, target).explained_variance).all())


def test_identity_changes_nothing(make_states):
    expert, target = make_states(seed=1), make_states(seed=2)
    assert torch.equal(es.align(expert, target, "identity").encode(expert.states), expert.states)


def test_realigning_keeps_held_rows_and_fits_the_rest(make_states):
    expert, target = make_states(width=9, seed=1), make_states(layers=4, seed=2)
    whole = es.align(expert, target)
    pairs = [(0, whole.target_layers[0]), (0, 3), (2, 1)]
    again = align_pairs(whole, expert, target, pairs)
    assert torch.equal(again.encoder_weight[0], whole.encoder_weight[0])
    direct = es.align(expert, target, pairing=pairs)
    torch.testing.assert_close(again.encoder_weight, direct.encoder_weight)
    assert list(zip(again.expert_layers, again.target_layers)) == pairs


def test_an_alignment_of_other_widths_is_refused(make_states):
    expert, target = make_states(width=9, seed=1), make_states(seed=2)
    other = es.align(expert, make_states(width=5, seed=2))
    with pytest.raises(ValueError, match="maps width 9 to 5, .* widths 9 and 12"):
        align_pairs(other, expert, target, [(0, 0)])


@pytest.mark.parametrize("method", ["autoencoder", "ridge"])
def test_far_offsets_cost_no_digits(make_states, method):
    expert, target = make_states(width=9, seed=1), make_states(seed=2)
    near = es.align(expert, target, method).encode(expert.states)
    far = es.HiddenStates(expert.states + 4096, expert.labels, keys=expert.keys)
    single = es.HiddenStates(far.states.float(), far.labels, keys=far.keys)
    t32 = es.HiddenStates(target.states.float(), target.labels, keys=target.keys)
    codes = es.align(single, t32, method).encode(single.states)
    torch.testing.assert_close(codes.double(), near, rtol=0, atol=5e-3)


def test_states_that_do_not_vary_have_no_explained_variance(make_states):
    expert = make_states(seed=1)
    flat = es.HiddenStates(torch.ones(3, 80, 5), expert.labels, keys=expert.keys)
    assert bool(torch.isnan(es.align(expert, flat).explained_variance).all())


def test_alignment_survives_a_round_trip(tmp_path, make_states):
    expert, target = make_states(width=9, seed=1), make_states(seed=2)
    for method in ("autoencoder", "ridge"):
        a = es.align(expert, target, method)
        a.save_pretrained(tmp_path)
        back = es.Alignment.from_pretrained(tmp_path)
        assert torch.equal(back.encode(expert.states), a.encode(expert.states))
        assert back.settings == a.settings and back.target_layers == a.target_layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of"),
        ({"solver": "sgd"}, "solver must be one of"),
        ({"rotation": "full"}, "rotation must be one of"),
        ({"method": "identity"}, "equal widths, came 9 .* and 12"),
        ({"pairing": [(0, 9)]}, "layer 9 was not captured"),
        ({"pairing": []}, "pairing must hold at least one"),
        ({"method": "ridge", "reg": -1.0}, "reg must be positive"),
        ({"solver": "adam", "steps": 0}, "steps must be positive"),
        ({"solver": "adam", "learning_rate": 1e30}, "makes the training diverge; lower it"),
    ],
)
def test_bad_options_name_the_argument(make_states, options, message):
    with pytest.raises(ValueError, match=message):
        es.align(make_states(width=9, seed=1), make_states(seed=2), **options)


def test_states_of_the_wrong_shape_are_refused(make_states):
    a = es.align(make_states(width=9, seed=1), make_states(seed=2))
    with pytest.raises(ValueError, match=r"states must be \[3, N, 9\]"):
        a.encode(torch.zeros(3, 5, 8))
