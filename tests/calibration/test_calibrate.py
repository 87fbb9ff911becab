"""Strengths at a stated price: against forward passes one by one, and against bad input."""

import json
import math
import warnings

import pytest
import torch

import expertsteer as es
from expertsteer import demo
from expertsteer.calibration.divergence import Divergence, neutral_texts
from helpers.divergence import one_by_one
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

TEXTS = [sentence(length, seed=length) for length in (3, 9, 6, 12, 2)]


@pytest.fixture(scope="module")
def model():
    return build("llama").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def some_vectors(layers=(0, 1), width=32, seed=0):
    drawn = torch.randn(len(layers), width, generator=torch.Generator().manual_seed(seed))
    return es.SteeringVectors(dict(zip(layers, drawn / drawn.norm(dim=1, keepdim=True))))


@pytest.mark.parametrize(("measure", "budget"), [("kl", 0.05), ("perplexity_ratio", 1.05)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_strength_meets_the_budget_and_a_tenth_more_does_not(
    tokenizer, family, measure, budget
):
    model, vectors = build(family).eval(), some_vectors(seed=4)
    result = es.calibrate(model, vectors, TEXTS, tokenizer, budget=budget, measure=measure)
    measured = [
        one_by_one(model, tokenizer, vectors, factor * result.strength, TEXTS, measure)
        for factor in (1.0, 1.1)
    ]
    assert measured[0] <= budget * (1 + 1e-4) and measured[1] > budget
    assert result.divergence == pytest.approx(measured[0], rel=1e-3, abs=1e-6)
    assert result.divergence <= budget < dict(result.curve)[result.next_strength]
    assert result.passes <= 12 and result.sweeps <= result.passes - len(result.curve) + 3
    assert (result.texts, result.tokens) == (5, 37) and result.layers == (0, 1)


def test_every_point_of_the_curve_is_what_single_passes_give(model, tokenizer):
    vectors = some_vectors((1,))
    result = es.calibrate(model, vectors, TEXTS, tokenizer, budget=0.02, batch_size=7)
    for strength, divergence in result.curve:
        alone = one_by_one(model, tokenizer, vectors, strength, TEXTS)
        assert divergence == pytest.approx(alone, rel=1e-3, abs=1e-6)


def test_a_model_does_not_diverge_from_itself(model, tokenizer):
    texts = neutral_texts(model, TEXTS, tokenizer)
    divergence = Divergence(model, texts, "kl", groups=3, batch_size=16)
    with es.attach(model, some_vectors(), strength=1.0, mode="slot") as steering:
        # In the batch of the unsteered rows, and against what was kept of them.
        assert divergence(steering, 0, [0.0])[0] == 0.0
        assert divergence(steering, 0, [0.0, 0.0]) == pytest.approx([0.0, 0.0], abs=1e-7)
        rising = divergence(steering, 0, [0.1, 0.3, 1.0])
    assert 0 < rising[0] < rising[1] < rising[2]
    assert divergence.passes == 1 + 1 + 2 + 3 and divergence.sweeps == 3


def test_passes_are_counted_when_the_unsteered_model_cannot_be_kept(model, tokenizer, monkeypatch):
    vectors, seen = some_vectors(), []
    kept = es.calibrate(model, vectors, TEXTS, tokenizer)
    monkeypatch.setattr("expertsteer.calibration.divergence._KEPT_BYTES", 0)
    handle = model.register_forward_hook(lambda _m, _a, out: seen.append(len(out.logits)))
    again = es.calibrate(model, vectors, TEXTS, tokenizer)
    handle.remove()
    assert again.strength == pytest.approx(kept.strength, rel=0.03)
    assert again.passes <= 12 and sum(seen) == again.passes * len(TEXTS)


@pytest.mark.parametrize("rows", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("measure", ["kl", "perplexity_ratio"])
def test_logits_are_bounded_whatever_the_batch_size(model, tokenizer, monkeypatch, measure, rows):
    texts = neutral_texts(model, TEXTS, tokenizer, least=2)
    prefixed = [(1, 9, 8, *row[1:]) for row in texts.rows]
    bound, found, strengths = int(rows * 13 * 64 * 4), [], [0.1, 0.3, 1.0]
    for most in (1 << 29, bound):
        monkeypatch.setattr("expertsteer.models.forward.LOGIT_BYTES", most)
        divergence, shapes = Divergence(model, texts, measure, 3, 64), []
        head = model.lm_head.register_forward_hook(
            lambda _m, _a, out, shapes=shapes: shapes.append(tuple(out.shape))
        )
        with es.attach(model, some_vectors(), strength=1.0, mode="slot") as steering:
            found.append([*divergence(steering, 0, strengths), *divergence(steering, 0, [0.5])])
        found[-1].append(divergence.behind(prefixed))
        head.remove()
        assert (divergence.passes, divergence.sweeps) == (5, 2)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert all(math.prod(shape) * 4 <= bound or shape[0] == 1 for shape in shapes)
    assert sum(shape[0] for shape in shapes) == 5 * len(TEXTS) + 2 * len(TEXTS)


def test_behind_a_prompt_the_head_runs_where_predictions_are_compared(model, tokenizer):
    texts, prompt = neutral_texts(model, TEXTS[2:3], tokenizer), tuple(range(30, 50))
    divergence, places = Divergence(model, texts, "kl", 1, 8), []
    head = model.lm_head.register_forward_hook(lambda _m, _a, out: places.append(out.shape[1]))
    (row,) = texts.rows
    came = divergence.behind([(*prompt, *row)])
    head.remove()
    assert places == [len(row), len(row)]
    with torch.no_grad():
        before = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        after = model(torch.tensor([[*prompt, *row]])).logits[0, len(prompt) :]
    after = after.double().log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum()) / len(row)
    assert came == pytest.approx(expected, rel=1e-4)


def test_a_budget_twice_as_large_allows_more(model, tokenizer):
    small, large = (
        es.calibrate(model, some_vectors(), TEXTS, tokenizer, budget=b) for b in (0.02, 0.04)
    )
    assert small.strength < large.strength < 2 * small.strength
    assert small.monotonic and large.monotonic and not small.warnings


def test_layer_subsets_and_named_vectors_get_their_own_results(model, tokenizer):
    vectors = {"a": some_vectors(), "b": some_vectors(seed=1)}
    together = es.calibrate(model, vectors, TEXTS, tokenizer, layers=[(0,), (0, 1)])
    assert [r.layers for r in together["a"]] == [(0,), (0, 1)]
    for name, results in together.items():
        for result in results:
            alone = es.calibrate(model, vectors[name], TEXTS, tokenizer, layers=result.layers)
            assert alone.strength == pytest.approx(result.strength, rel=1e-4)
            assert result.passes <= 12
    assert together["a"][0].strength > together["a"][1].strength


def test_token_ids_are_texts_too(model, tokenizer):
    by_text = es.calibrate(model, some_vectors(), TEXTS, tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert es.calibrate(model, some_vectors(), ids) == by_text
    assert es.calibrate(model, some_vectors(), [torch.tensor(row) for row in ids]) == by_text


def test_the_model_is_left_as_it_was(model, tokenizer):
    ids = torch.tensor([tokenizer(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits
        es.calibrate(model, some_vectors(), TEXTS, tokenizer)
        assert torch.equal(model(ids).logits, before)
    assert not es.attach(model, some_vectors()).detach()


@pytest.mark.parametrize("layers", [(0,), (1, 2)])
def test_on_the_demos_target_the_budget_holds(layers):
    target, tokenizer = demo.load("target")
    texts = demo.world.plain_texts(20, seed=3)
    vectors = some_vectors((0, 1, 2, 3), width=96)
    result = es.calibrate(target, vectors, texts, tokenizer, budget=0.1, layers=layers)
    chosen = vectors.select(layers)
    assert one_by_one(target, tokenizer, chosen, result.strength, texts=texts) <= 0.1001
    assert one_by_one(target, tokenizer, chosen, 1.1 * result.strength, texts=texts) > 0.1
    assert result.passes <= 12 and result.monotonic


def test_auto_steers_with_the_stored_strength(model, tokenizer, tmp_path):
    vectors = some_vectors()
    results = es.calibrate(model, vectors, TEXTS, tokenizer, layers=[(0, 1), (1,)])
    vectors.with_calibration(*results).save_pretrained(tmp_path)
    loaded = es.SteeringVectors.from_pretrained(tmp_path)
    for result in results:
        with es.attach(model, loaded.select(result.layers), strength="auto") as steering:
            assert steering.strength == result.strength
            steering.set(strength=0.0)
            assert steering.set(strength="auto").strength == result.strength
    newer = es.calibrate(model, vectors, TEXTS, tokenizer, budget=0.01)
    again = loaded.with_calibration(newer)
    assert len(again.metadata["calibration"]) == 2
    with es.attach(model, again, strength="auto") as steering:
        assert steering.strength == newer.strength


def test_auto_refuses_what_was_not_calibrated(model, tokenizer):
    vectors = some_vectors()
    with pytest.raises(ValueError, match=r"hold no calibration; run calibrate"):
        es.attach(model, vectors, strength="auto")
    ready = vectors.with_calibration(es.calibrate(model, vectors, TEXTS, tokenizer))
    for other in (2.0 * ready, -ready, ready + ready, ready.select([1])):
        with pytest.raises(ValueError, match=r"calibration"):
            es.attach(model, other, strength="auto")
    with pytest.raises(ValueError, match=r"operation 'remove'"):
        es.attach(model, ready, strength="auto", operation="remove")
    with pytest.raises(ValueError, match=r"needs one SteeringVectors, came 2"):
        es.attach(model, [ready, ready], strength="auto")
    with pytest.raises(ValueError, match=r"number, 'auto' or None, came 'much'"):
        es.attach(model, ready, strength="much")
    with pytest.raises(ValueError, match=r"made of other vectors"):
        some_vectors(seed=4).with_calibration(es.calibrate(model, vectors, TEXTS, tokenizer))
    damaged = es.SteeringVectors(vectors.vectors, metadata={"calibration": [{"strength": 1}]})
    with pytest.raises(ValueError, match=r"damaged"):
        es.attach(model, damaged, strength="auto")
    assert not es.attach(model, ready, strength="auto").detach()


def test_a_result_is_json(model, tokenizer):
    result = es.calibrate(model, some_vectors(), TEXTS, tokenizer)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["strength"] == result.strength and document["passes"] == result.passes
    assert [tuple(point) for point in document["curve"]] == list(result.curve)


def test_no_strength_that_meets_the_budget_is_an_error_with_the_nearest(model, tokenizer):
    # Clamping a component to nearly nothing removes it: the price does not go to zero.
    with pytest.raises(ValueError, match=r"smallest divergence found is .*raise the budget"):
        es.calibrate(model, some_vectors(), TEXTS, tokenizer, budget=1e-7, operation="clamp")
    with pytest.raises(ValueError, match=r"met by no strength tried"):
        es.calibrate(model, some_vectors(), TEXTS, tokenizer, budget=1e-5, smallest=0.2)


def test_a_budget_that_is_never_reached_is_told(model, tokenizer):
    with pytest.warns(UserWarning, match="the largest measured, is still within the budget"):
        result = es.calibrate(model, some_vectors(), TEXTS, tokenizer, largest=0.25, budget=3.0)
    assert result.next_strength is None and result.strength == 0.25 and len(result.warnings) == 1


def test_a_price_that_is_not_monotonic_is_told(model, tokenizer, monkeypatch):
    price = lambda s: 0.08 if s < 0.1 else 0.01 if s < 0.5 else 5.0  # noqa: E731
    monkeypatch.setattr(
        Divergence, "__call__", lambda self, _s, _n, places: list(map(price, places))
    )
    with pytest.warns(UserWarning, match="not monotonic"):
        result = es.calibrate(model, some_vectors(), TEXTS, tokenizer, start=0.2)
    assert not result.monotonic and any("falls" in text for text in result.warnings)


def test_texts_that_do_not_fit_are_cut_and_counted(model, tokenizer):
    long = [*TEXTS, sentence(100)]  # the model reads 64 tokens
    with pytest.warns(UserWarning, match="1 of 6 were cut"):
        result = es.calibrate(model, some_vectors(), long, tokenizer)
    assert result.truncated == 1 and result.tokens == 37 + 64
    with pytest.warns(UserWarning, match="3 of 5 were cut"):
        assert es.calibrate(model, some_vectors(), TEXTS, tokenizer, max_length=4).truncated == 3
    with pytest.warns(UserWarning, match="1 had too few tokens"):
        rows = [[5], [5, 6, 7], [9, 8]]
        options = {"measure": "perplexity_ratio", "budget": 1.1}
        result = es.calibrate(model, some_vectors(seed=4), rows, **options)
    assert result.excluded == 1 and result.texts == 2


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        ((TEXTS,), {}, "tokenizer must be given"),
        (([], "t"), {}, "texts must be a non-empty list"),
        (("w1 w2", "t"), {}, "texts must be a non-empty list"),
        (([[], []],), {}, "none of the 2 has"),
        (([[1, 2], "w3"], "t"), {}, "mixture"),
        (([[1.5, 2.0]],), {}, r"texts\[0\] must be"),
        (([[1, 900]],), {}, "embeds 64 tokens"),
        (([[1, -1]],), {}, "embeds 64 tokens"),
        ((TEXTS, "t"), {"budget": 0.0}, "budget must be more than 0"),
        ((TEXTS, "t"), {"budget": float("nan")}, "budget"),
        ((TEXTS, "t"), {"budget": 0.9, "measure": "perplexity_ratio"}, "more than 1"),
        ((TEXTS, "t"), {"measure": "accuracy"}, "measure must be one of"),
        ((TEXTS, "t"), {"layers": [7]}, "carry no vector"),
        ((TEXTS, "t"), {"layers": []}, "at least one layer"),
        ((TEXTS, "t"), {"layers": [[0], []]}, "at least one layer"),
        ((TEXTS, "t"), {"max_passes": 3}, "max_passes"),
        ((TEXTS, "t"), {"start": 0.0}, "smallest, start and largest"),
        ((TEXTS, "t"), {"tolerance": 0}, "tolerance"),
        ((TEXTS, "t"), {"batch_size": 0}, "batch_size"),
        ((TEXTS, "t"), {"max_length": 0}, "max_length"),
        ((TEXTS, "t"), {"operation": "multiply"}, "operation must be one of"),
    ],
)
def test_bad_input_is_named(model, tokenizer, arguments, options, named):
    texts, *rest = arguments
    with pytest.raises(ValueError, match=named):
        es.calibrate(model, some_vectors(), texts, *([tokenizer] if rest else []), **options)


def test_vectors_of_another_kind_or_a_steered_model_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="must be SteeringVectors"):
        es.calibrate(model, torch.randn(32), TEXTS, tokenizer)
    with (
        es.attach(model, some_vectors()),
        pytest.raises(ValueError, match="already steered"),
    ):
        es.calibrate(model, some_vectors(), TEXTS, tokenizer)


def test_outputs_that_are_not_finite_are_over_any_budget(tokenizer):
    model = build("llama", dtype=torch.float16).eval()
    vectors = es.SteeringVectors({1: torch.randn(32)}, {1: 3000.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how far the search comes is not the point
        result = es.calibrate(model, vectors, TEXTS, tokenizer, start=16.0, budget=0.5)
    assert result.curve[-1][1] == float("inf") and result.divergence <= 0.5
    assert result.to_dict()["curve"][-1][1] is None
