"""Losses of image and text towers, with open_clip's own call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixcontrast.cells import Diagonal, Linked, Match, Rule
from mixcontrast.checks import reads_values
from mixcontrast.losses.base import Batch, Loss, Part, positive_number
from mixcontrast.losses.both_ways import ReverseMix, cross_entropy_both_ways, cross_entropy_of_features
from mixcontrast.losses.rowsums import negatives, positives, weighted_sum
from mixcontrast.losses.softmax import cross_entropy_rows, cross_entropy_to_even_rows
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Columns, Plan
from mixcontrast.queue import KeyQueue
from mixcontrast.records import changed


class ClipLoss(Loss):
    """Image to text and text to image cross-entropy, averaged.

    Called as open_clip's: `(image_features (A, D), text_features (A, D), logit_scale, logit_bias=None,
    output_dict=False, labels=None)`; unit vectors, a multiplying scale, and `{"contrastive_loss": loss}` where
    `output_dict` is set. `labels`, one a pair or (A, 2), say which further images and texts belong together
    (`pairs_that_match`): a row's target is then shared evenly by all its positives. Raises as `Pairs.from_towers`.

    Args:
        image_queue: a KeyQueue of earlier image features, negatives of every text; each call in training mode enqueues
            its images.
        text_queue: likewise, texts for images.
        same_modality: the other images are negatives of an image too, the other texts of a text, those of the queues
            included; never those that `labels` put together.
        same_modality_temperature: divides the similarities of these, in place of the model's logit_scale, under which
            images are far more similar to images than to texts; None keeps the logit_scale.
        label_smoothing: the share of each row's target, in [0, 1), that is spread evenly over its columns: a remedy for
            the over-confidence of fine-tuning, before weights are averaged.

    With labels the queues keep them too, `KeyQueue(size, dim, labels=True)` of one a pair, `labels=2` of (A, 2), and
    keys that belong to an anchor are left out: by `pairs_that_match` among the pairs of batch and queue, and of the
    anchor's own tower those of its image's or its caption's number. Such queues need labels at each call.

    Source: Radford et al., ICML 2021, arXiv 2103.00020; equal to open_clip's ClipLoss. Differs: queues, same-modality
    negatives, labels and smoothing, which open_clip does not have. Smoothing before averaging: Lin et al., ICLR 2024,
    arXiv 2309.17230 (BANG).
    """

    towers = True

    def __init__(
        self,
        *,
        image_queue: KeyQueue | None = None,
        text_queue: KeyQueue | None = None,
        same_modality: bool = False,
        same_modality_temperature: float | None = 0.07,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check_columns(image_queue, text_queue, same_modality_temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must lie in [0, 1). Got {label_smoothing}; 0 is none, 0.1 is usual."
            )
        self.image_queue, self.text_queue = image_queue, text_queue
        self.same_modality, self.same_modality_temperature = same_modality, same_modality_temperature
        self.label_smoothing = label_smoothing

    def plans(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> tuple[Plan, ...]:
        plans = Plan.from_towers(image_features, text_features, logit_scale, logit_bias, labels=labels)
        return _with_more_columns(self, plans, labels)

    def rows(self, pairs: Pairs) -> Tensor:
        # a bias added to every logit of a row leaves its cross-entropy as it is
        scale = scale_of(pairs)
        pairs = pairs.at_one_scale(scale)
        sharp = cross_entropy_rows(pairs, scale)
        if not self.label_smoothing:
            return sharp
        return (1 - self.label_smoothing) * sharp + self.label_smoothing * cross_entropy_to_even_rows(pairs, scale)

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        both = self.both_ways(tables)
        return super().parts_of(tables, batch) if both is None else [Part(both, 1.0, 1.0)]

    def both_ways(self, tables: Sequence[Pairs], mixtures: Sequence[ReverseMix] = ()) -> Tensor | None:
        """The loss of one table read both ways, and of its mixtures with the reverse, in one pass.

        Args:
            tables: as `from_towers` gives them.
            mixtures: added with their weights.

        Returns:
            None where `tables` are not one square table whose diagonal is positive, or not on a CPU.
        """
        if self.label_smoothing:
            return None
        block = tables[0].blocks[0]
        similarity, target = block.similarity, block.target
        if tables[0].tile is not None or len(tables) != 2 or not reads_values(similarity):
            return None
        if any(len(table.blocks) != 1 for table in tables) or isinstance(block.weight, Tensor):
            return None
        if block.weight != 1:
            return None
        if not tables[1].blocks[0].similarity.mT.is_set_to(similarity) or not isinstance(target, Tensor):
            return None
        if target.dtype != torch.bool or not bool(target.diagonal().all()):
            return None
        if int(target.count_nonzero()) != len(similarity):
            return None
        return cross_entropy_both_ways(similarity, scale_of(tables[0]), mixtures)

    def in_tiles(
        self,
        inputs: tuple,
        rows: int,
        batch: Batch,
        mixtures: Callable[[Plan], Sequence[ReverseMix]] = lambda plan: (),
    ) -> Tensor | None:
        """As `Loss.in_tiles`, of the batch's table alone: both ways, and its mixtures, in one pass.

        Args:
            inputs: as there.
            rows: as there.
            batch: as there.
            mixtures: added with their weights, of the plan of images against texts.
        """
        if self.same_modality or self.image_queue is not None or self.text_queue is not None:
            return None
        plan, _ = self.plans(*inputs)
        (columns,) = plan.columns
        if not reads_values(plan.anchors) or not isinstance(columns.target, Diagonal):
            return None
        return cross_entropy_of_features(
            plan.anchors, columns.candidates, scale_of(plan), mixtures(plan), rows=rows
        )

    def in_place(self, *inputs: Tensor | float | None, labels: Tensor | None = None) -> tuple:
        return _in_place(inputs, labels)

    def answer(
        self,
        loss: Tensor,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": loss} if output_dict else loss

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict, labels)


class SigLipLoss(Loss):
    """A sigmoid for each pair of image and text: `-(1/A) sum_ij log sigmoid(z_ij (logit_scale * s_ij + logit_bias))`.

    A target `t` between 0 and 1 counts `t` of the pair as matching and `1 - t` as not. Read by images and by texts, and
    averaged: without further columns one is the other.

    Called as open_clip's: `(image_features (A, D), text_features (A, D), logit_scale, logit_bias, output_dict=False,
    labels=None)`; arguments as ClipLoss's, but that each of several positives of an image counts whole. Raises as
    `Pairs.from_towers`.

    Source: Zhai et al., ICCV 2023, arXiv 2303.15343; equal to open_clip's SigLipLoss. Differs as ClipLoss does.
    """

    towers = True

    def __init__(
        self,
        *,
        image_queue: KeyQueue | None = None,
        text_queue: KeyQueue | None = None,
        same_modality: bool = False,
        same_modality_temperature: float | None = 0.07,
    ) -> None:
        super().__init__()
        _check_columns(image_queue, text_queue, same_modality_temperature)
        self.image_queue, self.text_queue = image_queue, text_queue
        self.same_modality, self.same_modality_temperature = same_modality, same_modality_temperature

    def plans(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> tuple[Plan, ...]:
        plans = Plan.from_towers(image_features, text_features, logit_scale, logit_bias, labels=labels)
        return _with_more_columns(self, plans, labels)

    def rows(self, pairs: Pairs) -> Tensor:
        scale, bias = scale_of(pairs), 0.0 if pairs.logit_bias is None else pairs.logit_bias
        pairs = pairs.at_one_scale(scale)
        pull, _ = weighted_sum(*positives(pairs), lambda s: F.softplus(-(s * scale + bias)))
        push, _ = weighted_sum(*negatives(pairs), lambda s: F.softplus(s * scale + bias))
        return pull + push

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        return super().parts_of(tables[:1] if _one_table(tables) else tables, batch)

    def read(self, plans: Sequence[Plan]) -> Sequence[Plan]:
        there, back = plans
        return plans[:1] if len(there.columns) == len(back.columns) == 1 else plans

    def in_place(self, *inputs: Tensor | float | None, labels: Tensor | None = None) -> tuple:
        return _in_place(inputs, labels)

    def answer(
        self,
        loss: Tensor,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": loss} if output_dict else loss

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict, labels)


def scale_of(pairs: Pairs | Plan) -> Tensor | float:
    """The model's scale.

    Raises:
        TypeError: the table has none.
    """
    if pairs.logit_scale is None:
        raise TypeError(
            "A CLIP loss needs the model's logit_scale, which multiplies. Got none; "
            "call criterion(image_features, text_features, model.logit_scale.exp())."
        )
    return pairs.logit_scale


def _in_place(inputs: tuple, labels: Tensor | None) -> tuple:
    """Labels follow three inputs, a bias and whether to answer by a dictionary."""
    return inputs if labels is None else (*inputs, *(None, False)[len(inputs) - 3 :], labels)


def _check_columns(image_queue: KeyQueue | None, text_queue: KeyQueue | None, temperature: float | None) -> None:
    if temperature is not None:
        positive_number(same_modality_temperature=temperature)
    if image_queue is not None and image_queue is text_queue:
        raise ValueError(
            "Each tower needs a queue of its own. Got one KeyQueue as image_queue and text_queue; make two."
        )


def _with_more_columns(loss: ClipLoss | SigLipLoss, plans: tuple[Plan, Plan], labels: Tensor | None):
    """The plans of both directions with the columns of the queues and of the anchors' own tower."""
    queues = {"image": loss.image_queue, "text": loss.text_queue}
    made = []
    for plan, own, other in zip(plans, ("image", "text"), ("text", "image"), strict=True):
        anchors, columns = plan.anchors, []
        if queues[other] is not None and queues[other].fill:
            negatives = queues[other].negatives(anchors, labels)
            if labels is not None and labels.ndim == 2:
                numbers = ("image", "text").index(own), ("image", "text").index(other)
                negatives = changed(negatives, weight=_not_linked(labels, queues[other].labels, *numbers))
            columns.append(negatives)
        if loss.same_modality:
            of_own = [Columns(anchors, 0.0, _apart(anchors, labels))]
            if queues[own] is not None and queues[own].fill:
                of_own.append(queues[own].negatives(anchors, labels))
            columns += [changed(c, same_modality=True, temperature=loss.same_modality_temperature) for c in of_own]
        made.append(plan.append(*columns))
    made[1] = changed(made[1], back_of=made[0])
    if loss.training:
        for name, plan in zip(("image", "text"), plans, strict=True):
            if queues[name] is not None:
                queues[name].enqueue_after(plan.anchors, labels)
    return tuple(made)


def _not_linked(labels: Tensor, held: Tensor, mine: int, theirs: int) -> Rule:
    """Which keys are negatives: those that no pair of batch or queue joins to the anchor, as in the batch.

    Args:
        labels: (A, 2) of the batch.
        held: (K, 2) of the keys.
        mine: the place of the anchors' number, 0 of images and 1 of captions.
        theirs: of the keys'.
    """
    pairs = torch.cat([labels, held])
    return Linked(labels[:, mine], held[:, theirs], (pairs[:, mine], pairs[:, theirs]), linked=False)


def _apart(anchors: Tensor, labels: Tensor | None) -> Rule:
    """Which of the same tower are negatives: not itself, nor any that shares its image or caption."""
    if labels is None:
        return Diagonal(anchors, on=False)
    return Match(labels, labels, equal=False)


def _one_table(tables: Sequence[Pairs]) -> bool:
    """Whether they are one whole table, read by rows and by columns."""
    if len(tables) != 2 or tables[0].tile is not None or any(len(table.blocks) != 1 for table in tables):
        return False
    (there,), (back,) = (table.blocks for table in tables)
    return there.candidates is tables[1].anchors and back.candidates is tables[0].anchors
