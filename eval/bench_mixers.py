"""Time and peak memory of each mixer, forward and backward, against its loss alone and against mixing embeddings.

    python eval/bench_mixers.py                 # all, writes eval/bench_mixers.md
    python eval/bench_mixers.py metrix mochi    # some, prints only
    python eval/bench_mixers.py mochi --write   # some, and their rows in eval/bench_mixers.md

Every contestant of a row runs in one process, in turn, so that a machine whose speed drifts drifts for all; a figure
is the median over the turns and a ratio the median of the ratios turn by turn. Drawing is included. "On embeddings"
makes the same mixtures, of the same draw, as tensors of D numbers each, and its loss is checked to be the same. Peak
memory is what the process's resident size gains over the inputs, each contestant in a fresh process (Linux).
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate

import mixcontrast as mc

Step = Callable[[], torch.Tensor]


def step_of(criterion: Callable, *inputs: torch.Tensor) -> Step:
    """One forward and backward pass; embeddings get gradient."""

    def step() -> torch.Tensor:
        leaves = [x.detach().requires_grad_() if x.ndim == 2 and x.is_floating_point() else x for x in inputs]
        loss = criterion(*leaves)
        loss.backward()
        return loss.detach()

    return step


def metrix_on_embeddings(criterion: mc.Metrix, embeddings, labels):
    pairs = mc.Pairs.from_labels(embeddings, labels)
    z = pairs.anchors
    (parents,) = criterion.draw(pairs)
    shape = (*parents.left.shape, len(z), 1)
    lam = parents.lam.view(shape)
    mixed = F.normalize(lam * z[parents.left][:, :, None] + (1 - lam) * z, dim=-1)  # (A, P, C, D)
    similarity = torch.einsum("ad,apcd->apc", z, mixed).flatten(1)
    table = mc.Pairs(z, (mc.Block(similarity, parents.lam, parents.keep),))
    return criterion.loss.reduce(pairs) + criterion.weight * criterion.loss.reduce(table)


def supremix_on_embeddings(criterion: mc.SupReMix, embeddings, values):
    pairs = mc.Pairs.from_values(embeddings, values)
    z, fixed = pairs.anchors, pairs.anchors.detach()
    draw = criterion.draw(pairs)
    lam, share = draw.lam[:, :, None], draw.share.to(z.dtype)[:, :, None]
    negative = lam * fixed[:, None] + (1 - lam) * fixed  # (A, C, D)
    positive = share * fixed[draw.below] + (1 - share) * fixed[draw.above]  # (A, M, D)
    real, neg, pos = criterion.mix(pairs, draw).blocks
    blocks = (
        real,
        mc.Block(torch.einsum("ad,acd->ac", z, negative), neg.target, neg.weight),
        mc.Block(torch.einsum("ad,amd->am", z, positive), pos.target, pos.weight),
    )
    return criterion.loss.reduce(mc.Pairs(z, blocks))


def mochi_on_embeddings(criterion: mc.MoCHi, query, key):
    pairs = criterion.queue.pairs(query, key, enqueue=False)
    draw, q = criterion.draw(pairs), pairs.anchors
    keys = pairs.blocks[0].candidates
    alpha, beta = draw.alpha[:, :, None], draw.beta[:, :, None]
    of_pairs = F.normalize(alpha * keys[draw.first] + (1 - alpha) * keys[draw.second], dim=-1)  # (A, S, D)
    with_anchor = F.normalize(beta * q.detach()[:, None] + (1 - beta) * keys[draw.negative], dim=-1)
    similarity = torch.einsum("ad,asd->as", q, torch.cat([of_pairs, with_anchor], dim=1))
    return criterion.loss.reduce(pairs.append(mc.Block(similarity, 0.0, 1.0)))


def synco_on_embeddings(criterion: mc.SynCo, query, key):
    pairs = criterion.queue.pairs(query, key, enqueue=False)
    draw, q = criterion.draw(pairs), pairs.anchors
    keys, fixed = pairs.blocks[0].candidates, q.detach()[:, None]
    alpha, beta, gamma = draw.alpha[:, :, None], draw.beta[:, :, None], draw.gamma[:, :, None]
    made = [
        alpha * fixed + (1 - alpha) * keys[draw.interpolated],
        fixed + beta * (keys[draw.extrapolated] - fixed),
        gamma * keys[draw.first] + (1 - gamma) * keys[draw.second],
        keys[draw.noised] + draw.noise,
        keys[draw.towards] + criterion.gradient_step * fixed,
        keys[draw.by_sign] + criterion.sign_step * fixed.sign(),
    ]
    similarity = torch.einsum("ad,asd->as", q, F.normalize(torch.cat(made, dim=1), dim=-1))
    return criterion.loss.reduce(pairs.append(mc.Block(similarity, 0.0, 1.0)))


def slerp(a, b, lam):
    angle = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-0.999, 1 - 1e-6))
    return (torch.sin(lam * angle) * a + torch.sin((1 - lam) * angle) * b) / torch.sin(angle)


def geodesic_on_embeddings(criterion: mc.GeodesicMixup, image, text, scale):
    tables = mc.Pairs.from_towers(image, text, scale)
    draw = criterion.draw(tables[0])
    total = torch.stack([criterion.loss.reduce(table) for table in tables]).mean()
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    for name, term in criterion.terms.items():
        lam = getattr(draw, name)
        target = lam * own.float() + (1 - lam) * own.flip(1).float()
        if name == "m2":
            mixed, plain = slerp(image, text, lam), image @ text.T
            target = own
            similarities = [torch.where(own, plain, image @ mixed.T), torch.where(own, plain, text @ mixed.T)]
        else:
            one = slerp(image, image.flip(0), lam) if name in ("v", "vl") else image
            two = slerp(text, text.flip(0), lam) if name in ("l", "vl") else text
            similarities = [one @ two.T, two @ one.T]
        by = scale if term.temperature is None else 1 / term.temperature
        mixed = [
            criterion.loss.reduce(mc.Pairs(image, (mc.Block(s, target, 1.0),), logit_scale=by)) for s in similarities
        ]
        total = total + term.weight * torch.stack(mixed).mean()
    return total


def metrix_case(batch: int, loss: mc.Loss, peer: Callable) -> dict[str, Step]:
    embeddings = torch.randn(batch, 512)
    labels = torch.arange(batch // 4).repeat_interleave(4)
    mixer = mc.Metrix(loss)
    return {
        "loss alone": step_of(loss, embeddings, labels),
        "mixed": step_of(mixer, embeddings, labels),
        "on embeddings": step_of(lambda *x: metrix_on_embeddings(mixer, *x), embeddings, labels),
        "pytorch-metric-learning, loss alone": step_of(peer, embeddings, labels),
    }


def metrix_contrastive(batch: int) -> dict[str, Step]:
    import pytorch_metric_learning.distances as distances
    import pytorch_metric_learning.losses as losses

    peer = losses.ContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=distances.CosineSimilarity())
    return metrix_case(batch, mc.ContrastiveLoss(), peer)


def metrix_multi_similarity(batch: int) -> dict[str, Step]:
    import pytorch_metric_learning.losses as losses

    return metrix_case(
        batch, mc.MultiSimilarityLoss(alpha=18, beta=75, base=0.77), losses.MultiSimilarityLoss(18, 75, 0.77)
    )


def supremix(views: int) -> dict[str, Step]:
    import pytorch_metric_learning.losses as losses

    embeddings = torch.randn(views, 128)
    values = (torch.rand(views // 2) * 80).round().repeat(2)
    loss = mc.SupConLoss(temperature=0.3)
    mixer = mc.SupReMix(loss)
    return {
        "loss alone": step_of(loss, embeddings, values.long()),
        "mixed": step_of(mixer, embeddings, values),
        "on embeddings": step_of(lambda *x: supremix_on_embeddings(mixer, *x), embeddings, values),
        "pytorch-metric-learning, loss alone": step_of(losses.SupConLoss(0.3), embeddings, values.long()),
    }


def mochi(size: int) -> dict[str, Step]:
    from lightly.loss import NTXentLoss

    query, key = torch.randn(256, 128), torch.randn(256, 128)

    def queue() -> mc.KeyQueue:
        filled = mc.KeyQueue(size, 128)
        filled.enqueue(torch.randn(size, 128))
        return filled

    loss = mc.InfoNCE(temperature=0.2, queue=queue())
    mixer = mc.MoCHi(mc.InfoNCE(temperature=0.2), queue=queue())
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(size, 128))
    return {
        "loss alone": step_of(loss, query, key),
        "mixed": step_of(mixer, query, key),
        "on embeddings": step_of(lambda *x: mochi_on_embeddings(mixer, *x), query, key),
        "lightly, loss alone": step_of(lambda *x: theirs(x[0], x[1].detach()), query, key),
    }


def synco(size: int) -> dict[str, Step]:
    query, key = torch.randn(256, 128), torch.randn(256, 128)

    def queue() -> mc.KeyQueue:
        filled = mc.KeyQueue(size, 128)
        filled.enqueue(torch.randn(size, 128))
        return filled

    mixer = mc.SynCo(mc.InfoNCE(temperature=0.2), queue=queue())
    return {
        "loss alone": step_of(mc.InfoNCE(temperature=0.2, queue=queue()), query, key),
        "mixed": step_of(mixer, query, key),
        "on embeddings": step_of(lambda *x: synco_on_embeddings(mixer, *x), query, key),
    }


def geodesic(term: str) -> Callable[[int], dict[str, Step]]:
    def case(batch: int) -> dict[str, Step]:
        import open_clip

        image, text = F.normalize(torch.randn(2, batch, 512), dim=-1)
        scale = torch.tensor(100.0)
        terms = dict.fromkeys(("m2", "v", "l", "vl"))
        terms[term] = mc.MixTerm(0.05, temperature=0.07 if term == "m2" else None)
        mixer = mc.GeodesicMixup(mc.ClipLoss(), **terms)
        return {
            "loss alone": step_of(mc.ClipLoss(), image, text, scale),
            "mixed": step_of(mixer, image, text, scale),
            "on embeddings": step_of(lambda *x: geodesic_on_embeddings(mixer, *x), image, text, scale),
            "open_clip, loss alone": step_of(open_clip.ClipLoss(), image, text, scale),
        }

    return case


CASES: dict[str, tuple[str, Callable[[int], dict[str, Step]], tuple[int, ...]]] = {
    "mochi": ("MoCHi (1024, 1024, 128) on InfoNCE, B 256, D 128, queue", mochi, (16384, 32768, 65536)),
    "synco": ("SynCo (1024; 256, 256, 256, 64, 64, 64) on InfoNCE, B 256, D 128, queue", synco, (16384, 65536)),
    "metrix": ("Metrix on ContrastiveLoss, all positive x negative, 4 a class, D 512, batch", metrix_contrastive,
               (64, 128, 256)),
    "metrix-ms": ("Metrix on MultiSimilarityLoss, all positive x negative, 4 a class, D 512, batch",
                  metrix_multi_similarity, (64, 128, 256)),
    "supremix": ("SupReMix on SupConLoss, D 128, views", supremix, (128, 256, 512)),
    "m2": ("m2-Mix on ClipLoss, D 512, batch", geodesic("m2"), (256, 512, 1024)),
    "v": ("V-Mix on ClipLoss, D 512, batch", geodesic("v"), (256, 512, 1024)),
    "l": ("L-Mix on ClipLoss, D 512, batch", geodesic("l"), (256, 512, 1024)),
    "vl": ("VL-Mix on ClipLoss, D 512, batch", geodesic("vl"), (256, 512, 1024)),
}  # fmt: skip


def steps(name: str, size: int) -> dict[str, Step]:
    torch.manual_seed(0)
    return CASES[name][1](size)


def same_value(contestants: dict[str, Step]) -> None:
    """Stops the run where mixing embeddings gives another loss than mixing similarities."""
    values = []
    for contestant in ("mixed", "on embeddings"):
        torch.manual_seed(1)
        values.append(float(contestants[contestant]()))
    if abs(values[0] - values[1]) > 1e-3 * abs(values[1]):
        raise SystemExit(f"the mixed loss is {values[0]}, on embeddings {values[1]}")


def time_of(name: str, size: int, turns: int = 11) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn."""
    contestants = steps(name, size)
    if name not in ("mochi", "synco"):  # their queues move on with every step
        same_value(contestants)
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for turn in range(turns + 2):
        for contestant, step in contestants.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[contestant].append(time.perf_counter() - start)
    return seconds


