"""Zero-shot classifiers against plain loops, and open_clip's own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mixcontrast.judge import classify, mean_embeddings, prompts
from mixcontrast.judge.zero_shot import calibration_difference, calibration_interval
from mixcontrast.retrieval import bootstrap_interval

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

NAMES = ["cat", "dog", "axolotl"]
TEMPLATES = ["a photo of a {}.", "{} at night", "the {}, a {}"]


def test_prompts_and_means_are_open_clips() -> None:
    torch.manual_seed(0)
    table = torch.randn(64, 7)

    class Towers:
        def encode_text(self, tokens, normalize=False):
            found = table[tokens]
            return F.normalize(found, dim=-1) if normalize else found

    def tokenizer(texts):
        return torch.tensor([sum(map(ord, text)) % 64 for text in texts])

    functions = [lambda c: f"a photo of a {c}.", lambda c: f"{c} at night", lambda c: f"the {c}, a {c}"]
    wanted = open_clip.build_zero_shot_classifier(Towers(), tokenizer, NAMES, functions)
    texts, classes = prompts(NAMES, TEMPLATES)
    found = mean_embeddings(table[tokenizer(texts)], classes, 3)
    torch.testing.assert_close(found, wanted.T)


def test_descriptions_of_different_numbers() -> None:
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    classes = [2, 0, 0, 1, 2, 2]
    found = mean_embeddings(rows, classes, 3)
    for label in range(3):
        mean = sum(row / row.norm() for row, c in zip(rows, classes, strict=True) if c == label)
        torch.testing.assert_close(found[label], mean / mean.norm())


def features(num: int = 60, num_classes: int = 7) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(2)
    weights = F.normalize(torch.randn(num_classes, 5, generator=generator), dim=1)
    labels = np.arange(num) % num_classes
    return weights[labels] + 0.8 * torch.randn(num, 5, generator=generator), weights, labels


def test_classification_is_a_plain_loop() -> None:
    images, weights, labels = features()
    found = classify(images, weights, labels, logit_scale=6.0, attributes={"domain": labels % 2})
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        cosines = [float(F.cosine_similarity(image, weight, dim=0)) for weight in weights]
        order = sorted(range(len(cosines)), key=lambda c: -cosines[c])
        assert found.evaluation.values["top-1"][row] == (order[0] == label)
        assert found.evaluation.values["top-5"][row] == (label in order[:5])
        powers = np.exp(6.0 * np.array(cosines))
        assert found.confidence[row] == pytest.approx(powers.max() / powers.sum(), rel=1e-5)
    interval = bootstrap_interval(found.evaluation.values["top-1"], groups=labels)
    assert found.evaluation.interval("top-1") == interval
    odd = found.of_queries(labels % 2 == 1)
    assert odd.evaluation.mean("top-1") == pytest.approx(found.evaluation.values["top-1"][labels % 2 == 1].mean())


def test_a_collapsed_model_is_at_chance() -> None:
    found = classify(torch.ones(20, 4), torch.ones(10, 4), np.arange(20) % 10, logit_scale=100.0)
    assert found.evaluation.mean("top-1") == pytest.approx(0.1) and found.evaluation.mean("top-5") == pytest.approx(0.5)
    assert found.calibration_error().mean == pytest.approx(0, abs=1e-6)


def test_top_five_of_three_classes() -> None:
    found = classify(torch.eye(3), -torch.eye(3), np.arange(3), logit_scale=1.0)
    assert found.evaluation.mean("top-1") == 0 and found.evaluation.mean("top-5") == 1


def plain_error(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    error = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            error += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    return error / len(confidence)


def test_the_calibration_interval_is_a_basic_bootstrap_over_classes() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 12, 300)
    confidence = rng.uniform(0.2, 1, 300)
    correct = (rng.uniform(size=300) < confidence**2).astype(float)
    found = calibration_interval(confidence, correct, groups=groups, bins=10, num_resamples=400, seed=5)
    assert found.mean == pytest.approx(plain_error(confidence, correct, 10), abs=1e-6)
    drawn = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, 12, 12)])
        drawn.append(plain_error(confidence[rows], correct[rows], 10))
    ends = 2 * found.mean - np.quantile(drawn, [0.975, 0.025])
    assert found.low == pytest.approx(ends[0], abs=0.02) and found.high == pytest.approx(ends[1], abs=0.02)


def test_the_difference_of_calibration_errors() -> None:
    images, weights, labels = features(200)
    one, two = (classify(images, weights, labels, logit_scale=scale) for scale in (4.0, 60.0))
    found = calibration_difference(one, two)
    errors = [found.calibration_error().mean for found in (one, two)]
    assert found.mean == pytest.approx(errors[1] - errors[0]) and found.low < found.mean < found.high
    same = calibration_difference(one, one)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="the same images"):
        calibration_difference(one, two.of_queries(np.arange(100)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: prompts(["a"], ["no place"]), "A template has {}"),
        (lambda: prompts([], ["{}"]), "need classes and templates"),
        (lambda: mean_embeddings(torch.eye(2), [0, 0], 2), "none for class 1"),
        (lambda: mean_embeddings(torch.eye(2), [0, 2], 2), "Got class 2"),
        (lambda: mean_embeddings(torch.tensor([[1.0], [-1.0]]), [0, 0], 1), "a mean of zero for class 0"),
        (lambda: mean_embeddings(torch.eye(2), [0], 1), "the same length"),
        (lambda: classify(torch.eye(2), torch.eye(2), [0, 2], logit_scale=1.0), r"must lie in \[0, 2\)"),
        (lambda: classify(torch.eye(2), torch.eye(2), [0.0, 1.0], logit_scale=1.0), "one integer an image"),
        (lambda: classify(torch.eye(2), torch.eye(2), [0, 1], logit_scale=0.0), "be positive"),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
