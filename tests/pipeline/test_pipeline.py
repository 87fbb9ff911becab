"""The four steps in one call, on models that share nothing but the texts."""

import math
import warnings

import pytest
import torch

import expertsteer as es
from helpers.checkpoints import save
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer


@pytest.fixture(scope="module")
def contrast():
    """Texts that begin alike and end in one of two words."""
    texts = [sentence(4 + i % 3, seed=i) + (" w1" if i % 2 else " w2") for i in range(60)]
    return es.ContrastSet.from_texts(texts, [i % 2 for i in range(60)])


@pytest.fixture(scope="module")
def models():
    return build("gpt2", width=24, layers=2), build("llama", layers=3)


def fit(contrast, models, **settings):
    pipeline = es.ExpertSteer(progress=False, **settings)
    expert, target = models
    tokenizer = tiny_tokenizer()
    fitted = pipeline.fit(
        expert, target, contrast, expert_tokenizer=tokenizer, target_tokenizer=tokenizer
    )
    return pipeline, fitted


def test_one_call_is_the_steps_one_by_one(contrast, models):
    _, at_once = fit(contrast, models, pairs=2, rule="lowest", seed=3)
    expert, target = (es.capture(m, tiny_tokenizer(), contrast, progress=False) for m in models)
    alignment = es.align(expert, target, method="autoencoder", seed=3)
    information = es.mutual_information(expert.states, target.states, seed=3, null=20)
    pairing = es.pair_layers(information, k=2, rule="lowest", seed=3)
    by_hand = es.fit_vectors(expert, target, alignment, pairing, seed=3)
    assert at_once.layers == by_hand.layers and at_once.scales == by_hand.scales
    for layer in at_once.layers:
        assert torch.equal(at_once.vectors[layer], by_hand.vectors[layer])


def test_with_neutral_texts_the_strength_is_calibrated(contrast, models):
    neutral = [sentence(8, seed=i) for i in range(4)]
    pipeline, vectors = fit(contrast, models, pairs=2, neutral=neutral, budget=0.05)
    found = pipeline.calibration_
    assert found.budget == 0.05 and found.layers == vectors.layers and found.passes <= 12
    assert found == es.calibrate(models[1], vectors, neutral, tiny_tokenizer(), budget=0.05)
    with es.attach(models[1], vectors) as steering:
        assert steering.strength == found.strength
    _, plain = fit(contrast, models, pairs=2, neutral=None)
    assert "calibration" not in plain.metadata
    assert torch.equal(plain.vectors[plain.layers[0]], vectors.vectors[plain.layers[0]])


def test_by_default_it_is_calibrated_on_texts_that_come_with_the_package(contrast, models):
    pipeline, vectors = fit(contrast, models, pairs=2)
    found = pipeline.calibration_
    again = es.calibrate(models[1], vectors, tokenizer=tiny_tokenizer(), batch_size=16)
    assert found == again
    assert found.texts == len(es.NEUTRAL_TEXTS) and found.divergence <= 0.1
    assert vectors.calibrated_strength() == found.strength


def test_a_fit_outlives_a_calibration_that_finds_nothing(contrast, models):
    lost = {"neutral": [""], "measure": "perplexity_ratio", "budget": 1.1}
    with pytest.warns(UserWarning, match="fitted, but carry no strength: texts"):
        pipeline, vectors = fit(contrast, models, pairs=2, **lost)
    assert pipeline.calibration_ is None and "calibration" not in vectors.metadata


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"budget": 0}, "budget must be more than 0"),
        ({"measure": "bits"}, "measure must be one of"),
        ({"neutral": []}, "neutral must be a list"),
        ({"neutral": "one text"}, "neutral must be a list"),
    ],
)
def test_bad_calibration_settings_are_named_before_anything_is_loaded(settings, named):
    with pytest.raises(ValueError, match=named):
        es.ExpertSteer(**settings)


def test_the_result_steers_the_target_and_tells_where_it_came_from(contrast, models):
    pipeline, vectors = fit(contrast, models, pairs=2)
    meta = vectors.metadata
    assert meta["expert"]["architecture"] == "GPT2LMHeadModel"
    assert (meta["target"]["num_layers"], meta["target"]["hidden_size"]) == (3, 32)
    assert pipeline.information_.nats.shape == (2, 3) and len(pipeline.pairing_) == 2
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        before = models[1](ids).logits
        with es.attach(models[1], vectors, strength=0.5):
            assert not torch.allclose(models[1](ids).logits, before)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ridge"},
        {"rotation": "none", "rule": "highest"},
        {"rule": "random", "direction": "mean_difference"},
        {"null": None, "position": "mean", "direction": "pca"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::expertsteer.HealthWarning")  # some of them are poor choices
def test_every_setting_reaches_its_step(contrast, models, settings):
    pipeline, vectors = fit(contrast, models, pairs=1, **settings)
    assert pipeline.pairing_.rule == settings.get("rule", "effect")
    assert vectors.metadata["method"] == settings.get("direction", "rfm")
    assert vectors.metadata["alignment"]["method"] == settings.get("method", "autoencoder")
    assert vectors.metadata["position"] == settings.get("position", "last")


def test_what_is_wrong_with_a_fit_is_told_in_python_in_the_words_of_its_metadata(contrast, models):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (len(contrast),), generator=generator).tolist()
    labels = es.ContrastSet.from_texts([e.text for e in contrast], drawn)
    with pytest.warns(es.HealthWarning) as told:
        pipeline, vectors = fit(labels, models, pairs=2)
    assert [str(w.message) for w in told] == list(pipeline.health_.warnings)
    assert [str(w.message) for w in told] == vectors.metadata["health"]["warnings"]
    assert any("check the labels" in str(w.message) for w in told)
    assert {w.filename for w in told} == {__file__}  # the user's own line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(labels, models, pairs=2, health=False)
        assert fit(contrast, models, pairs=2)[0].health_.ok


