"""Metrix at a layer of the network or at its inputs: mixtures that are embedded by the rest of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixcontrast.cells import Given
from mixcontrast.checks import check_embeddings, check_labels, reads_values
from mixcontrast.losses.base import Loss, Part
from mixcontrast.losses.softmax import InfoNCE
from mixcontrast.mixers.base import Mixer, check_wrappable, innermost, only_real_block, pick
from mixcontrast.mixers.joining import DeepDraw, Joined
from mixcontrast.mixing import sample_beta
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Columns, Plan
from mixcontrast.records import changed
from mixcontrast.similarity import similarity_table, unit


class DeepMetrix(nn.Module):
    """Metrix at feature or input level: `lam*f(x) + (1-lam)*f(x')` at a layer goes through the rest of the network.

    The loss is `loss(table) + weight * loss(mixed table)`. The mixed table holds every anchor of the batch against M
    embedded mixtures of two examples of different classes. For an anchor of the class of `x` a mixture has target
    `lam`, for one of the class of `x'` it has `1 - lam`. Gradient flows through the rest of the network to both
    examples, and to the anchor. With a loss whose columns are proxies (ProxyNCALoss) the mixtures are the rows.

    Called with `(encoder, inputs, labels)`, the encoder as a module of its own:
    `criterion(encoder, images, labels)` stands where `criterion(encoder(images), labels)` stood.

    Args:
        loss: one that is called with embeddings and labels and reads targets between 0 and 1, proxy losses included;
            or a mixer around one, which mixes the batch's own table besides.
        layer: name of the module of the encoder whose output is mixed, as `encoder.named_modules()` has it; None: the
            inputs are. The paper's best is a late layer; a late layer is also the cheapest.
        weight: of the mixed table, > 0; the paper's 0.4.
        alpha: of Beta(alpha, alpha), > 0; the paper's 2.
        positive_negative: an anchor reads mixtures that hold another example of its class.
        anchor_negative: an anchor reads mixtures that hold itself.
        negative_negative: an anchor reads mixtures of two other classes as well; target 0.
        num_mixtures: M; None: as many as the batch has examples, each with one of another class. Otherwise each
            example is in turn the first, in a random order.
        shared_lambda: one lambda a batch (the authors' code) instead of one a mixture (the paper).

    Raises:
        TypeError: `loss` cannot read mixed targets, or is not called with embeddings and labels; inputs that are no
            floats at input level; a layer whose output is no tensor.
        ValueError: numbers out of range; a batch of one class; a layer that the encoder does not have, does not use
            or uses twice, whose output has no row an example, or past which something still has the batch's old size
            (a layer inside a residual connection).

    Examples and mixtures pass through the network together, in one call, so the part before the layer is computed
    once. In training, batch norm normalises mixtures by their own statistics, as in a pass of their own, and keeps
    only those of the real examples, so that the embeddings are those that the network gives without mixing.
    Not for encoders that recompute layers with batch norm in the backward pass (gradient checkpointing).

    `Gathered(DeepMetrix(...))`, called alike, reads the anchors and the mixtures of all ranks. Each rank mixes within
    its own batch, which needs two classes; `num_mixtures` and `shared_lambda` are of a rank. Otherwise it is one
    process with the whole batch.

    Cost: the part after the layer on M further rows; B x M similarities.

    Source: Venkataramanan, Psomas et al., ICLR 2022, arXiv 2106.04990. Differs: M mixtures that all anchors share,
    where the paper mixes pairs anchor by anchor.

    >>> from mixcontrast import MultiSimilarityLoss
    >>> encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    >>> criterion = DeepMetrix(MultiSimilarityLoss(), layer="1")
    >>> criterion(encoder, torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        layer: str | None,
        weight: float = 0.4,
        alpha: float = 2.0,
        positive_negative: bool = True,
        anchor_negative: bool = False,
        negative_negative: bool = False,
        num_mixtures: int | None = None,
        shared_lambda: bool = False,
    ) -> None:
        super().__init__()
        check_wrappable("DeepMetrix", loss, soft_targets=True)
        bottom = innermost(loss)
        if bottom.towers or isinstance(bottom, InfoNCE):
            raise TypeError(
                f"DeepMetrix needs a loss of embeddings and labels. Got {type(bottom).__name__}, which reads two views "
                "or towers; use MultiSimilarityLoss, SupConLoss, ProxyAnchorLoss, ..."
            )
        if not weight > 0 or not alpha > 0:
            raise ValueError(f"`weight` and `alpha` must be positive. Got {weight}, {alpha}; the paper's are 0.4, 2.")
        if not (positive_negative or anchor_negative):
            raise ValueError(
                "DeepMetrix needs a kind of mixture that holds a positive. Got neither positive_negative nor "
                "anchor_negative; set one of them."
            )
        if num_mixtures is not None and num_mixtures < 1:
            raise ValueError(f"`num_mixtures` must be at least 1, or None for the batch's size. Got {num_mixtures}.")
        if layer == "":
            raise ValueError("`layer` must name a module, or be None for the inputs. Got an empty name; say None.")
        self.loss, self.layer = loss, layer
        self.weight, self.alpha = weight, alpha
        self.positive_negative, self.anchor_negative = positive_negative, anchor_negative
        self.negative_negative, self.num_mixtures = negative_negative, num_mixtures
        self.shared_lambda = shared_lambda

    @torch.no_grad()
    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> DeepDraw:
        """Pairs of examples of different classes, and their shares (float32).

        Raises:
            ValueError: on a CPU, a batch of one class.
        """
        check_labels(labels, labels)
        size, device = len(labels), labels.device
        if reads_values(labels) and not bool((labels != labels[0]).any()):
            raise ValueError(
                "A batch needs examples of at least two classes to mix. "
                f"Got {size} labels, all {labels[0].item()}; sample several classes a batch."
            )
        first = torch.arange(size, device=device)
        count = self.num_mixtures
        if count is None:
            count = size
        else:
            rounds = [torch.randperm(size, generator=generator, device=device) for _ in range(-(-count // size))]
            first = torch.cat(rounds)[:count]
        share = torch.rand(count, 1, generator=generator, device=device)
        second = pick(labels[first][:, None] != labels, share)[:, 0]  # (M,)
        shape = (1,) if self.shared_lambda else (count,)
        lam = sample_beta(self.alpha, self.alpha, shape, like=share, generator=generator).expand(count)
        return DeepDraw(first, second, lam)

    def embed(self, encoder: nn.Module, inputs: Tensor, draw: DeepDraw) -> tuple[Tensor, Tensor]:
        """The embeddings of a batch (B, D) and of its mixtures (M, D), of one pass of the encoder.

        Args:
            inputs: what the encoder takes, B examples; floats where `layer` is None.
        """
        rows, mixed = len(inputs), len(draw.first)
        if self.layer is None and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            seen = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(
                f"Inputs that are mixed must be a tensor of floats. Got {seen}; convert and normalise images before, "
                "or mix at a layer (of tokens, say, at the output of their embedding)."
            )
        joined = Joined(self.layer, rows, draw)
        with joined.hooks(encoder):
            try:
                both = encoder(inputs if self.layer is not None else joined.join(inputs))
            except RuntimeError as error:
                if not joined.active or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(joined.cannot_go_on(f"'{str(error).splitlines()[0]}'")) from error
        joined.check_used()
        check_embeddings("encoder(inputs)", both)
        if len(both) != rows + mixed:
            raise ValueError(joined.cannot_go_on(f"embeddings {tuple(both.shape)}"))
        return both[:rows], both[rows:]

    def mix(self, pairs: Pairs, labels: Tensor, mixed: Tensor, draw: DeepDraw) -> Pairs:
        """The mixed table of embedded mixtures: with the anchors of the batch's table, or of proxies as columns.

        Args:
            pairs: the batch's table, `loss.tables(embeddings, labels)[0]`.
            labels: (B,) of the batch.
            mixed: (M, D) embeddings of the mixtures.
        """
        candidates = only_real_block("DeepMetrix", pairs).candidates
        rows, columns, target, weight = self._cells(pairs, candidates, labels, mixed, draw)
        block = Block(similarity_table(rows, columns), target, weight, columns)
        labels_that_stay = _labels_that_stay(pairs, candidates, rows, columns)
        return changed(pairs, anchors=rows, blocks=(block,), **labels_that_stay)

    def plan(self, plan: Plan, labels: Tensor, mixed: Tensor, draw: DeepDraw) -> Plan:
        """The same before its cells are made; `plan` is that of the batch's table."""
        rows, columns, target, weight = self._cells(plan, plan.columns[0].candidates, labels, mixed, draw)
        of_mixed = Columns(columns, Given(target), Given(weight))
        labels_that_stay = _labels_that_stay(plan, plan.columns[0].candidates, rows, columns)
        return changed(plan, anchors=rows, columns=(of_mixed,), back_of=None, paired=False, **labels_that_stay)

    def _cells(
        self, of: Pairs | Plan, candidates: Tensor, labels: Tensor, mixed: Tensor, draw: DeepDraw
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mixed table's rows (A, D), columns (C, D), targets and weights."""
        mixtures = unit(mixed).to(of.anchors.dtype)  # (M, D)
        label1, label2 = labels[draw.first], labels[draw.second]  # (M,)
        lam = draw.lam.to(mixtures.dtype)
        different = label1 != label2
        if of.candidate_labels is not labels:  # proxies are the columns; mixtures are examples, so rows
            theirs = of.candidate_labels  # (C,)
            target = _target(label1[:, None] == theirs, label2[:, None] == theirs, lam[:, None])
            return mixtures, candidates, target, different[:, None]
        mine = of.anchor_labels[:, None]  # (A, 1)
        has1, has2 = mine == label1, mine == label2  # (A, M)
        counts = torch.zeros_like(has1)
        itself = torch.zeros_like(has1)
        if of.anchors is candidates:
            row = torch.arange(len(mine), device=labels.device)[:, None]
            itself = (row == draw.first) | (row == draw.second)
        if self.positive_negative:
            counts = counts | ((has1 | has2) & ~itself)
        if self.anchor_negative:
            counts = counts | itself
        if self.negative_negative:
            counts = counts | ~(has1 | has2)
        return of.anchors, mixtures, _target(has1, has2, lam), counts & different

    def reduce(self, embeddings: Tensor, labels: Tensor, mixed: Tensor, draw: DeepDraw) -> Tensor:
        """The loss of embeddings and embedded mixtures: the arithmetic, without the network; a 0-dimensional tensor.

        Args:
            embeddings: (B, D) of the batch, or gathered from all ranks, as are the others.
            labels: (B,) integers.
            mixed: (M, D).
            draw: its rows are those of `embeddings`.
        """
        tables = self.loss.tables(embeddings, labels)
        mixed_table = self.mix(tables[0], labels, mixed, draw)
        return self.loss.reduce_tables(tables) + self.weight * innermost(self.loss).reduce(mixed_table)

    def loss_of(self, encoder: nn.Module, inputs: Tensor, labels: Tensor, draw: DeepDraw) -> Tensor:
        """The loss of a batch under a draw; a 0-dimensional tensor."""
        embeddings, mixed = self.embed(encoder, inputs, draw)
        return self.reduce(embeddings, labels, mixed, draw)

    def forward(self, encoder: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: (B, ...) inputs of the encoder and (B,) integers; a 0-dimensional tensor."""
        self.check(encoder, inputs, labels)
        return self.loss_of(encoder, inputs, labels, self.draw(labels))

    def check(self, encoder: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        """One line where it is not called as it must be."""
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"DeepMetrix is called with (encoder, inputs, labels). Got {type(encoder).__name__} as the encoder; "
                "pass the network itself, not its embeddings."
            )
        check_labels(labels, inputs)

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, weight={self.weight}, alpha={self.alpha}, num_mixtures={self.num_mixtures}"


class MixedTable(Loss):
    """The innermost loss of a DeepMetrix over its mixed table alone, for a table that is read by rows.

    Called with `(embeddings (B, D), labels (B,), mixed (M, D), first (M,), second (M,), lam (M,))`.

    Args:
        criterion: whose table it is.
    """

    def __init__(self, criterion: DeepMetrix) -> None:
        super().__init__()
        self.loss, self._plan = innermost(criterion.loss), criterion.plan

    def plans(
        self, embeddings: Tensor, labels: Tensor, mixed: Tensor, first: Tensor, second: Tensor, lam: Tensor
    ) -> tuple[Plan]:
        (plan,) = self.loss.plans(embeddings, labels)
        return (self._plan(plan, labels, mixed, DeepDraw(first, second, lam)),)

    def rows(self, pairs: Pairs) -> Tensor:
        return self.loss.rows(pairs)

    def kept(self, pairs: Pairs) -> Tensor | None:
        return self.loss.kept(pairs)

    def parts(self, pairs: Pairs) -> list[Part]:
        return self.loss.parts(pairs)

    def counts(self, pairs: Pairs) -> list[tuple[Tensor, Tensor]] | None:
        return self.loss.counts(pairs)


def _labels_that_stay(of: Pairs | Plan, candidates: Tensor, rows: Tensor, columns: Tensor) -> dict[str, Tensor | None]:
    """Mixtures have no label."""
    return {
        "anchor_labels": of.anchor_labels if rows is of.anchors else None,
        "candidate_labels": of.candidate_labels if columns is candidates else None,
    }


def _target(first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
    """The share of the parents that are of a class: `lam` of the first, `1 - lam` of the second."""
    return torch.where(first, lam, torch.where(second, 1 - lam, 0.0))
