"""Geodesic multi-modal mixup: mixtures of and across the two towers of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixcontrast.checks import reads_values
from mixcontrast.losses.base import Batch, Loss, Part, positive_number, value_of
from mixcontrast.losses.both_ways import ReverseMix
from mixcontrast.losses.clip import ClipLoss
from mixcontrast.losses.mixed_negatives import mixed_negatives_both_ways
from mixcontrast.mixers.base import Groups, Mixer, check_wrappable, innermost
from mixcontrast.mixers.reverse import MixWithReverse, ReverseCosine
from mixcontrast.mixing import Geodesic, Interpolation, anchor_side, sample_beta
from mixcontrast.pairs import Block, Pairs
from mixcontrast.plans import Plan
from mixcontrast.records import changed
from mixcontrast.similarity import similarity_table, wide


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


# (A,) each: what a row (0) or column (1) and its reverse, of a term, give to their mixture; of m2 the anchor and its
# candidate, where images are the anchors (0) or the candidates (1)
Shares = dict[tuple[str, int], tuple[Tensor, Tensor]]


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
        weight: multiplies the weights of all terms, > 0: one number for how much mixing counts.
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
        weight: float = 1.0,
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
        positive_number(weight=weight)
        self.terms = {name: replace(term, weight=term.weight * weight) for name, term in self.terms.items()}
        if detach and vl is not None:
            raise ValueError("VL-Mix compares mixtures with mixtures; detached, it has no gradient. Set vl=None.")
        self.loss = loss
        self.decay_with_epoch, self.epoch = decay_with_epoch, 0
        self.interpolation, self.detach = interpolation, detach

    def plans(self, *inputs: Tensor) -> tuple[Plan, ...]:
        return self.loss.plans(*self._checked(inputs))

    def _checked(self, inputs: tuple) -> tuple:
        """The inputs, once they were seen to be of unit length (on a CPU)."""
        for place, features in enumerate(inputs[:2]):
            name = ("image_features", "text_features")[place]
            if isinstance(features, Tensor) and features.ndim == 2 and reads_values(features):
                _check_lengths(name, features)
        return inputs

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
        return self._mix(pairs, draw, self._shares(pairs, draw), images=0)

    def _mix(self, pairs: Pairs, draw: GeodesicDraw, shares: Shares, images: int) -> dict[str, Pairs]:
        """`mix`, of images along dimension 0, the anchors, or 1, the candidates."""
        similarity = self._square(pairs).similarity
        tables = {}
        if draw.m2 is not None:
            tables["m2"] = self._table(pairs, "m2", *self._m2(pairs, *shares["m2", images]))
        if draw.v is draw.l is draw.vl is None:
            return tables
        target, turned = self._targets(pairs)
        for name, along in (("v", images), ("l", 1 - images)):
            lam = getattr(draw, name)
            if lam is not None:
                mixed = self._mixed_along(along, self._source(pairs, along), pairs, *shares[name, along])
                tables[name] = self._two_hot(pairs, name, mixed, torch.lerp(turned[along], target, lam))
        if draw.vl is not None:
            mixed = self._mixed_along(0, similarity, pairs, *shares["vl", 0])
            mixed = self._mixed_along(1, mixed, pairs, *shares["vl", 1])
            # of what a mixture shares with another, half each way
            both = turned[0] if turned[0] is turned[1] else (turned[0] + turned[1]) / 2
            tables["vl"] = self._two_hot(pairs, "vl", mixed, torch.lerp(both, target, draw.vl))
        return tables

    def _table(self, pairs: Pairs, name: str, *blocks: Block) -> Pairs:
        return changed(pairs, blocks=blocks, logit_scale=self._scale(pairs, name))

    def _two_hot(self, pairs: Pairs, name: str, mixed: Tensor, target: Tensor) -> Pairs:
        return self._table(pairs, name, Block(mixed, target, 1.0))

    def _targets(self, pairs: Pairs) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(A, A) the batch's targets, and those of its reverse: in rows, and in columns."""
        block = self._square(pairs)
        target = block.target.to(block.similarity.dtype)
        rows = target.flip(0)  # a tile has with each row its reverse, so it is turned in itself
        return target, (rows, rows if pairs.anchor_labels is None else target.flip(1))

    def _source(self, pairs: Pairs, along: int) -> Tensor:
        """(A, A) similarities whose rows (0) or columns (1) are to be mixed, and are detached or not."""
        block = self._square(pairs)
        if not self.detach:
            return block.similarity
        if along:
            return anchor_side(block.similarity, pairs.anchors, block.candidates)
        return anchor_side(block.similarity.mT, block.candidates, pairs.anchors).mT

    def _mixed_along(self, dim: int, similarity: Tensor, pairs: Pairs, c1: Tensor, c2: Tensor) -> Tensor:
        """(A, A) the table of `m(features_i, features_r(i))`, of its rows (0) or columns (1), from the unmixed one."""
        if dim == 0 and pairs.tile is not None:
            c1, c2 = c1[pairs.tile.rows], c2[pairs.tile.rows]
        c1, c2 = c1.unsqueeze(1 - dim), c2.unsqueeze(1 - dim)
        if torch.compiler.is_compiling():
            return c1 * similarity + c2 * similarity.flip(dim)
        return MixWithReverse.apply(similarity, c1, c2, dim)

    def _own(self, pairs: Pairs) -> Tensor:
        """(A,) the similarity of each pair's image and text, of the whole batch."""
        block = self._square(pairs)
        if pairs.tile is None:
            return block.similarity.diagonal()
        return (pairs.every_anchor * block.candidates).sum(dim=1)

    def _m2(self, pairs: Pairs, c1: Tensor, c2: Tensor) -> tuple[Block, Block]:
        """(A, A) negatives, anchors against `m(anchor_j, candidate_j)`, j != i; and (A, 1) the plain positives."""
        block, own = self._square(pairs), self._own(pairs)
        anchors, every = pairs.anchors, pairs.every_anchor
        mine = own if pairs.tile is None else own[pairs.tile.rows]
        among = similarity_table(anchors, every.detach() if self.detach else every)
        mixed = torch.addcmul(c1 * among, c2, self._source(pairs, 1))
        return Block(mixed, 0.0, block.target == 0), Block(mine[:, None], 1.0, 1.0)

    def _square(self, pairs: Pairs) -> Block:
        block = pairs.blocks[0]  # those of a queue or of the own tower come after it
        rows, columns = len(pairs.every_anchor), block.similarity.shape[1]
        if rows != columns:
            raise ValueError(
                "GeodesicMixup pairs image i with text i in one square table. "
                f"Got {rows} anchors and {columns} candidates; gather both sides of the batch."
            )
        return block

    def loss_of(self, pairs: Pairs, draw: GeodesicDraw) -> Tensor:
        """The total of one direction, in which the anchors are the images."""
        return self.loss.reduce(pairs) + value_of(self._mixed(self.mix(pairs, draw)))

    def _mixed(self, tables: dict[str, Pairs]) -> list[Part]:
        loss, decay = innermost(self.loss), self._decay()
        found = [(self.terms[name].weight / decay, loss.parts(table)) for name, table in tables.items()]
        return [part.times(weight) for weight, parts in found for part in parts]

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

    def parts_of(self, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        return self._parts_under(batch.once(self, lambda: self.draw(tables[0])), tables, batch)

    def counts_of(self, tables: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]] | None:
        """Also those of the mixed tables: every pair is a positive of its mixture."""
        known = self.loss.counts_of(tables)
        if known is None or not innermost(self.loss).counts_rows:
            return None
        rows = torch.full((), len(tables[0].anchors), device=tables[0].anchors.device)
        return known + [(rows, rows)] * len(self.terms) * len(tables)

    def in_tiles(self, inputs: tuple, rows: int, batch: Batch) -> Tensor | None:
        """As `Loss.in_tiles`: V-, L- and VL-Mix around ClipLoss."""
        if not isinstance(self.loss, ClipLoss) or self.detach or "m2" in self.terms:
            return None

        def mixtures(plan: Plan) -> list[ReverseMix]:
            first = Pairs.of(plan, torch.zeros(1, dtype=torch.long), blank=True)
            return self._reversed(first, batch.once(self, lambda: self.draw(first)))

        return self.loss.in_tiles(self._checked(inputs), rows, batch, mixtures)

    def together(self, plans: Sequence[Plan]) -> Groups:
        """Each row with its reverse."""
        rows = torch.arange(len(plans[0].anchors), device=plans[0].anchors.device)
        half = len(rows) // 2
        order = torch.stack([rows[:half], rows.flip(0)[:half]], dim=1).flatten()
        return Groups(torch.cat([order, rows[half : len(rows) - half]]), [2] * half + [1] * (len(rows) % 2), must=True)

    def loss_of_towers(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> Tensor:
        """The loss of all directions under one draw; the first table's anchors are the images.

        V-, L- and VL-Mix are one table read both ways; m2-Mix, whose mixtures are candidates in both, is one each.
        On a CPU, around ClipLoss, neither is ever whole.
        """
        return value_of(self._parts_under(draw, tables, Batch()))

    def _parts_under(self, draw: GeodesicDraw, tables: Sequence[Pairs], batch: Batch) -> list[Part]:
        loss = innermost(self.loss)
        if isinstance(loss, ClipLoss) and loss is self.loss and not self.detach and tables[0].tile is None:
            found = loss.both_ways(tables, self._reversed(tables[0], draw))
            if found is not None:
                return [Part(found, 1.0, 1.0), *self._m2_both_ways(tables, changed(draw, v=None, l=None, vl=None))]
        return [*self.loss.parts_of(tables, batch), *self._terms_of(tables, draw)]

    def _terms_of(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> list[Part]:
        """The mixed terms of all directions."""
        shares = self._shares(tables[0], draw)
        mixed = self._mix(tables[0], draw, shares, images=0)
        parts = self._mixed(mixed)
        for back in tables[1:]:
            if back.tile is not None:
                parts += self._mixed(self._mix(back, draw, self._shares(back, draw, images=1), images=1))
                continue
            turned = self._mix(back, changed(draw, v=None, l=None, vl=None), shares, images=1)
            for name, table in mixed.items():
                if name != "m2":
                    (block,) = table.blocks
                    turned[name] = self._table(back, name, Block(block.similarity.mT, block.target.mT, 1.0))
            parts += self._mixed(turned)
        return [part.times(1 / len(tables)) for part in parts]

    def _m2_both_ways(self, tables: Sequence[Pairs], draw: GeodesicDraw) -> list[Part]:
        """m2-Mix of both directions."""
        if draw.m2 is None:
            return []
        block, image = self._square(tables[0]), tables[0].anchors
        if not image.dtype == block.candidates.dtype == block.similarity.dtype:  # under autocast
            return self._terms_of(tables, draw)
        own = block.similarity.diagonal()
        shares = (self.interpolation.coefficients(lam, own) for lam in (draw.m2, 1 - draw.m2))
        of_images, of_texts = (tuple(c.expand_as(own) for c in pair) for pair in shares)
        scale = self._scale(tables[0], "m2")
        term = mixed_negatives_both_ways(image, block.candidates, block.similarity, scale, of_images, of_texts)
        return [Part(term, 1.0, 1.0, self.terms["m2"].weight / self._decay())]

    def _scale(self, pairs: Pairs, name: str) -> Tensor | float:
        temperature = self.terms[name].temperature
        return pairs.logit_scale if temperature is None else 1 / temperature

    def _reversed(self, pairs: Pairs, draw: GeodesicDraw) -> list[ReverseMix]:
        """V-, L- and VL-Mix as the loss reads them in its own pass."""
        shares = self._shares(pairs, changed(draw, m2=None))
        mixtures = []
        for name in ("v", "l", "vl"):
            lam = getattr(draw, name)
            if lam is not None:
                rows, columns, weight = shares.get((name, 0)), shares.get((name, 1)), self.terms[name].weight
                mixtures.append(ReverseMix(rows, columns, lam, self._scale(pairs, name), weight / self._decay()))
        return mixtures

    def _shares(self, pairs: Pairs, draw: GeodesicDraw, images: int = 0) -> Shares:
        """Of all terms at once; `images` as in `_mix`."""
        dims = {"v": (images,), "l": (1 - images,), "vl": (0, 1)}
        wanted = [(name, dim) for name in dims if getattr(draw, name) is not None for dim in dims[name]]
        towers = pairs.every_anchor, self._square(pairs).candidates
        cosines = {dim: self._reverse_cosine(towers[dim]) for dim in (0, 1) if dim in [d for _, d in wanted]}
        cosine = [cosines[dim] for _, dim in wanted]
        if draw.m2 is not None:
            own = self._own(pairs)
            wanted, cosine = [*wanted, ("m2", 0)], [*cosine, own.detach() if self.detach else own]
        if not wanted:
            return {}
        cosine = torch.stack(cosine)  # (T, A)
        lam = torch.stack([getattr(draw, name) for name, _ in wanted])[:, None]
        first, second = self.interpolation.coefficients(lam, cosine)
        first, second = (c.expand_as(cosine).unbind() for c in (first, second))  # plain linear mixing has one for all
        shares = dict(zip(wanted, zip(first, second, strict=True), strict=True))
        if draw.m2 is not None:
            shares["m2", 1] = shares["m2", 0][::-1]  # a text's share first
        return shares

    def _reverse_cosine(self, features: Tensor) -> Tensor:
        """(A,) the cosine of each row with its reverse."""
        if self.detach:
            features = features.detach()
        if torch.compiler.is_compiling():
            return (features * features.flip(0)).sum(dim=1)
        return ReverseCosine.apply(features)

    def _decay(self) -> int:
        return self.epoch + 1 if self.decay_with_epoch else 1

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={term.weight}" for name, term in self.terms.items())


def _check_lengths(name: str, features: Tensor) -> None:
    """One line where features are not of unit length, to the precision of bfloat16."""
    length = torch.linalg.vector_norm(wide(features.detach()), dim=1)
    if not bool(((length - 1).abs() < 0.01).all()):
        raise ValueError(
            f"GeodesicMixup mixes on the sphere: `{name}` must be of unit length. Got lengths from "
            f"{length.min().item():g} to {length.max().item():g}; pass torch.nn.functional.normalize({name}, dim=-1)."
        )
