import io
from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from rich.console import Console

import expertsteer as es
from expertsteer.pairing import layer_pairs
from expertsteer.reporting.heat_map import heat_map_text
from expertsteer.support.artifact_files import write_artifact

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


def total(pairing):
    return sum(p.nats for p in pairing)


def test_within_the_tolerance_the_lower_layers_win():
    matrix = torch.tensor([[0.30, 0.21, 0.50], [0.20, 0.40, 0.22], [0.10, 0.90, 0.105]])
    assert [p[:2] for p in es.pair_layers(matrix, k=2)] == [(2, 0), (2, 2)]
    # .20, .21 and .22 are equal to .10 and so is .105, but .30 is not.
    near = es.pair_layers(matrix, k=3, tolerance=0.15)
    assert [p[:2] for p in near] == [(0, 1), (1, 0), (1, 2)]
    noisy = torch.full((4, 4), 0.7) + 1e-12 * torch.randn(4, 4, dtype=torch.float64)
    assert [p[:2] for p in es.pair_layers(noisy, k=3)] == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("rule", ["lowest", "highest"])
@pytest.mark.parametrize(("shape", "k"), [((4, 4), 4), ((5, 3), 2), ((3, 6), 3), ((4, 4), 1)])
def test_unique_experts_are_the_best_assignment_of_all(rule, shape, k):
    matrix = torch.rand(shape, dtype=torch.float64)
    pairing = es.pair_layers(matrix, k=k, rule=rule, unique_experts=True)
    assert len(set(pairing.expert_layers)) == len(set(pairing.target_layers)) == k
    best = min if rule == "lowest" else max
    every = [
        sum(float(matrix[e, t]) for e, t in zip(experts, targets))
        for experts in permutations(range(shape[0]), k)
        for targets in combinations(range(shape[1]), k)
    ]
    assert total(pairing) == pytest.approx(best(every), abs=1e-8)
    equal = es.pair_layers(torch.zeros(shape), k=k, rule=rule, unique_experts=True)
    assert sorted(p[:2] for p in equal) == [(i, i) for i in range(k)]


def test_random_pairs_may_be_unique_in_both():
    pairing = es.pair_layers(torch.rand(6, 6), k=6, rule="random", unique_experts=True)
    assert sorted(pairing.expert_layers) == sorted(pairing.target_layers) == list(range(6))


def test_windows_bound_the_layers_by_name():
    matrix = torch.arange(25.0).view(5, 5)
    names = (2, 4, 6, 8, 10)
    skipped = es.pair_layers(matrix, 3, expert_layers=names, skip_first=1, skip_last=1)
    assert [p[:2] for p in skipped] == [(4, 1), (4, 2), (4, 3)]
    window = es.pair_layers(
        matrix, 1, expert_layers=names, expert_window=(5, 9), target_window=(3, 3)
    )
    assert [p[:2] for p in window] == [(6, 3)] and window.pairs[0].nats == 13.0
    assert window.matrix.shape == (5, 5) and window.expert_axis == names
    assert window.settings["expert_window"] == [6, 8]


def test_the_held_out_effect_decides_among_the_shortlist():
    matrix = torch.rand(6, 6, dtype=torch.float64)
    asked = []

    def effect(expert, target):
        asked.append((expert, target))
        return 10.0 * target - expert

    pairing = es.pair_layers(
        matrix, 2, "validated", effect=effect, shortlist=9, expert_layers=range(10, 16)
    )
    order = matrix.flatten().argsort()[: len(asked)].tolist()
    assert [(e - 10, t) for e, t in asked] == [divmod(i, 6) for i in order] and len(asked) >= 9
    best = sorted(asked, key=lambda pair: -(10 * pair[1] - pair[0]))
    assert pairing.pairs[0][:2] == best[0]
    assert pairing.pairs[1][:2] == next(p for p in best if p[1] != best[0][1])
    assert [(e, t) for e, t, _ in pairing.effects] == asked
    unique = es.pair_layers(matrix, 4, "validated", effect=effect, unique_experts=True)
    assert len(set(unique.expert_layers)) == 4


def test_a_shortlist_grows_until_it_holds_enough_target_layers():
    matrix = torch.rand(4, 4, dtype=torch.float64)
    matrix[:, 0] -= 2  # the lowest pairs share one target layer
    pairing = es.pair_layers(matrix, 2, "validated", effect=lambda e, t: 0.0, shortlist=2)
    assert len(pairing) == 2 and len(pairing.effects) == 5


