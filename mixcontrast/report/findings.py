"""What the page of an evaluation shows, computed: curves, histograms, confusions, queries to look at, a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixcontrast.retrieval import Evaluation, Interval, Neighbours


@dataclass(frozen=True)
class Curve:
    """A metric against k.

    Attributes:
        ks: (K,) rising.
        mean: (K,).
        low: (K,) ends of 95% intervals.
        high: (K,).
    """

    ks: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Histogram:
    """Similarities of a sample of positive and of negative pairs.

    Attributes:
        edges: (B + 1,).
        positives: (B,) share of the positive pairs in each bin.
        negatives: (B,) share of the negative pairs.
        num_positives: how many pairs.
        num_negatives: how many pairs.
        auc: the chance that a positive pair is more similar than a negative one; ties count half.
    """

    edges: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    num_positives: int
    num_negatives: int
    auc: float


@dataclass(frozen=True)
class Confusion:
    """How often queries of one class have an item of another in first place.

    Attributes:
        of: the queries' class.
        taken_for: the other.
        count: how many of its queries.
        num_queries: of the class.
        example: one such query, a row.
    """

    of: int
    taken_for: int
    count: int
    num_queries: int
    example: int


def curve_of(name: str, found: Evaluation) -> Curve:
    """The curve of `hit` or `recall` from an evaluation that has `name@k` for several k."""
    ks = sorted(int(key.split("@")[1]) for key in found.values if key.startswith(f"{name}@"))
    intervals: list[Interval] = [found.interval(f"{name}@{k}") for k in ks]
    return Curve(
        np.array(ks), *(np.array([getattr(i, end) for i in intervals]) for end in ("mean", "low", "high"))
    )


def histogram(positives: np.ndarray, negatives: np.ndarray, bins: int = 40) -> Histogram:
    """Both kinds of similarities over the same bins.

    Args:
        positives: (P,) of pairs that belong together.
        negatives: (N,) of pairs that do not.
        bins: how many.
    """
    both = np.concatenate([positives, negatives])
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), bins + 1)
    shares = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (positives, negatives)]
    return Histogram(edges, *shares, len(positives), len(negatives), auc(positives, negatives))


def auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The chance that a positive is above a negative, ties half; NaN where one is empty."""
    if len(positives) == 0 or len(negatives) == 0:
        return float("nan")
    order = np.sort(negatives)
    below, not_above = np.searchsorted(order, positives, "left"), np.searchsorted(order, positives, "right")
    return float((below + not_above).mean() / 2 / len(negatives))


def worst_confusions(
    queries: np.ndarray, labels: np.ndarray, first_labels: np.ndarray, num: int = 12
) -> list[Confusion]:
    """The pairs of classes most often taken for each other, most queries first.

    Args:
        queries: (Q,) rows.
        labels: (Q,) their classes.
        first_labels: (Q,) the class of what is found first; -1 where nothing is.
        num: how many.
    """
    wrong = np.flatnonzero((first_labels != labels) & (first_labels >= 0))
    if len(wrong) == 0:
        return []
    pairs, first, counts = np.unique(
        np.stack([labels[wrong], first_labels[wrong]], axis=1), axis=0, return_index=True, return_counts=True
    )
    sizes = {int(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    order = np.argsort(-counts, kind="stable")[:num]
    return [
        Confusion(int(a), int(b), int(counts[place]), sizes[int(a)], int(queries[wrong[first[place]]]))
        for place in order
        for a, b in [pairs[place]]
    ]


def queries_to_show(gains: np.ndarray, found: Neighbours, num: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Places of queries: some at random, and the misses that are most sure of themselves.

    Args:
        gains: (Q, K) whether each neighbour is relevant.
        found: the neighbours.
        num: how many of each.
        seed: of the random ones.
    """
    drawn = np.sort(np.random.default_rng(seed).choice(len(gains), min(num, len(gains)), replace=False))
    missed = np.flatnonzero(~gains[:, 0] & found.valid[:, 0])
    worst = missed[np.argsort(-found.similarity[missed, 0], kind="stable")[:num]]
    return [("at random", drawn), ("surest misses", worst)]


def map_of(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) t-SNE of up to 50 principal components, by scikit-learn.

    Args:
        embeddings: (N, D), N at least 4.
        seed: of both.

    Source: van der Maaten, Hinton, JMLR 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    parts = min(50, *embeddings.shape)
    reduced = PCA(parts, random_state=seed).fit_transform(embeddings)
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
