"""How embeddings lie on the unit sphere: uniformity, alignment, and the gap between two towers."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.analysis.blocks import check_positive, check_same_width, square_blocks
from mixcontrast.checks import check_embeddings, check_same_shape
from mixcontrast.similarity import unit


@torch.no_grad()
def uniformity(embeddings: Tensor, *, t: float = 2.0) -> Tensor:
    """How evenly embeddings are spread: `log mean_{i<j} exp(-t |z_i - z_j|^2)`; lower is more even.

    Args:
        embeddings: (N, D) floats of any length, N at least 2; they are divided by their Euclidean length.
        t: > 0; the paper's 2.

    Returns:
        A 0-dimensional tensor between `-4t` and 0; 0 where all embeddings are one point. A wide uniform sphere gives
        about `-2t`.

    Raises:
        ValueError: fewer than two embeddings, `t` not positive; on a CPU also NaN or zero embeddings.

    Cost: the N(N-1)/2 cosines, in blocks of sixteen megabytes.

    Source: Wang and Isola, ICML 2020, arXiv 2005.10242.

    >>> uniformity(torch.tensor([[1., 0.], [0., 2.]]))  # |z1 - z2|^2 = 2
    tensor(-4.)
    """
    check_embeddings("embeddings", embeddings)
    check_positive(t=t)
    if len(embeddings) < 2:
        raise ValueError(
            f"Uniformity is of pairs of embeddings. Got embeddings {tuple(embeddings.shape)}; give at least two."
        )
    z = unit(embeddings)
    blocks = square_blocks(len(z))
    sums = []
    for place, rows in enumerate(blocks):
        for columns in blocks[place:]:
            logits = (z[rows] @ z[columns].mT).sub_(1).mul_(2 * t)  # -t |z_i - z_j|^2
            if rows == columns:
                logits = logits[torch.ones_like(logits, dtype=torch.bool).triu_(1)]
            if logits.numel():
                sums.append(logits.flatten().logsumexp(0).double())
    pairs = len(z) * (len(z) - 1) / 2
    count = torch.tensor(pairs, dtype=torch.float64, device=z.device)
    return (torch.stack(sums).logsumexp(0) - count.log()).to(z.dtype)


@torch.no_grad()
def alignment(view1: Tensor, view2: Tensor, *, alpha: float = 2.0) -> Tensor:
    """How close the two of each positive pair are: `mean_i |x_i - y_i|^alpha`; lower is closer.

    Args:
        view1: (N, D) floats of any length; they are divided by their Euclidean length.
        view2: (N, D) the positive of each, in the same order: another view, or its caption.
        alpha: > 0; the paper's 2.

    Returns:
        A 0-dimensional tensor between 0 and `2^alpha`.

    Raises:
        ValueError: shapes that differ, `alpha` not positive; on a CPU also NaN or zero embeddings.

    Source: Wang and Isola, ICML 2020, arXiv 2005.10242.

    >>> alignment(torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[3., 0.], [0., -1.]]))
    tensor(2.)
    """
    check_embeddings("view1", view1)
    check_embeddings("view2", view2)
    check_same_shape("view1", view1, "view2", view2)
    check_positive(alpha=alpha)
    return torch.linalg.vector_norm(unit(view1) - unit(view2), dim=1).pow(alpha).mean()


@torch.no_grad()
def modality_gap(image_features: Tensor, text_features: Tensor) -> Tensor:
    """The distance between the centres of two towers' embeddings: `|mean_i x_i - mean_j y_j|`.

    Args:
        image_features: (N, D) floats of any length; they are divided by their Euclidean length.
        text_features: (M, D) likewise; M need not be N.

    Returns:
        A 0-dimensional tensor between 0 and 2.

    Raises:
        ValueError: widths that differ; on a CPU also NaN or zero features.

    Source: Liang et al., NeurIPS 2022, arXiv 2203.02053.

    >>> modality_gap(torch.tensor([[1., 0.]]), torch.tensor([[0., 1.], [0., -1.]]))
    tensor(1.)
    """
    check_embeddings("image_features", image_features)
    check_embeddings("text_features", text_features)
    check_same_width("image_features", image_features, "text_features", text_features)
    return torch.linalg.vector_norm(unit(image_features).mean(dim=0) - unit(text_features).mean(dim=0))
