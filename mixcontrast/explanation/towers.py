"""Mixtures of two towers' features, and mixtures that the rest of a network embedded."""

from __future__ import annotations

import torch
from torch import Tensor

from mixcontrast.explanation.made import Made, Parent, dense, mixed_parents
from mixcontrast.mixers import DeepMetrix, GeodesicMixup
from mixcontrast.mixers.deep import DeepDraw
from mixcontrast.mixers.geodesic import GeodesicDraw
from mixcontrast.pairs import Block, Pairs


def of_geodesic(mixer: GeodesicMixup, pairs: Pairs, draw: GeodesicDraw, mixed: dict[str, Pairs]) -> list[Made]:
    """The four terms as they stand from images to texts.

    V-Mix is turned, so that its mixtures are columns: the anchors are the texts. VL-Mix compares mixtures with
    mixtures: its anchors are those of the images, which have no class of their own.
    """
    images, texts = pairs.anchors.detach(), pairs.blocks[0].candidates.detach()
    labels = pairs.anchor_labels
    own = torch.arange(len(images), device=images.device)[None]
    found = []
    for name, table in mixed.items():
        block, lam = table.blocks[0], getattr(draw, name).expand(1, len(images))
        if name == "m2":
            parents = mixed_parents(("image", images, own, labels), ("its text", texts, own, labels), lam,
                                    mixer.interpolation)  # fmt: skip
            found.append(_wide("m2-Mix", images, labels, parents, block, lam))
            continue
        of_images = _with_reverse("image", images, own, labels, lam, mixer)
        of_texts = _with_reverse("text", texts, own, labels, lam, mixer)
        if name == "v":
            turned = Block(block.similarity.mT, dense(block.target, block.similarity).mT, 1.0)
            found.append(_wide("V-Mix", texts, labels, of_images, turned, lam, of=block))
        elif name == "l":
            found.append(_wide("L-Mix", images, labels, of_texts, block, lam))
        else:
            mixtures = sum(part.share[0][:, None] * part.vectors[part.rows[0]] for part in of_images)
            found.append(_wide("VL-Mix", mixtures, None, of_texts, block, lam))
    return found


def _with_reverse(
    name: str, features: Tensor, own: Tensor, labels: Tensor | None, lam: Tensor, mixer: GeodesicMixup
) -> tuple[Parent, Parent]:
    reverse = (f"{name} in reverse", features, own.flip(1), labels)
    return mixed_parents((name, features, own, labels), reverse, lam, mixer.interpolation)


def _wide(
    kind: str, anchors: Tensor, labels: Tensor | None, parents: tuple[Parent, Parent], block: Block, lam: Tensor,
    of: Block | None = None,
) -> Made:  # fmt: skip
    """Mixtures that all anchors share."""
    shape = block.similarity.shape
    parents = tuple(
        Parent(part.name, part.vectors, part.rows.expand(shape), part.share.expand(shape), part.labels)
        for part in parents
    )
    cells = (block, slice(None), False) if of is None else (of, slice(None), True)
    return Made(
        kind, anchors, labels, parents, block.similarity.detach(), dense(block.target, block.similarity),
        dense(block.weight, block.similarity), lam.expand(shape), cells,
    )  # fmt: skip


def of_deep(mixer: DeepMetrix, pairs: Pairs, table: Pairs, labels: Tensor, mixed: Tensor, draw: DeepDraw) -> list[Made]:
    """Mixtures at a layer: the parents are examples of the batch, and what they are made of is the layer's.

    Args:
        pairs: the batch's table.
        table: the mixed one.
        labels: (B,) of the batch.
        mixed: (M, D) embedded mixtures.
        draw: what was mixed.
    """
    (block,) = table.blocks
    mixtures = torch.nn.functional.normalize(mixed.detach(), dim=1)
    turned = pairs.candidate_labels is not labels  # proxies are the columns, mixtures the rows
    anchors = pairs.real[0].candidates.detach() if turned else pairs.anchors.detach()
    of_anchors = pairs.candidate_labels if turned else pairs.anchor_labels
    shape = (len(anchors), len(mixtures))
    embeddings = (pairs.anchors if turned else pairs.real[0].candidates).detach()
    parents = tuple(
        Parent(name, embeddings, rows.expand(shape), share.to(embeddings.dtype).expand(shape), labels)
        for name, rows, share in (("example", draw.first, draw.lam), ("other class", draw.second, 1 - draw.lam))
    )
    table = block.similarity.detach()
    similarity, target, weight = (
        cells.mT if turned else cells for cells in (table, dense(block.target, table), dense(block.weight, table))
    )
    where = "the inputs" if mixer.layer is None else f"layer {mixer.layer}"
    return [
        Made(f"mixed at {where}", anchors, of_anchors, parents, similarity, target, weight,
             draw.lam.expand(shape), (block, slice(None), turned), mixtures)
    ]  # fmt: skip
