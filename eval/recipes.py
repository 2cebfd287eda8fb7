"""Runs the recipes that two cores can run, over paired seeds, and writes what they gave to eval/results/.

    python eval/recipes.py                  # all of them; the same command goes on where it was stopped
    python eval/recipes.py --only emoji     # one group
    python eval/recipes.py --tune           # the grid that the recipes' numbers were chosen from, on validation parts

Each run is `mixcontrast fit` with a seed and a folder under runs/recipes/, at most two at once, one thread each.
A finished run is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mixcontrast.retrieval import Evaluation, SeededRuns

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "eval" / "results"
TUNING_SEED = 100  # none of those that are judged

LR, STD = "model.init_args.optimizer.init_args.lr", "data.init_args.augment.init_args.std"
MARGIN = "model.init_args.criterion.init_args.negative_margin"
MARGIN_MIXED = "model.init_args.criterion.init_args.loss.init_args.negative_margin"
SHORT = {LR: "lr", STD: "noise", MARGIN: "margin", MARGIN_MIXED: "margin"}


@dataclass(frozen=True)
class Group:
    """Recipes of one task, which are compared.

    Attributes:
        title: of its table.
        what: is trained and judged, a few sentences.
        metrics: that are shown, the first in the recipes' second lines.
        arms: the recipes' names and what a table calls them.
        pairs: (recipe, the recipe it is compared with).
        grid: keys of a recipe and their values, the same for each recipe, of which tuning chose.
        tuned: further arguments while tuning.
        further: more of the grid, of some recipes.
        untrained: what the inputs themselves reach, for the first row.
    """

    title: str
    what: str
    metrics: tuple[str, ...]
    arms: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    grid: dict[str, tuple[float, ...]]
    tuned: tuple[str, ...] = ()
    further: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    untrained: Callable[[], Evaluation] | None = None


def frozen_features() -> Evaluation:
    """Retrieval by the features that the emoji recipes begin with."""
    import torch

    from mixcontrast.data import ClassData, EmojiFeatures
    from mixcontrast.retrieval import DML, evaluate

    test = ClassData(EmojiFeatures(image_size=64)).test_examples
    features = torch.stack([test[row] for row in range(len(test))])
    return evaluate(features, test.labels, ks=(1, 2, 4, 8)).named(DML)


def _regression(data: str, title: str, what: str) -> Group:
    arms = {
        "l1": "L1, end to end",
        "supcon": "SupCon, 10 bins",
        "rank_n_contrast": "Rank-N-Contrast",
        "supremix": "SupReMix",
    }
    return Group(
        title, what + " The contrastive ones pretrain; ridge regression on their frozen embeddings is judged.",
        ("MAE", "R2"), {f"{data}_{arm}": name for arm, name in arms.items()},
        (*((f"{data}_{arm}", f"{data}_l1") for arm in arms if arm != "l1"), (f"{data}_supremix", f"{data}_supcon"),
         (f"{data}_supremix", f"{data}_rank_n_contrast")),
        {LR: (3e-4, 1e-3, 3e-3), STD: (0.03, 0.1)},
    )  # fmt: skip


_LOSSES = {"contrastive": "contrastive", "multi_similarity": "multi-similarity", "proxy_anchor": "proxy anchor"}
_MIXED = {"": "", "_metrix": " + Metrix", "_mochi": " + MoCHi"}

GROUPS: dict[str, Group] = {
    "emoji": Group(
        "Metric learning on emoji, with and without mixing",
        "A head of two layers on frozen EfficientNet-lite0 features (64 pixels), 20 epochs of 128 drawings a batch, 4 "
        "of each of 32 emoji; best.ckpt is the best of 10 looks at 144 validation emoji. Judged: retrieval among 4,891 "
        "drawings of 722 emoji that were not trained on.",
        ("Recall@1", "Recall@8", "MAP@R"),
        {f"emoji_{loss}{mix}": name + plus for loss, name in _LOSSES.items() for mix, plus in _MIXED.items()},
        tuple((f"emoji_{loss}{mix}", f"emoji_{loss}") for loss in _LOSSES for mix in ("_metrix", "_mochi")),
        {LR: (1e-4, 3e-4, 1e-3)},
        further={
            "emoji_contrastive": {MARGIN: (0.5, 0.0)},
            "emoji_contrastive_metrix": {MARGIN_MIXED: (0.5, 0.0)},
            "emoji_contrastive_mochi": {MARGIN_MIXED: (0.5, 0.0)},
        },
        untrained=frozen_features,
    ),
    "fashion": Group(
        "Self-supervision on Fashion-MNIST, with and without MoCHi",
        "timm's test_resnet (0.4 M parameters, 96 features) from scratch on 4,500 of the training images at 28 pixels, "
        "10 epochs of 128 a batch; best.ckpt is the best of 2 looks at 1,500 other training images. Judged: a linear "
        "probe and k-NN (k 20) on frozen features, learned from the 4,500, on the 10,000 test images.",
        ("linear probe", "k-NN"),
        {"fashion_moco": "MoCo v2", "fashion_moco_mochi": "MoCo v2 + MoCHi", "fashion_simclr": "SimCLR",
         "fashion_simclr_mochi": "SimCLR + MoCHi"},
        (("fashion_moco_mochi", "fashion_moco"), ("fashion_simclr_mochi", "fashion_simclr")),
        {LR: (1e-3, 3e-3)},
        ("--trainer.max_epochs=4", "--judge_every=4"),
    ),
    "clip": Group(
        "Two towers on emoji with captions, with and without mixing",
        "Two linear heads on frozen features of EfficientNet-lite0 (64 pixels) and MiniLM, 30 epochs of 256 pairs, "
        "from random heads; best.ckpt is the best of 6 looks at 144 validation emoji. Judged: R@k of drawings and "
        "captions of emoji that were not trained on, both ways, over all vendors, two of which were not trained on "
        "either.",
        ("R@1", "R@5", "R@10"),
        {"clip_emoji": "CLIP", "clip_emoji_geodesic": "CLIP + m3-Mix",
         "clip_emoji_mochi": "CLIP + MoCHi, same modality", "clip_emoji_synco": "CLIP + SynCo, same modality",
         "clip_emoji_siglip": "SigLIP"},
        tuple((f"clip_emoji_{other}", "clip_emoji") for other in ("geodesic", "mochi", "synco", "siglip")),
        {LR: (3e-4, 1e-3, 3e-3)},
    ),
    "concrete": _regression(
        "concrete", "Regression on concrete",
        "The strength of concrete in MPa from 8 numbers (1,030 mixtures; a fifth is the test): an MLP of two layers of "
        "256, 100 epochs of 64 a batch, two noisy views.",
    ),
    "diamonds": _regression(
        "diamonds", "Regression on diamonds",
        "The logarithm of a diamond's price from 9 columns, 6,000 of the 53,940 at random (the same for all; a fifth "
        "is the test): an MLP of two layers of 256, 30 epochs of 128 a batch, two noisy views.",
    ),
    "valence": _regression(
        "valence", "Regression of words' valence",
        "How pleasant a word is (-4 to 4, mean of ten raters) from its MiniLM embedding, 7,520 words (a fifth is the "
        "test): an MLP of two layers of 256, 20 epochs of 128 a batch, two noisy views.",
    ),
}  # fmt: skip


def fit(job: tuple[str, Path, tuple[str, ...]]) -> str:
    """One run by the command's own function; what it prints goes to a file beside the folder."""
    from mixcontrast.cli import main

    name, folder, arguments = job
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            common = ["--config", str(CONFIGS / f"{name}.yaml"), "--out", str(folder)]
            try:
                main(["fit", *common, "--trainer.enable_progress_bar=false", *arguments])
            except SystemExit as stopped:
                raise RuntimeError(f"{name}: see {folder}.log") from stopped
    return folder.name


