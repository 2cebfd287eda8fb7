"""Measures of embeddings and of tables of pairs: what an encoder has learned, and what a mixer made of a batch.

Pure functions in torch, without gradient. Embeddings of any length are divided by it. Where memory would grow with the
square of the examples they work in blocks.
"""

from mixcontrast.analysis.calibration import Reliability, calibration_error, reliability, reliability_of
from mixcontrast.analysis.mixtures import (
    FalseNegatives,
    Hardness,
    cell_gradients,
    false_negatives,
    gradient_shares,
    hardness,
)
from mixcontrast.analysis.neighbours import utilization
from mixcontrast.analysis.ordering import rank_correlation
from mixcontrast.analysis.proxy_task import proxy_task_accuracy
from mixcontrast.analysis.sphere import alignment, modality_gap, uniformity

__all__ = [
    "FalseNegatives",
    "Hardness",
    "Reliability",
    "alignment",
    "calibration_error",
    "cell_gradients",
    "false_negatives",
    "gradient_shares",
    "hardness",
    "modality_gap",
    "proxy_task_accuracy",
    "rank_correlation",
    "reliability",
    "reliability_of",
    "uniformity",
    "utilization",
]
