"""One batch explained: what was mixed, how hard it is, and what share of the loss and of its gradient it carries."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mixcontrast.analysis import FalseNegatives, Hardness, cell_gradients, false_negatives, hardness
from mixcontrast.explanation.made import Made, Parent, dense, of_metrix, of_mochi, of_supremix, of_synco
from mixcontrast.explanation.towers import of_deep, of_geodesic
from mixcontrast.losses import Loss
from mixcontrast.mixers import DeepMetrix, GeodesicMixup, Metrix, Mixer, MoCHi, SupReMix, SynCo
from mixcontrast.mixers.base import innermost
from mixcontrast.pairs import Block, Pairs


@dataclass(frozen=True)
class Read:
    """A table that the loss reads, its factor in the total, and which of its blocks are mixtures."""

    pairs: Pairs
    factor: float
    mixed: tuple[bool, ...]


@dataclass(frozen=True)
class Explanation:
    """A batch as a criterion saw it.

    Attributes:
        criterion: as it would be written.
        loss: its value.
        of_loss: the share of the loss that is gone when the mixed columns are taken out: negative where they lower it;
            NaN where nothing is left without them.
        of_gradient: the share of the gradient, by cells of the table in absolute value, that mixed columns carry.
        kinds: the mixtures, kind by kind.
        gradients: (A, M) of each kind, the share of the whole gradient that each mixture carries.
        pairs: the table before mixing, with the classes or values that are known.
        hardness: similarities of positives, negatives and mixtures.
        back: of a loss that is read both ways, the other table before mixing: from texts to images.
    """

    criterion: str
    loss: float
    of_loss: float
    of_gradient: float
    kinds: list[Made]
    gradients: list[Tensor]
    pairs: Pairs
    hardness: Hardness
    back: Pairs | None = None

    @property
    def tables(self) -> tuple[Pairs, ...]:
        """The tables before mixing."""
        return (self.pairs,) if self.back is None else (self.pairs, self.back)

    def hardest_negative(self, kind: Made) -> Tensor | None:
        """(A,) the similarity of the hardest negative, before mixing, of each anchor of a kind of mixture.

        -inf where an anchor has none; None where a kind's anchors are in no table, as they are mixtures themselves.
        """
        for table in self.tables:
            if same_vectors(kind.anchors, table.anchors):
                return _hardest(table.real, dim=1)
        for block in self.pairs.real:
            if same_vectors(kind.anchors, block.candidates):  # proxies, as a deep mixture's anchors
                return _hardest((block,), dim=0)
        return None

    def harder(self, kind: Made) -> float | None:
        """The share of a kind's mixtures that are more similar to their anchor than its hardest negative.

        None where there is no mixture, or no negative before mixing to compare with.
        """
        hardest, counts = self.hardest_negative(kind), kind.weight > 0
        if hardest is None or not bool(counts.any()):
            return None
        return float((kind.similarity > hardest[:, None])[counts].float().mean())

    def false_negatives(self, kind: Made) -> FalseNegatives | None:
        """How many mixtures of a kind are negatives made of the anchor's own class.

        Labels of two columns are of an image's group and a caption; who shares either belongs together. None where
        they are no negatives, or where the classes are not known.
        """
        known = [part for part in kind.parents if part.labels is not None and part.name != "anchor"]
        labels = kind.anchor_labels
        keep = (kind.target == 0) & (kind.weight > 0)
        if labels is None or labels.is_floating_point() or not known or not bool(keep.any()):
            return None
        if labels.ndim > 1:
            return _false_pairs(labels, known, keep)
        if all(bool((part.labels == -1).all()) for part in known) or bool((labels == -1).all()):
            return None
        return false_negatives(labels, known[0].labels, *(part.rows for part in known), keep=keep)


def explain(
    criterion: Loss | Mixer | DeepMetrix,
    *inputs: nn.Module | Tensor,
    classes: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Explanation:
    """What the mixers of a criterion make of one batch.

    Nothing is changed by it: keys do not join a queue, steps are not counted, statistics of batch norm stay. Mixers
    mix whether or not their warm-up is over. Of a loss that is read both ways (image and text) it is the first.

    Args:
        criterion: a loss, or mixers around one.
        inputs: what it is called with.
        classes: (B,) integers of the batch, -1 where unknown, where the criterion is not called with them: they tell
            which mixtures are false negatives. Of images and texts (B, 2): the image's group and the caption.
        generator: of the draw; None: torch's own.

    Raises:
        TypeError: no criterion of ours.
        ValueError: as the criterion; a loss that is 0 or has no gradient.

    >>> from mixcontrast import MoCHi, SupConLoss
    >>> criterion = MoCHi(SupConLoss(), num_hardest=4, num_pair_mixes=3, num_anchor_mixes=2)
    >>> found = explain(criterion, torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
    >>> [(made.kind, tuple(made.similarity.shape)) for made in found.kinds]
    [('two hard negatives', (6, 3)), ('anchor with hard negative', (6, 2))]
    >>> found.false_negatives(found.kinds[0])  # classes are read, so negatives are
    FalseNegatives(any=0.0, all=0.0, count=18)
    """
    if not isinstance(criterion, Loss | Mixer | DeepMetrix):
        raise TypeError(
            f"`criterion` must be a loss or mixer of mixcontrast. Got {type(criterion).__name__}; take as_pml's or "
            "from_pml's inner one."
        )
    training = criterion.training
    criterion.eval()
    try:
        with torch.no_grad():
            return _explain(criterion, inputs, classes, generator)
    finally:
        criterion.train(training)


def _explain(criterion, inputs, classes: Tensor | None, generator: torch.Generator | None) -> Explanation:
    reads: list[Read] = []
    kinds: list[Made] = []
    if isinstance(criterion, DeepMetrix):
        encoder, batch, labels = inputs
        draw = criterion.draw(labels, generator)
        embeddings, mixed = criterion.embed(copy.deepcopy(encoder), batch, draw)
        pairs, *back = criterion.loss.tables(embeddings, labels)
        table = criterion.mix(pairs, labels, mixed, draw)
        kinds += of_deep(criterion, pairs, table, labels, mixed, draw)
        reads.append(Read(table, criterion.weight, (True,) * len(table.blocks)))
        inner = criterion.loss
    else:
        (pairs, *back), inner = criterion.tables(*inputs), criterion
    pairs, *back = (_with_classes(table, classes) for table in (pairs, *back))
    _walk(inner, pairs, reads, kinds, generator)
    tables, factors = [read.pairs for read in reads], [read.factor for read in reads]
    loss = innermost(criterion.loss if isinstance(criterion, DeepMetrix) else criterion)

    def total(*tables: Pairs) -> Tensor:
        return sum(factor * loss.reduce(table) for factor, table in zip(factors, tables, strict=True))

    value = float(total(*tables))
    gradients = cell_gradients(total, *tables)
    whole = sum(float(part.abs().sum()) for table in gradients for part in table)
    if not whole > 0:
        raise ValueError(
            f"There is nothing to explain: the loss of this batch is {value:g} and has no gradient. Take another "
            "batch, or a checkpoint from before."
        )
    of_mixtures = sum(
        float(part.abs().sum())
        for read, table in zip(reads, gradients, strict=True)
        for part, mixed in zip(table, read.mixed, strict=True)
        if mixed
    )
    shares = [_of_kind(kind, reads, gradients).abs() / whole for kind in kinds]
    return Explanation(
        written(criterion), value, _of_loss(loss, reads, value), of_mixtures / whole, kinds, shares, pairs,
        _hardness(pairs, kinds), back[0] if back else None,
    )  # fmt: skip


def _walk(
    criterion: Loss | Mixer, pairs: Pairs, reads: list[Read], kinds: list[Made], generator: torch.Generator | None
) -> None:
    """Mixes as training does, outermost first, and notes the tables that the loss reads in the end."""
    if not isinstance(criterion, Mixer):
        mixtures = [kind.cells[0].similarity for kind in kinds]
        reads.append(Read(pairs, 1.0, tuple(any(block.similarity is m for m in mixtures) for block in pairs)))
        return
    draw = criterion.draw(pairs, generator)
    mixed = criterion.mix(pairs, draw)
    if isinstance(criterion, Metrix):
        kinds += of_metrix(criterion, pairs, draw, mixed)
        reads.append(Read(mixed, criterion.weight, (True,) * len(mixed.blocks)))
        _walk(criterion.loss, pairs, reads, kinds, generator)
    elif isinstance(criterion, GeodesicMixup):
        kinds += of_geodesic(criterion, pairs, draw, mixed)
        decay = criterion.epoch + 1 if criterion.decay_with_epoch else 1
        for name, table in mixed.items():
            weight = criterion.terms[name].weight / decay
            reads.append(Read(table, weight, (True,) * len(table.blocks)))
        _walk(criterion.loss, pairs, reads, kinds, generator)
    else:
        make = {MoCHi: of_mochi, SynCo: of_synco, SupReMix: of_supremix}
        if type(criterion) not in make:
            raise TypeError(
                f"{type(criterion).__name__} is a mixer that cannot be explained. There are "
                f"{', '.join(kind.__name__ for kind in (*make, Metrix, GeodesicMixup, DeepMetrix))}."
            )
        kinds += make[type(criterion)](criterion, pairs, draw, mixed)
        _walk(criterion.loss, mixed, reads, kinds, generator)


def _with_classes(pairs: Pairs, classes: Tensor | None) -> Pairs:
    """The table with the classes that its constructor did not ask for: of two views, or of queries and queued keys."""
    if classes is None or pairs.anchor_labels is not None and classes.ndim == 1:
        return pairs
    if classes.ndim > 1:  # tells more than groups alone, which a queue's labels are
        if len(classes) != len(pairs.anchors):
            return pairs
        width = pairs.blocks[0].similarity.shape[1]
        return replace(pairs, anchor_labels=classes, candidate_labels=classes if width == len(classes) else None)
    times = len(pairs.anchors) // len(classes)
    labels, width = classes.repeat(times), pairs.blocks[0].similarity.shape[1]
    if width == len(labels):
        return replace(pairs, anchor_labels=labels, candidate_labels=labels)
    return replace(pairs, anchor_labels=labels)


def same_vectors(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are of the same anchors."""
    return first.shape == second.shape and torch.equal(first, second.detach())


def _hardest(blocks: tuple[Block, ...], dim: int) -> Tensor:
    """The most similar negative of each row (dim 1) of blocks beside each other, or of each column (dim 0) of one."""
    parts = []
    for block in blocks:
        like = block.similarity.detach()
        negative = (dense(block.target, like) == 0) & (dense(block.weight, like) > 0)
        cells = torch.where(negative, like, -torch.inf)
        parts.append(cells if cells.shape[dim] else cells.new_full((len(cells), 1), -torch.inf))
    return torch.cat(parts, dim=1).amax(dim=dim)


def _false_pairs(labels: Tensor, parents: list[Parent], keep: Tensor) -> FalseNegatives:
    """The same of (A, L) labels, of which one in common is enough."""
    same = torch.stack(
        [(part.labels[part.rows] == labels[:, None]).any(dim=-1) for part in parents]
    )[:, keep]  # (parents, mixtures)
    return FalseNegatives(
        same.any(dim=0).double().mean().item(), same.all(dim=0).double().mean().item(), int(keep.sum())
    )


def _of_kind(kind: Made, reads: list[Read], gradients: list[list[Tensor]]) -> Tensor:
    """(A, M) the gradient by each mixture's cell."""
    block, columns, turned = kind.cells
    for read, table in zip(reads, gradients, strict=True):
        for mine, gradient in zip(read.pairs.blocks, table, strict=True):
            if mine.similarity is block.similarity:
                return (gradient.mT if turned else gradient)[:, columns]
    raise RuntimeError(f"No table that the loss reads holds the mixtures '{kind.kind}'.")


def _of_loss(loss: Loss, reads: list[Read], value: float) -> float:
    """The share of the loss that is gone without mixed columns."""
    without = 0.0
    for read in reads:
        blocks = tuple(b for b, mixed in zip(read.pairs.blocks, read.mixed, strict=True) if not mixed)
        if not blocks:
            continue
        try:
            without += read.factor * float(loss.reduce(replace(read.pairs, blocks=blocks)))
        except ValueError:  # no anchor keeps a positive
            return float("nan")
    return 1 - without / value if value else float("nan")


def _hardness(pairs: Pairs, kinds: list[Made]) -> Hardness:
    """Of the table before mixing, and of all that was made."""
    found = hardness(pairs)
    cells = {"mixed_positive": [], "mixed_negative": [], "mixed_between": [], "mixed_target": []}
    for kind in kinds:
        counts = kind.weight > 0
        for name, where in (
            ("mixed_positive", counts & (kind.target == 1)),
            ("mixed_negative", counts & (kind.target == 0)),
            ("mixed_between", counts & (kind.target > 0) & (kind.target < 1)),
        ):
            cells[name].append(kind.similarity[where])
            if name == "mixed_between":
                cells["mixed_target"].append(kind.target[where])
    return replace(found, **{name: torch.cat(parts) for name, parts in cells.items() if parts})


def written(criterion: Loss | Mixer | DeepMetrix) -> str:
    """A stack as it would be written, without its numbers."""
    name = type(criterion).__name__
    return f"{name}({written(criterion.loss)})" if isinstance(criterion, Mixer | DeepMetrix) else name
