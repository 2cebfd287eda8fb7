"""Two towers judged: retrieval both ways, zero-shot classification, calibration, geometry, weights between two."""

from mixcontrast.judge.cross_modal import connected, cross_modal_retrieval
from mixcontrast.judge.zero_shot import ZeroShot, classify, mean_embeddings, prompts

__all__ = ["ZeroShot", "classify", "connected", "cross_modal_retrieval", "mean_embeddings", "prompts"]
