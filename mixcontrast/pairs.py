"""The one type that flows: a table of pairs, a row per anchor, a column per candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from mixcontrast.cells import Cells, cells_of, complement, dense, product
from mixcontrast.plans import Columns, Plan
from mixcontrast.records import changed
from mixcontrast.similarity import similarity_table


@dataclass(frozen=True)
class Block:
    """Columns of one origin: the batch, a queue, proxies, or mixtures.

    Attributes:
        similarity: (A, C) cosine or dot product, float32 or float64, before any temperature; higher is closer.
        target: in [0, 1], how alike the pair should be: a number for the whole block, or a bool or float tensor
            of shape (A, C), (A, 1) or (1, C). It carries no gradient.
        weight: >= 0, how much the pair counts; 0 leaves it out. Same forms as `target`; no gradient.
        candidates: (C, D) the embeddings behind the columns; None for mixtures, which have none.
        same_modality: the columns come from the anchors' own tower (images of an image anchor), or are mixed of such.
        temperature: divides these columns' similarities in place of the table's `logit_scale`; None keeps that.
    """

    similarity: Tensor
    target: Cells
    weight: Cells
    candidates: Tensor | None = None
    same_modality: bool = False
    temperature: float | None = None

    @property
    def positive(self) -> Cells:
        """`weight * target`: how much each cell counts as a positive."""
        return product(self.weight, self.target)

    @property
    def negative(self) -> Cells:
        """`weight * (1 - target)`: how much each cell counts as a negative."""
        if all(isinstance(x, Tensor) and x.dtype == torch.bool for x in (self.weight, self.target)):
            return self.weight > self.target  # set in the one, and not in the other
        return product(self.weight, complement(self.target))


@dataclass(frozen=True)
class Tile:
    """Some rows of a larger table.

    Attributes:
        rows: (A,) their numbers in it.
        anchors: (A', D) all its anchors.
    """

    rows: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class Pairs:
    """A table of pairs: what every loss reads and every mixer extends.

    The table is kept as blocks of columns, so that mixed columns join a large queue without copying it.
    `similarity`, `target` and `weight` give the whole table as one tensor each, for those who want to look.

    Attributes:
        anchors: (A, D) the embeddings behind the rows.
        blocks: the columns, real ones (with candidates) before mixed ones.
        anchor_labels: (A,) class labels, (A,) or (A, 2) numbers of pairs that belong together, or (A,) or (A, L) real
            values, where the table was built from them.
        candidate_labels: the same for the columns of the first block.
        logit_scale: where the model brings its own scale (CLIP), it multiplies similarities in place of the loss's
            temperature; a number or a 0-dimensional tensor.
        logit_bias: SigLIP's bias, added to the scaled similarity.
        tile: which rows these are, where they are some of a larger table's.
        paired: target and weight of a block in which each row has a positive, as it was paired with one (another view,
            a text): so long as a block has these very cells, none need be read to know it.
        unit: the anchors, where they (and the candidates) were divided by their length: so long as they are these, each
            that is not 0 is 1 with itself, and no gradient changes that.
    """

    anchors: Tensor
    blocks: tuple[Block, ...]
    anchor_labels: Tensor | None = None
    candidate_labels: Tensor | None = None
    logit_scale: Tensor | float | None = None
    logit_bias: Tensor | float | None = None
    tile: Tile | None = None
    paired: tuple[Cells, Cells] | None = None
    unit: Tensor | None = None

    @property
    def every_anchor(self) -> Tensor:
        """(A, D) the anchors; where these rows are a tile, those of the whole table."""
        return self.anchors if self.tile is None else self.tile.anchors

    @property
    def row_numbers(self) -> Tensor:
        """(A,) which rows of the whole table these are."""
        return torch.arange(len(self.anchors), device=self.anchors.device) if self.tile is None else self.tile.rows

    @property
    def similarity(self) -> Tensor:
        """(A, C) similarities of all columns."""
        return torch.cat([block.similarity for block in self.blocks], dim=1)

    @property
    def target(self) -> Tensor:
        """(A, C) targets of all columns, in [0, 1]."""
        return torch.cat([dense(block.target, block.similarity) for block in self.blocks], dim=1)

    @property
    def weight(self) -> Tensor:
        """(A, C) weights of all columns, >= 0."""
        return torch.cat([dense(block.weight, block.similarity) for block in self.blocks], dim=1)

    @property
    def candidates(self) -> Tensor:
        """(K, D) the embeddings behind the first K columns; the columns after them are mixtures."""
        real = [block.candidates for block in self.real]
        return real[0] if len(real) == 1 else torch.cat(real)

    @property
    def real(self) -> tuple[Block, ...]:
        """The blocks whose columns have embeddings."""
        return tuple(block for block in self.blocks if block.candidates is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """(A, C): how many anchors and how many columns."""
        return self.anchors.shape[0], sum(block.similarity.shape[1] for block in self.blocks)

    def at_one_scale(self, scale: Tensor | float) -> Pairs:
        """This table with each block that has a temperature of its own so that `scale` multiplies it like the rest."""
        if all(block.temperature is None for block in self.blocks):
            return self
        if isinstance(scale, Tensor):
            scale = scale.to(self.blocks[0].similarity.dtype)
        blocks = tuple(
            block
            if block.temperature is None
            else changed(block, similarity=block.similarity / (block.temperature * scale), temperature=None)
            for block in self.blocks
        )
        return changed(self, blocks=blocks)

    def append(self, *blocks: Block) -> Pairs:
        """This table with further columns; nothing is copied."""
        return changed(self, blocks=self.blocks + blocks)

    def transpose(self) -> Pairs:
        """The same cells with anchors and candidates exchanged, as views; of a table of one block.

        Raises:
            ValueError: the table has several blocks: mixed columns differ from row to row, so have no rows.
        """
        if len(self.blocks) != 1:
            raise ValueError(
                "Only a table of one block can be transposed. "
                f"Got {len(self.blocks)} blocks; transpose before mixing."
            )
        (block,) = self.blocks
        target = block.target.mT if isinstance(block.target, Tensor) else block.target
        weight = block.weight.mT if isinstance(block.weight, Tensor) else block.weight
        exchanged = Block(block.similarity.mT, target, weight, self.anchors)
        return changed(
            self,
            paired=(target, weight) if self._is_paired(block) else None,
            unit=block.candidates if self.anchors_are_unit else None,
            anchors=block.candidates,
            blocks=(exchanged,),
            anchor_labels=self.candidate_labels,
            candidate_labels=self.anchor_labels,
        )

    @property
    def anchors_are_unit(self) -> bool:
        """Whether it is known that they were divided by their length."""
        return self.unit is self.anchors

    @property
    def every_row_has_positive(self) -> bool:
        """Whether that is known without reading a cell: the rows are paired, or a block is positive throughout."""
        if any(self._is_paired(block) for block in self.blocks):
            return True
        numbers = (b for b in self.blocks if not isinstance(b.target, Tensor) and not isinstance(b.weight, Tensor))
        return any(b.positive > 0 and b.similarity.shape[1] > 0 for b in numbers)

    def _is_paired(self, block: Block) -> bool:
        if self.paired is None:
            return False
        both = zip(self.paired, (block.target, block.weight), strict=True)
        return all(x is y if isinstance(x, Tensor) or isinstance(y, Tensor) else x == y for x, y in both)

    def has_positive(self) -> Tensor:
        """(A,) bool: whether the row has any positive; rows without are left out of a loss's mean."""
        return self._row_has([block.positive for block in self.blocks])

    def has_negative(self) -> Tensor:
        """(A,) bool: whether the row has any negative."""
        return self._row_has([block.negative for block in self.blocks])

    def _row_has(self, cells: list[Cells]) -> Tensor:
        found: list[Tensor] = []
        for cell, block in zip(cells, self.blocks, strict=True):
            if block.similarity.shape[1] == 0:
                continue  # a block of no columns has neither, and no largest cell
            if isinstance(cell, Tensor):
                found.append(cell.any(dim=1) if cell.dtype == torch.bool else cell.amax(dim=1) > 0)
            elif cell > 0:
                return self.anchors.new_ones(len(self.anchors), dtype=torch.bool)
        none = [] if found else [self.anchors.new_zeros(1, dtype=torch.bool)]
        return reduce(torch.logical_or, found + none).expand(len(self.anchors))

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    @staticmethod
    def of(plan: Plan, rows: Tensor | None = None, *, blank: bool = False) -> Pairs:
        """The table of a plan.

        Args:
            rows: (R,) which anchors; None for all of them.
            blank: without similarities (zeros stand in for them), to count positives.
        """
        anchors = plan.anchors if rows is None else plan.anchors[rows]
        labels = plan.anchor_labels
        blocks = tuple(_block(columns, anchors, rows, blank) for columns in plan.columns)
        return Pairs(
            anchors,
            blocks,
            labels if rows is None or labels is None else labels[rows],
            plan.candidate_labels,
            plan.logit_scale,
            plan.logit_bias,
            None if rows is None else Tile(rows, plan.anchors),
            (blocks[0].target, blocks[0].weight) if plan.paired else None,
            anchors if plan.unit else None,
        )

    @staticmethod
    def whole(plans: Sequence[Plan]) -> tuple[Pairs, ...]:
        """The tables of the plans of a batch; a product that is read both ways is made once."""
        made: list[Pairs] = []
        for plan in plans:
            there = [table for table, of in zip(made, plans[: len(made)], strict=True) if of is plan.back_of]
            if not there:
                made.append(Pairs.of(plan))
                continue
            back = changed(there[0], blocks=there[0].blocks[:1]).transpose()
            more = (_block(columns, back.anchors, None, False) for columns in plan.columns[1:])
            made.append(back.append(*more))
        return tuple(made)

    @staticmethod
    def from_labels(embeddings: Tensor, labels: Tensor) -> Pairs:
        """Every example against every other of the batch; the same class is a positive.

        Args:
            embeddings: (A, D) floats of any length; they are divided by their Euclidean length.
            labels: (A,) integers.

        Raises:
            TypeError: `labels` are not integers.
            ValueError: shapes that do not fit; and, where reading values is free (CPU), embeddings that are NaN,
                infinite or zero, a batch of one class (no negatives) or of all different classes (no positives).

        >>> pairs = Pairs.from_labels(torch.eye(3), torch.tensor([5, 5, 9]))
        >>> pairs.target
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
        >>> pairs.weight.diagonal()
        tensor([0., 0., 0.])
        """
        return Pairs.of(Plan.from_labels(embeddings, labels))

    @staticmethod
    def from_targets(embeddings: Tensor, target: Tensor, weight: Tensor | None = None) -> Pairs:
        """Every example against every other, with a target matrix of your own (several labels an example, say).

        Args:
            embeddings: (A, D) floats of any length; they are divided by their Euclidean length.
            target: (A, A) in [0, 1] (or bool): how alike each pair should be; the diagonal is not read.
            weight: (A, A) >= 0, how much each pair counts; every pair once where it is None.

        Raises:
            ValueError: shapes that do not fit; on a CPU also NaN or zero embeddings and targets outside [0, 1].

        >>> tags = torch.tensor([[1., 1.], [1., 0.], [0., 1.]])  # several labels an example
        >>> both, either = tags @ tags.T, (tags[:, None] + tags).clamp(max=1).sum(-1)
        >>> Pairs.from_targets(torch.eye(3), both / either).target[0]
        tensor([1.0000, 0.5000, 0.5000])
        """
        return Pairs.of(Plan.from_targets(embeddings, target, weight))

    @staticmethod
    def from_views(view1: Tensor, view2: Tensor) -> Pairs:
        """Two views of each example (SimCLR): 2B anchors against the 2B - 1 others; the other view is the positive.

        Args:
            view1: (B, D) floats of any length; they are divided by their Euclidean length.
            view2: (B, D) the other view of the same examples, in the same order.

        Raises:
            ValueError: shapes that differ, fewer than two examples; on a CPU also NaN or zero embeddings.

        >>> Pairs.from_views(torch.eye(2), torch.eye(2)).target[0]
        tensor([1., 0., 1., 0.])
        """
        return Pairs.of(Plan.from_views(view1, view2))

    @staticmethod
    def from_queue(
        query: Tensor,
        key: Tensor,
        queue: Tensor,
        *,
        labels: Tensor | None = None,
        queue_labels: Tensor | None = None,
    ) -> Pairs:
        """Each query against its own key (positive) and a queue of keys (negatives), as MoCo has it.

        Args:
            query: (A, D) floats of any length; they are divided by their Euclidean length.
            key: (A, D) the key of each query; detached and normalised.
            queue: (K, D) earlier keys, unit vectors. Empty (K = 0): the other keys of the batch stand in for it.
            labels: (A,) integers; with `queue_labels`, keys of the query's own class are left out (class oracle).
            queue_labels: (K,) integers.

        Raises:
            ValueError: shapes that do not fit; no negatives (an empty queue and a batch of one); on a CPU also NaN
                or zero embeddings, and a class oracle that leaves no negative to any query.

        Source: He et al., CVPR 2020, arXiv 1911.05722; class oracle: Kalantidis et al., arXiv 2010.01028.
        """
        return Pairs.of(Plan.from_queue(query, key, queue, labels=labels, queue_labels=queue_labels))

    @staticmethod
    def from_towers(
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None = None,
        logit_bias: Tensor | float | None = None,
        *,
        labels: Tensor | None = None,
    ) -> tuple[Pairs, Pairs]:
        """Image to text and text to image: one table a direction, of one matrix product.

        Args:
            image_features: (A, D) as open_clip gives them: unit vectors. They are taken as they are.
            text_features: (A, D) the text of each image, in the same order.
            logit_scale: multiplies the similarities; None: the loss's own temperature is used.
            logit_bias: added after scaling (SigLIP).
            labels: integers that say which pairs belong together, as `pairs_that_match` reads them; None: image i and
                text i alone.

        Raises:
            TypeError: `labels` are not integers.
            ValueError: shapes that differ, fewer than two pairs; on a CPU also NaN or zero features, and labels that
                leave no negative.
        """
        plans = Plan.from_towers(image_features, text_features, logit_scale, logit_bias, labels=labels)
        return Pairs.whole(plans)

    @staticmethod
    def from_proxies(embeddings: Tensor, labels: Tensor, proxies: Tensor) -> Pairs:
        """Each example against one proxy a class; its own class's proxy is the positive.

        Args:
            embeddings: (A, D) floats of any length; they are divided by their Euclidean length.
            labels: (A,) integers in [0, P).
            proxies: (P, D) learned; they are divided by their Euclidean length.

        Raises:
            TypeError: `labels` are not integers.
            ValueError: shapes that do not fit; on a CPU also labels outside [0, P) and NaN or zero embeddings.
        """
        return Pairs.of(Plan.from_proxies(embeddings, labels, proxies))

    @staticmethod
    def from_values(embeddings: Tensor, values: Tensor, *, normalize: bool = True) -> Pairs:
        """Every example against every other, labelled by real values; equal values are positives.

        Args:
            embeddings: (A, D) floats of any length.
            values: (A,) or (A, L) floats: an age, a valence, a pose.
            normalize: divide the embeddings by their Euclidean length; without, similarities are dot products.

        Raises:
            TypeError: `values` are integers: class labels belong to a class loss.
            ValueError: shapes that do not fit; on a CPU also NaN values, values that are all the same, and NaN or
                zero embeddings.
        """
        return Pairs.of(Plan.from_values(embeddings, values, normalize=normalize))


def _block(columns: Columns, anchors: Tensor, rows: Tensor | None, blank: bool) -> Block:
    target, weight = cells_of(columns.target, rows), cells_of(columns.weight, rows)
    candidates = columns.candidates
    if columns.own:
        own = (anchors * (candidates if rows is None else candidates[rows])).sum(dim=1, keepdim=True)  # (A, 1)
        return Block(own, target, weight)
    if blank:
        similarity = anchors.new_zeros(1, 1).expand(len(anchors), len(candidates))
    else:
        similarity = similarity_table(anchors, candidates)
        if columns.watch is not None:
            columns.watch(similarity)
    return Block(similarity, target, weight, candidates, columns.same_modality, columns.temperature)
