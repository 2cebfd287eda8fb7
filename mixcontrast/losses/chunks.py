"""A square table in chunks of rows that stay in cache: one that is there, or one made of features as it is read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 1 << 17  # cells of a chunk: half a megabyte of float32, of which a few are alive


class Chunk:
    """Some rows of a table, in order or in pairs: rows `start` and up, and then those that the reverse makes of them.

    Numbers of rows are kept in the same order, (S, A / S, 1); S is 2 where rows come in pairs, else 1.

    Attributes:
        index: (S * H,) the rows.
        cells: (S, H, A) their similarities.
        total: (S, H, A) where their gradient goes.
    """

    def __init__(self, size: int, start: int, stop: int, paired: bool) -> None:
        self.start, self.stop, self.sides = start, stop, 1 + paired
        self.index = torch.arange(start, stop)
        if paired:
            self.index = torch.cat([self.index, size - 1 - self.index])
        self.cells: Tensor
        self.total: Tensor | None = None

    def shaped(self, numbers: Tensor) -> Tensor:
        """(S, H, A) of the first numbers of a contiguous tensor."""
        return numbers.view(self.sides, self.stop - self.start, -1)

    def scratch(self, buffer: Tensor) -> Tensor:
        """(S, H, A) of a flat buffer, written over by the next one who asks."""
        return buffer[: self.cells.numel()].view(self.cells.shape)

    def part(self, rows: Tensor) -> Tensor:
        """(S, H, 1) of this chunk, from numbers of all rows."""
        return rows[:, self.start : self.stop]

    def positives(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Views (S, H) of `cells` (S, H, A): on the diagonal through the first row's own cell, and through its reverse.

        In the second half of a pair the two exchange their parts.
        """
        sides, count, width = cells.shape
        rising = cells.as_strided((sides, count), (count * width, width + 1), cells.storage_offset() + self.start)
        last = cells.storage_offset() + width - 1 - self.start
        return rising, cells.as_strided((sides, count), (count * width, width - 1), last)


class GivenTable:
    """A table that is there."""

    def __init__(self, table: Tensor) -> None:
        self.like, self.table, self.size = table, table, len(table)

    def buffers(self, count: int) -> list[Tensor]:
        """Flat tensors that hold a chunk each."""
        return buffers(self.table, self.size, None, count)

    def chunks(self, paired: bool, gradient: bool = False) -> Iterator[Chunk]:
        """All chunks; what was written to one's `total` is taken as its gradient when the next is asked for."""
        table = self.table
        self.of = torch.empty_like(table) if gradient else None
        cells, total = self.buffers(2) if paired else (None, None)
        for chunk in _ranges(self.size, paired):
            if paired:
                count = len(chunk.index) * self.size
                chunk.cells = chunk.shaped(cells[:count])
                torch.index_select(table, 0, chunk.index, out=chunk.cells.view(-1, self.size))
                chunk.total = chunk.shaped(total[:count])
            else:
                part = slice(chunk.start, chunk.stop)
                chunk.cells, chunk.total = table[part][None], self.of[part][None] if gradient else None
            yield chunk
            if gradient and paired:
                self.of.index_copy_(0, chunk.index, chunk.total.view(-1, self.size))

    def gradients(self) -> tuple[Tensor, None]:
        """Of the table."""
        return self.of, None


class ProductTable:
    """The table of features, made some rows at a time."""

    def __init__(self, image: Tensor, text: Tensor, rows: int) -> None:
        self.like, self.image, self.text, self.rows, self.size = image, image, text, rows, len(image)

    def buffers(self, count: int) -> list[Tensor]:
        """As GivenTable's."""
        return buffers(self.like, self.size, self.rows, count)

    def chunks(self, paired: bool, gradient: bool = False) -> Iterator[Chunk]:
        """As GivenTable's."""
        size, text = self.size, self.text
        every = list(_ranges(size, paired, self.rows))
        most = len(every[0].index)
        each = max(1, self.rows // most)
        tables = [self.like.new_empty(min(each * most, size) * size) for _ in range(1 + gradient)]
        if gradient:
            self.of_image, self.of_text = torch.empty_like(self.image), torch.zeros_like(text)
        for start in range(0, len(every), each):
            tile = every[start : start + each]
            index = torch.cat([chunk.index for chunk in tile])
            mine = self.image[index]
            similarity, *of = (table[: len(index) * size].view(-1, size) for table in tables)
            torch.mm(mine, text.mT, out=similarity)
            done = 0
            for chunk in tile:
                rows = slice(done, done + len(chunk.index))
                chunk.cells = chunk.shaped(similarity[rows])
                chunk.total = chunk.shaped(of[0][rows]) if gradient else None
                done = rows.stop
                yield chunk
            if gradient:
                self.of_image.index_copy_(0, index, of[0] @ text)
                self.of_text.addmm_(of[0].mT, mine)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of images and texts."""
        return self.of_image, self.of_text


def _ranges(size: int, paired: bool, most: int | None = None) -> Iterator[Chunk]:
    """Chunks without cells.

    Args:
        most: how many rows a chunk may have.
    """
    last = size // 2 if paired else size
    rows = _CHUNK // size if most is None else min(_CHUNK // size, most)
    step = max(1, rows // (1 + paired))
    for start in range(0, last, step):
        yield Chunk(size, start, min(start + step, last), paired)


def buffers(like: Tensor, size: int, rows: int | None, count: int) -> list[Tensor]:
    """Flat tensors that hold a chunk each.

    Args:
        size: rows and columns of the table.
        rows: how many rows a chunk may have.
    """
    cells = _CHUNK if rows is None else min(_CHUNK, rows * size)
    return [like.new_empty(min(size * size, max(cells, 2 * size))) for _ in range(count)]
