"""The names and cut-offs under which each field publishes its retrieval numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A tradition: which metrics it reports, at which k, and under which names.

    Attributes:
        ks: its usual cut-offs.
        per_k: our name before the `@` to its pattern, in which `{k}` is the cut-off; in the order of the table.
        whole: our name of metrics without a k to its own.
    """

    ks: tuple[int, ...]
    per_k: Mapping[str, str]
    whole: Mapping[str, str]

    def names(self, ks: tuple[int, ...] | list[int] | None = None) -> dict[str, str]:
        """Our metric name to the published one."""
        named = {
            f"{ours}@{k}": theirs.format(k=k) for ours, theirs in self.per_k.items() for k in (ks or self.ks)
        }
        return named | dict(self.whole)


DML = Preset((1, 2, 4, 8), {"hit": "Recall@{k}"}, {"r_precision": "R-Precision", "map@r": "MAP@R"})
"""Deep metric learning, where Recall@k is a hit among the first k. Musgrave et al., ECCV 2020, arXiv 2003.08505."""

CLIP = Preset((1, 5, 10), {"hit": "R@{k}"}, {"first_rank": "MedR"})
"""Image and text: R@k is a hit among the first k, MedR the median rank of the first correct one.

Karpathy, Fei-Fei, CVPR 2015, arXiv 1412.2306; CLIP_benchmark's retrieval_recall@k is this R@k.
"""

TREC = Preset(
    (5, 10, 20, 100),
    {
        "ndcg": "ndcg_cut_{k}",
        "map": "map_cut_{k}",
        "recall": "recall_{k}",
        "precision": "P_{k}",
        "hit": "success_{k}",
    },
    {"mrr": "recip_rank", "r_precision": "Rprec"},
)
"""Information retrieval, under trec_eval's names; recall is the share of the relevant items found."""
