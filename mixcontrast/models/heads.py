"""Small networks: heads over frozen features, projection heads, and a network for tables."""

from __future__ import annotations

from torch import nn


class FeatureHead(nn.Sequential):
    """A head of two layers over features of a frozen network.

    Its embedding is divided by its length by the losses and by the search.

    Args:
        num_features: width of the inputs, 1280 of EfficientNet-lite0.
        embedding_dim: width of an embedding (D).
        hidden: width between.

    Called with `(B, num_features)`; gives `(B, embedding_dim)`.
    """

    def __init__(self, num_features: int, embedding_dim: int, *, hidden: int = 512) -> None:
        super().__init__(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, embedding_dim))


class ProjectionHead(nn.Sequential):
    """The head of MoCo v2 and SimCLR, trained with the backbone and left off when this is judged.

    Args:
        num_features: width of the backbone's features.
        embedding_dim: width of a projection (D), 128 in both papers.
        hidden: width between; as wide as the inputs where it is None.
        batch_norm: batch norm after each layer but the last, as later SimCLR has it.

    Called with `(B, num_features)`; gives `(B, embedding_dim)`.

    Source: Chen et al., arXiv 2003.04297 (MoCo v2); Chen et al., ICML 2020, arXiv 2002.05709 (SimCLR).
    """

    def __init__(
        self, num_features: int, embedding_dim: int = 128, *, hidden: int | None = None, batch_norm: bool = False
    ) -> None:
        hidden = num_features if hidden is None else hidden
        norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
        super().__init__(nn.Linear(num_features, hidden), *norm, nn.ReLU(), nn.Linear(hidden, embedding_dim))


class MLP(nn.Sequential):
    """A network for the rows of a table, or any vectors.

    Args:
        num_features: width of a row.
        embedding_dim: width of an embedding (D).
        hidden: width of each layer between.
        num_layers: how many layers between, at least 1.
        dropout: after each of them, in [0, 1).

    Called with `(B, num_features)`; gives `(B, embedding_dim)`.

    Raises:
        ValueError: `num_layers` below 1.
    """

    def __init__(
        self, num_features: int, embedding_dim: int, *, hidden: int = 256, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1. Got {num_layers}; 1 is one hidden layer.")
        layers: list[nn.Module] = []
        for width in [num_features, *[hidden] * (num_layers - 1)]:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(hidden, embedding_dim))
