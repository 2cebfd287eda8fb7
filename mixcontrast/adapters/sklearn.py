"""A scikit-learn estimator that learns a map of features by contrast.

Before::

    model = make_pipeline(StandardScaler(), PCA(32), KNeighborsClassifier())

After::

    model = make_pipeline(ContrastiveTransformer(32), KNeighborsClassifier())
    model.fit(X, y).score(X_test, y_test)
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixcontrast.losses.base import Loss
from mixcontrast.losses.hard_negatives import HardNegativeLoss
from mixcontrast.losses.pair_sums import MultiSimilarityLoss
from mixcontrast.losses.softmax import InfoNCE, RankNContrastLoss
from mixcontrast.mixers.base import Mixer, innermost
from mixcontrast.mixers.metrix import Metrix

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except (ModuleNotFoundError, ImportError) as error:
    raise ModuleNotFoundError(
        f"This adapter needs scikit-learn of 1.6 or newer: {error}; pip install 'mixcontrast[scikit-learn]'"
    ) from None


class ContrastiveTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Maps features so that examples of one class, or of near values, lie together: unit vectors, compared by cosine.

    Features are standardised, then mapped linearly, or through one hidden layer. `y` holds classes (integers, strings,
    booleans) or real values (floats that are not all whole numbers).

    Args:
        n_components: how many features come out; None: as many as go in, at most 32.
        criterion: a loss or mixer of ours, called with `(embeddings, labels)`; copied, never changed. None: for
            classes `Metrix(MultiSimilarityLoss(), num_mixtures=64)`, for values
            `RankNContrastLoss(temperature=0.3, normalize=True)`. Values are given to it as they are: set SupReMix's
            window in their units. A proxy loss learns its proxies; its labels are the classes' places in `classes_`.
        hidden: width of a hidden layer; None: a linear map.
        max_iter: how many steps, of one batch each.
        batch_size: examples a step; all, where there are fewer. For classes a step draws a few classes, at least two,
            and several examples of each.
        learning_rate: of AdamW, falling to 0 along a half cosine.
        weight_decay: of AdamW.
        random_state: of weights, batches and mixing: None, an integer, or a RandomState.
        device: "cpu", "cuda" or "mps", for fitting.

    Attributes:
        classes_: (P,) the classes; None where `y` held values.
        loss_curve_: the loss of each step.
        n_iter_: how many steps were made.
        mean_: (F,) of the training features.
        scale_: (F,) their standard deviations; 1 for a constant feature.
        layers_: the map: `(weight (F, H), bias (H,))`, one or two, as arrays, with a ReLU between.
        n_features_in_: F.
        feature_names_in_: (F,) where `X` had names.

    Raises:
        ValueError: when fitted: numbers out of range; NaN; a single class; no class of two examples; shapes that do
            not fit.
        TypeError: when fitted: a criterion that is none of ours, or is called with two views or towers.

    >>> X = np.random.default_rng(0).normal(size=(40, 6))
    >>> model = ContrastiveTransformer(2, max_iter=3, random_state=0).fit(X, X[:, 0] > 0)
    >>> model.transform(X).shape, model.get_feature_names_out()[0]
    ((40, 2), 'contrastivetransformer0')
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        criterion: Loss | Mixer | None = None,
        hidden: int | None = None,
        max_iter: int = 300,
        batch_size: int = 256,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.criterion = criterion
        self.hidden = hidden
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> ContrastiveTransformer:
        """Learns the map.

        Args:
            X: (N, F) numbers.
            y: (N,) classes or real values.
        """
        self._check_numbers()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2, y_numeric=False)
        values = type_of_target(y) == "continuous"
        if values:
            self.classes_, labels = None, torch.as_tensor(np.asarray(y, np.float32))
        else:
            check_classification_targets(y)
            self.classes_, inverse = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"ContrastiveTransformer needs examples of two classes. Got 1 class, {self.classes_[0]}; "
                    "without a second there is nothing to tell apart."
                )
            if len(self.classes_) == len(inverse):
                raise ValueError(
                    "ContrastiveTransformer needs a class of two examples. "
                    f"Got {len(inverse)} examples of as many classes; for real values give floats."
                )
            labels = torch.as_tensor(inverse)
        random = check_random_state(self.random_state)
        self.mean_, deviation = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
        self.scale_ = np.where(deviation > 1e-10 * np.maximum(np.abs(self.mean_), 1e-30), deviation, 1.0)
        inputs = torch.as_tensor(((X - self.mean_) / self.scale_).astype(np.float32))
        devices = [torch.device(self.device)] if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # the caller's random numbers stay theirs
            torch.manual_seed(int(random.randint(2**31 - 1)))
            self._train(inputs, labels, random)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(N, n_components) unit vectors, in the dtype of `X` where that is float32 or float64, else float64."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        mapped = (X - self.mean_) / self.scale_
        for number, (weight, bias) in enumerate(self.layers_):
            mapped = (np.maximum(mapped, 0) if number else mapped) @ weight + bias
        length = np.linalg.norm(mapped, axis=1, keepdims=True)
        return (mapped / np.maximum(length, 1e-12)).astype(X.dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.layers_[-1][0].shape[1]

    def _train(self, inputs: Tensor, labels: Tensor, random: np.random.RandomState) -> None:
        criterion = self._copied_criterion(labels.is_floating_point()).to(self.device).train()
        encoder = self._encoder(inputs.shape[1]).to(self.device)
        parameters = [*encoder.parameters(), *criterion.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.max_iter)
        batches = _batches(labels.cpu().numpy(), self.batch_size, random)
        curve = []
        for rows in itertools.islice(batches, self.max_iter):
            rows = torch.as_tensor(rows, device=self.device)
            loss = criterion(encoder(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            curve.append(loss.detach())
        self.loss_curve_, self.n_iter_ = torch.stack(curve).tolist(), self.max_iter
        linear = [layer for layer in encoder if isinstance(layer, nn.Linear)]
        self.layers_ = [
            (layer.weight.detach().double().cpu().numpy().T, layer.bias.detach().double().cpu().numpy())
            for layer in linear
        ]

    def _encoder(self, width: int) -> nn.Sequential:
        out = min(width, 32) if self.n_components is None else self.n_components
        if self.hidden is None:
            return nn.Sequential(nn.Linear(width, out))
        return nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, out))

    def _copied_criterion(self, of_values: bool) -> Loss | Mixer:
        if self.criterion is None:
            if of_values:
                return RankNContrastLoss(temperature=0.3, normalize=True)
            return Metrix(MultiSimilarityLoss(), num_mixtures=64)
        if not isinstance(self.criterion, Loss | Mixer):
            raise TypeError(
                f"`criterion` must be a mixcontrast loss or mixer. Got {type(self.criterion).__name__}; "
                "SupConLoss() for classes, RankNContrastLoss() for values."
            )
        bottom = innermost(self.criterion)
        caller = bottom.loss if isinstance(bottom, HardNegativeLoss) else bottom
        if isinstance(caller, InfoNCE) or bottom.towers:
            raise TypeError(
                "`criterion` must be called with (embeddings, labels). "
                f"Got {type(bottom).__name__}, called with two views or towers; use SupConLoss()."
            )
        return copy.deepcopy(self.criterion)

    def _check_numbers(self) -> None:
        least = {"n_components": 1, "hidden": 1, "max_iter": 1, "batch_size": 4}
        for name, limit in least.items():
            number = getattr(self, name)
            if number is not None and number < limit:
                raise ValueError(f"`{name}` must be at least {limit}. Got {number}.")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "`learning_rate` must be above 0 and `weight_decay` at least 0. "
                f"Got {self.learning_rate}, {self.weight_decay}."
            )


def _batches(labels: np.ndarray, batch_size: int, random: np.random.RandomState):
    """Rows of one batch after the other, without end; all rows where they fit.

    For classes: up to eight examples, or more where there are few classes, of each of some classes of two or more.
    """
    if len(labels) <= batch_size:
        while True:
            yield np.arange(len(labels))
    if labels.dtype.kind == "f":
        while True:
            order = random.permutation(len(labels))
            for start in range(0, len(labels) - batch_size + 1, batch_size):
                yield order[start : start + batch_size]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    alone = np.concatenate([rows for rows in members if len(rows) < 2] or [np.zeros(0, int)])
    members = [rows for rows in members if len(rows) > 1]
    while len(members) == 1:  # all other classes are of one example, and serve as negatives
        half = batch_size // 2
        yield np.concatenate([random.permutation(members[0])[:half], random.permutation(alone)[:half]])
    num_classes = min(len(members), max(batch_size // 8, 2))
    per_class = batch_size // num_classes
    while True:
        chosen = random.permutation(len(members))[:num_classes]
        yield np.concatenate([random.permutation(members[c])[:per_class] for c in chosen])
