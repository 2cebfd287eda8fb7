"""A table of pairs before its cells are made: whole, or some rows at a time, they come out the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.cells import Both, Diagonal, Given, Match, Rule, match_of_pairs
from mixcontrast.checks import (
    check_embeddings,
    check_labels,
    check_same_shape,
    check_square,
    check_values,
    reads_values,
    shape_of,
)
from mixcontrast.records import changed
from mixcontrast.similarity import unit, wide


@dataclass(frozen=True)
class Columns:
    """Columns of one origin, before their cells are made.

    Attributes:
        candidates: (C, D) the embeddings behind them.
        target: a rule, or a number for every cell.
        weight: likewise.
        own: each anchor has one column alone, the candidate of its own number (a query its key).
        same_modality: as a Block's, and `temperature` likewise.
        temperature: as a Block's.
        watch: is told of the similarities when they have been made.
    """

    candidates: Tensor
    target: Rule | float
    weight: Rule | float
    own: bool = False
    same_modality: bool = False
    temperature: float | None = None
    watch: Callable[[Tensor], None] | None = None


@dataclass(frozen=True)
class Plan:
    """A table before its cells are made.

    Attributes:
        anchors: (A, D) the embeddings behind the rows.
        columns: those of each origin.
        anchor_labels: as Pairs', as are the others.
        candidate_labels: likewise.
        logit_scale: likewise.
        logit_bias: likewise.
        back_of: the plan whose first columns these are, transposed.
        paired: whether each row has a positive in the first columns, which it was paired with.
        unit: whether anchors and candidates were divided by their length.
    """

    anchors: Tensor
    columns: tuple[Columns, ...]
    anchor_labels: Tensor | None = None
    candidate_labels: Tensor | None = None
    logit_scale: Tensor | float | None = None
    logit_bias: Tensor | float | None = None
    back_of: Plan | None = None
    paired: bool = False
    unit: bool = False

    def append(self, *columns: Columns) -> Plan:
        """This plan with further columns."""
        return changed(self, columns=self.columns + columns)

    def transpose(self) -> Plan:
        """Anchors and candidates exchanged, of a plan of one kind of columns."""
        (columns,) = self.columns
        target, weight = (x.transpose() if isinstance(x, Rule) else x for x in (columns.target, columns.weight))
        return changed(
            self,
            anchors=columns.candidates,
            columns=(Columns(self.anchors, target, weight),),
            anchor_labels=self.candidate_labels,
            candidate_labels=self.anchor_labels,
            back_of=self,
        )

    @property
    def is_among_itself(self) -> bool:
        """Whether the first columns are the anchors."""
        return self.columns[0].candidates is self.anchors

    def tensors(self) -> list[Tensor]:
        """What gradient may flow to."""
        every = [self.anchors, *(c.candidates for c in self.columns), self.logit_scale, self.logit_bias]
        return [x for x in every if isinstance(x, Tensor)]

    def exchanged(self, by: dict[int, Tensor]) -> Plan:
        """This plan with other tensors, known by the `id` of those whose place they take."""

        def other(x):
            return by.get(id(x), x)

        columns = tuple(changed(c, candidates=other(c.candidates)) for c in self.columns)
        return changed(
            self,
            anchors=other(self.anchors),
            columns=columns,
            logit_scale=other(self.logit_scale),
            logit_bias=other(self.logit_bias),
            back_of=None,
        )

    @staticmethod
    def from_labels(embeddings: Tensor, labels: Tensor) -> Plan:
        """As `Pairs.from_labels`."""
        check_embeddings("embeddings", embeddings)
        check_labels(labels, embeddings)
        if reads_values(embeddings):
            if bool((labels == labels[0]).all()):
                raise ValueError(
                    "A batch needs examples of at least two classes, else there are no negatives. "
                    f"Got {len(labels)} labels, all {labels[0].item()}; sample several classes a batch."
                )
            if len(labels.unique()) == len(labels):
                raise ValueError(
                    "A batch needs two examples of at least one class, else there are no positives. "
                    f"Got {len(labels)} labels, all different; sample several examples a class (m-per-class)."
                )
        return _among_themselves(unit(embeddings), Match(labels, labels), labels=labels)

    @staticmethod
    def from_targets(embeddings: Tensor, target: Tensor, weight: Tensor | None = None) -> Plan:
        """As `Pairs.from_targets`."""
        check_embeddings("embeddings", embeddings)
        check_square("target", target, embeddings)
        if weight is not None:
            check_square("weight", weight, embeddings)
        if reads_values(embeddings):
            if not bool(((target >= 0) & (target <= 1)).all()):
                raise ValueError(
                    "`target` must lie in [0, 1]. "
                    f"Got values from {target.min().item():g} to {target.max().item():g}; divide by their largest."
                )
            if weight is not None and not bool((weight >= 0).all()):
                raise ValueError(f"`weight` must be >= 0. Got a least of {weight.min().item():g}; clip it at 0.")
        return _among_themselves(unit(embeddings), Given(target.detach()), weight=weight)

    @staticmethod
    def from_views(view1: Tensor, view2: Tensor) -> Plan:
        """As `Pairs.from_views`."""
        check_embeddings("view1", view1)
        check_embeddings("view2", view2)
        check_same_shape("view1", view1, "view2", view2)
        if len(view1) < 2:
            raise ValueError(
                "Two views need at least two examples, else there are no negatives. "
                f"Got view1 {shape_of(view1)}; use a larger batch, or a queue."
            )
        index = torch.arange(len(view1), device=view1.device).repeat(2)
        both = unit(torch.cat([wide(view1), wide(view2)]))  # (2B, D)
        return _among_themselves(both, Match(index, index), paired=True)

    @staticmethod
    def from_queue(
        query: Tensor,
        key: Tensor,
        queue: Tensor,
        *,
        labels: Tensor | None = None,
        queue_labels: Tensor | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Plan:
        """As `Pairs.from_queue`; `watch` is told of the similarities to the queue."""
        check_embeddings("query", query)
        check_embeddings("key", key)
        check_same_shape("query", query, "key", key)
        if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
            raise ValueError(
                "The queue's keys must be as wide as the query. "
                f"Got query {shape_of(query)}, queue {shape_of(queue)}; "
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
                    f"Got queue {shape_of(queue)}, queue_labels {shape_of(queue_labels)}; give one label a key."
                )
        anchors = unit(query)
        key, queue = unit(key.detach()).to(anchors.dtype), queue.to(anchors.dtype)
        weight: Rule | float = 1.0
        if len(queue) == 0:
            if len(query) < 2:
                raise ValueError(
                    "A queue that is still empty needs at least two queries, else there are no negatives. "
                    f"Got query {shape_of(query)}; use a larger batch, or enqueue keys first."
                )
            queue, weight, queue_labels = key, Diagonal(key, on=False), labels
            if labels is not None:
                weight = Both(weight, Match(labels, labels, equal=False))
        elif labels is not None:
            weight = Match(labels, queue_labels, equal=False)
        if labels is not None and reads_values(query) and bool((labels == labels[0]).all()):
            if bool((queue_labels == labels[0]).all()):
                raise ValueError(
                    "The class oracle leaves no negative. "
                    f"Got {len(query)} queries and {len(queue)} keys, all of class {labels[0].item()}; "
                    "sample several classes a batch."
                )
        columns = Columns(queue, 0.0, weight, watch=watch), Columns(key, 1.0, 1.0, own=True)
        return Plan(anchors, columns, unit=True)

    @staticmethod
    def from_towers(
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None = None,
        logit_bias: Tensor | float | None = None,
        *,
        labels: Tensor | None = None,
    ) -> tuple[Plan, Plan]:
        """As `Pairs.from_towers`."""
        check_embeddings("image_features", image_features)
        check_embeddings("text_features", text_features)
        check_same_shape("image_features", image_features, "text_features", text_features)
        if len(image_features) < 2:
            raise ValueError(
                "Image and text pairs need a batch of at least two, else there are no negatives. "
                f"Got image_features {shape_of(image_features)}; use a larger batch."
            )
        image = wide(image_features)
        text = wide(text_features).to(image.dtype)
        target = Diagonal(image) if labels is None else match_of_pairs(labels, image_features)
        to_text = Plan(image, (Columns(text, target, 1.0),), labels, labels, logit_scale, logit_bias, paired=True)
        return to_text, to_text.transpose()

    @staticmethod
    def from_proxies(embeddings: Tensor, labels: Tensor, proxies: Tensor) -> Plan:
        """As `Pairs.from_proxies`."""
        check_embeddings("embeddings", embeddings)
        check_labels(labels, embeddings)
        check_embeddings("proxies", proxies)
        if proxies.shape[1] != embeddings.shape[1]:
            raise ValueError(
                "Proxies must be as wide as the embeddings. "
                f"Got embeddings {shape_of(embeddings)}, proxies {shape_of(proxies)}; set embedding_dim."
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
        columns = Columns(unit(proxies).to(anchors.dtype), Match(labels, classes), 1.0)
        return Plan(anchors, (columns,), labels, classes, unit=True)

    @staticmethod
    def from_values(embeddings: Tensor, values: Tensor, *, normalize: bool = True) -> Plan:
        """As `Pairs.from_values`."""
        check_embeddings("embeddings", embeddings, zero_allowed=not normalize)
        check_values(values, embeddings)
        if reads_values(embeddings) and bool((values == values[0]).all()):
            raise ValueError(
                "A batch needs at least two different values, else there is nothing to order. "
                f"Got {len(values)} values, all {values[0].tolist()}; sample a wider batch."
            )
        anchors = unit(embeddings) if normalize else wide(embeddings)
        return _among_themselves(anchors, Match(values, values), labels=values, unit=normalize)


def _among_themselves(
    anchors: Tensor,
    target: Rule,
    *,
    labels: Tensor | None = None,
    weight: Tensor | None = None,
    paired: bool = False,
    unit: bool = True,
) -> Plan:
    """A batch against itself, the diagonal left out."""
    others: Rule = Diagonal(anchors, on=False)
    if weight is not None:
        others = Both(Given(weight.detach()), others)
    return Plan(anchors, (Columns(anchors, target, others),), labels, labels, paired=paired, unit=unit)


def cut_loose(plans: Sequence[Plan]) -> tuple[tuple[Plan, ...], list[Tensor], list[Tensor]]:
    """Plans whose tensors are leaves of their own, so that a tile's backward pass ends there.

    Returns:
        The plans, the tensors that require gradient, and their leaves in the same order.
    """
    roots = {id(x): x for plan in plans for x in plan.tensors() if x.requires_grad}
    leaves = {key: root.detach().requires_grad_() for key, root in roots.items()}
    return tuple(plan.exchanged(leaves) for plan in plans), list(roots.values()), list(leaves.values())