def test_duplicates_are_named_and_the_fit_goes_on_with_the_components_there_are(contrast, models):
    texts, labels = [e.text for e in contrast][:20], [e.label for e in contrast][:20]
    often = es.ContrastSet.from_texts(texts * 12, labels * 12)  # 30 components by default
    with pytest.warns(UserWarning) as told:
        pipeline, vectors = fit(often, models, pairs=1)
    said = [str(w.message) for w in told]
    (fewer,) = [text for text in said if "estimated with" in text]
    count = pipeline.information_.components
    assert 8 <= count < 20 and f"varies in only {count} directions" in fewer
    assert "rows 0, 20, 40, 60 and 8 more are copies" in fewer
    assert any("near-copies (rows" in text for text in pipeline.health_.warnings)
    assert all(bool(v.isfinite().all()) for v in vectors.vectors.values())
    with pytest.raises(ValueError, match="fewer than the 24 components asked for, .* are copies"):
        fit(often, models, pairs=1, components=24)


def test_saved_and_loaded_vectors_steer_alike(contrast, models, tmp_path):
    _, vectors = fit(contrast, models, pairs=2)
    vectors.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    logits = []
    for v in (vectors, es.SteeringVectors.from_pretrained(tmp_path)):
        with torch.no_grad(), es.attach(models[1], v, strength=0.5):
            logits.append(models[1](ids).logits)
    assert torch.equal(*logits)


def test_models_by_path_need_no_tokenizer_and_same_seeds_same_vectors(contrast, models, tmp_path):
    for name, model in zip(("expert", "target"), models):
        save(model, tmp_path / name)
    paths = str(tmp_path / "expert"), str(tmp_path / "target")
    by_path = es.ExpertSteer(pairs=1, progress=False).fit(*paths, contrast, device="cpu")
    _, at_hand = fit(contrast, models, pairs=1)
    (layer,) = by_path.layers
    torch.testing.assert_close(by_path.vectors[layer], at_hand.vectors[layer])
    assert by_path.metadata["expert"]["name"] == paths[0]


def test_too_many_pairs_and_unknown_rules_name_the_argument(contrast, models):
    with pytest.raises(ValueError, match="number of target layers, 3; came 9"):
        fit(contrast, models, pairs=9)
    for name in ("rule", "method", "solver", "rotation", "estimator", "direction"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            es.ExpertSteer(**{name: "best"})


def test_layers_of_one_side_and_their_path_can_be_named(contrast, models):
    pipeline = es.ExpertSteer(pairs=1, progress=False)
    vectors = pipeline.fit(
        *models,
        contrast,
        expert_tokenizer=tiny_tokenizer(),
        target_tokenizer=tiny_tokenizer(),
        expert_options={"decoder_layers": "transformer.h"},
        target_options={"layers": [2]},
    )
    assert vectors.layers == (2,) and pipeline.expert_.layers == (0, 1)


def test_a_real_checkpoint_learns_a_mood_and_speaks_it(stories):
    """A pretrained model as its own expert: the vector separates held-out happy and sad texts."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(stories).eval()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    except ValueError as reason:  # transformers 4 does not know the class that 5 wrote there
        pytest.skip(f"the tokenizer of stories260K needs another transformers: {reason}")
    names = ["Tom", "Lily", "Ben", "Sam", "Anna", "Max", "Mia", "Tim", "Sue", "Jack"]
    things = ["dog", "cat", "ball", "car", "tree", "boat", "hat", "cake"]
    moods = ("was sad. {n} lost the {x}.", "was happy. {n} loved the {x}.")
    rows = [
        (f"{n} " + m.format(n=n, x=x), i)
        for n in names
        for x in things
        for i, m in enumerate(moods)
    ]
    contrast = es.ContrastSet.from_texts(*zip(*rows))
    train, _, test = contrast.split(seed=1)
    captured = es.capture(model, tokenizer, train, progress=False)
    vectors = es.fit_vectors(
        captured,
        captured,
        es.align(captured, captured, "identity"),
        es.LayerPairing.same([2]),
    )
    held = es.capture(model, tokenizer, test, progress=False, layers=2)
    projected = held.layer(2) @ vectors.vectors[2]
    middle = projected.median()
    right = ((projected > middle).long() == held.labels).double().mean()
    assert float(right) > 0.8

    def preference():
        prompt = tokenizer("Lily felt very", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = torch.log_softmax(model(prompt).logits[0, -1], dim=-1)
        words = [tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("happy", "sad")]
        return float(scores[words[0]] - scores[words[1]])

    with es.attach(model, vectors, strength=0.0) as steering:
        leaning = []
        for strength in (-1.0, 0.0, 1.0):
            steering.set(strength=strength)
            leaning.append(preference())
    assert leaning[0] < leaning[1] < leaning[2] and not math.isnan(leaning[2])
