"""The one type that flows: a table of pairs, a row per anchor, a column per candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Cells = Tensor | float  # a table (A, C), anything that broadcasts to it, or one number for every cell of a block


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
        return _product(self.weight, self.target)

    @property
    def negative(self) -> Cells:
        """`weight * (1 - target)`: how much each cell counts as a negative."""
        return _product(self.weight, _complement(self.target))

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
    """

    anchors: Tensor
    blocks: tuple[Block, ...]
    anchor_labels: Tensor | None = None
    candidate_labels: Tensor | None = None
    logit_scale: Tensor | float | None = None
    logit_bias: Tensor | float | None = None

    @property
    def similarity(self) -> Tensor:
        """(A, C) similarities of all columns."""
        return torch.cat([block.similarity for block in self.blocks], dim=1)

    @property
    def target(self) -> Tensor:
        """(A, C) targets of all columns, in [0, 1]."""
        return torch.cat([_dense(block.target, block.similarity) for block in self.blocks], dim=1)

    @property
    def weight(self) -> Tensor:
        """(A, C) weights of all columns, >= 0."""
        return torch.cat([_dense(block.weight, block.similarity) for block in self.blocks], dim=1)

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
            else replace(block, similarity=block.similarity / (block.temperature * scale), temperature=None)
            for block in self.blocks
        )
        return replace(self, blocks=blocks)

    def append(self, *blocks: Block) -> Pairs:
        """This table with further columns; nothing is copied."""
        return replace(self, blocks=self.blocks + blocks)

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
        return replace(
            self,
            anchors=block.candidates,
            blocks=(exchanged,),
            anchor_labels=self.candidate_labels,
            candidate_labels=self.anchor_labels,
        )

    def has_positive(self) -> Tensor:
        """(A,) bool: whether the row has any positive; rows without are left out of a loss's mean."""
        return self._row_has([block.positive for block in self.blocks])

    def has_negative(self) -> Tensor:
        """(A,) bool: whether the row has any negative."""
        return self._row_has([block.negative for block in self.blocks])

    def _row_has(self, cells: list[Cells]) -> Tensor:
        has = torch.zeros(self.anchors.shape[0], dtype=torch.bool, device=self.anchors.device)
        for cell, block in zip(cells, self.blocks, strict=True):
            if block.similarity.shape[1] == 0:
                continue  # a block of no columns has neither, and no largest cell
            if isinstance(cell, Tensor):
                has = has | (cell.any(dim=1) if cell.dtype == torch.bool else cell.amax(dim=1) > 0)
            else:
                has = has | (cell > 0)
        return has

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

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
        check_embeddings("embeddings", embeddings)
        check_labels(labels, embeddings)
        target = labels[:, None] == labels[None, :]  # (A, A) bool
        if reads_values(embeddings):
            same = int(target.sum())
            if same == target.numel():
                raise ValueError(
                    "A batch needs examples of at least two classes, else there are no negatives. "
                    f"Got {len(labels)} labels, all {labels[0].item()}; sample several classes a batch."
                )
            if same == len(labels):
                raise ValueError(
                    "A batch needs two examples of at least one class, else there are no positives. "
                    f"Got {len(labels)} labels, all different; sample several examples a class (m-per-class)."
                )
        return _among_themselves(unit(embeddings), target, labels=labels)

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
        check_embeddings("embeddings", embeddings)
        _check_square("target", target, embeddings)
        if weight is not None:
            _check_square("weight", weight, embeddings)
        if reads_values(embeddings):
            if not bool(((target >= 0) & (target <= 1)).all()):
                raise ValueError(
                    "`target` must lie in [0, 1]. "
                    f"Got values from {target.min().item():g} to {target.max().item():g}; divide by their largest."
                )
            if weight is not None and not bool((weight >= 0).all()):
                raise ValueError(f"`weight` must be >= 0. Got a least of {weight.min().item():g}; clip it at 0.")
        return _among_themselves(unit(embeddings), target.detach(), weight=weight)

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
        check_embeddings("view1", view1)
        check_embeddings("view2", view2)
        check_same_shape("view1", view1, "view2", view2)
        if len(view1) < 2:
            raise ValueError(
                "Two views need at least two examples, else there are no negatives. "
                f"Got view1 {_shape(view1)}; use a larger batch, or a queue."
            )
        index = torch.arange(len(view1), device=view1.device).repeat(2)
        both = unit(torch.cat([wide(view1), wide(view2)]))  # (2B, D)
        return _among_themselves(both, index[:, None] == index[None, :])

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
        check_embeddings("query", query)
        check_embeddings("key", key)
        check_same_shape("query", query, "key", key)
        if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
            raise ValueError(
                "The queue's keys must be as wide as the query. "
                f"Got query {_shape(query)}, queue {_shape(queue)}; "
                f"make the queue with KeyQueue(size, {query.shape[1]})."
            )
        if (labels is None) != (queue_labels is None):
            raise ValueError(
                "The class oracle needs the labels of the queries and of the queue. Got only "
                f"{'the queue' if labels is None else 'the queries'}'s; give both or neither."
            )
        if labels is not None and queue_labels is not None:
            check_labels(labels, query)
            if queue_labels.shape != queue.shape[:1]:
                raise ValueError(
                    "`queue` and `queue_labels` must have the same length. "
                    f"Got queue {_shape(queue)}, queue_labels {_shape(queue_labels)}; give one label a key."
                )
        anchors = unit(query)
        key, queue = unit(key.detach()).to(anchors.dtype), queue.to(anchors.dtype)
        weight: Cells = 1.0
        if len(queue) == 0:
            if len(query) < 2:
                raise ValueError(
                    "A queue that is still empty needs at least two queries, else there are no negatives. "
                    f"Got query {_shape(query)}; use a larger batch, or enqueue keys first."
                )
            queue = key
            weight = ~torch.eye(len(key), dtype=torch.bool, device=key.device)
            if labels is not None:
                weight = weight & (labels[:, None] != labels[None, :])
        elif labels is not None and queue_labels is not None:
            weight = labels[:, None] != queue_labels[None, :]  # (A, K) bool
        if labels is not None and reads_values(query) and not bool(weight.any()):
            raise ValueError(
                "The class oracle leaves no negative. "
                f"Got {len(query)} queries and {len(queue)} keys, all of class {labels[0].item()}; "
                "sample several classes a batch."
            )
        own = (anchors * key).sum(dim=1, keepdim=True)  # (A, 1)
        negatives = Block(similarity_table(anchors, queue), 0.0, weight, queue)
        return Pairs(anchors, (negatives, Block(own, 1.0, 1.0)))

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
        check_embeddings("image_features", image_features)
        check_embeddings("text_features", text_features)
        check_same_shape("image_features", image_features, "text_features", text_features)
        if len(image_features) < 2:
            raise ValueError(
                "Image and text pairs need a batch of at least two, else there are no negatives. "
                f"Got image_features {_shape(image_features)}; use a larger batch."
            )
        image = wide(image_features)
        text = wide(text_features).to(image.dtype)
        if labels is None:
            target = torch.eye(len(image), dtype=torch.bool, device=image.device)
        else:
            target = pairs_that_match(labels, image_features)
        similarity = similarity_table(image, text)
        to_text = Pairs(image, (Block(similarity, target, 1.0, text),), labels, labels, logit_scale, logit_bias)
        return to_text, to_text.transpose()

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
        check_embeddings("embeddings", embeddings)
        check_labels(labels, embeddings)
        check_embeddings("proxies", proxies)
        if proxies.shape[1] != embeddings.shape[1]:
            raise ValueError(
                "Proxies must be as wide as the embeddings. "
                f"Got embeddings {_shape(embeddings)}, proxies {_shape(proxies)}; set embedding_dim."
            )
        if proxies.device != embeddings.device:
            raise ValueError(
                "Proxies must be on the device of the embeddings. "
                f"Got embeddings on {embeddings.device}, proxies on {proxies.device}; "
                f"move the criterion: criterion.to({str(embeddings.device)!r})."
            )
        if reads_values(embeddings) and not 0 <= int(labels.min()) <= int(labels.max()) < len(proxies):
            raise ValueError(
                f"`labels` must lie in [0, {len(proxies)}), one proxy a class. "
                f"Got labels from {int(labels.min())} to {int(labels.max())}; set num_classes or renumber them."
            )
        classes = torch.arange(len(proxies), device=labels.device)
        anchors = unit(embeddings)
        candidates = unit(proxies).to(anchors.dtype)
        block = Block(similarity_table(anchors, candidates), labels[:, None] == classes, 1.0, candidates)
        return Pairs(anchors, (block,), labels, classes)

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
        check_embeddings("embeddings", embeddings, zero_allowed=not normalize)
        check_values(values, embeddings)
        rows = values if values.ndim == 2 else values[:, None]  # (A, L)
        target = (rows[:, None] == rows[None, :]).all(dim=-1)  # (A, A)
        if reads_values(embeddings) and bool(target.all()):
            raise ValueError(
                "A batch needs at least two different values, else there is nothing to order. "
                f"Got {len(values)} values, all {values[0].tolist()}; sample a wider batch."
            )
        return _among_themselves(unit(embeddings) if normalize else wide(embeddings), target, labels=values)


