"""What mixing costs on a GPU: all tables of eval/bench_gpu.md, by one command.

    python eval/bench_gpu.py                          # on the first GPU, writes eval/bench_gpu.md
    python eval/bench_gpu.py mixers topk              # some tables, prints only
    python eval/bench_gpu.py --device cpu --small     # tries the code, at small sizes; prints only

Every contestant of a case runs in turn, so that a card whose clock drifts drifts for all; a figure is the median over
the turns, by CUDA events, after a warm-up. The similarities of mixtures are checked to give the loss of the same
mixtures made as embeddings. Peak memory is what torch allocates over the inputs. Each table is written when it is
done, so a run that is cut off leaves those before.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import bench_gpu_cases as cases
import torch
from bench_mixers import step_of
from tabulate import tabulate

import mixcontrast as mc
from mixcontrast.files import write_whole

Step = Callable[[], object]


@dataclass
class Measured:
    """One contestant.

    Attributes:
        times: ms of each turn.
        peak: bytes that torch allocated over what there was before.
        failed: why there are no times.
    """

    times: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str = ""

    @property
    def median(self) -> float:
        """ms."""
        return statistics.median(self.times)

    def shown(self, unit: float = 1.0) -> str:
        """The median over a unit."""
        return self.failed or number(self.median / unit)

    def over(self, other: Measured, digits: int = 2) -> str:
        """The median of the ratios turn by turn."""
        if self.failed or other.failed:
            return "-"
        return f"{statistics.median(a / b for a, b in zip(self.times, other.times, strict=True)):.{digits}f}"


@dataclass(frozen=True)
class Bench:
    """Where, at which sizes, and how often.

    Attributes:
        device: a GPU; or a CPU, to try the code.
        small: sizes that take a minute on a CPU.
        turns: how often each contestant is timed, after as many as two that warm up.
    """

    device: torch.device
    small: bool
    turns: int = 11

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def run(self, steps: dict[str, Step], turns: int | None = None) -> dict[str, Measured]:
        """Each contestant, in turn."""
        found = {name: Measured() for name in steps}
        turns = turns or self.turns
        warm_up = 2 if turns > 3 else 1
        for turn in range(turns + warm_up):
            for name, step in steps.items():
                if found[name].failed:
                    continue
                try:
                    elapsed = self._timed(step, found[name])
                except torch.OutOfMemoryError:
                    found[name].failed = "out of memory"
                    self.clear()
                    continue
                if turn >= warm_up:
                    found[name].times.append(elapsed)
        return found

    def _timed(self, step: Step, of: Measured) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            step()
            return 1e3 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        of.peak = max(of.peak, torch.cuda.max_memory_allocated() - before)
        return start.elapsed_time(end)

    def peak(self, of: Measured) -> str:
        """MB."""
        return f"{of.peak / 2**20:,.1f}" if self.on_gpu and not of.failed else "-"

    def clear(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()

    def captured(self, step: Step) -> Step | None:
        """The step as a CUDA graph, which the host launches at once; None where there is no GPU, or it cannot be."""
        if not self.on_gpu:
            return None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            say(f"no CUDA graph: {str(error).splitlines()[0]}")
            return None
        return graph.replay


def number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.3f}" if value < 1 else f"{value:,.2f}"


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def page_table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def same_value(one: Step, other: Step) -> None:
    """Stops the run where mixing embeddings gives another loss than mixing similarities."""
    values = []
    for step in (one, other):
        torch.manual_seed(1)
        values.append(float(step()))
    if abs(values[0] - values[1]) > 1e-3 * abs(values[1]):
        raise SystemExit(f"the mixed loss is {values[0]}, on embeddings {values[1]}")


def mixers(bench: Bench) -> str:
    """Each mixer against its loss alone and against mixing embeddings, and as a share of training a network."""
    rows = []
    for case in cases.mixers(bench.small):
        what = f"{case.title} {case.size}"
        say(what)
        torch.manual_seed(0)
        contest = case.make(case.size, bench.device)
        steps = contest.steps()
        same_value(steps["mixed"], steps["on embeddings"])
        for name in ("loss alone", "mixed"):
            replay = bench.captured(steps[name])
            if replay is not None:
                steps[f"{name}, a CUDA graph"] = replay
            if case.compiled:
                torch._dynamo.reset()
                steps[f"{name}, compiled"] = step_of(torch.compile(contest.contestants[name]), *contest.inputs)
        found = bench.run(steps)
        for name, one in found.items():
            peak = "-" if name.endswith("graph") else bench.peak(one)
            rows.append([what, name, one.shown(), one.over(found["loss alone"]), peak])
        del steps, contest
        bench.clear()
    of_mixers = page_table(["what", "contestant", "ms a step", "times the loss alone", "peak MB"], rows)
    return (
        "## Mixers\n\nForward and backward, drawing included, on random embeddings. As a CUDA graph, the host launches "
        "all of a step at once: the time of the card alone. Compiled, by torch.compile as it comes.\n\n"
        f"{of_mixers}\n"
    )


def training(bench: Bench) -> str:
    """What mixing adds to a training step of a network."""
    rows = []
    for name, (make, batch) in cases.networks(bench.small).items():
        network = make(bench.device)
        for case in cases.mixers(bench.small):
            if name not in case.trains:
                continue
            torch.manual_seed(0)
            contest = case.make(case.size, bench.device)
            found = bench.run({key: network.step(contest, key) for key in ("loss alone", "mixed")}, turns=9)
            alone, mixed = found.values()
            more = statistics.median(b - a for a, b in zip(alone.times, mixed.times, strict=True))
            share = f"{100 * (float(mixed.over(alone, digits=6)) - 1):.1f} %"
            rows.append([name, str(batch), f"{case.title} {case.size}", alone.shown(), mixed.shown(), f"{more:.2f}",
                         share, bench.peak(alone), bench.peak(mixed)])  # fmt: skip
            say(", ".join(rows[-1]))
            del contest
        del network
        bench.clear()
    headers = ["network", "batch", "mixer", "ms, its loss alone", "ms, mixed", "ms more", "more", "peak MB", "mixed"]
    return (
        "## As a share of training\n\nA training step of a network in bf16 on random images (AdamW), its loss on the "
        "network's embeddings, of as many numbers as the mixer's title says: alone, and mixed. `more` is the median of "
        f"the differences turn by turn (the goal is under 3 %).\n\n{page_table(headers, rows)}\n"
    )


def batches(bench: Bench) -> str:
    """Losses of big batches, whole and in tiles, plain and mixed, against open_clip's."""
    rows = []
    for family in (cases.clip_batches, cases.class_batches):
        for size in cases.batch_sizes(bench.small):
            torch.manual_seed(0)
            found: dict[str, Measured] = {}
            for name, step in family(size, bench.device, bench.small).items():
                torch.set_float32_matmul_precision("high" if "TF32" in name else "highest")
                one = found[name] = bench.run({name: step}, turns=3 if size < 65_536 else 1)[name]
                torch.set_float32_matmul_precision("highest")
                bench.clear()
                of_cell = "-" if one.failed else number(1e9 * one.median / size**2)
                first = next(iter(found.values()))
                rows.append([f"{size:,}", name, one.shown(), one.over(first), of_cell, bench.peak(one)])
                say(", ".join(rows[-1]))
    headers = ["pairs", "contestant", "ms a step", "times the first", "ps a cell", "peak MB"]
    return (
        "## Big batches\n\nD 512, forward and backward. `times the first` is against the first contestant of the same "
        "batch, open_clip's ClipLoss or the whole SupConLoss (the goal is 1.2); `ps a cell`, the time over the number "
        f"of similarities of one table, compares batches.\n\n{page_table(headers, rows)}\n"
    )


