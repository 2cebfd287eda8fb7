"""What the mixers of a criterion make of one batch, and what it does to the loss. Nothing here is part of training."""

from mixcontrast.explanation.batch import Explanation, explain
from mixcontrast.explanation.made import Made, Parent

__all__ = ["Explanation", "Made", "Parent", "explain"]
