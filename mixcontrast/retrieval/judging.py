"""Rankings of queries turned into metrics: chunk by chunk, with every tie whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from mixcontrast.retrieval import exact, metrics
from mixcontrast.retrieval.checks import check_k
from mixcontrast.retrieval.metrics import RankedRelevance
from mixcontrast.retrieval.processes import everyone, place
from mixcontrast.retrieval.results import Evaluation
from mixcontrast.retrieval.searcher import TIE_TOLERANCE, Candidates, Searcher, deeper_than, recall_given_away


@dataclass(frozen=True)
class Task:
    """What is searched for where, and what is relevant.

    Attributes:
        searcher: of queries in a gallery.
        gains: rows (n,) of queries and columns (n, K) of the gallery to their (n, K) gains.
        pairs: rows (n,) of queries and a first and last column to (P, 2) relevant pairs: places in `rows`, columns
            counted from the first.
        num_relevant: (Q,) relevant rows of the gallery, those left out not counted.
        ideal: rows of queries and a number of places to their (n, K) gains of all relevant rows, falling.
        ties: as `RankedRelevance`.
    """

    searcher: Searcher
    gains: Callable[[np.ndarray, np.ndarray], np.ndarray]
    pairs: Callable[[np.ndarray, int, int], np.ndarray]
    num_relevant: np.ndarray
    ideal: Callable[[np.ndarray, int], np.ndarray]
    ties: str

    def ranked(self, rows: np.ndarray, found: Candidates, places: int) -> RankedRelevance:
        """The first places of rankings whose last tie group is complete."""
        return RankedRelevance.from_lists(
            self.gains(rows, found.indices),
            found.similarity,
            num_relevant=self.num_relevant[rows],
            ideal=self.ideal(rows, places),
            valid=found.valid,
            tolerance=self.searcher.tolerance(found.similarity[:, 1:], found.scale),
            ties=self.ties,
        ).cut(places)


def judge(
    task: Task, groups: np.ndarray | None, ks: Sequence[int], ranks: bool, attributes: dict[str, np.ndarray]
) -> Evaluation:
    """Every metric of every query that has something to find.

    Raises:
        ValueError: no k, or one below 1; no query with a positive.
    """
    ks = sorted({check_k(k) for k in ks})
    if not ks:
        raise ValueError("`ks` must name at least one k. Got none; (1, 2, 4, 8) is common.")
    searcher = task.searcher
    kept = np.flatnonzero(task.num_relevant > 0)
    num_queries = len(task.num_relevant)
    if len(kept) == 0:
        raise ValueError(
            f"Retrieval needs a query with something to find. Got {num_queries} queries, none with a positive in the "
            "gallery; are labels and embeddings in the same order?"
        )
    places = max(ks[-1], int(task.num_relevant.max()))
    values: dict[str, np.ndarray] = {}
    tied = np.zeros(len(kept), bool)
    for chunk in searcher.chunks(np.arange(len(kept)), places + searcher.more):
        for part, ranked in _rankings(task, kept[chunk], places):
            part = chunk[part]
            found = metrics_of(ranked, ks, ks[-1])
            if ranks:
                found["first_rank"] = metrics.first_rank(ranked)
            for name, of_part in found.items():
                values.setdefault(name, np.empty(len(kept)))[part] = of_part
            tied[part] = ties_at_cuts(ranked, ks, task.num_relevant[kept[part]])
    if ranks:
        _rank_those_behind(task, kept, values["first_rank"], places)
    settings = searcher.settings() | {"ties": task.ties, "tie_tolerance": TIE_TOLERANCE, "ks": ks}
    if searcher.index is not None:
        recall = asdict(recall_given_away(searcher, kept, ks[-1]))
        settings["index"] = {
            "factory": searcher.index.factory,
            "parameters": searcher.index.parameters,
            f"recall_of_exact@{ks[-1]}": {name: None if np.isnan(value) else value for name, value in recall.items()},
        }
    searcher.finish()
    return Evaluation(
        values=values,
        queries=kept,
        groups=None if groups is None else groups[kept],
        num_without_positive=num_queries - len(kept),
        num_tied=int(tied.sum()),
        attributes={name: of_queries[kept] for name, of_queries in attributes.items()},
        settings=settings,
    )


def _rankings(task: Task, rows: np.ndarray, places: int) -> Iterator[tuple[np.ndarray, RankedRelevance]]:
    """Parts of some queries with their rankings, right to the end of the tie group of the last place.

    Most queries need little more than the places judged, to see where that group ends. Of the others more candidates
    are asked for, and of those whose ties reach further still, the whole gallery is ranked.
    """
    searcher = task.searcher
    num_gallery = len(searcher.gallery)
    found = searcher.candidates(rows, places + searcher.more)
    whole = _complete(searcher, found, places)
    if whole.all():
        yield np.arange(len(rows)), task.ranked(rows, found, places)
        return
    done = np.flatnonzero(whole)
    if len(done):
        yield done, task.ranked(rows[done], found.of(done), places)
    asked, scale = np.flatnonzero(~whole), found.scale
    if deeper_than(places) < num_gallery // 2:
        left = [asked[:0]]
        for part in searcher.chunks(asked, deeper_than(places)):
            found = searcher.candidates(rows[part], deeper_than(places))
            whole = _complete(searcher, found, places)
            if whole.any():
                yield part[whole], task.ranked(rows[part[whole]], found.of(whole), places)
            left.append(part[~whole])
        asked = np.concatenate(left)
    for part in searcher.few(asked):
        similarity, valid = searcher.whole_rows(rows[part])
        order = np.argsort(-similarity, axis=1, kind="stable")
        similarity, valid = (np.take_along_axis(table, order, axis=1) for table in (similarity, valid))
        yield part, task.ranked(rows[part], Candidates(order, similarity, valid, scale[part]), places)


def _complete(searcher: Searcher, found: Candidates, places: int) -> np.ndarray:
    """(n,) bool: no row that was not found can belong to the tie group of the last place, or before it."""
    width = found.similarity.shape[1]
    if searcher.index is not None or width >= len(searcher.gallery):
        return np.ones(len(found.similarity), bool)
    full = found.valid[:, -1]
    similarity = np.where(full[:, None], found.similarity, 0).astype(np.float64)
    tolerance = np.broadcast_to(searcher.tolerance(similarity[:, 1:], found.scale), similarity[:, 1:].shape)
    ends = similarity[:, :-1] - similarity[:, 1:] > tolerance  # a tie group ends before place + 1
    safe = similarity[:, :-1] - similarity[:, -1:] > tolerance + searcher.margin(found)
    return ~full | (ends & safe)[:, places - 1 :].any(axis=1)


def _rank_those_behind(task: Task, kept: np.ndarray, ranks: np.ndarray, places: int) -> None:
    """First ranks of queries whose first relevant row lies behind the judged places, by counting what is nearer."""
    missing = np.flatnonzero(np.isinf(ranks))
    searcher = task.searcher
    if searcher.index is not None:
        ranks[missing] = len(searcher.gallery)
        return
    for part in searcher.chunks(missing, places):
        everywhere = everyone(partial(_best_relevant, task, kept[part]))
        best, longest = np.max([found for found, _ in everywhere], axis=0), max(length for _, length in everywhere)
        nearer, size, good = np.sum(everyone(partial(_counts_around, task, kept[part], best, longest)), axis=0)
        within = {"expected": (size + 1) / (good + 1), "optimistic": 1.0, "pessimistic": size - good + 1}
        ranks[part] = nearer + within[task.ties]


def _tiles(searcher: Searcher, rows: np.ndarray) -> Iterator[tuple[slice, int, int, np.ndarray, np.ndarray]]:
    """This process's blocks of the gallery against slices of some queries."""
    queries = searcher.queries.take(rows)
    number, count = place()
    for start, stop in searcher.blocks()[number::count]:
        block = searcher.gallery.read(start, stop)
        step = max(1, searcher.cells // (stop - start))
        for begin in range(0, len(rows), step):
            yield slice(begin, begin + step), start, stop, queries[begin : begin + step], block


def _best_relevant(task: Task, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """(n,) the similarity of each query's nearest relevant row in this process's blocks, and their longest row."""
    searcher = task.searcher
    best, longest = np.full(len(rows), -np.inf), 0.0
    for part, start, stop, queries, block in _tiles(searcher, rows):
        longest = max(longest, searcher.gallery.longest(start, stop))
        pairs = task.pairs(rows[part], start, stop)
        for mine, theirs in searcher.rules_of(rows[part], start, stop):
            pairs = pairs[mine[pairs[:, 0]] != theirs[pairs[:, 1]]]
        similarity = exact.of_pairs(queries, block, pairs, searcher.similarity)
        np.maximum.at(best[part], pairs[:, 0], similarity)
    return best, longest


def _counts_around(task: Task, rows: np.ndarray, best: np.ndarray, longest: float) -> np.ndarray:
    """(3, n) rows nearer than the nearest relevant one, rows that tie with it, and relevant ones among those."""
    searcher = task.searcher
    counts = np.zeros((3, len(rows)))
    for part, start, stop, queries, block in _tiles(searcher, rows):
        scale = searcher.scale(queries, longest)
        middle = best[part, None]
        tolerance = np.broadcast_to(searcher.tolerance(middle, scale), middle.shape)
        doubt = tolerance + 2 * exact.rounding(block.shape[1]) * scale
        similarity = exact.product(queries, block, searcher.similarity)
        for mine, theirs in searcher.rules_of(rows[part], start, stop):
            similarity[mine[:, None] == theirs] = -np.inf
        above = similarity > (middle + doubt).astype(np.float32)
        counts[0, part] += above.sum(axis=1)
        pairs = np.argwhere(~above & (similarity >= (middle - doubt).astype(np.float32)))
        gap = exact.of_pairs(queries, block, pairs, searcher.similarity) - middle[pairs[:, 0], 0]
        near = tolerance[pairs[:, 0], 0]
        tie = np.abs(gap) <= near
        good = task.gains(rows[part][pairs[:, 0]], pairs[:, 1:] + start)[:, 0] > 0
        for number, which in enumerate((gap > near, tie, tie & good)):
            counts[number, part] += np.bincount(pairs[which, 0], minlength=len(queries))
    return counts


def metrics_of(ranked: RankedRelevance, ks: list[int], depth: int) -> dict[str, np.ndarray]:
    """Every metric of rankings, at each k; the reciprocal rank is among the first `depth` places."""
    values = {}
    for name, metric in (
        ("hit", metrics.hit_at_k),
        ("recall", metrics.recall_at_k),
        ("precision", metrics.precision_at_k),
        ("map", metrics.map_at_k),
        ("ndcg", metrics.ndcg_at_k),
    ):
        for k in ks:
            values[f"{name}@{k}"] = metric(ranked, k)
    values["mrr"] = metrics.reciprocal_rank(ranked, depth)
    values["r_precision"] = metrics.r_precision(ranked)
    values["map@r"] = metrics.map_at_r(ranked)
    return values


def ties_at_cuts(ranked: RankedRelevance, ks: list[int], num_relevant: np.ndarray) -> np.ndarray:
    """(n,) bool: a tie group with both kinds of items reaches over a k or over R."""
    mixed = (ranked.relevant > 0) & (ranked.relevant < ranked.size)
    reaches = mixed & (ranked.offset + 1 < ranked.size)
    columns = np.array([k - 1 for k in ks if k <= reaches.shape[1]], dtype=int)
    at_r = np.take_along_axis(reaches, np.minimum(num_relevant - 1, reaches.shape[1] - 1)[:, None], axis=1)[:, 0]
    return reaches[:, columns].any(axis=1) | at_r