def run(jobs: list[tuple[str, Path, tuple[str, ...]]], processes: int) -> None:
    """Those that are not finished, in `processes` processes of one thread, each import done once a process."""
    todo = [job for job in jobs if not (job[1] / "results.json").exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} finished", flush=True)
    if not todo:
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        for number, done in enumerate(as_completed([pool.submit(fit, job) for job in todo]), 1):
            print(f"{number} of {len(todo)}: {done.result()}", flush=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def judged_jobs(groups: Iterable[str], runs: Path, seeds: int) -> list[tuple[str, Path, tuple[str, ...]]]:
    return [
        (name, runs / f"{name}-seed{seed}", ("--seed", str(seed)))
        for group in groups
        for seed in range(seeds)
        for name in GROUPS[group].arms
    ]


def settings_of(group: Group, name: str) -> list[dict[str, float]]:
    """Each point of a recipe's grid."""
    grid = group.grid | group.further.get(name, {})
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def tuning_jobs(groups: Iterable[str], runs: Path) -> list[tuple[str, Path, tuple[str, ...]]]:
    found = []
    for key in groups:
        for name in GROUPS[key].arms:
            for point in settings_of(GROUPS[key], name):
                chosen = [f"--{at}={value}" for at, value in point.items()]
                arguments = (*chosen, "--seed", str(TUNING_SEED), *GROUPS[key].tuned)
                found.append((name, tuning_folder(runs, name, point), arguments))
    return found


def tuning_folder(runs: Path, name: str, point: dict[str, float]) -> Path:
    return runs / "tuning" / f"{name}-{'-'.join(f'{value:g}' for value in point.values())}"


def best_validation(folder: Path) -> tuple[str, float]:
    """What best.ckpt was chosen by, and its best value."""
    monitor = json.loads((folder / "results.json").read_text())["settings"]["fit"]["monitor"]
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        values = [float(row[monitor]) for row in csv.DictReader(file) if row.get(monitor)]
    return monitor, min(values) if monitor.endswith("MAE") else max(values)


def write_tuning(groups: Iterable[str], runs: Path) -> None:
    """The grid and what each point reached on the validation part."""
    lines = [
        "# How the recipes' numbers were chosen", "",
        "    python eval/recipes.py --tune", "",
        f"On validation parts, never on test, one run a point with seed {TUNING_SEED}, which no table has; the same "
        "grid for a plain loss and for the same with mixing. The rest is the papers', or a guess that all recipes of a "
        "task share. What was chosen is in the recipes' files.", "",
    ]  # fmt: skip
    for key in groups:
        group = GROUPS[key]
        rows = []
        for name, title in group.arms.items():
            points = settings_of(group, name)
            found = [best_validation(tuning_folder(runs, name, point)) for point in points]
            monitor, values = found[0][0], [value for _, value in found]
            best = int((np.argmin if monitor.endswith("MAE") else np.argmax)(values))
            heads = [", ".join(f"{SHORT[at]} {value:g}" for at, value in point.items()) for point in points]
            cells = [f"{head}: {value:.3f}" for head, value in zip(heads, values, strict=True)]
            rows.append([title, heads[best], f"{values[best]:.3f}", "; ".join(cells[:best] + cells[best + 1 :])])
            print(name, heads[best], f"{values[best]:.4f}", flush=True)
        shorter = f" ({' '.join(group.tuned)})" if group.tuned else ""
        lines += [f"## {group.title}: {monitor}{shorter}", "", table(["", "chosen", "there", "others"], rows), ""]
    write(RESULTS / "tuning.md", "\n".join(lines))


def load(name: str, runs: Path, seeds: int) -> SeededRuns:
    """The runs of a recipe, one a seed."""
    from mixcontrast.retrieval import SeededRuns

    return SeededRuns.load([runs / f"{name}-seed{seed}" for seed in range(seeds)])


def seconds_of(runs: SeededRuns) -> list[float]:
    """Of CPU, one thread, of the runs that were not stopped and gone on with."""
    facts = [each["fit"] for each in runs.settings]
    return [fact["CPU seconds of this start"] for fact in facts if not fact["from step"]]


def interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The mean of (S, Q) values with its 95% interval over seeds and whole groups of queries."""
    from mixcontrast.retrieval import mean_of_seeds

    found = mean_of_seeds(values, groups).interval
    return found.mean, found.low, found.high


def write_group(key: str, runs: Path, seeds: int) -> None:
    """A group's tables, as Markdown and as JSON, and the second lines of its recipes."""
    from mixcontrast.environment import environment

    group = GROUPS[key]
    loaded = {name: load(name, runs, seeds) for name in group.arms}
    facts: dict = {"recipes": {}, "seeds": seeds}
    rows = []
    if group.untrained is not None:
        inputs = group.untrained()
        classes = np.unique(inputs.groups, return_inverse=True)[1]
        found = {metric: interval(inputs.values[metric][None], classes) for metric in group.metrics}
        facts["the inputs themselves"] = found
        rows.append(["the frozen features themselves", *map(_shown, found.values()), ""])
    for name, title in group.arms.items():
        mine = loaded[name]
        found = {metric: interval(mine.values[metric], mine.groups) for metric in group.metrics}
        seconds = float(np.median(seconds_of(mine) or [np.nan]))
        each = {metric: mine.values[metric].mean(axis=1).tolist() for metric in group.metrics}
        facts["recipes"][name] = {"metrics": found, "each seed": each, "CPU seconds": seconds}
        rows.append([f"[{title}](../../configs/{name}.yaml)", *map(_shown, found.values()), f"{seconds:.0f}"])
    facts["differences"] = differences_of(group, loaded)
    differences = [
        [f"{group.arms[each['recipe']]} against {group.arms[each['against']]}", each["metric"],
         _shown(each["difference"], "+.3f"), shown_p(each["p corrected"]), f"{each['seeds better']} of {seeds}",
         each["verdict"]]
        for each in facts["differences"]
    ]  # fmt: skip
    machine = environment("cpu")
    facts["machine"] = {name: value for name, value in machine.items() if name != "git"}
    shown = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "lightning", "timm", "numpy"))
    lower = " MAE is better where it is lower." if "MAE" in group.metrics else ""
    page = [
        f"# {group.title}", "",
        f"    python eval/recipes.py --only {key}", "",
        f"{group.what}{lower}", "",
        f"Means of {seeds} seeds; the same seeds, batches and parts for all. [95% intervals] are over seeds and "
        f"test {'classes' if key in ('emoji', 'clip') else 'rows'}, Student's; p-values are corrected by Holm's "
        "procedure for all differences of a metric on this page. Seconds are of CPU, one thread, "
        "training and judging, the median; other work on the machine makes them longer. "
        f"On {machine['cores']} cores of {platform.machine()}, {platform.system()}; {shown}. "
        "Learning rates and noise: [tuning.md](tuning.md).", "",
        table(["", *group.metrics, "seconds a run"], rows), "",
        "## Differences, seed by seed and row by row", "",
        table(["", "metric", "difference [95% interval]", "p, corrected", "seeds better", "so"], differences), "",
    ]  # fmt: skip
    write(RESULTS / f"{key}.md", "\n".join(page))
    write(RESULTS / f"{key}.json", json.dumps(facts, indent=1) + "\n")
    for name in group.arms:
        write_second_line(name, key, group, facts)


