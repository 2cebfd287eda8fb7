"""How many kernels a step of each loss and mixer has a GPU launch, and what the host takes to do so; needs no GPU.

    python eval/bench_launches.py                # all, writes eval/bench_launches.md
    python eval/bench_launches.py mochi m3       # cases of which the title has one of these, prints only
    python eval/bench_launches.py --ops mochi    # also which operations, prints only

A small step runs on a CPU that is told to be a GPU: no check reads values, and what Triton would launch is counted and
not run. Each of torch's operations that makes numbers counts, forward and backward; views and empty tensors do not. A
GPU needs more than one kernel for some of them (topk, sort), so the count is a lower bound. The host's time is the
median of a step's, the contestants in turn; Triton's part is missing in it, and arithmetic on small tensors is in it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import bench_gpu_cases as cases
import torch
from bench_mixers import step_of
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mixcontrast as mc
from mixcontrast import kernels
from mixcontrast.files import write_whole

Step = Callable[[], object]
CPU = torch.device("cpu")
TURNS = 101
ABOUT = """\
Made by `python eval/bench_launches.py`, which needs no GPU: operations of torch that launch a kernel, and kernels of
our own, in a forward and backward pass, drawing included; and the host's time for it on small tensors, which is mostly
the launching (without our own kernels, which are only counted)."""
BARE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
TWICE = {"eye", "masked_fill", "diagonal_backward", "slice_backward"}  # fill or copy first


class Launches(TorchDispatchMode):
    """Counts the operations that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in BARE and any(isinstance(x, Tensor) and x.numel() for x in tree_leaves(out)):
            self.found[name] += 2 if name in TWICE else 1
        return out


@contextmanager
def as_if_on_a_gpu(launched: Counter[str]) -> Iterator[None]:
    """Steps take the ways that they take on a GPU; kernels of Triton are counted instead of run."""
    from triton import JITFunction

    def run(kernel, *_, **__) -> None:
        launched[f"triton {kernel.fn.__name__}"] += 1

    ours = [module for name, module in sys.modules.items() if name.startswith("mixcontrast.")]
    readers = [patch.object(m, "reads_values", lambda tensor: False) for m in ours if hasattr(m, "reads_values")]
    with patch.object(kernels, "fused", lambda *_, half=False: True), patch.object(JITFunction, "run", run):
        for reader in readers:
            reader.start()
        try:
            yield
        finally:
            for reader in readers:
                reader.stop()


def launches(step: Step) -> Counter[str]:
    """The operations of a step that launch, after one that warms up."""
    with Launches() as seen, as_if_on_a_gpu(seen.found):
        step()
        seen.found.clear()
        step()
    return seen.found


def milliseconds(steps: dict[str, Step]) -> dict[str, float]:
    """The median of each step's host time, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    with as_if_on_a_gpu(Counter()):
        for turn in range(TURNS + 5):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if turn >= 5:
                    taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def losses() -> dict[str, Step]:
    """Losses by themselves, at the sizes of small cases."""
    x, y = torch.randn(2, 16, 32).unbind()
    labels, values, scale = torch.arange(16) // 4, torch.rand(16), torch.tensor(10.0)
    by_class = {
        "ContrastiveLoss": mc.ContrastiveLoss(),
        "BinomialDevianceLoss": mc.BinomialDevianceLoss(),
        "MultiSimilarityLoss": mc.MultiSimilarityLoss(),
        "LiftedStructureLoss": mc.LiftedStructureLoss(),
        "NCALoss": mc.NCALoss(),
        "SupConLoss": mc.SupConLoss(),
        "TripletLoss": mc.TripletLoss(),
        "ProxyAnchorLoss": mc.ProxyAnchorLoss(4, 32),
        "ProxyNCALoss": mc.ProxyNCALoss(4, 32),
    }
    towers = {"ClipLoss": (mc.ClipLoss(), ()), "SigLipLoss": (mc.SigLipLoss(), (torch.tensor(-10.0),))}
    return {
        "InfoNCE, two views": step_of(mc.InfoNCE(), x, y),
        **{name: step_of(loss, x, labels) for name, loss in by_class.items()},
        "RankNContrastLoss": step_of(mc.RankNContrastLoss(), x, values),
        **{name: step_of(loss, x, y, scale, *bias) for name, (loss, bias) in towers.items()},
    }


def chosen(only: list[str]) -> Iterator[tuple[str, dict[str, Step]]]:
    """The contestants of each case that is asked for; all where none is."""
    for case in cases.mixers(small=True):
        if not only or any(word.lower() in case.title.lower() for word in only):
            yield f"{case.title} {case.size}", case.make(case.size, CPU).steps()
    if not only or "losses" in only:
        yield "losses", losses()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="words of titles, or losses")
    parser.add_argument("--ops", action="store_true", help="print how often each operation is launched")
    asked = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for title, steps in chosen(asked.only):
        print(title, file=sys.stderr)
        counted = {name: launches(step) for name, step in steps.items()}
        taken = milliseconds(steps)
        for name, found in counted.items():
            rows.append([title, name, f"{found.total()}", f"{taken[name]:.2f}"])
            if asked.ops:
                print(name, found.total(), dict(found.most_common()))
    headers = ["what", "contestant", "launches a step", "ms of the host"]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    print(table)
    if not asked.only and not asked.ops:
        where = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, one thread."
        page = f"# What a step launches\n\n{ABOUT}\n\n{where}\n\n{table}\n"
        write_whole(Path(__file__).with_suffix(".md"), lambda path: path.write_text(page, encoding="utf-8"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what the kernels did not write is no number in particular
    main()