def peak_of(name: str, size: int, contestant: str) -> int:
    """Bytes that the resident size gains at its peak, of a second step (the first one loads code)."""
    step = steps(name, size)[contestant]
    step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before = resident_size("VmRSS")
    step()
    return resident_size("VmHWM") - before


def resident_size(field: str) -> int:
    """Bytes, of a field of the process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def child(*arguments: str) -> str:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    if arguments[0] == "--time":
        environment = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments], env=environment, text=True, capture_output=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


def machine() -> str:
    model = platform.processor() or "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, mixcontrast {mc.__version__}."
    )


def rows_of(names: list[str]) -> list[list[str]]:
    """A row a contestant of these cases."""
    rows = []
    for name in names:
        title, _, sizes = CASES[name]
        for size in sizes:
            print(f"{title} {size}", file=sys.stderr)
            seconds = json.loads(child("--time", name, str(size)))
            alone = seconds["loss alone"]
            for contestant, times in seconds.items():
                peak = int(child("--peak", name, str(size), contestant))
                ratio = statistics.median(a / b for a, b in zip(times, alone, strict=True))
                rows.append(
                    [f"{title} {size}", contestant, f"{statistics.median(times) * 1e3:.1f}", f"{ratio:.2f}",
                     f"{peak / 2**20:.1f}"]
                )  # fmt: skip
    return rows


def table(rows: list[list[str]]) -> str:
    headers = ["what", "contestant", "ms a step", "times the loss alone", "peak MB"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def renewed(page: str, rows: list[list[str]]) -> list[list[str]]:
    """The rows of a page, those of the same cases replaced."""
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    old = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    cases = {what: [row for row in rows if row[0] == what] for what, *_ in rows}
    found = []
    for row in old:
        if row[0] not in cases:
            found.append(row)
            continue
        found += cases[row[0]]  # all of a case stand where its first row stood
        cases[row[0]] = []
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--time"]:
        print(json.dumps(time_of(arguments[1], int(arguments[2]))))
    elif arguments[:1] == ["--peak"]:
        print(peak_of(arguments[1], int(arguments[2]), arguments[3]))
    else:
        write = not arguments or "--write" in arguments
        page = Path(__file__).with_suffix(".md")
        names = [name for name in arguments if name != "--write"]
        rows = rows_of(names or list(CASES))
        print(table(rows))
        if write:
            if names:
                rows = renewed(page.read_text(), rows)
            text = (
                "# What mixing costs\n\nMade by `python eval/bench_mixers.py`: forward and backward, drawing included; "
                f"median of 11 turns, ratios turn by turn.\n\n{machine()}\n\n{table(rows)}\n"
            )
            page.with_suffix(".tmp").write_text(text)
            page.with_suffix(".tmp").replace(page)


if __name__ == "__main__":
    main(sys.argv[1:])