def differences_of(group: Group, loaded: dict[str, SeededRuns]) -> list[dict]:
    """Each pair's paired difference in each metric; p-values are corrected for all pairs of a metric."""
    from mixcontrast.retrieval import holm, mean_of_seeds

    rows = []
    for mixed, plain in group.pairs:
        one, two = loaded[mixed], loaded[plain]
        for metric in group.metrics:
            apart = one.values[metric] - two.values[metric]
            found, sign = mean_of_seeds(apart, one.groups), -1 if metric == "MAE" else 1
            rows.append(
                {"recipe": mixed, "against": plain, "metric": metric,
                 "difference": (found.interval.mean, found.interval.low, found.interval.high),
                 "seeds better": int((sign * apart.mean(axis=1) > 0).sum()), "p": found.p_value,
                 "each seed": apart.mean(axis=1).tolist()}
            )  # fmt: skip
    for metric in group.metrics:
        mine = [row for row in rows if row["metric"] == metric]
        for row, corrected in zip(mine, holm([row["p"] for row in mine]), strict=True):
            gain = (row["difference"][0] > 0) != (metric == "MAE")
            row["p corrected"] = float(corrected)
            row["verdict"] = ("better" if gain else "worse") if corrected < 0.05 else "no difference shown"
    return rows


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def write_second_line(name: str, key: str, group: Group, facts: dict) -> None:
    """What a recipe gave and how long it took, as the second line of its file; the third is what it is against."""
    of = facts["recipes"][name]
    told = ", ".join(f"{metric} {of['metrics'][metric][0]:.3f}" for metric in group.metrics)
    against = [
        f"{_shown(found['difference'], '+.3f')} against {found['against']}"
        for found in facts["differences"]
        if found["recipe"] == name and found["metric"] == group.metrics[0]
    ]
    line = f"# {told} on the test part, mean of {facts['seeds']} seeds; {of['CPU seconds']:.0f} seconds of one core."
    lines = [line]
    if against:
        lines += [f"# {group.metrics[0]} {against[0]}; eval/results/{key}.md."]
    path = CONFIGS / f"{name}.yaml"
    text = re.sub(r"\A(#[^\n]*\n)(#[^\n]*\n)*", lambda found: found[1] + "\n".join(lines) + "\n", path.read_text())
    write(path, text)


def _shown(found: tuple[float, float, float], form: str = ".3f") -> str:
    return f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    from mixcontrast.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="these groups alone")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds, 0 and on")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "recipes", help="where the runs' folders are")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--tune", action="store_true", help="run the grid on the validation parts instead")
    given = parser.parse_args()
    if given.tune:
        run(tuning_jobs(given.only, given.runs), given.processes)
        write_tuning(given.only, given.runs)
        return
    for key in given.only:
        run(judged_jobs([key], given.runs, given.seeds), given.processes)
        write_group(key, given.runs, given.seeds)
        print(f"eval/results/{key}.md", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this tree's mixcontrast, whatever is installed
    main()
