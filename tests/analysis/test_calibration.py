"""Calibration against a plain loop and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mixcontrast.analysis import calibration_error, reliability


def case(rows: int = 400, classes: int = 7, sharpness: float = 2.0):
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(rows, classes, generator=generator)
    guess = torch.randint(classes, (rows,), generator=generator)
    labels = torch.where(torch.rand(rows, generator=generator) < 0.6, logits.argmax(1), guess)
    return logits.softmax(dim=1), labels


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_is_a_loop_and_torchmetrics(bins, sharpness):
    probabilities, labels = case(sharpness=sharpness)
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.double().tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        members[math.ceil(confidence * bins) - 1].append((confidence, row.index(confidence) == label))
    found = reliability(probabilities, labels, bins=bins)
    assert found.count.tolist() == [len(m) for m in members]
    expected = 0.0
    for place, inside in enumerate(members):
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            assert found.confidence[place].item() == pytest.approx(confidence, abs=1e-6)
            assert found.accuracy[place].item() == pytest.approx(accuracy, abs=1e-6)
            expected += abs(confidence - accuracy) * len(inside) / len(labels)
        else:
            assert found.accuracy[place].isnan()
    error = calibration_error(probabilities, labels, bins=bins).item()
    assert error == pytest.approx(expected, abs=1e-6)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=bins, norm="l1").item()
    assert error == pytest.approx(theirs, abs=1e-5)


def test_perfect_and_worst():
    sure = torch.eye(3)
    assert calibration_error(sure, torch.arange(3)) == 0
    assert calibration_error(sure, (torch.arange(3) + 1) % 3) == 1
    coin = torch.full((10, 2), 0.5)
    assert calibration_error(coin, torch.tensor([0, 1] * 5)) == 0


def test_half_precision_is_read_in_float32():
    probabilities, labels = case()
    assert calibration_error(probabilities.bfloat16(), labels).dtype == torch.float32


P, Y = case(6, 3)
REFUSED = {
    "logits": (lambda: calibration_error(P.log(), Y), ValueError, "a least of -", "softmax"),
    "not-a-row": (lambda: calibration_error(P[0], Y), ValueError, "(3,)", "both columns"),
    "integers": (lambda: calibration_error(P.long(), Y), TypeError, "int64", "softmax"),
    "list": (lambda: calibration_error([[0.5, 0.5]], Y), TypeError, "list", "softmax"),
    "labels": (lambda: calibration_error(P, Y + 3), ValueError, "[0, 3)", "renumber"),
    "few": (lambda: calibration_error(P, Y[:2]), ValueError, "(2,)", "one label"),
    "bins": (lambda: calibration_error(P, Y, bins=0), ValueError, "Got 0", "15"),
    "nan": (lambda: calibration_error(P * torch.nan, Y), ValueError, "nan", "softmax"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(case):
    call, error, *words = case
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value
