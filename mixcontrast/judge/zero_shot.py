"""Zero-shot classification by the texts of classes, and whether its confidence means what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixcontrast.analysis import Reliability, reliability_of
from mixcontrast.analysis.calibration import bin_of
from mixcontrast.checks import check_embeddings
from mixcontrast.retrieval import Evaluation, Interval, Preset, evaluate_pairs
from mixcontrast.similarity import unit

TOP = Preset((1, 5), {"hit": "top-{k}"}, {})
BINS = 15
_CELLS = 1 << 24  # similarities at once


@dataclass(frozen=True)
class ZeroShot:
    """What a zero-shot classifier reaches, image by image.

    Attributes:
        evaluation: `top-1` and `top-5` an image; intervals are over classes.
        confidence: (N,) the largest probability of each image, of the same images.
    """

    evaluation: Evaluation
    confidence: np.ndarray

    def of_queries(self, kept: np.ndarray) -> ZeroShot:
        """The same of some images alone: (N,) bool, or their places."""
        return replace(self, evaluation=self.evaluation.of_queries(kept), confidence=self.confidence[kept])

    def reliability(self, bins: int = BINS) -> Reliability:
        """Accuracy and confidence in bins of equal width of confidence."""
        correct = torch.from_numpy(self.evaluation.values["top-1"])
        return reliability_of(torch.from_numpy(self.confidence), correct, bins=bins)

    def calibration_error(self, *, bins: int = BINS, seed: int = 0) -> Interval:
        """The expected calibration error with its 95% interval, as `calibration_interval`."""
        return calibration_interval(
            self.confidence, self.evaluation.values["top-1"], groups=self.evaluation.groups, bins=bins, seed=seed
        )


def prompts(names: Sequence[str], templates: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Each class's name in each template.

    Args:
        names: of C classes.
        templates: each with `{}` where the name goes ("a photo of a {}.").

    Returns:
        C times T texts, class by class, and the (C T,) int64 class of each.

    Raises:
        ValueError: no name or template, a template without `{}`.

    Source: Radford et al., ICML 2021, arXiv 2103.00020, section 3.1.4.

    >>> prompts(["cat", "dog"], ["a {}.", "two {}s."])
    (['a cat.', 'two cats.', 'a dog.', 'two dogs.'], array([0, 0, 1, 1]))
    """
    if not len(names) or not len(templates):
        raise ValueError(f"Prompts need classes and templates. Got {len(names)} and {len(templates)}; give both.")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"A template has {{}} where the class's name goes. Got {template!r}; a photo of a {{}}.")
    texts = [template.replace("{}", name) for name in names for template in templates]
    return texts, np.arange(len(names)).repeat(len(templates))


@torch.no_grad()
def mean_embeddings(text_features: Tensor, classes: Any, num_classes: int) -> Tensor:
    """One unit vector a class: the mean of its texts' unit embeddings, brought to unit length again.

    With several prompts a class this is the prompt ensemble of Radford et al. 2021; with descriptions of a class
    ("a hen, which has two legs") the classifier of Menon and Vondrick, but for the length of the mean: theirs is the
    mean of an image's cosines with the descriptions, which favours classes whose descriptions are alike.

    Args:
        text_features: (T, D) floats of any length.
        classes: (T,) integers from 0, the class of each text; classes may have different numbers of texts.
        num_classes: C.

    Returns:
        (C, D) float32, or float64 where the features are.

    Raises:
        ValueError: shapes that do not fit, a class without a text, one whose texts cancel; on a CPU also NaN or zeros.

    Source: Radford et al., ICML 2021, arXiv 2103.00020; Menon and Vondrick, ICLR 2023, arXiv 2210.07183.

    >>> mean_embeddings(torch.tensor([[2., 0.], [0., 1.], [0., 3.]]), [0, 0, 1], 2)
    tensor([[0.7071, 0.7071],
            [0.0000, 1.0000]])
    """
    check_embeddings("text_features", text_features)
    classes = torch.as_tensor(classes, device=text_features.device)
    if classes.shape != text_features.shape[:1]:
        raise ValueError(
            "`text_features` and `classes` must have the same length. "
            f"Got text_features {tuple(text_features.shape)}, classes {tuple(classes.shape)}."
        )
    counts = torch.bincount(classes, minlength=num_classes)
    if len(counts) > num_classes or not bool((counts > 0).all()):
        seen = f"class {len(counts) - 1}" if len(counts) > num_classes else f"none for class {int(counts.argmin())}"
        raise ValueError(
            f"Each of {num_classes} classes, from 0, needs a text at least. Got {seen}; write one for each."
        )
    rows = unit(text_features)
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, classes, rows)
    means = sums / counts[:, None]
    length = torch.linalg.vector_norm(means, dim=1)
    if not bool((length > 1e-6).all()):
        raise ValueError(
            "The texts of a class must have a direction in common. "
            f"Got a mean of zero for class {int(length.argmin())}; give other texts."
        )
    return means / length[:, None]


