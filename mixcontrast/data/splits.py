"""Which examples are trained on, watched while training, and judged: none in two parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Parts:
    """Rows of each part, in order.

    Attributes:
        train: (N,) int64 rows to train on.
        validation: rows for the curves and for what is chosen by them; may be none.
        test: rows that are judged at the end; the queries where there is a gallery. May be none.
        gallery: rows that the test's queries are searched in; none: the test rows themselves.

    Raises:
        ValueError: a row in two parts or twice, nothing to train on.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    gallery: np.ndarray = field(default_factory=lambda: NO_ROWS)

    def __post_init__(self) -> None:
        rows = np.concatenate([self.train, self.validation, self.test, self.gallery])
        twice = np.flatnonzero(np.bincount(rows.astype(np.int64)) > 1)
        if len(twice):
            raise ValueError(
                f"No example may be in two parts. Got {len(twice)} that are, row {twice[0]} first; mend the split."
            )
        if not len(self.train):
            raise ValueError(
                f"There must be examples to train on. Got none, {len(self.validation)} to validate and "
                f"{len(self.test)} to test on; take smaller shares."
            )


def split(groups: np.ndarray, *, validation_share: float, test_share: float, seed: int) -> Parts:
    """Parts at random, a group whole in one of them; a split by class is one whose groups are the classes.

    Args:
        groups: (N,) integers; rows of one group stay together.
        validation_share: of the groups.
        test_share: of the groups.
        seed: of the order; the same seed gives the same parts.

    Raises:
        ValueError: shares that are negative or leave nothing to train on.
    """
    if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(
            "Shares must not be negative and must leave some to train on. "
            f"Got validation_share={validation_share}, test_share={test_share}; their sum must be below 1."
        )
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    test = round(test_share * len(order))
    validation = test + round(validation_share * len(order))
    parts = (order[validation:], order[test:validation], order[:test])
    return Parts(*(np.flatnonzero(np.isin(groups, part)) for part in parts))


def with_validation(parts: Parts, groups: np.ndarray, *, share: float, seed: int) -> Parts:
    """Published parts, with a share of the training groups kept for validation where they have none."""
    if len(parts.validation) or share == 0:
        return parts
    carved = split(groups[parts.train], validation_share=share, test_share=0.0, seed=seed)
    return Parts(parts.train[carved.train], parts.train[carved.validation], parts.test, parts.gallery)
