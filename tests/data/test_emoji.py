"""The emoji data set, opened and counted, and the batches drawn from it."""

from collections import Counter

import numpy as np
import pytest

from mixcontrast.data import emoji as module
from mixcontrast.data.emoji import load_emoji, open_on_white
from mixcontrast.data.sampler import MPerClassBatchSampler


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


def test_the_cleaned_set_is_what_was_counted(emoji):
    assert len(emoji.names) == 1443 and len(emoji.paths) == 9837
    assert len(set(emoji.vendors)) == 7
    assert sum(count == 7 for count in Counter(emoji.labels.tolist()).values()) == 1350
    assert "😂" in emoji.names and not any("🏽" in name or "\u200d\u2640" in name for name in emoji.names)


def test_no_picture_stands_in_two_classes(emoji):
    rows = np.random.default_rng(0).permutation(len(emoji.paths))[:400]
    pictures = {}
    for row in rows:
        pictures.setdefault(open_on_white(emoji.paths[row]).tobytes(), set()).add(int(emoji.labels[row]))
    assert all(len(labels) == 1 for labels in pictures.values())


def test_drawings_are_put_on_white(emoji):
    picture = open_on_white(emoji.paths[0], 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert (open_on_white(emoji.paths[list(emoji.labels).index(emoji.names.index("😂"))])[0, 0] == 255).all()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no-such-emoji")
    with pytest.raises(ModuleNotFoundError, match="no-such-emoji. It is not installed; pip install"):
        load_emoji()


def test_batches_hold_m_of_each_class_and_repeat_by_seed():
    labels = np.repeat(np.arange(10), [7, 7, 7, 7, 7, 7, 7, 7, 2, 1])
    batches = MPerClassBatchSampler(labels, classes_per_batch=3, per_class=4, seed=1)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 3 and first != second
    for batch in first:
        assert sorted(Counter(labels[batch].tolist()).values()) == [4, 4, 4]
        full = [row for row in batch if labels[row] < 8]
        assert len(full) == len(set(full))
    assert len({labels[row] for batch in first for row in batch}) == 9  # no class twice in an epoch
    again = MPerClassBatchSampler(labels, classes_per_batch=3, per_class=4, seed=1)
    again.set_epoch(1)
    assert list(again) == second


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(classes_per_batch=3, per_class=2), "Got 2; take fewer"),
        (dict(classes_per_batch=1, per_class=2), "at least two classes"),
        (dict(classes_per_batch=2, per_class=1), "two examples of each"),
    ],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        MPerClassBatchSampler([0, 0, 1, 1], seed=0, **arguments)
