"""Retrieval judged again and again with the same settings, as in training each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixcontrast.retrieval.checks import check_k
from mixcontrast.retrieval.evaluation import evaluate
from mixcontrast.retrieval.exact import Similarity, check_similarity
from mixcontrast.retrieval.metrics import TIES
from mixcontrast.retrieval.presets import DML, Preset
from mixcontrast.retrieval.results import Evaluation


class RetrievalEvaluator:
    """Judges embeddings in memory and gives numbers to log: `{"Recall@1": ..., "Recall@1 low": ..., ...}`.

    Args:
        ks: cut-offs, each at least 1.
        preset: the names and metrics of a field; None: all metrics under our own.
        similarity: "cosine", "inner product" or "l2".
        ties: as in `evaluate`.
        intervals: also the ends of each metric's 95% interval, as "<name> low" and "<name> high", over classes.

    Attributes:
        last: the `Evaluation` of the last call, a value a query, under our own names; None before the first.

    Raises:
        ValueError: a `k` below 1, no `k`, an unknown `ties`; when called, as `evaluate`.
        TypeError: a preset that is not one; when called, as `evaluate`.

    >>> evaluator = RetrievalEvaluator(ks=(1,), intervals=False)
    >>> evaluator([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], [0, 0, 1, 1])
    {'Recall@1': 1.0, 'R-Precision': 1.0, 'MAP@R': 1.0}
    """

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1,),
        preset: Preset | None = DML,
        similarity: Similarity = "cosine",
        ties: str = "expected",
        intervals: bool = True,
    ) -> None:
        if not ks:
            raise ValueError("`ks` must name at least one k. Got none; (1, 2, 4, 8) is common.")
        if preset is not None and not isinstance(preset, Preset):
            raise TypeError(f"`preset` must be DML, CLIP, TREC, another Preset or None. Got {preset!r}.")
        if ties not in TIES:
            raise ValueError(f"`ties` must be one of {', '.join(TIES)}. Got {ties!r}.")
        self.ks = tuple(check_k(k) for k in ks)
        self.preset, self.similarity, self.ties, self.intervals = preset, check_similarity(similarity), ties, intervals
        self.last: Evaluation | None = None

    def __call__(
        self, embeddings: Any, labels: Any, gallery: Any = None, gallery_labels: Any = None
    ) -> dict[str, float]:
        """The metrics of queries among themselves, each without itself, or in a gallery.

        Args:
            embeddings: (Q, D) floats, tensors of any device or arrays.
            labels: (Q,) integers or texts.
            gallery: (G, D) floats.
            gallery_labels: (G,) integers or texts.

        Returns:
            Name to mean (of a first rank, to median), in the order of the preset's table.
        """
        self.last = evaluate(
            embeddings,
            labels,
            gallery,
            gallery_labels,
            ks=self.ks,
            similarity=self.similarity,
            ties=self.ties,
            ranks=self.preset is not None and "first_rank" in self.preset.whole,
        )
        shown = self.last if self.preset is None else self.last.named(self.preset)
        numbers = {}
        for name in shown.values:
            found = shown.interval(name)
            numbers[name] = found.mean
            if self.intervals:
                numbers |= {f"{name} low": found.low, f"{name} high": found.high}
        return numbers
