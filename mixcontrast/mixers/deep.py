"""Metrix at a layer of the network or at its inputs: mixtures that are embedded by the rest of the network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixcontrast.checks import check_embeddings, check_labels, reads_values
from mixcontrast.losses.base import Loss
from mixcontrast.losses.softmax import InfoNCE
from mixcontrast.mixers.base import Mixer, check_wrappable, innermost, only_real_block, pick
from mixcontrast.mixing import sample_beta
from mixcontrast.pairs import Block, Pairs
from mixcontrast.similarity import similarity_table, unit


@dataclass(frozen=True)
class DeepDraw:
    """Which examples are mixed, and in which share.

    Attributes:
        first: (M,) rows of the batch.
        second: (M,) rows of another class than `first`.
        lam: (M,) share of `first`.
    """

    first: Tensor
    second: Tensor
    lam: Tensor


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
        joined = _Joined(self.layer, rows, draw)
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
        block = only_real_block("DeepMetrix", pairs)
        mixtures = unit(mixed).to(pairs.anchors.dtype)  # (M, D)
        label1, label2 = labels[draw.first], labels[draw.second]  # (M,)
        lam = draw.lam.to(mixtures.dtype)
        different = label1 != label2
        if pairs.candidate_labels is not labels:  # proxies are the columns; mixtures are examples, so rows
            theirs = pairs.candidate_labels  # (C,)
            target = _target(label1[:, None] == theirs, label2[:, None] == theirs, lam[:, None])
            columns = Block(
                similarity_table(mixtures, block.candidates), target, different[:, None], block.candidates
            )
            return replace(pairs, anchors=mixtures, blocks=(columns,), anchor_labels=None)
        mine = pairs.anchor_labels[:, None]  # (A, 1)
        has1, has2 = mine == label1, mine == label2  # (A, M)
        counts = torch.zeros_like(has1)
        itself = torch.zeros_like(has1)
        if pairs.anchors is block.candidates:
            row = torch.arange(len(mine), device=labels.device)[:, None]
            itself = (row == draw.first) | (row == draw.second)
        if self.positive_negative:
            counts = counts | ((has1 | has2) & ~itself)
        if self.anchor_negative:
            counts = counts | itself
        if self.negative_negative:
            counts = counts | ~(has1 | has2)
        columns = Block(
            similarity_table(pairs.anchors, mixtures), _target(has1, has2, lam), counts & different, mixtures
        )
        return replace(pairs, blocks=(columns,), candidate_labels=None)

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
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"DeepMetrix is called with (encoder, inputs, labels). Got {type(encoder).__name__} as the encoder; "
                "pass the network itself, not its embeddings."
            )
        check_labels(labels, inputs)
        return self.loss_of(encoder, inputs, labels, self.draw(labels))

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, weight={self.weight}, alpha={self.alpha}, num_mixtures={self.num_mixtures}"


def _target(first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
    """The share of the parents that are of a class: `lam` of the first, `1 - lam` of the second."""
    return torch.where(first, lam, torch.where(second, 1 - lam, 0.0))


class _Joined:
    """One pass of an encoder in which mixtures join the batch after a layer, by forward hooks.

    Args:
        layer: after which they join; None: they have joined the inputs.
        rows: B, how many examples go in.
        draw: what is mixed.
    """

    def __init__(self, layer: str | None, rows: int, draw: DeepDraw) -> None:
        self.layer, self.rows, self.draw = layer, rows, draw
        self.active = layer is None
        self.calls = 0
        self.waiting: list[Tensor] = []

    @contextmanager
    def hooks(self, encoder: nn.Module) -> Iterator[None]:
        modules = dict(encoder.named_modules())
        if self.layer is not None and self.layer not in modules:
            near = difflib.get_close_matches(self.layer, modules, n=3, cutoff=0.5)
            near = near or [name for name, _ in encoder.named_children()][:8]
            raise ValueError(
                f"`layer` must name a module of the encoder. Got {self.layer!r}; "
                f"it has {', '.join(map(repr, near))} (all: encoder.named_modules())."
            )
        handles = []
        try:
            for module in modules.values():
                if isinstance(module, _BatchNorm):
                    handles.append(module.register_forward_pre_hook(self._before_norm))
                    handles.append(module.register_forward_hook(self._after_norm))
            if self.layer is not None:
                handles.append(modules[self.layer].register_forward_hook(self._after_layer))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def join(self, features: Tensor) -> Tensor:
        """(B + M, ...): the features of the examples, then of the mixtures."""
        first, second = features[self.draw.first], features[self.draw.second]
        lam = self.draw.lam.to(features.dtype).view(-1, *[1] * (features.ndim - 1))
        return torch.cat([features, torch.lerp(second, first, lam)])

    def check_used(self) -> None:
        """One line where the layer was never called."""
        if self.layer is not None and self.calls == 0:
            raise ValueError(
                f"`layer` must be used in the encoder's pass. Got {self.layer!r}, which was not called; "
                "choose another layer (a compiled encoder calls no hooks: give the one before torch.compile)."
            )

    def cannot_go_on(self, seen: str) -> str:
        """One line for an encoder that does not take further rows."""
        more = self.rows + len(self.draw.first)
        where = "its inputs" if self.layer is None else f"the output of {self.layer!r}"
        return (
            f"The encoder must take as many rows as it is given: {self.rows} examples and their mixtures, {more}, at "
            f"{where}. Got {seen}; mix at the end of a whole block, not inside a residual connection."
        )

    def _after_layer(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ValueError(
                f"`layer` must be used once in a pass. Got {self.layer!r}, which is called again; "
                "choose a module that is not shared."
            )
        if not isinstance(output, Tensor) or not output.is_floating_point():
            seen = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise TypeError(
                f"The output of `layer` must be one tensor of floats. Got {seen} from {self.layer!r}; "
                "choose a layer inside it or after it that gives a tensor."
            )
        if output.ndim < 2 or len(output) != self.rows:
            raise ValueError(
                f"The output of `layer` must have a row for each of {self.rows} examples. "
                f"Got {tuple(output.shape)} from {self.layer!r}; choose a layer whose first axis is the batch."
            )
        self.active = True
        return self.join(output)

    def _before_norm(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not self.active or not (module.training or module.running_mean is None):
            return None
        (both,) = inputs
        real = len(both) * self.rows // (self.rows + len(self.draw.first))  # tokens may have become rows
        self.waiting.append(both[real:])
        return (both[:real],)

    def _after_norm(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self.waiting:
            return None
        return torch.cat([output, _without_tracking(module, self.waiting.pop())])


def _without_tracking(module: nn.Module, features: Tensor) -> Tensor:
    """Batch norm by the features' own statistics, the running ones left as they are."""
    momentum, counter = module.momentum, module.num_batches_tracked
    count = None if counter is None else counter.clone()
    module.momentum = 0.0
    try:
        return module.forward(features)
    finally:
        module.momentum = momentum
        if counter is not None:
            counter.copy_(count)
