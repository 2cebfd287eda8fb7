"""Training with Lightning's loop; the losses need none of it."""

from mixcontrast.training.metric_learning import MetricLearning

__all__ = ["MetricLearning"]