def _among_themselves(
    anchors: Tensor, target: Tensor, *, labels: Tensor | None = None, weight: Tensor | None = None
) -> Pairs:
    """The table of a batch against itself: one product, the diagonal left out."""
    others = ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    weight = others if weight is None else _product(weight.detach(), others)
    block = Block(similarity_table(anchors, anchors), target, weight, anchors)
    return Pairs(anchors, (block,), labels, labels)


def similarity_table(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(A, C) dot products in float32 or wider, whatever autocast says: fp16 loses what a temperature of 0.01 shows."""
    with torch.autocast(anchors.device.type, enabled=False):
        if anchors is candidates and not torch.compiler.is_compiling():
            return _Gram.apply(wide(anchors))
        return wide(anchors) @ wide(candidates).mT


class _Gram(torch.autograd.Function):
    """`x @ x.T`, with one product in the backward pass where autograd makes two."""

    @staticmethod
    def forward(ctx, embeddings: Tensor) -> Tensor:
        ctx.save_for_backward(embeddings)
        return embeddings @ embeddings.mT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (embeddings,) = ctx.saved_tensors
        return (grad + grad.mT) @ embeddings


def wide(embeddings: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings


def unit(embeddings: Tensor) -> Tensor:
    """(A, D) rows divided by their Euclidean length, in float32 or wider."""
    return torch.nn.functional.normalize(wide(embeddings), dim=1)


def reads_values(tensor: Tensor) -> bool:
    """Whether a check may read values: it is free on a CPU, costs a sync elsewhere and breaks a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_embeddings(name: str, embeddings: Tensor, *, zero_allowed: bool = False) -> None:
    """One line where `embeddings` is not a (N, D) table of usable floats."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"`{name}` must be a tensor. Got {type(embeddings).__name__}; pass torch.as_tensor({name}).")
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"`{name}` must have shape (examples, dimensions), neither of them 0. Got {_shape(embeddings)}; "
            "flatten or pool to one vector an example."
        )
    if not embeddings.is_floating_point():
        raise TypeError(f"`{name}` must be floats. Got {embeddings.dtype}; are embeddings and labels swapped?")
    if reads_values(embeddings):
        length = torch.linalg.vector_norm(wide(embeddings.detach()), dim=1)
        if not bool(torch.isfinite(length).all()):
            row = int((~torch.isfinite(length)).nonzero()[0])
            raise ValueError(
                f"`{name}` must be finite. Got NaN or infinity in {int((~torch.isfinite(length)).sum())} of "
                f"{len(length)} rows, first in row {row}; look at the learning rate or at the step before."
            )
        if not zero_allowed and not bool((length > 0).all()):
            row = int((length == 0).nonzero()[0])
            raise ValueError(
                f"`{name}` must not be zero: a zero vector has no direction. Got {int((length == 0).sum())} of "
                f"{len(length)} rows zero, first row {row}; look at a dead ReLU or an empty input."
            )


def check_labels(labels: Tensor, embeddings: Tensor) -> None:
    """One line where `labels` are not one integer an embedding."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a tensor. Got {type(labels).__name__}; pass torch.as_tensor(labels).")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"`labels` of a class loss must be integers. Got {labels.dtype} {_shape(labels)}; for real values use "
            "SupReMix(SupConLoss()) or RankNContrastLoss(), for class labels pass labels.long()."
        )
    check_same_device("embeddings", embeddings, "labels", labels)
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise ValueError(
            "`embeddings` and `labels` must have the same length. "
            f"Got embeddings {_shape(embeddings)}, labels {_shape(labels)}; give one label an embedding."
        )


