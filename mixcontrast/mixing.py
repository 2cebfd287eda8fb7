"""Coefficients of mixtures of two unit vectors, and random mixing coefficients.

A mixture of two unit vectors is `v = c1*x1 + c2*x2`; whatever the interpolation and whether or not `v` is divided by
its length, only `c1` and `c2` differ, and they depend on `x1` and `x2` through their cosine alone. So the similarity of
`v` to an anchor is `c1*s1 + c2*s2`, two numbers that the table already holds, and no `v` is ever built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.similarity import similarity_table

_LEAST_SQUARED_LENGTH = 1e-4  # of a linear mixture before it is divided by its length: opposite parents cancel
_LEAST_COSINE = -0.999  # parents further apart than 177.4 degrees have no well-defined geodesic
_MOST_COSINE = 1 - 1e-6


@dataclass(frozen=True)
class Linear:
    """`lam*x1 + (1-lam)*x2`, divided by its length where `normalize` is set.

    The squared length of mixtures of nearly opposite parents is bounded below by 1e-4, so that values and gradients
    stay finite; such a mixture is then shorter than 1.
    """

    normalize: bool = True

    def coefficients(self, lam: Tensor, cosine: Tensor | None) -> tuple[Tensor, Tensor]:
        """c1 and c2 of `c1*x1 + c2*x2`.

        Args:
            lam: share of the first parent, in [0, 1] for an interpolation; any shape.
            cosine: of the parents; broadcasts with `lam`; not read without `normalize`.
        """
        if not self.normalize:
            return lam, 1 - lam
        scale = self._scale(lam, cosine)
        return lam * scale, (1 - lam) * scale

    def similarity(self, first: Tensor, second: Tensor, lam: Tensor, cosine: Tensor | None) -> Tensor:
        """Similarity of the mixture to an anchor, from its parents': `c1*first + c2*second`; shapes broadcast."""
        mixed = torch.lerp(second, first, lam.to(second.dtype))
        return mixed * self._scale(lam, cosine) if self.normalize else mixed

    def _scale(self, lam: Tensor, cosine: Tensor) -> Tensor:
        """One over the length: |v|^2 = lam^2 + (1-lam)^2 + 2*lam*(1-lam)*cosine = 1 - 2*lam*(1-lam) * (1 - cosine)."""
        both = torch.addcmul(lam, lam, lam, value=-1)  # lam * (1 - lam)
        squared = torch.addcmul(torch.rsub(both, 1, alpha=2), both, cosine, value=2)
        return squared.clamp(min=_LEAST_SQUARED_LENGTH).rsqrt()


@dataclass(frozen=True)
class Geodesic:
    """Spherical interpolation (slerp): unit length by construction.

    `c = (sin(lam*t), sin((1-lam)*t)) / sin(t)` with `t` the angle of the parents. As `t` tends to 0 it tends to linear
    mixing; opposite parents have no geodesic, so the cosine is clamped at -0.999 and the mixture of such parents is
    not of unit length.

    Source: Shoemake, SIGGRAPH 1985; as a mixture of embeddings, Oh, So et al., NeurIPS 2023, arXiv 2203.03897.
    """

    def coefficients(self, lam: Tensor, cosine: Tensor | None) -> tuple[Tensor, Tensor]:
        """c1 and c2 of `c1*x1 + c2*x2`; arguments as in `Linear.coefficients`."""
        angle = torch.arccos(cosine.clamp(_LEAST_COSINE, _MOST_COSINE))
        sine = torch.sin(angle)
        return torch.sin(lam * angle) / sine, torch.sin((1 - lam) * angle) / sine

    def similarity(self, first: Tensor, second: Tensor, lam: Tensor, cosine: Tensor | None) -> Tensor:
        """Similarity of the mixture to an anchor, from its parents': `c1*first + c2*second`; shapes broadcast."""
        c1, c2 = self.coefficients(lam, cosine)
        return c1 * first + c2 * second


Interpolation = Linear | Geodesic


def stepped_similarity(similarity: Tensor, step: Tensor, inner: Tensor, squared: Tensor | float) -> Tensor:
    """Similarity to an anchor of `(x + e) / |x + e|`, a unit vector after a step `e`; shapes broadcast.

    Args:
        similarity: of `x` to the anchor.
        step: of `e` to the anchor.
        inner: `x . e`.
        squared: `|e|^2`.
    """
    return (similarity + step) * (1 + 2 * inner + squared).clamp(min=_LEAST_SQUARED_LENGTH).rsqrt()


def needs_cosine(interpolation: Interpolation) -> bool:
    """Whether the coefficients depend on the parents at all; un-normalised linear ones do not."""
    return isinstance(interpolation, Geodesic) or interpolation.normalize


def sample_beta(
    alpha: float, beta: float, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Random numbers of the Beta(alpha, beta) distribution, on the device and in the dtype of `like`.

    Beta(1, 1) and Beta(2, 2), of which the mixers draw the most, are drawn by inverting their distribution function
    (one uniform a number); others as a ratio of gammas.

    Raises:
        ValueError: `alpha` or `beta` is not positive.
    """
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"Beta(alpha, beta) needs both positive. Got alpha {alpha}, beta {beta}; 1, 1 is uniform.")
    uniform = alpha == beta and alpha in (1.0, 2.0)
    if uniform:
        u = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
        if alpha == 1.0:
            return u
        return 0.5 - torch.sin(torch.asin(1 - 2 * u) / 3)  # solves 3x^2 - 2x^3 = u
    wide = dict(dtype=torch.float64, device=like.device)
    if alpha == beta:
        concentration = torch.full((2, *shape), alpha, **wide)
    else:
        concentration = torch.stack([torch.full(shape, alpha, **wide), torch.full(shape, beta, **wide)])
    gamma = torch._standard_gamma(concentration, generator=generator)
    gamma = gamma.clamp(min=torch.finfo(torch.float64).tiny)
    return (gamma[0] / gamma.sum(0)).to(like.dtype)


class _AnchorSide(torch.autograd.Function):
    """The table as it is; gradient to the anchors alone, as if the candidates had been detached."""

    @staticmethod
    def forward(ctx, similarity: Tensor, anchors: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(candidates)
        return similarity.view_as(similarity)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None]:
        (candidates,) = ctx.saved_tensors
        return None, grad @ candidates, None


def anchor_side(similarity: Tensor, anchors: Tensor, candidates: Tensor) -> Tensor:
    """(A, C) `anchors @ candidates.detach().T`, from the table at hand instead of a second product."""
    if not candidates.requires_grad:
        return similarity
    if torch.compiler.is_compiling():
        return similarity_table(anchors, candidates.detach())
    return _AnchorSide.apply(similarity.detach(), anchors, candidates.detach())
