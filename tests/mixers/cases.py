"""The table of the conformance suite: a new mixer joins it by a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixcontrast import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    Geodesic,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
    Linear,
    Metrix,
    Mixer,
    MixTerm,
    MoCHi,
    MultiSimilarityLoss,
    NCALoss,
    Pairs,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    SynCo,
)

from . import plain

DIM = 6
INTERPOLATIONS = {"linear": Linear(), "unnormalised": Linear(normalize=False), "geodesic": Geodesic()}
UNEVEN = torch.tensor([7, 7, 7, 7, 7, 2, 2, 2, 5, 5, 9])  # 9 is alone: a row without positives
AGES = torch.tensor([20.0, 22, 22, 25, 24.5, 31, 29, 20, 27, 26, 40], dtype=torch.float64)


def embeddings(size: int, seed: int = 0, *, length: float = 3.0) -> Tensor:
    """Vectors of many lengths, none of them 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, DIM, dtype=torch.float64, generator=generator)
    return (x * (0.5 + length * torch.rand(size, 1, dtype=torch.float64, generator=generator))).requires_grad_()


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        make: a mixer, in double precision, of an interpolation and a choice of detaching.
        inputs: embeddings of any length, and labels; gradients of those that require one are compared.
        reference: the loss, of the mixer, the inputs and the draw.
    """

    name: str
    make: Callable[[Any, bool], Mixer]
    inputs: Callable[[], tuple]
    reference: Callable[[Mixer, tuple, Any], Tensor]
    labels: Tensor | None = None
    towers: bool = False
    is_random: bool = True

    def call(self, inputs: tuple) -> tuple:
        """What the criterion is called with: the towers of a CLIP model end in unit vectors."""
        return (plain.unit(inputs[0]), plain.unit(inputs[1]), *inputs[2:]) if self.towers else inputs

    def tables(self, mixer: Mixer, inputs: tuple) -> tuple[Pairs, ...]:
        mixer.eval()  # a queue then stays as it is
        return mixer.tables(*self.call(inputs))

    def value(self, mixer: Mixer, tables: tuple[Pairs, ...], draw: Any) -> Tensor:
        if isinstance(mixer, GeodesicMixup):
            return mixer.loss_of_towers(tables, draw)
        if self.towers:  # one draw for both directions
            return mixer.loss.reduce_tables([mixer.mix(pairs, draw) for pairs in tables])
        (pairs,) = tables
        return mixer.loss_of(pairs, draw)


def filled(size: int, labels: int = 0) -> KeyQueue:
    queue = KeyQueue(size, DIM, labels=labels).double()
    number = torch.arange(size)
    of_keys = (None, number % 4, torch.stack([3 * number % 8, 5 + 2 * number % 7], dim=1))[labels]
    queue.enqueue(embeddings(size, 5).detach(), of_keys)
    return queue


def leaves(inputs: tuple, mixer: nn.Module) -> list[Tensor]:
    return [x for x in (*inputs, *mixer.parameters()) if isinstance(x, Tensor) and x.requires_grad]


NINE = dict(num_hardest=6, num_pair_mixes=9, num_anchor_mixes=4)
SIX_KINDS = dict(num_hardest=6, num_interpolated=5, num_extrapolated=4, num_pairs=3, num_noised=4, num_gradient=2,
                 num_sign=3, noise_scale=0.3, gradient_step=0.2, sign_step=0.1)  # fmt: skip


def _hard(name: str) -> tuple:
    """The mixer of hard negatives of that name, and its numbers."""
    return (SynCo, SIX_KINDS) if name.startswith("synco") else (MoCHi, NINE)


def _mochi(name: str, loss, plain_loss, inputs, batch_labels) -> Case:
    def make(interpolation, detach):
        mixer, numbers = _hard(name)
        return mixer(loss(), interpolation=interpolation, detach=detach, **numbers).double()

    def reference(mixer, inputs, draw):
        z = torch.cat(inputs) if inputs[1].is_floating_point() else inputs[0]
        return plain.mochi_batch(plain_loss, mixer, z, batch_labels, draw)

    return Case(name, make, inputs, reference, batch_labels)


def _mochi_queue(name: str, num_keys: int, labels: Tensor | None) -> Case:
    def make(interpolation, detach):
        mixer, numbers = _hard(name)
        queue = filled(num_keys, labels is not None) if num_keys else KeyQueue(8, DIM)
        numbers = {**numbers, "num_hardest": 8}
        loss = InfoNCE(temperature=0.2)
        return mixer(loss, queue=queue, interpolation=interpolation, detach=detach, **numbers).double()

    def inputs():
        return (embeddings(7, 1), embeddings(7, 2)) + (() if labels is None else (labels,))

    def reference(mixer, inputs, draw):
        if num_keys == 0:  # the batch's other keys stand in for the queue
            return plain.mochi_queue(
                plain.info_nce(0.2), mixer, inputs, draw, plain.unit(inputs[1]).detach(), plain.others(7)
            )
        allowed = torch.ones(1, 1, dtype=torch.bool)
        if labels is not None:
            allowed = labels[:, None] != mixer.queue.labels
        return plain.mochi_queue(plain.info_nce(0.2), mixer, inputs, draw, mixer.queue.keys, allowed)

    return Case(name, make, inputs, reference, labels)


def _metrix(name: str, loss, plain_loss, *, proxies: str = "", labels: Tensor = UNEVEN, **settings) -> Case:
    def make(interpolation, detach):
        torch.manual_seed(3)
        return Metrix(loss(), interpolation=interpolation, detach=detach, **settings).double()

    def reference(mixer, inputs, draw):
        z, labels = plain.unit(inputs[0]), inputs[1]
        if not proxies:
            return plain.metrix(
                plain_loss, z, z, labels[:, None] == labels, plain.others(len(z)), mixer, draw
            )
        p = plain.unit(mixer.loss.proxies)
        same = labels[:, None] == torch.arange(len(p))
        if proxies == "candidates":
            return plain.metrix(plain_loss, z, p, same, torch.ones_like(same), mixer, draw)
        return plain.metrix(plain_loss, p, z, same.T, torch.ones_like(same.T), mixer, draw)

    return Case(name, make, lambda: (embeddings(len(labels)), labels), reference, labels)


def _supremix(name: str, values: Tensor = AGES, *, loss=SupConLoss, plain_loss=plain.sup_con, **settings) -> Case:
    def make(interpolation, detach):
        return SupReMix(loss(temperature=0.3), interpolation=interpolation, detach=detach, **settings)

    def reference(mixer, inputs, draw):
        return plain.supremix(plain_loss(0.3), mixer, *inputs, draw)

    is_random = settings.get("negatives", True)
    return Case(name, make, lambda: (embeddings(len(values)), values), reference, values, is_random=is_random)


def _geodesic(name: str, *, siglip: bool = False, size: int = 8, epoch: int = 0, **settings) -> Case:
    def make(interpolation, detach):
        chosen = {**settings, "vl": None} if detach else settings
        mixer = GeodesicMixup(
            SigLipLoss() if siglip else ClipLoss(), interpolation=interpolation, detach=detach, **chosen
        )
        mixer.set_epoch(epoch)
        return mixer

    def inputs():
        scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        return (embeddings(size, 1), embeddings(size, 2), scale) + ((bias,) if siglip else ())

    return Case(name, make, inputs, partial(_geodesic_reference, siglip=siglip), towers=True)


def _geodesic_reference(mixer, inputs, draw, *, siglip):
    return plain.geodesic(mixer, inputs, draw, siglip=siglip)


def _towers(name: str, *, labels: Tensor | None = None, queues: tuple[str, ...] = (), of_own: bool = False) -> Case:
    """MoCHi or SynCo around a loss of two towers; the numbers of a queue's labels are those of `labels`, and others."""
    siglip, same_modality = "siglip" in name, of_own or "own" in name
    num_labels = 0 if labels is None else labels.ndim  # (A,) or (A, 2)

    def make(interpolation, detach):
        mixer, numbers = _hard(name)
        loss = (SigLipLoss if siglip else ClipLoss)(
            same_modality=same_modality,
            same_modality_temperature=0.3,
            **{f"{tower}_queue": filled(9, num_labels) for tower in queues},
        )
        return mixer(loss, interpolation=interpolation, detach=detach, same_modality=of_own, **numbers).double()

    def inputs():
        scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        more = () if labels is None else (False, labels)
        return (embeddings(8, 1), embeddings(8, 2), scale, bias, *more)

    def reference(mixer, inputs, draw):
        kept = {tower: getattr(mixer.loss, f"{tower}_queue") for tower in queues}
        return plain.towers(
            mixer, inputs, draw, siglip=siglip, same_modality=same_modality, temperature=0.3,
            queues={tower: (queue.keys, queue.labels) for tower, queue in kept.items()},
        )  # fmt: skip

    return Case(name, make, inputs, reference, labels, towers=True)


