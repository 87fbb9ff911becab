"""The contrast of two models: what was planted between expert and base is found, and told."""

import pytest
import torch

import expertsteer as es

TEXTS = 200


def capture(states, **more):
    keys = torch.arange(states.shape[1])
    return es.HiddenStates(states, torch.zeros(len(keys)), keys=keys, **more)


def cosine(a, b):
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def pairing(*pairs):
    return es.LayerPairing(tuple((e, t, 0.0) for e, t in pairs))


@pytest.fixture
def world():
    """Expert and target read one cause of four dimensions; the base lacks a fifth, the skill."""

    class World:
        cause = torch.randn(TEXTS, 4).double()
        skill = torch.distributions.Exponential(1.0).sample((TEXTS, 1)).double()
        to_expert, to_base = torch.randn(5, 14).double(), torch.randn(4, 9).double()
        to_target = torch.randn(5, 11).double()

        def noisy(self, states, share=0.05):
            return states + share * torch.randn_like(states)

        def expert(self):
            whole = torch.cat([self.cause, self.skill], dim=1)
            return self.noisy(whole @ self.to_expert).unsqueeze(0)

        def target(self):
            whole = torch.cat([self.cause, self.skill], dim=1)
            return self.noisy(whole @ self.to_target).unsqueeze(0)

    return World()


def test_a_planted_shift_is_carried_into_the_targets_space(world):
    """Base and expert differ by a constant step along what the expert calls its skill."""
    expert = world.expert()
    base = world.noisy(expert - 1.5 * world.to_expert[4])
    found = es.contrast_models(*map(capture, (expert, base, world.target())), pairing((0, 0)))
    assert cosine(found.vectors[0], world.to_target[4]) > 0.97
    assert float(found.vectors[0].norm()) == pytest.approx(1)
    assert found.metadata["figures"]["constant_share"][0] > 0.9


def test_the_other_way_round_is_the_other_direction(world):
    sides = capture(world.expert()), capture(world.noisy(world.expert() + 1.0))
    target = capture(world.target())
    alignment = es.align(sides[0], target, "low_rank", rank=5)
    one = es.contrast_models(*sides, target, pairing((0, 0)), alignment)
    other = es.contrast_models(*sides[::-1], target, pairing((0, 0)), alignment)
    torch.testing.assert_close(one.vectors[0], -other.vectors[0])


def test_what_a_narrower_base_cannot_tell_is_found(world):
    base = world.noisy(world.cause @ world.to_base).unsqueeze(0)
    states = map(capture, (world.expert(), base, world.target()))
    found = es.contrast_models(*states, pairing((0, 0)), method="pca")
    assert cosine(found.vectors[0], world.to_target[4]) > 0.97  # skewed: the sign is told too
    assert found.metadata["figures"]["component_share"][0] > 0.8
    assert found.metadata["figures"]["constant_share"][0] < 0.02
    assert 0.5 < found.metadata["figures"]["base_explained"][0] < 0.95
    alike = es.contrast_models(
        capture(world.expert()), *map(capture, (world.expert(), world.target())),
        pairing((0, 0)), method="pca",
    )  # fmt: skip
    assert alike.metadata["figures"]["base_explained"][0] > 0.98


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_enormous_coordinates_change_no_direction(world, method):
    """In standard units the vectors are those of states without such coordinates."""
    states = [world.expert(), None, world.target()]
    states[1] = world.noisy(states[0] - 1.5 * world.to_expert[4] * (1 + world.skill), 0.5)
    plain = es.contrast_models(*map(capture, states), pairing((0, 0)), method=method)
    units_e, units_t = torch.ones(14).double(), torch.ones(11).double()
    units_e[2], units_t[7] = 400.0, 300.0
    huge = [states[0] * units_e, states[1] * units_e, states[2] * units_t]
    found = es.contrast_models(*map(capture, huge), pairing((0, 0)), method=method)
    assert cosine(found.vectors[0], plain.vectors[0] * units_t) == pytest.approx(1)


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_the_order_of_texts_and_the_labels_are_not_read(world, method):
    expert, target = world.expert(), world.target()
    base = world.noisy(expert - world.to_expert[4] * world.skill, 0.1)
    alignment = es.align(capture(expert), capture(target), "low_rank", rank=5)

    def vector(rows, labels):
        some = [capture(x[:, rows]).relabelled(labels) for x in (expert, base, target)]
        return es.contrast_models(*some, pairing((0, 0)), alignment, method).vectors[0]

    rows = torch.arange(TEXTS)
    plain = vector(rows, torch.zeros(TEXTS))
    assert torch.equal(vector(rows, rows % 2), plain)
    assert cosine(vector(rows.flip(0), torch.zeros(TEXTS)), plain) > 0.999  # other folds


