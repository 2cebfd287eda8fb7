"""How well clusters of embeddings are the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import check_values
from mixcontrast.retrieval.search import assign_clusters
from mixcontrast.retrieval.tables import Table


def clustering_agreement(
    embeddings: Any, labels: Any, *, normalize: bool = True, num_clusters: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Normalised and adjusted mutual information of k-means clusters with the classes.

    NMI rises with the number of clusters even where they mean nothing; AMI is 0 for chance, so compare by it.

    Args:
        embeddings: (N, D) floats, or `StoredEmbeddings`, which k-means reads whole.
        labels: (N,) integers or texts.
        normalize: cluster directions, by cosine.
        num_clusters: None: as many as there are classes.
        seed: of k-means.

    Returns:
        `nmi` in [0, 1], arithmetic mean in the denominator, and `ami`, at most 1.

    Raises:
        ValueError: shapes that do not fit, NaN, rows of zeros under cosine, more clusters than rows.
        TypeError: labels that are neither integers nor texts.

    Source: Vinh, Epps, Bailey, JMLR 2010; k-means and both measures are faiss's and scikit-learn's.

    >>> clustering_agreement(np.repeat(np.eye(3), 5, axis=0), np.repeat([4, 5, 6], 5))
    {'nmi': 1.0, 'ami': 1.0}
    """
    try:
        from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
    except ImportError as error:
        raise ImportError(
            "Agreement of clusters needs scikit-learn. It is not installed; pip install 'mixcontrast[retrieval]'"
        ) from error
    table = Table("embeddings", embeddings, normalize)
    embeddings = table.read(0, len(table))
    labels = check_values("labels", labels, len(embeddings))
    clusters = assign_clusters(embeddings, num_clusters or len(np.unique(labels)), normalize=normalize, seed=seed)
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
    }