def topk(bench: Bench) -> str:
    """MoCHi's search for the hardest keys against torch's, and against reading the table once."""
    rate = bandwidth(bench)
    rows = []
    for num_keys in (512, 2048) if bench.small else (65_536, 1_048_576):
        say(f"queue {num_keys}")
        torch.manual_seed(0)
        steps, cells = cases.hardest(num_keys, bench.device, bench.small)
        for name, one in bench.run(steps).items():
            share = "-" if one.failed else f"{100 * cells * 4 / rate / (one.median / 1e3):.0f} %"
            rows.append([f"{num_keys:,}", name, one.shown(), share])
        del steps
        bench.clear()
    headers = ["keys", "stage", "ms", "reading the table once is"]
    return (
        "## The hardest of a queue\n\n256 queries, D 128, the 1,024 hardest. Copying memory, read and written, runs at "
        f"{rate / 1e9:,.0f} GB/s here.\n\n{page_table(headers, rows)}\n"
    )


def bandwidth(bench: Bench) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(1 << (20 if bench.small else 28), device=bench.device)
    target = torch.empty_like(source)
    took = bench.run({"copy": lambda: target.copy_(source)})["copy"].median
    return 2 * 4 * source.numel() / (took / 1e3)


def retrieval(bench: Bench) -> str:
    """Search against the products that it is made of."""
    rows = []
    for num_queries, num_gallery, dim, k in cases.searches(bench.small):
        steps, flops = cases.search(num_queries, num_gallery, dim, k, bench.device)
        found = {name: bench.run({name: step}, turns=1)[name] for name, step in steps.items()}
        for name, one in found.items():
            say(f"search {num_queries} x {num_gallery}, k {k}: {name} {one.shown(1e3)} s")
            rate = "-" if one.failed else number(flops / (one.median / 1e3) / 1e12)
            what = f"{num_queries:,} x {num_gallery:,} x {dim}, k {k:,}"
            rows.append([what, name, one.shown(1e3), rate, one.over(found["products alone"])])
    headers = ["what", "stage", "s", "TFLOP/s of the products", "times the products"]
    return (
        "## Retrieval\n\nInner product, float32 without TF32. The search takes arrays on the host, moves them, and "
        f"computes each neighbour's similarity once more on the CPU.\n\n{page_table(headers, rows)}\n"
    )