def test_two_models_without_a_common_difference_show_none(world):
    base = world.expert() + 0.5 * torch.randn(1, TEXTS, 14).double()
    found = es.contrast_models(
        *map(capture, (world.expert(), base, world.target())), pairing((0, 0))
    )
    assert found.metadata["figures"]["constant_share"][0] < 0.03


def test_later_layers_of_one_model_against_its_early_ones(make_states):
    whole, target = make_states(layers=6, width=9, seed=1), make_states(seed=2)
    rows = range(len(whole))
    late, early = whole.take(rows, [3, 4, 5]), whole.take(rows, [0, 2])
    found = es.contrast_models(late, early, target, pairing((3, 0), (5, 2)))
    assert found.metadata["base_layers"] == [0, 2]
    assert found.layers == (0, 2)
    assert set(found.metadata["figures"]) == {"constant_share", "explained_variance"}


def test_the_result_is_kept_and_described(tmp_path, make_states):
    """From texts on disk, as fitted vectors are."""
    names = dict(zip(("expert", "base", "target"), (1, 3, 2)))
    for name, seed in names.items():
        make_states(seed=seed).save_pretrained(tmp_path / name)
    stored = [es.HiddenStates.open(tmp_path / name) for name in names]
    found = es.contrast_models(*stored, pairing((0, 1)), method="pca")
    found.save_pretrained(tmp_path / "vectors")
    back = es.SteeringVectors.from_pretrained(tmp_path / "vectors")
    assert back.metadata["base"]["name"] == "model-3"
    assert back.describe()["metadata"]["method"] == "contrast of two models: pca"
    assert torch.equal(back.vectors[1], found.vectors[1])
    assert torch.equal((0.5 * back + 0.5 * found).vectors[1], found.vectors[1])


def test_what_cannot_be_contrasted_is_refused(make_states):
    expert, target, same = make_states(seed=1), make_states(seed=2), pairing((0, 0))
    with pytest.raises(ValueError, match=r"one width, came 12 \(expert\) and 7 .*method='pca'"):
        es.contrast_models(expert, make_states(width=7, seed=3), target, same)
    with pytest.raises(ValueError, match="expert holds 80 examples and base 20"):
        es.contrast_models(expert, make_states(seed=3).take(range(20)), target, same)
    with pytest.raises(ValueError, match="method must be one of .*came 'ridge'"):
        es.contrast_models(expert, expert, target, same, method="ridge")
    with pytest.raises(ValueError, match="equal states at expert layer 0"):
        es.contrast_models(expert, expert, target, same)


def test_texts_without_labels_make_a_set():
    texts = ["one", [{"role": "user", "content": "two"}]]
    some = es.ContrastSet.unlabelled(texts)
    assert some.labels == (0, 0) and some.texts[0] == "one" and some.pairs == (None, None)
    with pytest.raises(es.ContrastSetError, match="text 1"):
        es.ContrastSet.unlabelled(["one", ""])
    with pytest.raises(es.ContrastSetError, match="single string"):
        es.ContrastSet.unlabelled("one")
    with pytest.raises(es.ContrastSetError, match="came none"):
        es.ContrastSet.unlabelled([])
