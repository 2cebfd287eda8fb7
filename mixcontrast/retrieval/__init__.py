"""Retrieval, judged so that the numbers are believed: exact search, metrics a query, ties by rule, intervals."""

from mixcontrast.retrieval.evaluation import Evaluation, evaluate, evaluate_pairs
from mixcontrast.retrieval.metrics import (
    RankedRelevance,
    hit_at_k,
    map_at_r,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)
from mixcontrast.retrieval.search import Neighbours, search
from mixcontrast.retrieval.statistics import Interval, bootstrap_interval, paired_difference

__all__ = [
    "Evaluation",
    "Interval",
    "Neighbours",
    "RankedRelevance",
    "bootstrap_interval",
    "evaluate",
    "evaluate_pairs",
    "hit_at_k",
    "map_at_r",
    "ndcg_at_k",
    "paired_difference",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "reciprocal_rank",
    "search",
]