TABLES: dict[str, Callable[[Bench], str]] = {
    "mixers": mixers, "training": training, "topk": topk, "batches": batches, "retrieval": retrieval,
}  # fmt: skip


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        where = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        where = f"no GPU: {platform.machine()} CPU, {torch.get_num_threads()} threads"
    return (
        f"{where}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, mixcontrast "
        f"{mc.__version__}. Losses in float32 without TF32 where a row does not say TF32; networks under bf16 autocast."
    )


def page(device: torch.device, done: dict[str, str]) -> str:
    missing = [name for name in TABLES if name not in done]
    left = f"\nNot run: {', '.join(missing)}.\n" if missing else ""
    head = f"# What mixing costs on a GPU\n\nMade by `python eval/bench_gpu.py`.\n\n{machine(device)}\n{left}"
    return head + "".join(f"\n{text}" for text in done.values())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="which of the tables; all where none is named")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the code")
    parser.add_argument("--small", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="the page to write; eval/bench_gpu.md for a whole run on a GPU")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("The tables need a GPU. torch finds none here; --device cpu --small tries the code.")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest")
    out = chosen.out
    if out is None and not chosen.tables and not chosen.small and device.type == "cuda":
        out = Path(__file__).with_suffix(".md")
    bench, done = Bench(device, chosen.small, turns=3 if chosen.small else 11), {}
    for name in chosen.tables or TABLES:
        started = time.perf_counter()
        done[name] = TABLES[name](bench)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        print(done[name])
        if out is not None:
            text = page(device, done)
            write_whole(out, lambda temporary, text=text: temporary.write_text(text))


if __name__ == "__main__":
    main(sys.argv[1:])
