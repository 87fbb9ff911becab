"""Which strength steers where nobody gave one, and what is told then."""

import warnings

import pytest
import torch

import expertsteer as es
from expertsteer.vectors.calibration import Calibration
from helpers.families import build

pytestmark = pytest.mark.transformers
LAYERS = (0, 1)


@pytest.fixture(scope="module")
def model():
    return build("llama")


def fitted(model, **metadata):
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    rows = {i: torch.randn(width, generator=generator) for i in LAYERS}
    return es.SteeringVectors(rows, dict.fromkeys(LAYERS, 0.5), {"method": "rfm"} | metadata)


def calibrated(vectors, strength=0.04):
    found = Calibration(
        strength=strength,
        divergence=0.098,
        budget=0.1,
        measure="kl",
        operation="add",
        layers=vectors.layers,
        curve=((strength, 0.098), (0.1, 0.7), (0.2, 3.5)),
        next_strength=0.1,
        monotonic=True,
        passes=4,
        sweeps=2,
        texts=3,
        tokens=30,
        truncated=0,
        excluded=0,
        warnings=(),
        fingerprint=vectors.fingerprint,
    )
    return vectors.with_calibration(found)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 11).view(1, -1)).logits


def test_by_default_calibrated_vectors_steer_at_their_strength(model):
    vectors = calibrated(fitted(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with es.attach(model, vectors) as steering:
            found = logits(model)
            assert steering.strength == 0.04
        with es.attach(model, vectors, strength=0.04):
            assert torch.equal(found, logits(model))


@pytest.mark.parametrize("change", ["sum", "subset", "none", "other operation"])
def test_fitted_vectors_without_a_calibration_of_their_own_are_told_with_figures(model, change):
    vectors, options = fitted(model), {}
    if change == "sum":
        vectors = calibrated(vectors) + calibrated(vectors)
    elif change == "subset":
        vectors = calibrated(vectors).select([0])
    elif change == "other operation":
        vectors, options = calibrated(vectors), {"operation": "add_keep_norm"}
    length = float(vectors.displacement(0).norm())
    expected = pytest.warns(UserWarning, match="strength was not given and is 1.0")
    with expected as told, es.attach(model, vectors, **options) as steering:
        assert steering.strength == 1.0
    (told,) = told
    assert f"{length:.4g} at layer 0" in str(told.message) and "calibrat" in str(told.message)
    assert told.filename == __file__


def test_vectors_written_by_hand_are_added_as_they_are_without_a_word(model):
    width = model.config.hidden_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with es.attach(model, es.SteeringVectors({0: torch.ones(width)})) as steering:
            assert steering.strength == 1.0


def test_a_strength_far_beyond_the_calibrated_is_told_with_what_it_cost(model):
    vectors = calibrated(fitted(model))
    with pytest.warns(UserWarning, match="7.5 times the calibrated 0.04") as told:
        es.attach(model, vectors, strength=-0.3).detach()
    assert "at 0.2 it cost 3.5" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with es.attach(model, vectors, strength=0.16) as steering:
            steering.set(strength=0.5)  # whoever sweeps knows


def test_several_calibrated_vectors_have_no_strength_in_common(model):
    pair = {"a": calibrated(fitted(model)), "b": calibrated(fitted(model))}
    told = pytest.warns(UserWarning, match="calibrated one by one")
    with told, es.attach(model, pair) as steering:
        assert steering.strength == 1.0


@pytest.mark.parametrize("strength", ["loud", float("nan"), [1.0]])
def test_anything_else_is_refused_by_name(model, strength):
    with pytest.raises(ValueError, match="strength must be"):
        es.attach(model, fitted(model), strength=strength)