OFF = dict(m2=None, v=None, l=None, vl=None)
ALL_KINDS = dict(anchor_negative=True, negative_negative=True)
POSES = torch.tensor([[1.0, 2], [1, 2], [0, 5], [3, 3], [0, 5], [1, 5], [4, 0]], dtype=torch.float64)
SIX = torch.arange(6)

MOCHI = [
    _mochi_queue("mochi-queue", 21, None),
    _mochi_queue("mochi-class-oracle", 21, torch.tensor([0, 1, 2, 3, 0, 9, 1])),
    _mochi_queue("mochi-empty-queue", 0, None),
    _mochi(
        "mochi-two-views",
        partial(InfoNCE, temperature=0.3),
        plain.info_nce(0.3),
        lambda: (embeddings(6, 1), embeddings(6, 2)),
        SIX.repeat(2),
    ),
    _mochi(
        "mochi-labels",
        partial(SupConLoss, temperature=0.3),
        plain.sup_con(0.3),
        lambda: (embeddings(11), UNEVEN),
        UNEVEN,
    ),
    _mochi(
        "mochi-few-negatives",  # the large class has one negative, for six hardest
        partial(MultiSimilarityLoss, beta=10.0),
        plain.multi_similarity(2, 10, 0.5),
        lambda: (embeddings(8), torch.tensor([1, 1, 1, 4, 1, 1, 1, 1])),
        torch.tensor([1, 1, 1, 4, 1, 1, 1, 1]),
    ),
]
SYNCO = [
    _mochi_queue("synco-queue", 21, None),
    _mochi_queue("synco-class-oracle", 21, torch.tensor([0, 1, 2, 3, 0, 9, 1])),
    _mochi_queue("synco-empty-queue", 0, None),
    _mochi(
        "synco-two-views",
        partial(InfoNCE, temperature=0.3),
        plain.info_nce(0.3),
        lambda: (embeddings(6, 1), embeddings(6, 2)),
        SIX.repeat(2),
    ),
    _mochi("synco-labels", partial(SupConLoss, temperature=0.3), plain.sup_con(0.3), lambda: (embeddings(11), UNEVEN),
           UNEVEN),
]  # fmt: skip
GROUPS = torch.tensor([1, 1, 0, 3, 3, 3, 7, 2])
CAPTIONS = torch.tensor([[0, 5], [0, 6], [1, 5], [2, 7], [3, 7], [4, 8], [5, 9], [6, 10]])  # image, caption
TOWERS = [
    _towers("mochi-clip"),
    _towers("mochi-siglip", labels=CAPTIONS),
    _towers("mochi-clip-labels-queues", labels=GROUPS, queues=("image", "text")),
    _towers("mochi-clip-own", queues=("image", "text"), of_own=True),
    _towers("mochi-siglip-own-captions", labels=CAPTIONS, of_own=True),
    _towers("mochi-clip-captions-queues", labels=CAPTIONS, queues=("image", "text")),
    _towers("synco-clip-labels", labels=GROUPS),
    _towers("synco-clip-own-seen", labels=GROUPS, queues=("text", "image")),
    _towers("synco-siglip-own-labels-queues", labels=GROUPS, queues=("image", "text"), of_own=True),
    _towers("synco-siglip-own-captions-queues", labels=CAPTIONS, queues=("image", "text"), of_own=True),
]
METRIX = [
    _metrix("metrix-contrastive", ContrastiveLoss, plain.contrastive()),
    _metrix("metrix-anchor-negative", partial(MultiSimilarityLoss, beta=10.0), plain.multi_similarity(2, 10, 0.5),
            positive_negative=False, anchor_negative=True),
    _metrix("metrix-all-kinds", partial(MultiSimilarityLoss, beta=10.0), plain.multi_similarity(2, 10, 0.5),
            **ALL_KINDS),
    _metrix("metrix-drawn", partial(BinomialDevianceLoss, gamma=9.0), plain.binomial_deviance(2, 9, 0.5),
            num_mixtures=13, **ALL_KINDS),
    _metrix("metrix-shared-lambda", partial(NCALoss, positives_in_denominator=False), plain.nca(0.5, everything=False),
            shared_lambda=True, alpha=0.7, weight=1.5, **ALL_KINDS),
    _metrix("metrix-shared-lambda-drawn", NCALoss, plain.nca(0.5, everything=True), shared_lambda=True, num_mixtures=9,
            **ALL_KINDS),
    _metrix("metrix-max-positives", partial(MultiSimilarityLoss, beta=10.0), plain.multi_similarity(2, 10, 0.5),
            max_positives=3, **ALL_KINDS),
    _metrix("metrix-lifted", LiftedStructureLoss, plain.lifted(1.0)),
    _metrix("metrix-supcon", partial(SupConLoss, temperature=0.3), plain.sup_con(0.3), num_mixtures=5),
    _metrix("metrix-proxy-nca", partial(ProxyNCALoss, 10, DIM, temperature=0.3), plain.nca(0.3, everything=True),
            proxies="candidates", **ALL_KINDS),
    _metrix("metrix-proxy-nca-drawn",
            partial(ProxyNCALoss, 10, DIM, temperature=0.3, positives_in_denominator=False),
            plain.nca(0.3, everything=False), proxies="candidates", num_mixtures=7, **ALL_KINDS),
    _metrix("metrix-proxy-anchor", partial(ProxyAnchorLoss, 10, DIM, alpha=5.0), plain.proxy_anchor(5, 0.1),
            proxies="anchors"),
    _metrix("metrix-proxy-anchor-drawn", partial(ProxyAnchorLoss, 10, DIM, alpha=5.0), plain.proxy_anchor(5, 0.1),
            proxies="anchors", num_mixtures=6, **ALL_KINDS),
]  # fmt: skip
SUPREMIX = [
    _supremix("supremix"),
    _supremix("supremix-squared-window", magnify_power=2, window=3.0),
    _supremix("supremix-unweighted", magnify_power=None, alpha=1.0, beta=1.0),
    _supremix("supremix-capped", max_positive_mixes=4, window=20.0),
    _supremix("supremix-negatives", positives=False),
    _supremix("supremix-positives", negatives=False),
    _supremix("supremix-poses", POSES, positives=False),
    _supremix("supremix-poses-squared", POSES, positives=False, magnify_power=2),
    _supremix("supremix-info-nce", loss=InfoNCE, plain_loss=plain.info_nce),
]
GEODESIC = [
    _geodesic("m3-clip"),
    _geodesic("m3-siglip", siglip=True),
    _geodesic("m2", **{**OFF, "m2": MixTerm(0.3, beta=2.0, temperature=0.4)}),
    _geodesic("m2-own-scale", **{**OFF, "m2": MixTerm(0.3)}),
    _geodesic("v", **{**OFF, "v": MixTerm(0.4)}, decay_with_epoch=True, epoch=3),
    _geodesic("l", **{**OFF, "l": MixTerm(0.4, temperature=0.2)}, epoch=3),
    _geodesic("m3-odd", size=5, m2=MixTerm(0.5), vl=MixTerm(0.7, beta=1.0)),
    _geodesic("m3-siglip-temperature", siglip=True, m2=MixTerm(0.5, temperature=0.2), v=MixTerm(1.0, temperature=0.5)),
]
CASES = MOCHI + SYNCO + TOWERS + METRIX + SUPREMIX + GEODESIC
TABLE_CASES = MOCHI + SYNCO + METRIX + SUPREMIX  # one table in, one table out
