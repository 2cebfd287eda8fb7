"""A search over galleries of any size: block by block, in one process or several, exact or through an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval import exact
from mixcontrast.retrieval.approximate import ApproximateIndex
from mixcontrast.retrieval.exact import Rules, Similarity
from mixcontrast.retrieval.kept import Arrays, KeptBlocks, digest
from mixcontrast.retrieval.processes import everyone, place
from mixcontrast.retrieval.statistics import Interval, bootstrap_interval
from mixcontrast.retrieval.tables import Table

DEFAULT_LIMIT = 1 << 30  # bytes, where embeddings are stored and nothing is said
TIE_TOLERANCE = 1e-6  # of the scale of the similarities
_CELLS = 1 << 24  # similarities alive at once where whole rows are needed


@dataclass(frozen=True)
class Candidates:
    """The nearest rows that were found of some queries, with their own similarities.

    Attributes:
        indices: (Q, K) int64 gallery rows; 0 where not `valid`.
        similarity: (Q, K) float32, falling, equal ones by row; -inf where not `valid`.
        valid: (Q, K) bool.
        scale: (Q, 1) how large a similarity could be: of cosine 1, else by the lengths of the query and of the longest
            gallery row.
    """

    indices: np.ndarray
    similarity: np.ndarray
    valid: np.ndarray
    scale: np.ndarray

    def cut(self, k: int) -> Candidates:
        """The first `k` places."""
        return replace(
            self, indices=self.indices[:, :k], similarity=self.similarity[:, :k], valid=self.valid[:, :k]
        )

    def of(self, rows: np.ndarray) -> Candidates:
        """Those of some queries."""
        return Candidates(self.indices[rows], self.similarity[rows], self.valid[rows], self.scale[rows])

    def put(self, rows: np.ndarray, other: Candidates) -> None:
        """Takes the first places of some queries from another search of at least as many."""
        width = self.indices.shape[1]
        self.indices[rows] = other.indices[:, :width]
        self.similarity[rows] = other.similarity[:, :width]
        self.valid[rows] = other.valid[:, :width]


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """What is searched for, where, and how.

    Attributes:
        queries: (Q, D).
        gallery: (G, D).
        rules: gallery rows whose value is the query's are left out.
        similarity: "cosine" (of unit rows), "inner product" or "l2".
        memory_limit: bytes of embeddings, candidates and their copies alive at once; None: no limit for what is in
            memory, 1 GiB where anything is stored.
        device: where products are made.
        index: an approximate index of the gallery instead of the exact search.
        kept: finished blocks of an earlier run.
    """

    queries: Table
    gallery: Table
    rules: Rules
    similarity: Similarity
    memory_limit: int | None = None
    device: str = "cpu"
    index: ApproximateIndex | None = None
    kept: KeptBlocks | None = None

    @property
    def limit(self) -> int | None:
        """Bytes."""
        stored = self.queries.stored is not None or self.gallery.stored is not None
        return DEFAULT_LIMIT if self.memory_limit is None and stored else self.memory_limit

    @property
    def cells(self) -> int:
        """How many similarities may be alive at once where whole rows are needed."""
        if self.limit is None:
            return _CELLS
        return max(1, min(_CELLS, self.limit // 2 // 64))  # ranked, a cell takes 64 bytes

    def settings(self) -> dict[str, Any]:
        """How it is searched, for the record."""
        found: dict[str, Any] = {
            "similarity": self.similarity,
            "search": "exact" if self.index is None else "approximate",
            "precision": {"queries": self.queries.dtype, "gallery": self.gallery.dtype, "search": "float32"},
            "device": self.device,
            "memory_limit": self.limit,
            "block_rows": self.block_rows(),
            "processes": place()[1],
            "dim": self.gallery.shape[1],
            "num_gallery": len(self.gallery),
        }
        encoders = {
            table.name: table.stored.settings
            for table in (self.queries, self.gallery)
            if table.stored is not None and table.stored.settings
        }
        return found | ({"encoder": encoders} if encoders else {})

    @property
    def more(self) -> int:
        """Candidates asked for beyond those needed, to see that none is in doubt.

        One does for most queries; for the others the gallery is searched again, which is dear where it must be read or
        moved to a GPU.
        """
        return 1 if self.limit is None and self.device == "cpu" else 9

    def block_rows(self) -> int:
        """Gallery rows read at once: half of the limit holds them, as stored, as float32 and while they are checked."""
        rows = len(self.gallery)
        if self.limit is not None:
            rows = min(rows, max(1, self.limit // 2 // (24 * self.gallery.shape[1])))
        return min(rows, -(-len(self.gallery) // place()[1]))

    def chunks(self, rows: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Queries searched at once: the other half of the limit holds them and their candidates."""
        step = max(len(rows), 1)
        if self.limit is not None:
            step = min(step, max(1, self.limit // 2 // (12 * self.queries.shape[1] + 160 * k)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def blocks(self) -> list[tuple[int, int]]:
        """First and last row of the gallery's blocks."""
        step = self.block_rows()
        return [(start, min(start + step, len(self.gallery))) for start in range(0, len(self.gallery), step)]

    def rules_of(self, rows: np.ndarray, start: int = 0, stop: int | None = None) -> Rules:
        """The rules of some queries and of a block."""
        return [(mine[rows], theirs[start:stop]) for mine, theirs in self.rules]

    def candidates(self, rows: np.ndarray, k: int) -> Candidates:
        """The `k` nearest of some queries, always min(k, G) columns.

        Exact ones are certain but for rows whose similarity is within `margin` of the last one's.
        """
        k = min(k, len(self.gallery))
        queries = self.queries.take(rows)
        if self.index is not None:
            return self._candidates(queries, *self.index.search(queries, k, self.rules_of(rows)))
        blocks = self.blocks()
        if len(blocks) == 1 and place()[1] == 1 and self.kept is None:
            return self._candidates(queries, **self._of_block(rows, queries, k, 0, len(self.gallery)))
        name = "" if self.kept is None else digest(rows, str(k))

        def mine() -> Arrays:
            number, count = place()
            heap = _Heap(len(rows), k)
            for start, stop in blocks[number::count]:
                search = partial(self._of_block, rows, queries, k, start, stop)
                heap.add(search() if self.kept is None else self.kept.block(f"{name}-{start}-{stop}", search))
            return heap.best()

        heap = _Heap(len(rows), k)
        for found in everyone(mine):
            heap.add(found)
        return self._candidates(queries, **heap.best())

    def margin(self, found: Candidates) -> np.ndarray:
        """(Q, 1) a row that is not among the candidates is nearer than the last of them by at most this."""
        return 2 * exact.rounding(self.gallery.shape[1]) * found.scale

    def scale(self, queries: np.ndarray, longest: float) -> np.ndarray:
        """(Q, 1) how large a similarity to rows of at most this length could be."""
        if self.similarity == "cosine":
            return np.ones((len(queries), 1))
        length = np.linalg.norm(queries, axis=1, keepdims=True).astype(np.float64)
        return length * longest if self.similarity == "inner product" else (length + longest) ** 2

    def tolerance(self, similarity: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """What two similarities may differ by and tie; of distances relative to themselves."""
        if self.similarity == "l2":
            return np.where(np.isfinite(similarity), TIE_TOLERANCE * np.abs(similarity), 0)
        return TIE_TOLERANCE * scale

    def whole_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q, G) similarities of some queries to the whole gallery, -inf where left out, and which of them count."""
        queries = self.queries.take(rows)
        similarity = np.empty((len(rows), len(self.gallery)), np.float32)
        valid = np.ones(similarity.shape, bool)
        for start, stop in self.blocks():
            similarity[:, start:stop] = exact.of_all(queries, self.gallery.read(start, stop), self.similarity)
        for mine, theirs in self.rules:
            valid &= mine[rows][:, None] != theirs
        similarity[~valid] = -np.inf
        return similarity, valid

    def settled(self, rows: np.ndarray, k: int) -> Candidates:
        """The `k` nearest of some queries, none in doubt: equal similarities by row, at the last place too."""
        found = self.candidates(rows, k + self.more)
        settled = found.cut(k)
        if self.index is not None:
            return settled
        asked = np.flatnonzero(self._in_doubt(found, k))
        deeper, left = deeper_than(k), []
        if deeper < len(self.gallery) // 2:
            for part in self.chunks(asked, deeper):
                found = self.candidates(rows[part], deeper)
                settled.put(part, found)
                left.append(part[self._in_doubt(found, k)])
            asked = np.concatenate([*left, asked[:0]])
        for part in self.few(asked):
            similarity, valid = self.whole_rows(rows[part])
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            similarity, valid = (np.take_along_axis(table, order, axis=1) for table in (similarity, valid))
            settled.put(part, Candidates(np.where(valid, order, 0), similarity, valid, settled.scale[part]))
        return settled

    def few(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Queries whose whole rows may be alive at once."""
        step = max(1, self.cells // len(self.gallery))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def finish(self) -> None:
        """Everything is found: what was kept may go."""
        if self.kept is not None:
            everyone(lambda: None)  # all have read it
            if place()[0] == 0:
                self.kept.remove()

    def _in_doubt(self, found: Candidates, k: int) -> np.ndarray:
        """(Q,) bool: a row that was not found may belong among the first k."""
        width = found.indices.shape[1]
        full = found.valid[:, -1]
        if width >= len(self.gallery) or width < k:
            return np.zeros(len(full), bool)
        similarity = np.where(full[:, None], found.similarity[:, [k - 1, -1]], 0)
        return full & ~(similarity[:, 0] - similarity[:, 1] > self.margin(found)[:, 0])

    def _of_block(self, rows: np.ndarray, queries: np.ndarray, k: int, start: int, stop: int) -> Arrays:
        block = self.gallery.read(start, stop)
        rules = self.rules_of(rows, start, stop)
        found, indices = exact.nearest(queries, block, k, rules, self.similarity, self.device)
        return {
            "similarity": found,
            "indices": np.where(indices < 0, -1, indices + start),
            "longest": np.array(self.gallery.longest(start, stop)),
        }

    def _candidates(
        self, queries: np.ndarray, similarity: np.ndarray, indices: np.ndarray, longest: np.ndarray
    ) -> Candidates:
        valid = indices >= 0
        similarity = np.where(valid, similarity, np.float32(-np.inf))
        return Candidates(np.where(valid, indices, 0), similarity, valid, self.scale(queries, float(longest)))


class _Heap:
    """The best of several blocks, by faiss's heaps."""

    def __init__(self, num_queries: int, k: int) -> None:
        self._heap = exact.load_faiss().ResultHeap(num_queries, k, keep_max=True)
        self._longest = 0.0

    def add(self, found: Arrays) -> None:
        self._heap.add_result(found["similarity"], found["indices"])
        self._longest = max(self._longest, float(found["longest"]))

    def best(self) -> Arrays:
        self._heap.finalize()
        similarity = np.where(self._heap.I < 0, np.float32(-np.inf), self._heap.D)
        similarity, indices = exact.in_order(similarity, self._heap.I)
        return {"similarity": similarity, "indices": indices, "longest": np.array(self._longest)}


def deeper_than(k: int) -> int:
    """How many candidates settle most of the queries of which k leave a doubt."""
    return 4 * k + 64


def open_searcher(
    queries: Table,
    gallery: Table,
    rules: Rules,
    *,
    similarity: Similarity,
    memory_limit: int | None,
    index: str | None,
    index_parameters: str | None,
    device: str,
    resume: str | Path | None,
) -> Searcher:
    """A searcher of checked tables, with the index built that is asked for.

    Raises:
        ValueError: a limit that is no number of bytes above 0, an index that cannot be built, an unknown device.
    """
    if memory_limit is not None and memory_limit < 1:
        raise ValueError(f"`memory_limit` is a number of bytes. Got {memory_limit}; 1 << 30 is 1 GiB.")
    if index is None and index_parameters is not None:
        raise ValueError(f"`index_parameters` are those of an index. Got {index_parameters!r} and no index; name one.")
    exact.check_device(device)
    searcher = Searcher(
        queries=queries, gallery=gallery, rules=rules, similarity=similarity, memory_limit=memory_limit, device=device
    )
    if index is not None:
        if device != "cpu" and not (device.startswith("cuda") and exact.load_faiss().get_num_gpus()):
            raise ValueError(
                f"An index is searched on a GPU only by a faiss that is built for it. Got device {device!r} and none; "
                "take device='cpu', or install faiss-gpu-cu12."
            )
        if resume is not None:  # what a killed exact search left is of no use
            KeptBlocks(resume, "", place()[0] == 0)
        blocks, limit = searcher.blocks(), searcher.limit
        return replace(
            searcher,
            index=ApproximateIndex(gallery, blocks, similarity, index, index_parameters or "", limit, device),
        )
    if resume is None:
        return searcher
    identities = [digest(t.read(0, len(t))) if t.stored is None else t.stored.fingerprint() for t in (queries, gallery)]
    fingerprint = digest(similarity, device.split(":")[0], *identities, *(side for rule in rules for side in rule))
    kept = everyone(lambda: KeptBlocks(resume, fingerprint, place()[0] == 0))
    return replace(searcher, kept=kept[place()[0]])


def recall_given_away(
    searcher: Searcher, rows: np.ndarray, k: int, *, num_sampled: int = 256, seed: int = 0
) -> Interval:
    """The share of the exact `k` nearest rows that an approximate search finds, with its 95% interval over queries.

    Args:
        searcher: with an index.
        rows: the queries, of which some are drawn.
        k: how many neighbours.
        num_sampled: how many queries at most.
        seed: of the draw.
    """
    drawn = np.sort(np.random.default_rng(seed).choice(rows, min(num_sampled, len(rows)), replace=False))
    truth, found = replace(searcher, index=None).settled(drawn, k), searcher.candidates(drawn, k)
    shares = [
        np.isin(wanted[valid], got[here]).mean()
        for wanted, valid, got, here in zip(truth.indices, truth.valid, found.indices, found.valid, strict=True)
        if valid.any()
    ]
    if len(shares) < 2:
        return Interval(float(np.mean(shares or [np.nan])), float("nan"), float("nan"), 0.95)
    return bootstrap_interval(shares)
