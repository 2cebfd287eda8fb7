"""Geodesic multi-modal mixup: mixtures of and across the two towers of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixcontrast.losses.base import Loss
from mixcontrast.losses.both_ways import ReverseMix
from mixcontrast.losses.clip import ClipLoss
from mixcontrast.losses.mixed_negatives import mixed_negatives_both_ways
from mixcontrast.mixers.base import Mixer, check_wrappable, innermost
from mixcontrast.mixing import Geodesic, Interpolation, anchor_side, sample_beta
from mixcontrast.pairs import Block, Pairs, reads_values, similarity_table


@dataclass(frozen=True)
class MixTerm:
    """One of the mixed terms.

    Attributes:
        weight: of the term in the total, > 0.
        beta: its lambda is drawn from Beta(beta, beta), one a batch; > 0.
        temperature: divides, in place of the model's logit_scale; None keeps the model's.
    """

    weight: float
    beta: float = 0.5
    temperature: float | None = None


@dataclass(frozen=True)
class GeodesicDraw:
    """One lambda a batch for each term, 0-dimensional; None where the term is off."""

    m2: Tensor | None
    v: Tensor | None
    l: Tensor | None  # noqa: E741
    vl: Tensor | None


class GeodesicMixup(Mixer):
    """Adds to an image-text loss the same loss over mixtures on the sphere; all four terms together are m3-Mix.

    With `m(a, b)` the point between two unit vectors at share `lam` of the first, `r` the batch in reverse:
    - m2-Mix: the negatives of pair `i` become `m(image_j, text_j)`, `j != i`, for images and for texts; positives stay.
    - V-Mix: `m(image_i, image_r(i))` against texts; targets `lam` at `i` and `1 - lam` at `r(i)`.
    - L-Mix: images against `m(text_j, text_r(j))`; the same targets.
    - VL-Mix: both with one lambda.

    Each term is read in the directions of the wrapped loss, and is averaged over them; the total is
    `loss + sum of weight * term`.

    Args:
        loss: ClipLoss, SigLipLoss, or a mixer around one.
        m2: its MixTerm, or None to leave it out.
        v: likewise.
        l: likewise.
        vl: likewise.
        decay_with_epoch: divide the weights by `epoch + 1`; tell the epoch by `set_epoch`.
        interpolation: Geodesic() as in the paper, or Linear(normalize=True), or Linear(normalize=False).
        detach: mixtures pass no gradient to what they are made of, only to what they are compared with: the anchors
            (m2), the texts (V), the images (L). VL, a mixture on both sides, is then refused. The paper lets all
            gradients flow.

    Called as open_clip's loss is: `(image_features, text_features, logit_scale, logit_bias=None, output_dict=False,
    labels=None)`; features are unit vectors. Images and texts that `labels` put together are positives of each other's
    mixtures by the same shares, and no negatives in m2. The columns of queues and of the own tower are not mixed.

    Raises:
        TypeError: `loss` cannot read mixed targets.
        ValueError: numbers out of range; no term; a table that is not square; features not of unit length (on a CPU).

    Cost: V, L and VL no matrix product, m2 two (images with images, texts with texts).

    Source: Oh, So et al., NeurIPS 2023, arXiv 2203.03897. Differs: `lam` is the first parent's share in each direction;
    terms are averaged over directions; one temperature for positives and negatives of m2.

    >>> from mixcontrast import ClipLoss
    >>> criterion = GeodesicMixup(ClipLoss())
    >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
    >>> loss = criterion(image, text, torch.tensor(100.0))
    """

    def __init__(
        self,
        loss: Loss | Mixer,
        *,
        m2: MixTerm | None = MixTerm(0.01, temperature=0.07),
        v: MixTerm | None = MixTerm(0.05),
        l: MixTerm | None = MixTerm(0.05),  # noqa: E741
        vl: MixTerm | None = MixTerm(0.1),
        decay_with_epoch: bool = False,
        interpolation: Interpolation = Geodesic(),
        detach: bool = False,
    ) -> None:
        super().__init__()
        check_wrappable("GeodesicMixup", loss, soft_targets=True)
        if not innermost(loss).towers:
            raise TypeError(
                "GeodesicMixup mixes the features of an image and a text tower. "
                f"Got {type(innermost(loss)).__name__}, which compares examples of one kind; "
                "use ClipLoss or SigLipLoss, or Metrix around this one."
            )
        terms = {"m2": m2, "v": v, "l": l, "vl": vl}
        self.terms = {name: term for name, term in terms.items() if term is not None}
        if not self.terms:
            raise ValueError("GeodesicMixup needs a term. Got none of m2, v, l, vl; leave out None for one of them.")
        for name, term in self.terms.items():
            if not (term.weight > 0 and term.beta > 0 and (term.temperature is None or term.temperature > 0)):
                raise ValueError(f"A term's weight, beta and temperature must be positive. Got {name}={term}.")
        if detach and vl is not None:
            raise ValueError("VL-Mix compares mixtures with mixtures; detached, it has no gradient. Set vl=None.")
        self.loss = loss
        self.decay_with_epoch, self.epoch = decay_with_epoch, 0
        self.interpolation, self.detach = interpolation, detach

    def tables(self, *inputs: Tensor) -> tuple[Pairs, ...]:
        tables = self.loss.tables(*inputs)
        if reads_values(tables[0].anchors):
            _check_lengths("image_features", tables[0].anchors)
            _check_lengths("text_features", tables[0].blocks[0].candidates)
        return tables

    def set_epoch(self, epoch: int) -> None:
        """Tells the epoch, from 0, for `decay_with_epoch`."""
        self.epoch = epoch

    @torch.no_grad()
    def draw(self, pairs: Pairs, generator: torch.Generator | None = None) -> GeodesicDraw:
        block = self._square(pairs)
        lambdas = {
            name: sample_beta(term.beta, term.beta, (), like=block.similarity, generator=generator)
            for name, term in self.terms.items()
        }
        return GeodesicDraw(**{name: lambdas.get(name) for name in ("m2", "v", "l", "vl")})

    def mix(self, pairs: Pairs, draw: GeodesicDraw) -> dict[str, Pairs]:
        """The mixed table of each term, in the direction of `pairs`: its anchors are the images."""
        block = self._square(pairs)
        similarity = block.similarity
        tables = {}
        if draw.m2 is not None:
            tables["m2"] = self._table(pairs, "m2", *self._m2(pairs, draw.m2))
        if draw.v is not None:
            source = similarity
            if self.detach:
                source = anchor_side(similarity.mT, block.candidates, pairs.anchors).mT
            tables["v"] = self._two_hot(pairs, "v", self._mixed_along(0, source, pairs.anchors, draw.v), draw.v)
        if draw.l is not None:
            source = self._source(similarity, pairs.anchors, block.candidates)
            tables["l"] = self._two_hot(pairs, "l", self._mixed_along(1, source, block.candidates, draw.l), draw.l)
        if draw.vl is not None:
            mixed = self._mixed_along(0, similarity, pairs.anchors, draw.vl)
            mixed = self._mixed_along(1, mixed, block.candidates, draw.vl)
            tables["vl"] = self._two_hot(pairs, "vl", mixed, draw.vl)
        return tables

    def _table(self, pairs: Pairs, name: str, *blocks: Block) -> Pairs:
        return replace(pairs, blocks=blocks, logit_scale=self._scale(pairs, name))

    def _two_hot(self, pairs: Pairs, name: str, mixed: Tensor, lam: Tensor) -> Pairs:
        """The table whose targets are `lam` at (i, i) and `1 - lam` at (i, r(i)); 1 where both are one cell."""
        if pairs.anchor_labels is not None:
            return self._table(pairs, name, Block(mixed, self._mixed_target(pairs, name, lam), 1.0))
        rows = torch.arange(len(mixed), device=mixed.device)
        target = mixed.new_zeros(mixed.shape)
        target[rows, rows.flip(0)] = 1 - lam
        target[rows, rows] += lam  # both are one cell where i = r(i)
        return self._table(pairs, name, Block(mixed, target, 1.0))

    def _mixed_target(self, pairs: Pairs, name: str, lam: Tensor) -> Tensor:
        """(A, A) the targets of several positives an image or text, mixed as their pairs are."""
        target = self._square(pairs).target.to(lam.dtype)
        if name == "vl":  # of what a mixture shares with another, half each way
            return lam * target + (1 - lam) * (target.flip(0) + target.flip(1)) / 2
        return lam * target + (1 - lam) * target.flip(0 if name == "v" else 1)

    def _source(self, similarity: Tensor, anchors: Tensor, mixed: Tensor) -> Tensor:
        """The table of anchors with what is to be mixed, which is detached or not."""
        return anchor_side(similarity, anchors, mixed) if self.detach else similarity

    def _mixed_along(self, dim: int, similarity: Tensor, features: Tensor, lam: Tensor) -> Tensor:
        """(A, A) the table of `m(features_i, features_r(i))`, from that of `features`, its rows (0) or columns (1)."""
        c1, c2 = (c.unsqueeze(1 - dim) for c in self._coefficients(features, lam))
        if torch.compiler.is_compiling():
            return c1 * similarity + c2 * similarity.flip(dim)
        return _MixWithReverse.apply(similarity, c1, c2, dim)

    def _m2(self, pairs: Pairs, lam: Tensor) -> tuple[Block, Block]:
        """(A, A) negatives, anchors against `m(anchor_j, candidate_j)`, j != i; and (A, 1) the plain positives."""
        block = self._square(pairs)
        anchors = pairs.anchors
        own = block.similarity.diagonal()
        among = similarity_table(anchors, anchors.detach() if self.detach else anchors)
        across = self._source(block.similarity, anchors, block.candidates)
        c1, c2 = self.interpolation.coefficients(lam, own.detach() if self.detach else own)
        others = block.target == 0
        return Block(torch.addcmul(c1 * among, c2, across), 0.0, others), Block(own[:, None], 1.0, 1.0)

    def _square(self, pairs: Pairs) -> Block:
        block = pairs.blocks[0]  # those of a queue or of the own tower come after it
        rows, columns = block.similarity.shape
        if rows != columns:
            raise ValueError(
                "GeodesicMixup pairs image i with text i in one square table. "
                f"Got {rows} anchors and {columns} candidates; gather both sides of the batch."
            )
        return block

    def loss_of(self, pairs: Pairs, draw: GeodesicDraw) -> Tensor:
        """The total of one direction, in which the anchors are the images."""
        return self.loss.reduce(pairs) + self._mixed(self.mix(pairs, draw))

    def _mixed(self, tables: dict[str, Pairs]) -> Tensor:
        loss = innermost(self.loss)
        return sum(self.terms[name].weight / self._decay() * loss.reduce(table) for name, table in tables.items())

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        tables = self.tables(image_features, text_features, logit_scale, logit_bias, output_dict, labels)
        loss = self.reduce_tables(tables)
        return {"contrastive_loss": loss} if output_dict else loss

    def reduce_tables(self, tables: Sequence[Pairs]) -> Tensor:
        return self.loss_of_towers(tables, self.draw(tables[0]))

    def loss_of_towers(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> Tensor:
        """The loss of all directions under one draw; the first table's anchors are the images.

        V-, L- and VL-Mix are one table read both ways; m2-Mix, whose mixtures are candidates in both, is one each.
        On a CPU, around ClipLoss, neither is ever whole.
        """
        loss = innermost(self.loss)
        if isinstance(loss, ClipLoss) and loss is self.loss and not self.detach:
            mixtures = self._reversed(tables[0], draw)
            found = loss.both_ways(tables, mixtures)
            if found is not None:
                return found + self._m2_both_ways(tables, replace(draw, v=None, l=None, vl=None))
        return self.loss.reduce_tables(tables) + self._terms_of(tables, draw)

    def _terms_of(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> Tensor | float:
        """The mixed terms of all directions."""
        mixed = self.mix(tables[0], draw)
        total = self._mixed(mixed)
        for back in tables[1:]:
            turned = {}
            for name, table in mixed.items():
                if name == "m2":
                    other = replace(draw, m2=1 - draw.m2, v=None, l=None, vl=None)
                    turned[name] = self.mix(back, other)["m2"]
                else:
                    (block,) = table.blocks
                    turned[name] = self._table(back, name, Block(block.similarity.mT, block.target.mT, 1.0))
            total = total + self._mixed(turned)
        return total / len(tables)

    def _m2_both_ways(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> Tensor | float:
        """m2-Mix of both directions."""
        if draw.m2 is None:
            return 0.0
        block, image = self._square(tables[0]), tables[0].anchors
        if not image.dtype == block.candidates.dtype == block.similarity.dtype:  # under autocast
            return self._terms_of(tables, draw)
        own = block.similarity.diagonal()
        shares = (self.interpolation.coefficients(lam, own) for lam in (draw.m2, 1 - draw.m2))
        of_images, of_texts = (tuple(c.expand_as(own) for c in pair) for pair in shares)
        scale = self._scale(tables[0], "m2")
        term = mixed_negatives_both_ways(image, block.candidates, block.similarity, scale, of_images, of_texts)
        return self.terms["m2"].weight / self._decay() * term

    def _scale(self, pairs: Pairs, name: str) -> Tensor | float:
        temperature = self.terms[name].temperature
        return pairs.logit_scale if temperature is None else 1 / temperature

    def _reversed(self, pairs: Pairs, draw: GeodesicDraw) -> list[ReverseMix]:
        """V-, L- and VL-Mix as the loss reads them in its own pass."""
        candidates = self._square(pairs).candidates
        mixtures = []
        for name, by_rows, by_columns in (("v", True, False), ("l", False, True), ("vl", True, True)):
            lam = getattr(draw, name)
            if lam is not None:
                term = self.terms[name]
                rows = self._coefficients(pairs.anchors, lam) if by_rows else None
                columns = self._coefficients(candidates, lam) if by_columns else None
                weight = term.weight / self._decay()
                mixtures.append(ReverseMix(rows, columns, lam, self._scale(pairs, name), weight))
        return mixtures

    def _coefficients(self, features: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) each: the shares of a row and of its reverse in their mixture."""
        if self.detach:
            features = features.detach()
        if torch.compiler.is_compiling():
            cosine = (features * features.flip(0)).sum(dim=1)
        else:
            cosine = _ReverseCosine.apply(features)
        first, second = self.interpolation.coefficients(lam, cosine)
        return first.expand_as(cosine), second.expand_as(cosine)  # plain linear mixing has one for all

    def _decay(self) -> int:
        return self.epoch + 1 if self.decay_with_epoch else 1

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={term.weight}" for name, term in self.terms.items())


class _ReverseCosine(torch.autograd.Function):
    """(A,) the product of each row with its reverse, which is the reverse's with it."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        count = len(features)
        half = (features[: (count + 1) // 2] * features[count // 2 :].flip(0)).sum(dim=1)
        return torch.cat([half, half[: count // 2].flip(0)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return features.flip(0).mul_((grad + grad.flip(0))[:, None])


class _MixWithReverse(torch.autograd.Function):
    """`c1 * table + c2 * table.flip(dim)` in place over one new table, forward and backward."""

    @staticmethod
    def forward(ctx, table: Tensor, c1: Tensor, c2: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(table, c1, c2)
        ctx.dim = dim
        return table.flip(dim).mul_(c2).addcmul_(table, c1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (table, c1, c2), dim = ctx.saved_tensors, ctx.dim
        turned = grad.flip(dim)
        of_c1 = of_c2 = None
        if ctx.needs_input_grad[1]:
            products = grad * table
            of_c1 = products.sum(dim=1 - dim, keepdim=True)
            torch.mul(turned, table, out=products)
            of_c2 = products.sum(dim=1 - dim, keepdim=True).flip(dim)
        return turned.mul_(c2.flip(dim)).addcmul_(grad, c1), of_c1, of_c2, None


def _check_lengths(name: str, features: Tensor) -> None:
    """One line where features are not of unit length, to the precision of bfloat16."""
    length = torch.linalg.vector_norm(features.detach(), dim=1)
    if not bool(((length - 1).abs() < 0.01).all()):
        raise ValueError(
            f"GeodesicMixup mixes on the sphere: `{name}` must be of unit length. Got lengths from "
            f"{length.min().item():g} to {length.max().item():g}; pass torch.nn.functional.normalize({name}, dim=-1)."
        )

