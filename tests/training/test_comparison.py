"""A run is trained once, and anew where anything that it reads is another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixcontrast.training.comparison import Recipe, steps_per_run, train

RECIPE = Recipe("supcon", "metrix", epochs=1, classes_per_batch=3, per_class=2, embedding_dim=4, learning_rate=1e-3)
LABELS = np.arange(12).repeat(4)
PARTS = np.arange(24), np.arange(24, 36), np.arange(36, 48)
INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path):
    def run(recipe=RECIPE, arm="mixed", inputs=INPUTS, parts=PARTS):
        before = (tmp_path / "run.json").stat().st_mtime_ns if (tmp_path / "run.json").exists() else 0
        told = []
        found = train(
            recipe, arm, 0, inputs, LABELS, parts, device="cpu", folder=tmp_path, advance=told.append
        )  # fmt: skip
        assert sum(told) == steps_per_run(LABELS[parts[0]], recipe)  # the bar ends full, trained or read
        return found, (tmp_path / "run.json").stat().st_mtime_ns != before

    return run


def test_the_same_run_is_read_and_not_trained_again(run):
    first, trained = run()
    assert trained
    again, trained = run()
    assert not trained
    assert torch.equal(first.embeddings, again.embeddings) and first.curve == again.curve


@pytest.mark.parametrize(
    "other",
    [
        dict(inputs=INPUTS + 1e-3),  # as another image size gives
        dict(parts=(PARTS[0], PARTS[1], PARTS[2][::-1].copy())),
        dict(recipe=replace(RECIPE, learning_rate=2e-3)),
        dict(recipe=replace(RECIPE, mixer="mochi")),
        dict(arm="plain"),
    ],
    ids=["inputs", "split", "recipe", "mixer", "arm"],
)
def test_another_run_is_trained(run, other):
    run()
    assert run(**other)[1]


def test_the_plain_arm_does_not_depend_on_the_mixer(run):
    run(arm="plain")
    assert not run(arm="plain", recipe=replace(RECIPE, mixer="mochi"))[1]