def test_a_named_shortlist_is_all_that_is_measured():
    matrix = torch.rand(4, 5, dtype=torch.float64)
    names = {"expert_layers": (3, 6, 9, 12), "target_layers": range(10, 15)}
    listed = [(9, 14), (6, 11), (9, 11), (6, 14), (9, 12)]
    effects = dict(zip(listed, (0.1, 0.5, 0.7, 0.3, -1.0)))
    options = {"effect": lambda e, t: effects[e, t], "shortlist": listed, **names}
    pairing = es.pair_layers(matrix, 2, "effect", auc=(0.5, 0.9, 0.95, float("nan")), **options)
    assert [pair[:2] for pair in pairing] == [(9, 11), (6, 14)]
    assert pairing.effects == tuple((*pair, value) for pair, value in effects.items())
    assert pairing.expert_auc[:3] == (0.5, 0.9, 0.95)
    by_user = es.pair_layers(matrix, 2, "validated", **options)
    assert by_user.pairs == pairing.pairs and by_user.expert_auc == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "effect", "effect": max}, "shortlist must list the .* pairs to measure"),
        ({"rule": "effect"}, "effect must be given with rule='validated' or 'effect'"),
        (
            {"rule": "effect", "effect": max, "shortlist": [(0, 1), (5, 0)]},
            r"shortlist must hold layers that may be paired, came \[\(5, 0\)\]",
        ),
        (
            {"rule": "effect", "effect": max, "shortlist": [(0, 1), (1, 1)]},
            "shortlist must let k = 2 pairs be chosen, came 2 pairs at 1 target layers",
        ),
        ({"auc": (0.5,)}, "^auc must hold one for each of the 2 expert layers, came 1"),
        ({"rule": "validated"}, "effect must be given with rule='validated'"),
        ({"effect": lambda e, t: 0.0}, "with no other"),
        (
            {"rule": "validated", "effect": lambda e, t: float("nan")},
            "effect must be finite, came nan for layers 0 and 1",
        ),
        ({"rule": "validated", "effect": max, "shortlist": 1}, "at least k = 2 pairs, came 1"),
        ({"rule": "validated", "effect": max, "shortlist_by": "mid"}, "shortlist_by must be"),
        ({"skip_first": 2}, "leaves none of the layers"),
        ({"skip_last": -1}, "skip_last must be a number"),
        ({"target_window": (7, 9)}, r"target_window \(7, 9\) .* leaves none"),
        ({"target_window": (0, 0)}, "number of target layers, 1; came 2"),
        ({"k": 3, "unique_experts": True}, "number of expert layers, 2"),
        ({"tolerance": -1.0}, "tolerance must be"),
    ],
)
def test_bad_rules_and_windows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        es.pair_layers(MATRIX, **({"k": 2} | options))


def test_a_pairing_survives_a_round_trip(tmp_path):
    pairing = es.pair_layers(
        es.MutualInformation(MATRIX, floor=MATRIX / 2),
        2,
        target_layers=(3, 5, 6),
        auc=(0.75, float("nan")),
    )
    pairing.save_pretrained(tmp_path)
    back = es.LayerPairing.from_pretrained(tmp_path)
    assert back.pairs == pairing.pairs and back.rule == "lowest"
    assert torch.equal(back.matrix, pairing.matrix) and torch.equal(back.floor, pairing.floor)
    assert (back.expert_axis, back.target_axis) == ((0, 1), (3, 5, 6))
    assert back.settings == pairing.settings
    assert back.expert_auc[0] == 0.75 and back.expert_auc[1] != back.expert_auc[1]
    assert repr(back) == "LayerPairing(rule='lowest', nats=[0 -> 5: 0.1, 1 -> 3: 0.2], matrix=2x3)"
    by_hand = es.LayerPairing.same([1, 4])
    by_hand.save_pretrained(tmp_path / "hand")
    assert es.LayerPairing.from_pretrained(tmp_path / "hand").target_layers == (1, 4)
    with pytest.raises(ValueError, match="expert_axis must name 2 layers"):
        es.LayerPairing(pairing.pairs, matrix=MATRIX, expert_axis=(1, 2, 3))


def test_a_pairing_that_was_saved_before_it_held_aucs_loads(tmp_path, monkeypatch):
    def without(folder, kind, tensors, header):
        del header["expert_auc"]
        write_artifact(folder, kind, tensors, header)

    monkeypatch.setattr(layer_pairs, "write_artifact", without)
    es.pair_layers(MATRIX, 2).save_pretrained(tmp_path)
    assert es.LayerPairing.from_pretrained(tmp_path).expert_auc == ()


def shown(pairing):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(heat_map_text(pairing))
    return console.export_text().splitlines()


def test_a_small_heat_map_shows_numbers_and_marks_the_chosen_pairs():
    lines = shown(es.pair_layers(MATRIX, 2, expert_layers=(4, 8), target_layers=(1, 2, 5)))
    assert lines[0].strip() == "target layer" and lines[1].split() == ["expert", "1", "2", "5"]
    assert lines[2].split() == ["4", "0.50", "[0.10]", "0.90"]
    assert lines[3].split() == ["8", "[0.20]", "0.70", "0.30"]
    assert "2 pairs by rule 'lowest'" in lines[4] and "0.10 to 0.90 nats" in lines[4]


def test_a_heat_map_tells_what_was_measured_and_how():
    pairing = es.pair_layers(
        MATRIX,
        1,
        "effect",
        effect=lambda e, t: 0.5 * t - e,
        shortlist=[(0, 1), (1, 1), (0, 2)],
        auc=(0.91, float("nan")),
    )
    told = {"effect": "a log-probability", "unit": "nats", "held_out": 8, "budget": "0.1 (kl)"}
    lines = shown(replace(pairing, settings=pairing.settings | told))
    assert "expert layer: AUC between the classes on held-out rows   0: 0.91,  1: -" in lines
    assert "effect (nats): a log-probability; held out: 8; at budget 0.1 (kl)" in lines
    assert "expert layer 0, target layer: held-out effect   1: 0.5,  2: 1" in lines
    assert "expert layer 1, target layer: held-out effect   1: -0.5" in lines


def test_a_large_heat_map_fits_a_terminal_and_keeps_its_marks():
    matrix = torch.linspace(0, 1, 32 * 32).view(32, 32)
    pairing = es.pair_layers(matrix, 3, "highest")
    lines = shown(pairing)
    assert max(map(len, lines[:34])) <= 80 and len(lines) >= 35
    assert sum(line.count("◆") for line in lines[2:34]) == 3
    assert lines[33].startswith("    31 ") and lines[33].endswith("◆ " * 3)
    assert lines[1].split()[1:4] == ["0", "2", "4"]
    assert "31 → 31: 1.00" in "".join(lines[34:])
    with pytest.raises(ValueError, match="given by hand"):
        heat_map_text(es.LayerPairing.same([1]))
