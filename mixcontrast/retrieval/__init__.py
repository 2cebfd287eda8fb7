"""Retrieval, judged so that the numbers are believed: search at any size, metrics a query, ties by rule, intervals."""

from mixcontrast.retrieval.clustering import clustering_agreement
from mixcontrast.retrieval.evaluation import evaluate, evaluate_pairs
from mixcontrast.retrieval.evaluator import RetrievalEvaluator
from mixcontrast.retrieval.exact import Similarity
from mixcontrast.retrieval.metrics import (
    RankedRelevance,
    first_rank,
    hit_at_k,
    map_at_k,
    map_at_r,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)
from mixcontrast.retrieval.presets import CLIP, DML, TREC, Preset
from mixcontrast.retrieval.processes import shared_search
from mixcontrast.retrieval.results import Comparison, Evaluation, compare, comparison_markdown
from mixcontrast.retrieval.runs import evaluate_run
from mixcontrast.retrieval.search import Neighbours, assign_clusters, search
from mixcontrast.retrieval.seeds import SeededMean, SeededRuns, holm, mean_of_seeds, seeds_that_tell
from mixcontrast.retrieval.statistics import Interval, bootstrap_interval, paired_difference, permutation_p_value
from mixcontrast.retrieval.store import StoredEmbeddings
from mixcontrast.retrieval.trec import read_judgements, read_qrels, read_run, write_qrels, write_run

__all__ = [
    "CLIP",
    "DML",
    "TREC",
    "Comparison",
    "Evaluation",
    "Interval",
    "Neighbours",
    "Preset",
    "RankedRelevance",
    "SeededMean",
    "SeededRuns",
    "Similarity",
    "StoredEmbeddings",
    "RetrievalEvaluator",
    "assign_clusters",
    "bootstrap_interval",
    "clustering_agreement",
    "compare",
    "comparison_markdown",
    "evaluate",
    "evaluate_pairs",
    "evaluate_run",
    "first_rank",
    "hit_at_k",
    "holm",
    "map_at_k",
    "map_at_r",
    "mean_of_seeds",
    "ndcg_at_k",
    "paired_difference",
    "permutation_p_value",
    "precision_at_k",
    "r_precision",
    "read_judgements",
    "read_qrels",
    "read_run",
    "recall_at_k",
    "reciprocal_rank",
    "search",
    "seeds_that_tell",
    "shared_search",
    "write_qrels",
    "write_run",
]
