"""Retrieval metrics: pure functions of ranked relevance, one value a query.

Items of equal similarity have no order. Their rank is taken over all orders alike: every metric here is its expected
value over them, so it does not depend on the order of the gallery, and a constant scorer scores chance.
`ties="optimistic"` and `"pessimistic"` rank the relevant ones of a tie first and last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_array, check_k

TIES = ("expected", "optimistic", "pessimistic")


@dataclass(frozen=True)
class RankedRelevance:
    """The relevance of each query's ranking, with its ties.

    A tie group is a run of items of equal similarity. At each of the first K places, in order:

    Attributes:
        gain: (Q, K) mean gain of the place's tie group; for binary relevance, its share of relevant items.
        relevant: (Q, K) how many relevant items (gain above 0) the tie group has.
        size: (Q, K) how many items the tie group has, those beyond place K included; 0 past a row's end.
        offset: (Q, K) the place's number within its tie group, from 0.
        num_relevant: (Q,) relevant items in the whole gallery.
        ideal: (Q, K) the highest gains of the whole gallery, falling, 0 past them.
    """

    gain: np.ndarray
    relevant: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    num_relevant: np.ndarray
    ideal: np.ndarray

    @classmethod
    def from_lists(
        cls,
        gains: Any,
        similarity: Any = None,
        *,
        num_relevant: Any = None,
        ideal: Any = None,
        valid: Any = None,
        tolerance: Any = 0.0,
        ties: str = "expected",
    ) -> RankedRelevance:
        """From rankings, best first, whose last tie group is complete.

        Args:
            gains: (Q, K) >= 0: 1 relevant, 0 not, or graded.
            similarity: (Q, K), not rising along a row; None: no ties.
            num_relevant: (Q,) relevant items in the whole gallery; None: those in the list.
            ideal: (Q, K') gains of all relevant items, falling; None: those in the list, or ones where
                `num_relevant` is given.
            valid: (Q, K) bool, False past a row's end; None: all.
            tolerance: similarities in falling order that differ by no more tie with their neighbour; one for all, or
                (Q, 1), or (Q, K - 1).
            ties: "expected", "optimistic" or "pessimistic".

        Raises:
            ValueError: shapes that do not fit, negative gains, rising similarities, an unknown `ties`.
        """
        gains = as_array(gains).astype(np.float64)
        if gains.ndim != 2 or not (gains >= 0).all():
            raise ValueError(f"`gains` must be (queries, places), >= 0. Got {gains.shape}; give one row a query.")
        if ties not in TIES:
            raise ValueError(f"`ties` must be one of {', '.join(TIES)}. Got {ties!r}.")
        valid = np.ones(gains.shape, bool) if valid is None else as_array(valid)
        gains = np.where(valid, gains, 0.0)
        if similarity is None:
            new = np.ones(gains.shape, bool)
        else:
            similarity = as_array(similarity)
            if similarity.shape != gains.shape:
                raise ValueError(
                    f"`gains` and `similarity` must have one shape. Got {gains.shape}, {similarity.shape}."
                )
            step = np.where(valid[:, 1:], similarity[:, :-1] - np.where(valid[:, 1:], similarity[:, 1:], 0), np.inf)
            if not (step >= -tolerance).all():
                raise ValueError("`similarity` must not rise along a row. Got a rising one; sort best first.")
            new = np.concatenate([np.ones((len(gains), 1), bool), (step > tolerance) | ~valid[:, 1:]], axis=1)
        if ties != "expected":
            sign = -1 if ties == "optimistic" else 1
            group = new.cumsum(axis=1)
            order = np.lexsort((sign * gains, group), axis=1)
            gains, new = np.take_along_axis(gains, order, axis=1), np.ones(gains.shape, bool)
        if ideal is None:
            if num_relevant is None:
                ideal = -np.sort(-gains, axis=1)
            else:
                ideal = np.arange(gains.shape[1]) < as_array(num_relevant)[:, None]
        if num_relevant is None:
            num_relevant = (gains > 0).sum(axis=1)
        place = np.arange(gains.shape[1])
        start = np.maximum.accumulate(np.where(new, place, 0), axis=1)
        if gains.shape[1] and not new.all():
            rows = np.arange(len(gains))[:, None]
            flat = (rows * gains.shape[1] + start).ravel()
            total = np.bincount(flat, gains.ravel(), gains.size)[flat].reshape(gains.shape)
            relevant = np.bincount(flat, (gains > 0).ravel(), gains.size)[flat].reshape(gains.shape)
            size = np.bincount(flat, valid.ravel(), gains.size)[flat].reshape(gains.shape)
        else:
            total, relevant, size = gains, (gains > 0).astype(np.float64), valid.astype(np.float64)
        return cls(
            gain=total / np.maximum(size, 1),
            relevant=relevant,
            size=size,
            offset=place - start,
            num_relevant=as_array(num_relevant).astype(np.int64),
            ideal=as_array(ideal).astype(np.float64),
        )

    @property
    def share(self) -> np.ndarray:
        """(Q, K) the chance that the item at a place is relevant."""
        return self.relevant / np.maximum(self.size, 1)

    def cut(self, k: int) -> RankedRelevance:
        """The first `k` places; groups keep their true sizes."""
        return RankedRelevance(
            self.gain[:, :k],
            self.relevant[:, :k],
            self.size[:, :k],
            self.offset[:, :k],
            self.num_relevant,
            self.ideal,
        )


def hit_at_k(ranked: RankedRelevance, k: int) -> np.ndarray:
    """(Q,) whether any of the first `k` is relevant; what metric learning and CLIP call Recall@k.

    Source: Jegou et al., TPAMI 2011 (recall@R); Oh Song et al., CVPR 2016, arXiv 1511.06452.

    >>> hit_at_k(RankedRelevance.from_lists([[0, 1, 0], [0, 0, 1]]), 2)
    array([1., 0.])
    """
    return 1 - np.prod(_miss(ranked)[:, : check_k(k)], axis=1)


def recall_at_k(ranked: RankedRelevance, k: int) -> np.ndarray:
    """(Q,) the share of the relevant items that is among the first `k`; information retrieval's recall.

    >>> recall_at_k(RankedRelevance.from_lists([[1, 0, 1]], num_relevant=[4]), 3)
    array([0.5])
    """
    return ranked.share[:, : check_k(k)].sum(axis=1) / np.maximum(ranked.num_relevant, 1)


def precision_at_k(ranked: RankedRelevance, k: int) -> np.ndarray:
    """(Q,) the share of the first `k` places that is relevant; a gallery smaller than `k` still divides by `k`.

    >>> precision_at_k(RankedRelevance.from_lists([[1, 0, 1, 0]]), 4)
    array([0.5])
    """
    return ranked.share[:, : check_k(k)].sum(axis=1) / k


def r_precision(ranked: RankedRelevance) -> np.ndarray:
    """(Q,) the precision among the first R places, R being the query's number of relevant items.

    Raises:
        ValueError: fewer places were ranked than some R.
    """
    within = _first_r(ranked)
    return (ranked.share * within).sum(axis=1) / np.maximum(ranked.num_relevant, 1)


def map_at_r(ranked: RankedRelevance) -> np.ndarray:
    """(Q,) `1/R * sum_{i <= R} precision@i * relevant_i`.

    Raises:
        ValueError: fewer places were ranked than some R.

    Source: Musgrave, Belongie, Lim, ECCV 2020, arXiv 2003.08505.

    >>> map_at_r(RankedRelevance.from_lists([[1, 0, 1]], num_relevant=[2]))
    array([0.5])
    """
    within = _first_r(ranked)
    return (_precision_where_relevant(ranked) * within).sum(axis=1) / np.maximum(ranked.num_relevant, 1)


def map_at_k(ranked: RankedRelevance, k: int) -> np.ndarray:
    """(Q,) `1/R * sum_{i <= k} precision@i * relevant_i`, R the relevant items of the whole gallery.

    trec_eval's `map_cut_k`. It cannot reach 1 where R is larger than k; MAP@R can.

    >>> map_at_k(RankedRelevance.from_lists([[1, 0, 1]], num_relevant=[4]), 3).round(4)
    array([0.4167])
    """
    k = check_k(k)
    return _precision_where_relevant(ranked)[:, :k].sum(axis=1) / np.maximum(ranked.num_relevant, 1)


def first_rank(ranked: RankedRelevance) -> np.ndarray:
    """(Q,) the rank of the first relevant item, from 1; infinite where none was ranked. Its median is "MedR".

    In a tie group of n items, r of them relevant, that begins after s items it is `s + (n + 1)/(r + 1)`.

    >>> first_rank(RankedRelevance.from_lists([[0, 1, 1], [1, 0, 0], [0, 0, 0]]))
    array([ 2.,  1., inf])
    """
    found = ranked.relevant > 0
    place = found.argmax(axis=1)  # the first place of its tie group
    rows = np.arange(len(found))
    rank = place + (ranked.size[rows, place] + 1) / (ranked.relevant[rows, place] + 1)
    return np.where(found.any(axis=1), rank, np.inf)


def reciprocal_rank(ranked: RankedRelevance, k: int | None = None) -> np.ndarray:
    """(Q,) one over the rank of the first relevant item, 0 where none is among the first `k` (or those ranked).

    Its mean is the MRR.

    >>> reciprocal_rank(RankedRelevance.from_lists([[0, 1, 1], [0, 0, 0]]))
    array([0.5, 0. ])
    """
    k = ranked.gain.shape[1] if k is None else check_k(k)
    miss = _miss(ranked)[:, :k]
    none_yet = np.cumprod(np.concatenate([np.ones((len(miss), 1)), miss[:, :-1]], axis=1), axis=1)
    return (none_yet * (1 - miss) / np.arange(1, miss.shape[1] + 1)).sum(axis=1)


def ndcg_at_k(ranked: RankedRelevance, k: int) -> np.ndarray:
    """(Q,) `sum gain_i / log2(i + 1)` over the first `k`, divided by that of the best order of the whole gallery.

    Gains are used as they are (trec_eval's `ndcg_cut`), not as `2^gain - 1`.

    Source: Jarvelin, Kekalainen, TOIS 2002.

    >>> ndcg_at_k(RankedRelevance.from_lists([[0, 1]]), 2).round(4)
    array([0.6309])
    """
    k = check_k(k)
    best = (ranked.ideal[:, :k] / _discount(ranked.ideal[:, :k])).sum(axis=1)
    got = (ranked.gain[:, :k] / _discount(ranked.gain[:, :k])).sum(axis=1)
    return np.divide(got, best, out=np.zeros_like(got), where=best > 0)


def _precision_where_relevant(ranked: RankedRelevance) -> np.ndarray:
    """(Q, K) the expected value of `precision@i * relevant_i` over the orders of tied items."""
    share, group = ranked.share, ranked.relevant
    place = np.arange(1, share.shape[1] + 1)
    before = np.cumsum(share, axis=1) - share * (ranked.offset + 1)  # relevant items of earlier groups
    inside = ranked.offset * (group - 1) / np.maximum(ranked.size - 1, 1)  # of the group, given this one is
    return share * (before + 1 + inside) / place


def _discount(places: np.ndarray) -> np.ndarray:
    return np.log2(np.arange(2, places.shape[1] + 2))


def _miss(ranked: RankedRelevance) -> np.ndarray:
    """(Q, K) the chance that a place is not relevant, given that no place of its tie group before it was."""
    left = ranked.size - ranked.offset
    return np.where(left > 0, np.maximum(left - ranked.relevant, 0) / np.maximum(left, 1), 1.0)


def _first_r(ranked: RankedRelevance) -> np.ndarray:
    most = int(ranked.num_relevant.max(initial=0))
    if most > ranked.gain.shape[1]:
        raise ValueError(
            "R-precision and MAP@R need the first R places, R being the number of relevant items. "
            f"Got {ranked.gain.shape[1]} places, R up to {most}; search with a k of at least {most}."
        )
    return np.arange(ranked.gain.shape[1]) < ranked.num_relevant[:, None]
