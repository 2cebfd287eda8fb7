"""scikit-learn's own checks of an estimator, and that it learns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixcontrast import HardNegativeLoss, InfoNCE, ProxyAnchorLoss, SupConLoss, SupReMix, TripletLoss
from mixcontrast.adapters.sklearn import ContrastiveTransformer


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [ContrastiveTransformer(max_iter=2), ContrastiveTransformer(3, hidden=5, max_iter=2, batch_size=16)]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_classes_are_found_among_noise():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    X = np.hstack([X, X.std() * np.random.default_rng(0).normal(size=X.shape)])
    plain = make_pipeline(StandardScaler(), KNeighborsClassifier())
    ours = make_pipeline(ContrastiveTransformer(16, max_iter=50, random_state=0), KNeighborsClassifier())
    before, after = (cross_val_score(model, X, y, cv=2).mean() for model in (plain, ours))
    assert after > before + 0.02


def test_real_values_are_found_among_noise():
    X, y = make_regression(300, n_features=20, n_informative=2, random_state=0)
    plain = make_pipeline(StandardScaler(), KNeighborsRegressor())
    ours = make_pipeline(ContrastiveTransformer(2, max_iter=100, random_state=0), KNeighborsRegressor())
    before, after = (cross_val_score(model, X, y, cv=2).mean() for model in (plain, ours))
    assert after > before + 0.2


def blobs(num=60, classes=3, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(num) % classes
    return random.normal(size=(classes, 5))[y] * 2 + random.normal(size=(num, 5)), y


def test_the_same_seed_gives_the_same_map_and_leaves_torchs_alone():
    X, y = blobs()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = ContrastiveTransformer(2, max_iter=3, batch_size=16, random_state=1).fit(X, y)
    torch.testing.assert_close(torch.rand(3), expected)
    torch.manual_seed(8)
    np.testing.assert_array_equal(clone(first).fit(X, y).transform(X), first.transform(X))
    assert not np.allclose(clone(first).set_params(random_state=2).fit(X, y).transform(X), first.transform(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).transform(X), first.transform(X))
    np.testing.assert_allclose(np.linalg.norm(first.transform(X), axis=1), 1)


def test_strings_booleans_and_a_grid():
    X, y = blobs()
    names = np.array(["cat", "dog", "emu"])[y]
    model = ContrastiveTransformer(2, max_iter=3, random_state=0).fit(X, names)
    assert model.classes_.tolist() == ["cat", "dog", "emu"] and len(model.loss_curve_) == 3
    of_numbers = ContrastiveTransformer(2, max_iter=3, random_state=0).fit_transform(X, y)
    np.testing.assert_array_equal(of_numbers, model.transform(X))
    grid = {
        "contrastivetransformer__criterion": [SupConLoss(), TripletLoss(margin=0.2)],
        "contrastivetransformer__hidden": [None, 4],
    }
    search = GridSearchCV(make_pipeline(ContrastiveTransformer(2, max_iter=40), KNeighborsClassifier()), grid, cv=2)
    assert search.fit(X, names).best_score_ > 0.7


def test_criteria_are_copied_and_proxies_learned():
    X, y = blobs()
    proxies = ProxyAnchorLoss(3, 2)
    before = proxies.proxies.detach().clone()
    model = ContrastiveTransformer(2, criterion=proxies, max_iter=20, random_state=0).fit(X, y)
    torch.testing.assert_close(proxies.proxies.detach(), before)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    values = X[:, 0] * 10
    mixed = ContrastiveTransformer(2, criterion=SupReMix(SupConLoss(), window=4.0), max_iter=5).fit(X, values)
    assert mixed.classes_ is None and np.isfinite(mixed.loss_curve_).all()


@pytest.mark.parametrize("batch_size", [8, 17, 40])
def test_batches_of_rare_classes(batch_size):
    X, _ = blobs()
    y = np.r_[np.zeros(40, int), np.ones(15, int), [2, 2, 3, 4, 5]]  # pairs and singletons
    model = ContrastiveTransformer(2, max_iter=4, batch_size=batch_size, random_state=0).fit(X, y)
    assert np.isfinite(model.transform(X)).all()
    y = np.r_[np.zeros(55, int), [1, 2, 3, 4, 5]]  # one class to learn from, singletons as its negatives
    ContrastiveTransformer(2, max_iter=4, batch_size=batch_size, random_state=0).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "`n_components` must be at least 1. Got 0."),
        ({"batch_size": 2}, ValueError, "`batch_size` must be at least 4. Got 2."),
        ({"learning_rate": 0}, ValueError, "`learning_rate` must be above 0"),
        ({"criterion": InfoNCE()}, TypeError, r"must be called with \(embeddings, labels\). Got InfoNCE"),
        ({"criterion": HardNegativeLoss(InfoNCE())}, TypeError, "Got HardNegativeLoss, called with two views"),
        ({"criterion": torch.nn.MSELoss()}, TypeError, "must be a mixcontrast loss or mixer. Got MSELoss"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        ContrastiveTransformer(**settings).fit(*blobs())
    assert "\n" not in str(caught.value)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="needs examples of two classes. Got 1 class, 3; without"):
        ContrastiveTransformer().fit(blobs()[0], np.full(60, 3))
