import pytest
import torch

import expertsteer as es

MATRIX = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.7, 0.3]])


def test_rules_choose_what_they_say():
    lowest = es.pair_layers(MATRIX, k=2)
    assert [p[:2] for p in lowest] == [(0, 1), (1, 0)]
    assert [round(p.nats, 3) for p in lowest] == [0.1, 0.2]
    highest = es.pair_layers(MATRIX, k=2, rule="highest")
    assert [p[:2] for p in highest] == [(0, 2), (1, 1)]


def test_a_target_layer_is_paired_once_and_labels_are_used():
    pairing = es.pair_layers(MATRIX, k=3, expert_layers=(4, 8), target_layers=(1, 2, 5))
    assert sorted(pairing.target_layers) == [1, 2, 5]
    assert pairing.pairs[0][:2] == (4, 2)


def test_ties_go_to_the_lower_layers():
    pairing = es.pair_layers(torch.zeros(3, 3), k=3)
    assert [p[:2] for p in pairing] == [(0, 0), (0, 1), (0, 2)]


def test_random_pairs_are_seeded_and_differ_between_seeds():
    matrix = torch.rand(8, 8)
    draws = [es.pair_layers(matrix, k=4, rule="random", seed=s) for s in (0, 0, 1)]
    assert draws[0].pairs == draws[1].pairs != draws[2].pairs
    assert len(set(draws[0].target_layers)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 4}, "number of target layers, 3; came 4"),
        ({"k": 0}, "came 0"),
        ({"k": 1, "rule": "best"}, "rule must be one of"),
        ({"k": 2.5}, "came 2.5"),
        ({"k": 1, "expert_layers": (1,)}, "expert_layers must name 2 different layers"),
        ({"k": 1, "target_layers": (1, 1, 2)}, "target_layers must name 3 different layers"),
    ],
)
def test_bad_pairing_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        es.pair_layers(MATRIX, **options)
