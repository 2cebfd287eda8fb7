"""The negatives that a mixer of hard negatives may mix: which are the hardest, and what the table says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast.cells import Cells
from mixcontrast.losses.base import Loss
from mixcontrast.mixers.base import Mixer, innermost, parent_cosine, read_detached, row_products, table_products
from mixcontrast.mixing import Interpolation, needs_cosine
from mixcontrast.pairs import Block, Pairs
from mixcontrast.queue import KeyQueue

_GROUP = 8  # columns a group, in the search for the largest
# Of 256 rows and a count of 1024 on an H100, torch.topk takes 0.286 ms at 65,536 columns and groups take 0.326; at
# 131,072 columns 0.493 and 0.349. Straight lines through these figures cross at 80,000 columns.
_FEW_FOR_A_GPU = 80_000


@dataclass(frozen=True)
class Pool:
    """The real columns of one modality, numbered through all blocks that hold them (the batch, a queue).

    Attributes:
        pairs: the table.
        blocks: those of its blocks that are mixed; of at least one column each.
        detach: read as if candidates were detached.
    """

    pairs: Pairs
    blocks: tuple[Block, ...]
    detach: bool

    def hardest(self, count: int) -> tuple[Tensor, Tensor | int]:
        """Columns of each anchor's most similar negatives.

        Returns:
            (A, N) columns, the negatives first; and how many of them are negatives, (A, 1), or N where all are.
        """
        found = [hardest(block.similarity, block.negative, count) for block in self.blocks]
        if len(found) == 1:
            return found[0]
        columns, values, offset = [], [], 0
        for block, (places, number) in zip(self.blocks, found, strict=True):
            ranks = torch.arange(places.shape[1], device=places.device)
            values.append(block.similarity.gather(1, places).masked_fill(ranks >= number, -torch.inf))
            columns.append(places + offset)
            offset += block.similarity.shape[1]
        joined = torch.cat(values, dim=1)
        best, order = joined.topk(min(count, joined.shape[1]), dim=1)
        return torch.cat(columns, dim=1).gather(1, order), (best > -torch.inf).sum(dim=1, keepdim=True)

    def read(self, columns: Tensor) -> Tensor:
        """(A, M) similarities of the anchors to these columns."""
        cells, offset = None, 0
        for block in self.blocks:
            width = block.similarity.shape[1]
            inside = columns if len(self.blocks) == 1 else (columns - offset).clamp(0, width - 1)
            if self.detach:
                here = read_detached(self.pairs, block, inside)
            else:
                here = block.similarity.gather(1, inside)
            cells = here if cells is None else torch.where(columns >= offset, here, cells)
            offset += width
        return cells

    def cosines(self, first: Tensor, second: Tensor, interpolation: Interpolation) -> Tensor | None:
        """(A, M) cosines of pairs of these columns; None where the interpolation does not need them."""
        if len(self.blocks) == 1:
            return parent_cosine(self.pairs, self.blocks[0], first, second, interpolation, self.detach)
        return row_products(self._candidates(), first, second) if needs_cosine(interpolation) else None

    def products(self, columns: Tensor, vectors: Tensor, of: Tensor) -> Tensor:
        """(A, M) `candidates[columns] . vectors[of]`, in chunks of gathered rows.

        Args:
            columns: (A, M).
            vectors: (V, D) without gradient.
            of: (A, M) rows of `vectors`.
        """
        return table_products(self._candidates(), vectors, columns, of)

    def _candidates(self) -> Tensor:
        every = [block.candidates for block in self.blocks]
        joined = every[0] if len(every) == 1 else torch.cat(every)
        return joined.detach() if self.detach else joined


def pool_of(mixer: str, pairs: Pairs, same_modality: bool, detach: bool) -> Pool:
    """The columns to mix.

    Raises:
        ValueError: the table has none.
    """
    blocks = tuple(b for b in pairs.real if b.same_modality == same_modality and b.similarity.shape[1] > 0)
    if not blocks and same_modality:
        raise ValueError(
            f"{mixer}(same_modality=True) mixes columns of the anchor's own tower. "
            f"Got a table without; wrap ClipLoss(same_modality=True) or SigLipLoss(same_modality=True)."
        )
    if not blocks:
        raise ValueError(
            f"{mixer} mixes columns that have embeddings. Got a table without; "
            "build the table by one of Pairs' constructors."
        )
    return Pool(pairs, blocks, detach)


def check_queue(mixer: str, loss: Loss | Mixer, queue: KeyQueue | None) -> None:
    """One line where a mixer's own queue does not go with what it wraps.

    Raises:
        TypeError: a second queue, or a loss of two towers, which takes a queue a tower.
    """
    if queue is None:
        return
    if innermost(loss).towers:
        raise TypeError(
            f"A loss of two towers takes a queue a tower. Got one for {mixer}; "
            f"write {mixer}(ClipLoss(image_queue=KeyQueue(...), text_queue=KeyQueue(...)))."
        )
    for module in loss.modules():
        if isinstance(module, Loss | Mixer) and any(isinstance(child, KeyQueue) for child in module.children()):
            raise TypeError(
                f"One queue is enough. Got one for {mixer} and one for {type(module).__name__} inside it; "
                f"give it to the outer {mixer} alone."
            )


def hardest(similarity: Tensor, negative: Cells, count: int) -> tuple[Tensor, Tensor | int]:
    """Columns of the largest similarities among the negatives.

    Returns:
        (A, N) columns, the negatives first; and how many of them are negatives, (A, 1), or N where all are.
    """
    count = min(count, similarity.shape[1])
    if not isinstance(negative, Tensor):
        return largest(similarity, count), count
    hidden = torch.where(negative > 0, similarity, -torch.inf)
    values, columns = hidden.topk(count, dim=1)
    return columns, (values > -torch.inf).sum(dim=1, keepdim=True)


def largest(table: Tensor, count: int) -> Tensor:
    """(A, count) columns of each row's largest cells, in no order.

    A column among the `count` largest lies in one of the `count` groups whose maximum is largest, so a search among
    the groups, and one among the columns of those groups, together much shorter than the row, give the exact answer.
    """
    rows, columns = table.shape
    width = columns // _GROUP
    if width < 2 * count or (table.is_cuda and columns <= _FEW_FOR_A_GPU):
        return table.topk(count, dim=1, sorted=False).indices
    body = table[:, : width * _GROUP].unflatten(1, (_GROUP, width))  # column g * width + n is (g, n)
    groups = body.amax(dim=1).topk(count, dim=1, sorted=False).indices  # (A, N)
    members = body.gather(2, groups[:, None, :].expand(-1, _GROUP, -1)).flatten(1)  # (A, G * N)
    members = torch.cat([members, table[:, width * _GROUP :]], dim=1) if columns > width * _GROUP else members
    best = members.topk(count, dim=1, sorted=False).indices
    inside = best < _GROUP * count
    group = groups.gather(1, best % count)
    return torch.where(inside, best // count * width + group, best - _GROUP * count + _GROUP * width)