def pairs_that_match(labels: Tensor, features: Tensor) -> Tensor:
    """(A, A) bool: which texts (columns) belong to which images (rows), beside each image's own.

    Args:
        labels: (A,) integers: all images and texts of one label belong together (a caption of several images, an image
            of several captions). Or (A, 2): the image's number and the caption's; a text belongs to an image where
            some pair of the batch has this image's number and this caption's.
        features: (A, D) of either tower.

    Raises:
        TypeError: not integers.
        ValueError: another shape; on a CPU, labels that leave no negative.

    >>> pairs_that_match(torch.tensor([[0, 5], [0, 6], [1, 5]]), torch.ones(3, 2)).int()
    tensor([[1, 1, 1],
            [1, 1, 1],
            [1, 0, 1]], dtype=torch.int32)
    """
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
        got = f"{labels.dtype} {_shape(labels)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` of pairs must be a tensor of integers. Got {got}; number captions or image groups.")
    check_same_device("features", features, "labels", labels)
    if tuple(labels.shape) not in ((len(features),), (len(features), 2)):
        raise ValueError(
            "`labels` of pairs must have shape (pairs,), one a pair, or (pairs, 2), the image's and the caption's. "
            f"Got labels {_shape(labels)}, features {_shape(features)}."
        )
    if labels.ndim == 1:
        target = labels[:, None] == labels[None, :]
    else:
        same_image, same_caption = (column[:, None] == column[None, :] for column in labels.unbind(1))
        target = same_image.float() @ same_caption.float() > 0  # by way of a pair that has both
    if reads_values(features) and bool(target.all()):
        raise ValueError(
            "Image and text pairs need at least two that do not belong together, else there are no negatives. "
            f"Got {len(labels)} pairs whose labels match them all; sample several captions a batch."
        )
    return target


