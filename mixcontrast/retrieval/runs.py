"""Rankings of any system, as TREC run files or dictionaries, judged like our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mixcontrast.retrieval.checks import check_k
from mixcontrast.retrieval.judging import metrics_of, ties_at_cuts
from mixcontrast.retrieval.metrics import TIES, RankedRelevance
from mixcontrast.retrieval.results import Evaluation
from mixcontrast.retrieval.trec import read_judgements, read_run

Scores = Mapping[str, Mapping[str, float]]
_CELLS = 1 << 22  # places judged at once


def evaluate_run(
    run: str | Path | Scores,
    qrels: str | Path | Scores,
    *,
    ks: Sequence[int] = (5, 10, 20, 100),
    ties: str = "expected",
) -> Evaluation:
    """Judges rankings that are given as scores: of a text index, of a reranker, of another program.

    The metrics are those of `evaluate_pairs`, with `mrr` over all that is listed. The order is that of the scores
    alone, and equal scores tie, where trec_eval puts them in the order of their names. A judged query that the run does
    not list finds nothing and counts as 0; a query without a relevant document is left out and counted.

    Args:
        run: a TREC run file, or query id to document id to score.
        qrels: a qrels file in TREC's or BEIR's form, or query id to document id to grade; above 0 is relevant.
        ks: each at least 1.
        ties: as in `evaluate`.

    Returns:
        An `Evaluation` whose `queries` are their ids.

    Raises:
        ValueError: a line that is not of its form, a `k` below 1, scores that are not finite, no query in both.

    >>> run = {"q1": {"a": 2.0, "b": 1.0}, "q2": {"b": 0.5}}
    >>> found = evaluate_run(run, {"q1": {"b": 1}, "q2": {"b": 1}}, ks=(1,))
    >>> found.values["hit@1"]
    array([0., 1.])
    """
    ks = sorted({check_k(k) for k in ks})
    if not ks or ties not in TIES:
        raise ValueError(f"`ks` must name at least one k, and `ties` one of {', '.join(TIES)}. Got {ks}, {ties!r}.")
    run = read_run(run) if isinstance(run, str | Path) else run
    qrels = read_judgements(qrels) if isinstance(qrels, str | Path) else qrels
    relevant = {query: {d: g for d, g in grades.items() if g > 0} for query, grades in qrels.items()}
    kept = [query for query, grades in relevant.items() if grades]
    missing = sum(query not in run for query in kept)
    if missing == len(kept):
        raise ValueError(
            "A run and qrels need a query in common that has something to find. "
            f"Got {len(run)} queries and {len(kept)} with a relevant document; are their ids written alike?"
        )
    most = max(len(relevant[query]) for query in kept)
    width = max(most, ks[-1], *(len(run.get(query, ())) for query in kept))
    step = max(1, _CELLS // width)
    parts = [
        _ranked([(run.get(query, {}), relevant[query]) for query in kept[start : start + step]], width, most, ties)
        for start in range(0, len(kept), step)
    ]
    found = [metrics_of(ranked, ks, width) for ranked in parts]
    tied = [ties_at_cuts(ranked, ks, ranked.num_relevant) for ranked in parts]
    return Evaluation(
        values={name: np.concatenate([values[name] for values in found]) for name in found[0]},
        queries=np.array(kept),
        groups=None,
        num_without_positive=len({*run, *qrels}) - len(kept),
        num_tied=int(np.concatenate(tied).sum()),
        settings={"search": "a run", "num_not_in_run": missing, "ties": ties, "tie_tolerance": 0, "ks": ks},
    )


def _ranked(queries: list[tuple[Mapping, Mapping]], width: int, most: int, ties: str) -> RankedRelevance:
    """Scores and relevant grades of some queries as rankings of one width."""
    similarity = np.full((len(queries), width), -np.inf)
    gains, ideal = np.zeros(similarity.shape), np.zeros((len(queries), most))
    for row, (scores, grades) in enumerate(queries):
        values = np.fromiter(scores.values(), np.float64, len(scores))
        if not np.isfinite(values).all():
            raise ValueError("Scores of a run must be finite. Got NaN or infinity; leave those documents out.")
        order = np.argsort(-values, kind="stable")
        similarity[row, : len(order)] = values[order]
        gains[row, : len(order)] = np.array([grades.get(document, 0.0) for document in scores], np.float64)[order]
        ideal[row, : len(grades)] = sorted(grades.values(), reverse=True)
    return RankedRelevance.from_lists(
        gains,
        similarity,
        num_relevant=[len(grades) for _, grades in queries],
        ideal=ideal,
        valid=np.isfinite(similarity),
        ties=ties,
    )
