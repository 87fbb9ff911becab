"""The scikit-learn estimator: its own checks, clones and searches."""

import numpy as np
import pytest
import torch

import expertsteer as es

pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import make_classification  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from expertsteer.sklearn import RFMClassifier  # noqa: E402


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([RFMClassifier()])
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


def data(classes=2):
    X, y = make_classification(
        150, 12, n_informative=6, n_classes=classes, random_state=0, class_sep=2.0
    )
    return X, np.array(["a", "b", "c"])[y]


def test_it_is_the_machine_with_labels():
    X, y = data()
    model = RFMClassifier(reg=0.05, iters=2).fit(X[:100], y[:100])
    machine = es.RFM(reg=0.05, iters=2).fit(
        torch.tensor(X[:100]), torch.tensor((y[:100] == "b").astype(float))
    )
    assert np.array_equal(model.direction_, machine.direction_.numpy())
    expected = machine.predict(torch.tensor(X[100:])).numpy()
    np.testing.assert_allclose(model.decision_function(X[100:]), expected - 0.5)
    assert np.array_equal(model.predict(X[100:]), np.where(expected > 0.5, "b", "a"))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_grid_search_over_a_pipeline_finds_a_good_machine(classes):
    X, y = data(classes)
    pipeline = make_pipeline(StandardScaler(), RFMClassifier(validation_fraction=0.2))
    grid = {"rfmclassifier__reg": [1e-2, 1.0], "rfmclassifier__bandwidth": [1.0, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.75
    assert set(search.predict(X)) == set(y)


def test_clones_share_settings_and_nothing_else():
    X, y = data()
    fitted = RFMClassifier(bandwidth=2.0, regime="gram", random_state=3).fit(X, y)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() and not hasattr(copy, "rfm_")
    assert cross_val_score(copy, X, y, cv=3).mean() > 0.7


def test_one_class_and_bad_shares_are_refused():
    X, y = data()
    with pytest.raises(ValueError, match="one class"):
        RFMClassifier().fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="validation_fraction must be"):
        RFMClassifier(validation_fraction=1.0).fit(X, y)
