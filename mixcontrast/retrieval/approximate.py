"""Approximate search through any index that faiss can build, and what it gives away."""

from __future__ import annotations

from functools import partial

import numpy as np

from mixcontrast.retrieval.exact import (
    GPU_PLACES,
    Rules,
    Similarity,
    gpu_number,
    in_order,
    load_faiss,
    without,
)
from mixcontrast.retrieval.processes import everyone, place
from mixcontrast.retrieval.tables import Table

_SAMPLE = 1 << 18  # rows an index is trained on
_MORE = 1024  # rows asked for beyond k, at most, in place of those that rules leave out


class ApproximateIndex:
    """A faiss index of a gallery: trained on a sample of it, filled block by block.

    Its similarities are its own: of product-quantised rows they are those of the codes. It is in memory, which no limit
    counts; of several processes the first one has it.

    Args:
        gallery: what is indexed.
        blocks: first and last rows of its blocks.
        similarity: by which it is searched.
        factory: faiss's description, such as "IVF1024,Flat", "HNSW32", "OPQ16,IVF1024,PQ16".
        parameters: of the search, such as "nprobe=16" or "efSearch=64".
        limit: bytes; the sample takes at most a quarter.
        device: "cpu", or a GPU ("cuda"), where faiss has a build for it and this kind of index.

    Raises:
        ValueError: faiss cannot build it, or not there.
    """

    def __init__(
        self,
        gallery: Table,
        blocks: list[tuple[int, int]],
        similarity: Similarity,
        factory: str,
        parameters: str,
        limit: int | None,
        device: str,
    ) -> None:
        self.factory, self.parameters, self._similarity, self.device = factory, parameters, similarity, device
        self.longest = 0.0
        everyone(partial(self._build, gallery, blocks, limit) if place()[0] == 0 else lambda: None)

    def search(self, queries: np.ndarray, k: int, rules: Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, k) similarities, falling, and rows, -inf and -1 past what was found; and the longest row's length."""
        return everyone(partial(self._search, queries, k, rules) if place()[0] == 0 else lambda: None)[0]

    def _build(self, gallery: Table, blocks: list[tuple[int, int]], limit: int | None) -> None:
        faiss = load_faiss()
        metric = faiss.METRIC_L2 if self._similarity == "l2" else faiss.METRIC_INNER_PRODUCT
        rows, dim = gallery.shape
        most = _SAMPLE if limit is None else max(1, min(_SAMPLE, limit // 4 // (4 * dim)))
        try:
            self._index = faiss.index_factory(dim, self.factory, metric)
            if self.device != "cpu":
                self._resources = faiss.StandardGpuResources()
                self._index = faiss.index_cpu_to_gpu(self._resources, gpu_number(self.device), self._index)
            if not self._index.is_trained:
                drawn = np.random.default_rng(0).choice(rows, min(rows, most), replace=False)
                self._index.train(gallery.take(np.sort(drawn)))
            for start, stop in blocks:
                self._index.add(gallery.read(start, stop))
                self.longest = max(self.longest, gallery.longest(start, stop))
            if self.parameters:
                space = faiss.ParameterSpace if self.device == "cpu" else faiss.GpuParameterSpace
                space().set_index_parameters(self._index, self.parameters)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0].rsplit("Error: ", 1)[-1]
            given = f"{self.factory!r}" + (f" with {self.parameters!r}" if self.parameters else "")
            raise ValueError(
                f"`index` must be a faiss factory string that fits {gallery.shape}, with parameters it knows. "
                f"Got {given}: {reason}; IVF1024,Flat with nprobe=16 is one."
            ) from None

    def _search(self, queries: np.ndarray, k: int, rules: Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        most = sum(int(np.unique(theirs, return_counts=True)[1].max()) for _, theirs in rules)
        places = min(k + min(most, _MORE), self._index.ntotal)
        if self.device != "cpu" and places > GPU_PLACES:
            if k > GPU_PLACES:
                raise ValueError(
                    f"faiss finds up to {GPU_PLACES} places on a GPU. Got {k}; take device='cpu', or fewer places."
                )
            places = GPU_PLACES
        found, rows = self._index.search(queries, places)
        out = rows < 0
        for mine, theirs in rules:
            out |= theirs[rows] == mine[:, None]
        found, rows = without(out, 0 - found if self._similarity == "l2" else found, rows, k)
        return *in_order(found, rows), np.array(self.longest)
