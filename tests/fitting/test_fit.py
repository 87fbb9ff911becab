import pytest
import torch

import expertsteer as es
from expertsteer.fitting.fitting import DIRECTIONS
from expertsteer.states.scale import median_deviation


def planted(width_expert=14, width_target=10, examples=160, seed=5):
    """An expert that carries the target's contrast in another basis, beside louder noise."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(examples) % 2
    direction = noise(width_target)
    direction = direction / direction.norm()
    shared = 2.0 * noise(examples, width_target)
    shared = shared - (shared @ direction)[:, None] * direction
    signal = shared + (labels[:, None] * 2.0 - 1) * direction
    basis = torch.linalg.qr(noise(width_expert, width_target)).Q.mT
    expert = torch.stack([signal @ basis + 5 + 0.1 * noise(examples, width_expert) for _ in "ab"])
    target = torch.stack([signal + 3 + 0.1 * noise(examples, width_target) for _ in "abc"])
    keys = torch.arange(examples)
    states = [es.HiddenStates(s, labels, keys=keys) for s in (expert, target)]
    return *states, direction


PAIRS = es.LayerPairing((es.LayerPair(1, 0, 0.2), es.LayerPair(1, 2, 0.3)))


@pytest.mark.parametrize("method", ["rfm", "mean_difference", "logistic"])
def test_the_planted_direction_comes_back_through_the_alignment(method):
    expert, target, direction = planted()
    vectors = es.fit_vectors(expert, target, es.align(expert, target), PAIRS, method)
    assert vectors.layers == (0, 2)
    for vector in vectors.vectors.values():
        assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
        assert float(vector @ direction) > 0.95  # sign included


def test_the_bare_auto_encoder_does_not_find_the_basis():
    expert, target, direction = planted()
    bare = es.align(expert, target, rotation="none")
    vectors = es.fit_vectors(expert, target, bare, PAIRS)
    assert abs(float(vectors.vectors[0] @ direction)) < 0.8


def test_pca_is_the_loudest_direction_with_the_label_s_sign():
    expert, target, _ = planted()
    same = es.align(target, target, "identity")
    vectors = es.fit_vectors(target, target, same, es.LayerPairing.same([1]), "pca")
    x = target.layer(1) - target.layer(1).mean(0)
    loudest = torch.linalg.svd(x, full_matrices=False).Vh[0]
    assert abs(float(vectors.vectors[1] @ loudest)) == pytest.approx(1, abs=1e-6)
    projections = x @ vectors.vectors[1]
    assert float(projections[target.labels == 1].mean()) >= float(
        projections[target.labels == 0].mean()
    )


def test_scales_tell_how_far_apart_states_are_and_metadata_tells_the_story():
    expert, target, _ = planted()
    vectors = es.fit_vectors(expert, target, es.align(expert, target), PAIRS)
    assert vectors.scales[2] == pytest.approx(median_deviation(target.layer(2)))
    meta = vectors.metadata
    assert meta["method"] == "rfm" and meta["settings"]["bandwidth"] == 3.0
    assert meta["alignment"]["rotation"] == "procrustes"
    assert meta["pairing"]["pairs"][1] == {"expert_layer": 1, "target_layer": 2, "nats": 0.3}
    assert meta["figures"]["validation_auc"] == pytest.approx([1.0, 1.0], abs=0.05)
    assert meta["examples"] == {"count": 160, "positive": 80}


def test_the_fit_can_be_repeated():
    expert, target, _ = planted()
    runs = [
        es.fit_vectors(expert, target, es.align(expert, target), PAIRS, seed=s) for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0].vectors[0], runs[1].vectors[0])
    assert not torch.equal(runs[0].vectors[0], runs[2].vectors[0])  # another held-out part


def test_pairs_are_never_split_between_fit_and_validation():
    from expertsteer.fitting.holdout import split

    labels, pairs = torch.arange(60) % 2, torch.arange(60) // 2
    pairs[40:] = -1
    train, held = split(labels, pairs, 0.25, seed=1)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(60))
    assert not set(pairs[train].tolist()) & set(pairs[held].tolist()) - {-1}
    assert torch.bincount(labels[held]).tolist() == [7, 7]


def test_layer_numbers_that_are_row_numbers_are_noticed():
    expert, target, _ = planted()
    later = es.HiddenStates(target.states, target.labels, (1, 2, 3), keys=target.keys)
    nats = torch.rand(2, 3)
    rows = es.pair_layers(nats, k=2)
    with pytest.raises(ValueError, match="pass expert_layers=expert.layers"):
        es.fit_vectors(expert, later, es.align(expert, later), rows)
    named = es.pair_layers(nats, k=2, target_layers=later.layers)
    vectors = es.fit_vectors(expert, later, es.align(expert, later), named)
    assert set(vectors.layers) == set(named.target_layers)


def test_bad_input_names_the_argument():
    expert, target, _ = planted()
    alignment = es.align(expert, target)
    cases = [
        ((expert, target, alignment, PAIRS, "magic"), {}, "method must be one of"),
        ((expert, target, alignment, PAIRS), {"validation": 1.0}, "validation must be a share"),
        ((expert, target.take(range(9)), alignment, PAIRS), {}, "160 examples and target 9"),
        ((expert, target, alignment, es.LayerPairing.same([7])), {}, "layer 7 was not captured"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            es.fit_vectors(*arguments, **options)
    positives = torch.arange(1, 160, 2)
    one_class = expert.take(positives), target.take(positives)
    with pytest.raises(ValueError, match="0 with label 0 and 80 with label 1"):
        es.fit_vectors(*one_class, alignment, PAIRS)
    few = torch.arange(6)
    with pytest.raises(ValueError, match="at least 4 examples of each label"):
        es.fit_vectors(expert.take(few), target.take(few), alignment, PAIRS)


@pytest.mark.parametrize("method", DIRECTIONS)
def test_states_that_do_not_differ_never_give_a_silent_vector(method):
    labels = torch.arange(20) % 2
    same = es.HiddenStates(torch.ones(1, 20, 4), labels)
    with pytest.raises(ValueError, match="no direction|all rows of X are equal"):
        es.fit_vectors(
            same, same, es.align(same, same, "identity"), es.LayerPairing.same([0]), method
        )


def test_a_ridge_that_was_raised_is_told_at_the_caller_s_line():
    expert, target, _ = planted()
    expert, target = (es.HiddenStates(h.states.float(), h.labels) for h in (expert, target))
    flat = es.RFM(bandwidth=1e6, bandwidth_mode="constant", reg=1e-12)
    alignment = es.align(expert, target)
    with pytest.warns(RuntimeWarning, match="ridge was raised") as told:
        es.fit_vectors(expert, target, alignment, PAIRS, rfm=flat)
    assert {warning.filename for warning in told} == {__file__}
