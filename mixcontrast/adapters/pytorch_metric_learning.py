"""pytorch-metric-learning's losses turned into ours, and ours used as theirs.

Before::

    criterion = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    loss = criterion(embeddings, labels)

After, in a loop of your own::

    criterion = Metrix(from_pml(losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)))
    loss = criterion(embeddings, labels)

After, where the library calls the loss (trainers, miners, CrossBatchMemory, DistributedLossWrapper)::

    criterion = as_pml(Metrix(from_pml(losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5))))
    loss = criterion(embeddings, labels, miner(embeddings, labels))
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixcontrast.checks import check_embeddings, reads_values
from mixcontrast.losses.base import Loss
from mixcontrast.losses.hard_negatives import HardNegativeLoss
from mixcontrast.losses.pair_sums import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
)
from mixcontrast.losses.proxies import ProxyAnchorLoss, ProxyNCALoss
from mixcontrast.losses.softmax import InfoNCE, RankNContrastLoss, SupConLoss
from mixcontrast.losses.triplet import TripletLoss
from mixcontrast.mixers.base import Mixer, innermost
from mixcontrast.mixers.supremix import SupReMix
from mixcontrast.pairs import Block, Pairs
from mixcontrast.similarity import similarity_table, unit

try:
    import pytorch_metric_learning.losses as pml
    from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
    from pytorch_metric_learning.reducers import DivisorReducer, MeanReducer, MultipleReducers, ThresholdReducer
    from pytorch_metric_learning.utils import common_functions
    from pytorch_metric_learning.utils import loss_and_miner_utils as miner_utils
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"This adapter needs pytorch-metric-learning: {error}; pip install 'mixcontrast[pytorch-metric-learning]'"
    ) from None

Indices = tuple[Tensor, ...]  # (anchors, positives, negatives), or (anchors, positives, anchors, negatives)


# ---- theirs into ours


def from_pml(loss: nn.Module) -> Loss:
    """Our equal of one of their losses: the same hyper-parameters, the same value and gradient.

    | theirs | ours |
    |---|---|
    | ContrastiveLoss | ContrastiveLoss(per_anchor=False), cosine or Euclidean |
    | TripletMarginLoss | TripletLoss(per_anchor=False), cosine or Euclidean |
    | MultiSimilarityLoss | MultiSimilarityLoss |
    | SupConLoss | SupConLoss |
    | NTXentLoss | SupConLoss(positives_in_denominator=False, per_anchor=False) |
    | SelfSupervisedLoss(NTXentLoss or SupConLoss) | InfoNCE, called with two views |
    | GeneralizedLiftedStructureLoss | LiftedStructureLoss, cosine or Euclidean |
    | NCALoss | NCALoss |
    | ProxyNCALoss | ProxyNCALoss, with its proxies |
    | NormalizedSoftmaxLoss | ProxyNCALoss, with a transposed copy of its weights |
    | ProxyAnchorLoss | ProxyAnchorLoss, with its proxies |

    Distances stay distances: a loss under LpDistance has an equal where ours can read `sqrt(2 - 2 cosine)`, or where a
    softmax of squared distances is one of cosines at another temperature. Proxies are the very parameters of the loss
    given, so an optimizer that has them goes on; so that of NormalizedSoftmaxLoss does not.

    What differs where a batch is degenerate: an anchor without a positive is left out of our means, where their
    MultiSimilarityLoss counts its negatives; a batch without any positive raises, where theirs is a silent 0. Where a
    row's SupConLoss or NTXentLoss rounds to 0, an AvgNonZeroReducer leaves it out and ours counts it.

    Args:
        loss: one of `pytorch_metric_learning.losses`.

    Raises:
        TypeError: the loss, or it under its distance, reducer, regularizer or other setting, has no equal.

    >>> from_pml(pml.ContrastiveLoss(pos_margin=0, neg_margin=0.8)).negative_margin
    0.8
    """
    if type(loss) is pml.SelfSupervisedLoss:
        return _self_supervised(loss)
    make = _EQUALS.get(type(loss))
    if make is None:
        raise TypeError(
            f"from_pml knows no equal of this loss. Got {type(loss).__module__}.{type(loss).__name__}; there is one of "
            f"{', '.join(sorted(known.__name__ for known in _EQUALS))}."
        )
    _check_regularizers(loss)
    return make(loss)


def _contrastive(loss: pml.ContrastiveLoss) -> Loss:
    return ContrastiveLoss(
        positive_margin=float(loss.pos_margin),
        negative_margin=float(loss.neg_margin),
        euclidean=_euclidean_or_cosine(loss),
        per_anchor=False,
        only_violated=_averages_non_zero(loss),
    )


def _triplet(loss: pml.TripletMarginLoss) -> Loss:
    for name, usual in {"swap": False, "smooth_loss": False, "triplets_per_anchor": "all"}.items():
        if getattr(loss, name) != usual:
            raise _no_equal(loss, f"{name}={getattr(loss, name)!r}", f"set {name}={usual!r}")
    return TripletLoss(
        margin=float(loss.margin),
        euclidean=_euclidean_or_cosine(loss),
        per_anchor=False,
        only_violated=_averages_non_zero(loss),
    )


def _multi_similarity(loss: pml.MultiSimilarityLoss) -> Loss:
    _needs_cosine(loss)
    _averages_non_zero(loss)
    return MultiSimilarityLoss(alpha=float(loss.alpha), beta=float(loss.beta), base=float(loss.base))


def _sup_con(loss: pml.SupConLoss) -> Loss:
    _averages_non_zero(loss)
    return SupConLoss(temperature=_temperature(loss, loss.temperature))


def _nt_xent(loss: pml.NTXentLoss) -> Loss:
    _averages_non_zero(loss)
    temperature = _temperature(loss, loss.temperature)
    return SupConLoss(temperature=temperature, positives_in_denominator=False, per_anchor=False)


def _self_supervised(loss: pml.SelfSupervisedLoss) -> Loss:
    inner = loss.loss
    if not loss.symmetric:
        raise _no_equal(loss, "symmetric=False", "set symmetric=True")
    if type(inner) not in (pml.NTXentLoss, pml.SupConLoss):
        raise _no_equal(
            loss, f"a {type(inner).__name__}", "call from_pml(loss)(torch.cat([view1, view2]), arange(B).repeat(2))"
        )
    _check_regularizers(inner)
    _averages_non_zero(inner)
    return InfoNCE(temperature=_temperature(inner, inner.temperature))


def _lifted(loss: pml.GeneralizedLiftedStructureLoss) -> Loss:
    if _averages_non_zero(loss):
        raise _no_equal(loss, "an AvgNonZeroReducer, which leaves anchors of loss 0 out", "use a MeanReducer")
    return LiftedStructureLoss(
        positive_margin=float(loss.pos_margin),
        negative_margin=float(loss.neg_margin),
        euclidean=_euclidean_or_cosine(loss),
    )


def _nca(loss: pml.NCALoss) -> Loss:
    _averages_non_zero(loss)
    return NCALoss(temperature=_temperature(loss, 1 / loss.softmax_scale))


def _proxy_nca(loss: pml.ProxyNCALoss) -> Loss:
    _averages_non_zero(loss)
    ours = ProxyNCALoss(*loss.proxies.shape, temperature=_temperature(loss, 1 / loss.softmax_scale))
    ours.proxies = loss.proxies
    return ours


def _normalized_softmax(loss: pml.NormalizedSoftmaxLoss) -> Loss:
    _averages_non_zero(loss)
    ours = ProxyNCALoss(*loss.W.T.shape, temperature=_temperature(loss, loss.temperature))
    ours.proxies = nn.Parameter(loss.W.detach().T.clone())
    return ours


def _proxy_anchor(loss: pml.ProxyAnchorLoss) -> Loss:
    _needs_cosine(loss)
    if any(type(reducer) is not DivisorReducer for reducer in _reducers(loss)):
        raise _no_equal(loss, f"a {type(_reducers(loss)[0]).__name__}", "use its own DivisorReducer")
    ours = ProxyAnchorLoss(*loss.proxies.shape, alpha=float(loss.alpha), delta=float(loss.margin))
    ours.proxies = loss.proxies
    return ours


_EQUALS = {
    pml.ContrastiveLoss: _contrastive,
    pml.GeneralizedLiftedStructureLoss: _lifted,
    pml.MultiSimilarityLoss: _multi_similarity,
    pml.NCALoss: _nca,
    pml.NTXentLoss: _nt_xent,
    pml.NormalizedSoftmaxLoss: _normalized_softmax,
    pml.ProxyAnchorLoss: _proxy_anchor,
    pml.ProxyNCALoss: _proxy_nca,
    pml.SupConLoss: _sup_con,
    pml.TripletMarginLoss: _triplet,
}


def _is_cosine(loss: nn.Module) -> bool:
    distance = loss.distance
    of_dots = type(distance) in (CosineSimilarity, DotProductSimilarity)
    return of_dots and distance.normalize_embeddings and distance.p == 2 and distance.power == 1


def _is_euclidean(loss: nn.Module, power: int) -> bool:
    """Whether it reads `power`-th powers of Euclidean distances of unit vectors."""
    distance = loss.distance
    return type(distance) is LpDistance and distance.normalize_embeddings and (distance.p, distance.power) == (2, power)


def _needs_cosine(loss: nn.Module) -> None:
    if not _is_cosine(loss):
        raise _no_equal(loss, _named(loss.distance), "use CosineSimilarity()")


def _euclidean_or_cosine(loss: nn.Module) -> bool:
    if not _is_cosine(loss) and not _is_euclidean(loss, power=1):
        raise _no_equal(loss, _named(loss.distance), "use CosineSimilarity() or LpDistance(p=2)")
    return not _is_cosine(loss)


def _temperature(loss: nn.Module, temperature: float) -> float:
    """Of cosines: a squared distance of unit vectors is `2 - 2 cosine`, and a softmax does not see the 2 added."""
    if _is_euclidean(loss, power=2):
        return temperature / 2
    if not _is_cosine(loss):
        raise _no_equal(loss, _named(loss.distance), "use CosineSimilarity() or LpDistance(p=2, power=2)")
    return float(temperature)


def _reducers(loss: nn.Module) -> list[nn.Module]:
    several = type(loss.reducer) is MultipleReducers
    return list(loss.reducer.reducers.values()) if several else [loss.reducer]


def _averages_non_zero(loss: nn.Module) -> bool:
    """Whether zeros are left out of its mean."""
    reducers = _reducers(loss)
    if all(type(reducer) is MeanReducer for reducer in reducers):
        return False
    if all(isinstance(r, ThresholdReducer) and r.low == 0 and r.high is None for r in reducers):
        return True
    names = "/".join(sorted({type(reducer).__name__ for reducer in reducers}))
    raise _no_equal(loss, f"a {names}", "use a MeanReducer or AvgNonZeroReducer")


def _check_regularizers(loss: nn.Module) -> None:
    if loss.embedding_regularizer is not None:
        raise _no_equal(loss, "an embedding_regularizer", "add it to the loss in your training step")
    if isinstance(loss, pml.ProxyAnchorLoss | pml.ProxyNCALoss | pml.NormalizedSoftmaxLoss):
        if loss.weight_regularizer is not None:
            raise _no_equal(loss, "a weight_regularizer", "add it to the loss in your training step")


def _named(distance: nn.Module) -> str:
    normalized = distance.normalize_embeddings
    return f"{type(distance).__name__}(normalize_embeddings={normalized}, p={distance.p}, power={distance.power})"


def _no_equal(loss: nn.Module, seen: str, remedy: str) -> TypeError:
    return TypeError(f"{type(loss).__name__} has an equal here, but not with every setting. Got {seen}; {remedy}.")


# ---- ours as theirs


def as_pml(criterion: Loss | Mixer) -> pml.BaseMetricLossFunction:
    """One of ours under their call: `loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)`.

    It goes where a loss of theirs goes: their trainers, after their miners, in CrossBatchMemory, SelfSupervisedLoss,
    MultipleLosses and DistributedLossWrapper. Index tuples become weights: pairs that the miner chose are the table's
    positives and negatives, and all others are left out, of the mixing too. As in theirs, a pair that occurs in several
    triplets counts as often in ContrastiveLoss, BinomialDevianceLoss and SupConLoss(positives_in_denominator=False),
    else once; an anchor of which nothing was chosen counts as 0 in the mean of MultiSimilarityLoss and
    LiftedStructureLoss, and is left out of the others. So `as_pml(from_pml(loss))` is `loss` there, but for three:
    TripletLoss sets an anchor's chosen positives against all its chosen negatives; NCALoss leaves pairs out where
    theirs weighs anchors; proxy losses leave out examples that were not chosen, and weigh the others by how often.

    A batch of which the miner chose nothing warns and gives 0, as a step more must not end a run.

    In DistributedLossWrapper each rank draws its own mixtures; for one draw on all ranks use `Gathered(criterion)`.

    Args:
        criterion: a loss called with `(embeddings, labels)`, or mixers around one.

    Raises:
        TypeError: `criterion` is none of ours, or is called with two views, two towers or a queue. When called: an
            index tuple or reference embeddings for a criterion of real values; reference embeddings for proxies.
        ValueError: when called: a pair that is both positive and negative (on a CPU); as the criterion.

    >>> from mixcontrast import Metrix
    >>> loss = as_pml(Metrix(MultiSimilarityLoss()))(torch.randn(8, 4), torch.arange(8) // 2)
    """
    if not isinstance(criterion, Loss | Mixer):
        raise TypeError(
            f"as_pml takes a mixcontrast loss or mixer. Got {type(criterion).__name__}; "
            "one of theirs is turned into ours by from_pml."
        )
    bottom = innermost(criterion)
    caller = bottom.loss if isinstance(bottom, HardNegativeLoss) else bottom
    if isinstance(caller, InfoNCE) or bottom.towers or any(True for _ in criterion.buffers()):
        raise TypeError(
            f"as_pml takes a criterion called with (embeddings, labels). Got {type(criterion).__name__} on "
            f"{type(bottom).__name__}, called with two views, towers or a queue; use SupConLoss("
            "positives_in_denominator=False), InfoNCE's equal with labels, and CrossBatchMemory for a queue."
        )
    return _KNOWN.get(type(bottom), _Criterion)(criterion)


class _Criterion(pml.BaseMetricLossFunction):
    """A criterion of ours under their call."""

    def __init__(self, criterion: Loss | Mixer) -> None:
        super().__init__(distance=CosineSimilarity())  # what ours compare by; their default would say LpDistance
        self.criterion = criterion

    @property
    def bottom(self) -> Loss:
        """The loss beneath the mixers."""
        return innermost(self.criterion)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Indices | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict:
        alone = ref_emb is embeddings
        if indices_tuple is None and alone:
            return _reduced(self.criterion(embeddings, labels))
        if isinstance(self.bottom, RankNContrastLoss) or _has_supremix(self.criterion):
            raise TypeError(
                "A criterion of real values reads the whole batch. Got an index tuple or reference embeddings for "
                f"{type(self.criterion).__name__}; leave out miner and memory."
            )
        common_functions.labels_or_indices_tuple_required(labels, indices_tuple)
        if isinstance(self.bottom, ProxyAnchorLoss | ProxyNCALoss):
            if not alone:
                raise TypeError(
                    f"A proxy loss compares examples with proxies. Got reference embeddings for "
                    f"{type(self.bottom).__name__}; leave out memory and reference."
                )
            return _reduced(self.criterion.reduce_tables(self._weighted(embeddings, labels, indices_tuple)))
        chosen = miner_utils.convert_to_pairs(indices_tuple, labels, ref_labels)
        if all(len(part) == 0 for part in chosen):
            return self._nothing()
        pairs = chosen_pairs(embeddings, ref_emb, chosen, repeated=_counts_repeats(self.bottom))
        kept = self.bottom.kept(pairs)
        if len(chosen[0]) == 0 and not bool(kept.any()):
            return self._nothing()
        loss = self.criterion.reduce_tables((pairs,))
        if isinstance(self.bottom, MultiSimilarityLoss | LiftedStructureLoss):
            loss = loss * (kept.sum() / len(kept))
        return _reduced(loss)

    def _weighted(self, embeddings: Tensor, labels: Tensor, indices_tuple: Indices) -> tuple[Pairs, ...]:
        (pairs,) = self.criterion.tables(embeddings, labels)
        weight = miner_utils.convert_to_weights(indices_tuple, labels, dtype=pairs.anchors.dtype)
        weight = weight[None, :] if isinstance(self.bottom, ProxyAnchorLoss) else weight[:, None]
        return (replace(pairs, blocks=(replace(pairs.blocks[0], weight=weight),)),)

    def _nothing(self) -> dict:
        warnings.warn(
            f"The miner chose no pair that {type(self.bottom).__name__} can read; this batch adds nothing.",
            RuntimeWarning,
            stacklevel=5,
        )
        return self.zero_losses()


def _known_as(name: str):
    """CrossBatchMemory and SelfSupervisedLoss admit a loss by the name of its class: one that they know."""

    def rename(of: type) -> type:
        of.__name__ = name  # its qualified name stays, by which it is pickled
        return of

    return rename


@_known_as("ContrastiveLoss")
class _Contrastive(_Criterion):
    pass


@_known_as("TripletMarginLoss")
class _Triplet(_Criterion):
    pass


@_known_as("MultiSimilarityLoss")
class _MultiSimilarity(_Criterion):
    pass


@_known_as("SupConLoss")
class _SupCon(_Criterion):
    pass


@_known_as("GeneralizedLiftedStructureLoss")
class _Lifted(_Criterion):
    pass


@_known_as("NCALoss")
class _NCA(_Criterion):
    pass


_KNOWN = {
    BinomialDevianceLoss: _Contrastive,
    ContrastiveLoss: _Contrastive,
    HardNegativeLoss: _SupCon,
    LiftedStructureLoss: _Lifted,
    MultiSimilarityLoss: _MultiSimilarity,
    NCALoss: _NCA,
    SupConLoss: _SupCon,
    TripletLoss: _Triplet,
}


def chosen_pairs(embeddings: Tensor, references: Tensor, chosen: Indices, *, repeated: bool) -> Pairs:
    """The table of the pairs that a miner chose; all others have weight 0.

    Args:
        embeddings: (A, D) floats.
        references: (C, D) floats, or the same tensor.
        chosen: rows and columns of positives, then rows and columns of negatives.
        repeated: whether a pair counts as often as it was chosen, or once.

    Raises:
        ValueError: a pair is both positive and negative (on a CPU); on a CPU also NaN or zero embeddings.
    """
    check_embeddings("embeddings", embeddings)
    anchors = candidates = unit(embeddings)
    if references is not embeddings:
        check_embeddings("ref_emb", references)
        candidates = unit(references).to(anchors.dtype)
    a1, p, a2, n = (index.to(anchors.device) for index in chosen)
    positive = anchors.new_zeros(len(anchors), len(candidates))
    negative = torch.zeros_like(positive)
    positive.index_put_((a1, p), positive.new_ones(()), accumulate=repeated)
    negative.index_put_((a2, n), negative.new_ones(()), accumulate=repeated)
    if reads_values(anchors) and bool(((positive > 0) & (negative > 0)).any()):
        row, column = ((positive > 0) & (negative > 0)).nonzero()[0].tolist()
        raise ValueError(
            "A pair is positive or negative. Got both in the index tuple, first for anchor "
            f"{row} and column {column}; look at the miner."
        )
    block = Block(similarity_table(anchors, candidates), positive > 0, positive + negative, candidates)
    return Pairs(anchors, (block,))


def _reduced(loss: Tensor) -> dict:
    return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def _counts_repeats(loss: Loss) -> bool:
    """Whether a pair chosen twice counts twice, as in theirs."""
    if isinstance(loss, SupConLoss):
        return not loss.positives_in_denominator
    return isinstance(loss, ContrastiveLoss | BinomialDevianceLoss)


def _has_supremix(criterion: Loss | Mixer) -> bool:
    while isinstance(criterion, Mixer):
        if isinstance(criterion, SupReMix):
            return True
        criterion = criterion.loss
    return False