def check_values(values: Tensor, embeddings: Tensor) -> None:
    """One line where `values` are not one real value, or one row of them, an embedding."""
    if not isinstance(values, Tensor):
        raise TypeError(f"`values` must be a tensor. Got {type(values).__name__}; pass torch.as_tensor(values).")
    if not values.is_floating_point():
        raise TypeError(
            f"`values` of a regression must be floats. Got {values.dtype} {_shape(values)}; for class labels use a "
            "class loss such as SupConLoss(), for whole numbers that mean quantities pass values.float()."
        )
    check_same_device("embeddings", embeddings, "values", values)
    if values.ndim not in (1, 2) or len(values) != len(embeddings):
        raise ValueError(
            "`embeddings` and `values` must have the same length. "
            f"Got embeddings {_shape(embeddings)}, values {_shape(values)}; give one value (or row) an embedding."
        )
    if reads_values(values) and not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"`values` must be finite. Got NaN or infinity in {int((~torch.isfinite(values)).sum())} of "
            f"{values.numel()}; drop those examples."
        )


def check_same_shape(name1: str, first: Tensor, name2: str, second: Tensor) -> None:
    """One line where two inputs that go together row by row have different shapes."""
    if first.shape != second.shape:
        raise ValueError(
            f"`{name1}` and `{name2}` must have the same shape. "
            f"Got {name1} {_shape(first)}, {name2} {_shape(second)}; row i of one goes with row i of the other."
        )
    check_same_device(name1, first, name2, second)


def check_same_device(name1: str, first: Tensor, name2: str, second: Tensor) -> None:
    """One line where two tensors that go together are on different devices."""
    if first.device != second.device:
        raise ValueError(
            f"`{name1}` and `{name2}` must be on the same device. "
            f"Got {name1} on {first.device}, {name2} on {second.device}; pass {name2}.to({str(first.device)!r})."
        )


def _check_square(name: str, table: Tensor, embeddings: Tensor) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"`{name}` must be a tensor. Got {type(table).__name__}; pass torch.as_tensor({name}).")
    if tuple(table.shape) != (len(embeddings), len(embeddings)):
        raise ValueError(
            f"`{name}` must have a row and a column for each embedding. "
            f"Got embeddings {_shape(embeddings)}, {name} {_shape(table)}; make it "
            f"({len(embeddings)}, {len(embeddings)})."
        )
    check_same_device("embeddings", embeddings, name, table)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _product(first: Cells, second: Cells) -> Cells:
    for constant, other in ((first, second), (second, first)):
        if not isinstance(constant, Tensor) and constant in (0.0, 1.0):
            return other if constant == 1.0 else 0.0
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype == second.dtype == torch.bool:
            return first & second
        if first.dtype == torch.bool:
            return torch.where(first, second, 0.0)
        if second.dtype == torch.bool:
            return torch.where(second, first, 0.0)
    return first * second


def _complement(cells: Cells) -> Cells:
    if isinstance(cells, Tensor) and cells.dtype == torch.bool:
        return ~cells
    return 1 - cells


def _dense(cells: Cells, like: Tensor) -> Tensor:
    if isinstance(cells, Tensor):
        return cells.to(like.dtype).expand_as(like)
    return like.new_full((1, 1), cells).expand_as(like)