@torch.no_grad()
def classify(
    image_features: Tensor,
    weights: Tensor,
    labels: Any,
    *,
    logit_scale: float,
    ks: Sequence[int] = (1, 5),
    attributes: Mapping[str, Any] | None = None,
    names: Any = None,
) -> ZeroShot:
    """Zero-shot classification: the nearest class vectors of each image, and the confidence of the softmax over them.

    Args:
        image_features: (N, D) floats of any length.
        weights: (C, D) a vector a class, as `mean_embeddings` makes them.
        labels: (N,) integers, the classes, 0 to C - 1.
        logit_scale: > 0, what multiplies cosines before the softmax: `model.logit_scale.exp()`. A bias common to all
            classes, as SigLIP has, changes no softmax.
        ks: k of top-k; 1 must be among them. k above C counts as C.
        attributes: name to (N,) of what else is known of the images (the domain), for results by it.
        names: (N,) what the images are called; None: their numbers.

    Returns:
        `top-k` an image (classes of equal similarity share a place, so that a collapsed model is at chance) and
        the confidences.

    Raises:
        ValueError: shapes that do not fit, labels outside, no 1 among `ks`, a scale that is not positive.

    >>> found = classify(torch.eye(2), torch.eye(2), [0, 1], logit_scale=10.0)
    >>> found.evaluation.mean("top-1"), found.confidence.round(4)
    (1.0, array([1., 1.], dtype=float32))
    """
    check_embeddings("image_features", image_features)
    check_embeddings("weights", weights)
    labels = np.asarray(labels)
    if labels.shape != (len(image_features),) or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be one integer an image. "
            f"Got {labels.shape} of {labels.dtype} for {len(image_features)} images; give the class of each."
        )
    if not 0 <= labels.min() <= labels.max() < len(weights):
        raise ValueError(
            f"`labels` must lie in [0, {len(weights)}), a row of `weights` each. "
            f"Got {labels.min()} to {labels.max()}; renumber them."
        )
    if 1 not in ks or not logit_scale > 0:
        raise ValueError(
            f"`ks` must hold 1 and `logit_scale` be positive. Got ks={list(ks)}, logit_scale={logit_scale}; (1, 5) and "
            "model.logit_scale.exp() are usual."
        )
    pairs = np.stack([np.arange(len(labels)), labels], axis=1)
    found = evaluate_pairs(image_features, weights, pairs, ks=ks, groups=labels, attributes=attributes)
    found = replace(found.named(TOP), names=None if names is None else np.asarray(names))
    return ZeroShot(found, _confidence(image_features, weights, logit_scale))


def calibration_interval(
    confidence: np.ndarray,
    correct: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    bins: int = BINS,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The expected calibration error (ECE) with a basic bootstrap interval.

    A resample's ECE lies above that of the sample, since chance moves each bin's accuracy away from its confidence. So
    the interval is the basic one, `2 ECE - q`, which turns that bias around; its ends are kept within [0, 1].

    Args:
        confidence: (N,) largest probabilities.
        correct: (N,) floats in [0, 1] or bool.
        groups: (N,) integers drawn whole, the classes; None: each prediction for itself.
        bins: of equal width.
        num_resamples: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: as `reliability_of`.

    Source: Guo et al., ICML 2017, arXiv 1706.04599; Davison and Hinkley, Bootstrap Methods, 1997, section 5.2.
    """
    mean, drawn = _errors(confidence, correct, groups, bins, num_resamples, seed)
    low, high = (np.nan, np.nan) if drawn is None else 2 * mean - np.quantile(drawn, [0.975, 0.025])
    return Interval(mean, *(float(end) if np.isnan(end) else float(min(max(end, 0), 1)) for end in (low, high)))


def calibration_difference(
    first: ZeroShot, second: ZeroShot, *, bins: int = BINS, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """ECE of the second minus that of the first on the same images, classes drawn alike; basic bootstrap interval.

    Raises:
        ValueError: other images.
    """
    if not np.array_equal(first.evaluation.queries, second.evaluation.queries):
        raise ValueError(
            "A paired comparison needs the same images in the same order. "
            f"Got {len(first.confidence)} and {len(second.confidence)}; classify the same."
        )
    (one, drawn_one), (two, drawn_two) = (
        _errors(found.confidence, found.evaluation.values["top-1"], first.evaluation.groups, bins, num_resamples, seed)
        for found in (first, second)
    )
    if drawn_one is None:
        return Interval(two - one, float("nan"), float("nan"))
    low, high = 2 * (two - one) - np.quantile(drawn_two - drawn_one, [0.975, 0.025])
    return Interval(two - one, float(low), float(high))


def _errors(
    confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray | None, bins: int, num_resamples: int, seed: int
) -> tuple[float, np.ndarray | None]:
    """The ECE, and (R,) of resamples of whole groups; of rows where there is one group, none of one row."""
    confident = torch.as_tensor(np.asarray(confidence, np.float64))
    right = torch.as_tensor(np.asarray(correct, np.float64))
    error = float(reliability_of(confident, right, bins=bins).error)
    groups = np.arange(len(right)) if groups is None or len(np.unique(groups)) < 2 else groups
    number = np.unique(groups, return_inverse=True)[1]
    num_groups = int(number.max()) + 1
    if num_groups < 2:
        return error, None
    gaps = np.zeros((num_groups, bins))  # an ECE is the sum over bins of |sum of gaps|, over the rows
    np.add.at(gaps, (number, bin_of(confident, bins).numpy()), (right - confident).numpy())
    sizes = np.bincount(number).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.empty(num_resamples)
    step = max(1, _CELLS // num_groups)
    for start in range(0, num_resamples, step):
        count = min(step, num_resamples - start)
        times = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=count).astype(np.float64)
        drawn[start : start + count] = np.abs(times @ gaps).sum(axis=1) / (times @ sizes)
    return error, drawn


def _confidence(image_features: Tensor, weights: Tensor, logit_scale: float) -> np.ndarray:
    """(N,) largest softmax probabilities, in blocks of images."""
    rows, columns = unit(image_features), unit(weights)
    step = max(1, _CELLS // len(columns))
    parts = [
        (logit_scale * (rows[start : start + step] @ columns.T)).softmax(dim=1).amax(dim=1)
        for start in range(0, len(rows), step)
    ]
    return torch.cat(parts).cpu().numpy()
