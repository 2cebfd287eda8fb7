"""The main job: does mixing help on emoji that were never seen? Trained, judged and shown in a few minutes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mixcontrast.data.emoji import load_emoji
from mixcontrast.environment import environment, there
from mixcontrast.files import write_json, write_whole
from mixcontrast.models.features import frozen_features
from mixcontrast.report.pictures import neighbour_sheet, training_curves
from mixcontrast.report.tables import compare, difference_table, results_table, time_table
from mixcontrast.retrieval import evaluate, search
from mixcontrast.training.comparison import ARMS, Recipe, steps_per_run, train
from mixcontrast.training.criteria import criterion_of

KS = (1, 2, 4, 8)
SPLIT_SEED = 0

LossName = Literal[
    "multi-similarity",
    "contrastive",
    "binomial-deviance",
    "supcon",
    "nca",
    "lifted-structure",
    "triplet",
    "proxy-anchor",
    "proxy-nca",
]
MixerName = Literal["metrix", "mochi"]


def demo(
    loss: LossName = "supcon",
    mixer: MixerName = "metrix",
    seeds: int = 5,
    epochs: int = 20,
    image_size: int = 64,
    device: str = "auto",
    classes_per_batch: int = 32,
    per_class: int = 4,
    embedding_dim: int = 512,
    learning_rate: float = 3e-4,
    max_classes: int | None = None,
    out: Path = Path("runs/demo"),
) -> None:
    """Trains the same encoder with and without mixing on emoji drawn by seven vendors, and judges it on unseen ones.

    Half of the classes are for the test and never trained on; a tenth is for the curves. The encoder is a frozen
    EfficientNet-lite0 (ImageNet weights) with a head of two layers; the head is what is trained. A run that is started
    again goes on with the seeds it has.

    Args:
        loss: what both encoders are trained with.
        mixer: what one of them gets around its loss.
        seeds: how many pairs of runs; both of a pair start from the same weights and see the same batches.
        epochs: of each run.
        image_size: pixels a side, at least 32, of the images that the frozen network sees.
        device: cpu, cuda, mps, or auto for the fastest there is.
        classes_per_batch: classes a batch.
        per_class: images of each.
        embedding_dim: numbers an embedding.
        learning_rate: of AdamW.
        max_classes: only so many of the emoji, for a quick look; all where it is left out.
        out: the folder for checkpoints, results.json, tables and pictures.
    """
    for name, number, least in (("seeds", seeds, 1), ("epochs", epochs, 1), ("image_size", image_size, 32),
                                ("embedding_dim", embedding_dim, 1)):  # fmt: skip
        if number < least:
            raise ValueError(f"--{name} must be at least {least}. Got {number}; leave it out for the default.")
    device = there(device)
    recipe = Recipe(loss, mixer, epochs, classes_per_batch, per_class, embedding_dim, learning_rate)
    criterion_of(loss, mixer, 2, embedding_dim)  # a pair that does not fit is refused before anything is computed
    console = Console()
    emoji = load_emoji()
    labels, rows = emoji.labels, np.arange(len(emoji.labels))
    if max_classes is not None:
        rows = np.flatnonzero(labels < max_classes)
        labels = labels[rows]
    paths, vendors = [emoji.paths[row] for row in rows], [emoji.vendors[row] for row in rows]
    parts = _split(labels)
    train_rows, validation_rows, test_rows = parts
    num_classes = [len(np.unique(labels[part])) for part in parts]
    console.print(
        f"{len(np.unique(labels)):,} emoji, {len(labels):,} drawings by {len(set(vendors))} vendors. Classes to train "
        f"on {num_classes[0]}, for the curves {num_classes[1]}, for the test {num_classes[2]}: none is in two."
    )
    titles = {
        "raw": "raw features",
        "plain": loss,
        "mixed": f"{loss} + {mixer}",
    }
    runs: dict[str, list] = {arm: [] for arm in ARMS}
    with Progress(
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task(f"features at {image_size} pixels", total=len(paths))
        features = frozen_features(
            paths,
            image_size=image_size,
            device=device,
            cache=out,
            advance=lambda count: progress.advance(task, count),
        )
        steps = steps_per_run(labels[train_rows], recipe)
        for seed in range(seeds):
            for arm in ARMS:
                task = progress.add_task(f"seed {seed + 1} of {seeds}, {arm}", total=steps)
                runs[arm].append(
                    train(
                        recipe, arm, seed, features, labels, parts,
                        device=device, folder=out / f"{arm}-seed{seed}",
                        advance=lambda count, task=task: progress.advance(task, count),
                    )
                )  # fmt: skip
        task = progress.add_task("judging the unseen emoji", total=1 + len(ARMS) * seeds)

        def judge(embeddings: torch.Tensor):
            found = evaluate(embeddings, labels[test_rows], ks=KS)
            progress.advance(task)
            return found

        raw = judge(features[test_rows])
        judged = {arm: [judge(run.embeddings) for run in runs[arm]] for arm in ARMS}
    metrics = compare(raw, judged["plain"], judged["mixed"])
    milliseconds = {arm: float(np.median([s for run in runs[arm] for s in run.seconds])) * 1e3 for arm in ARMS}
    trained = {arm: titles[arm] for arm in ARMS}
    write_json(
        out / "results.json",
        {
            "metrics": metrics,
            "milliseconds a step": milliseconds,
            "num_test_queries": len(raw.queries),
            "num_test_queries_without_positive": raw.num_without_positive,
            "classes": dict(zip(("train", "validation", "test"), num_classes, strict=True)),
            "recipe": asdict(recipe) | {"seeds": seeds, "image_size": image_size, "max_classes": max_classes},
            "environment": environment(device),
        },
    )
    note = (
        f"Retrieval among {len(raw.queries):,} drawings of {num_classes[2]} emoji that were not trained on. A value is "
        f"the mean over {seeds} seed{'s' if seeds > 1 else ''}; [95% intervals] are over classes, by bootstrap."
    )
    if raw.num_without_positive:
        note += f" {raw.num_without_positive} drawings have no second drawing to find and are left out."
    page = "\n\n".join(
        [
            f"# {titles['plain']} with and without {mixer}, on emoji",
            note,
            results_table(metrics, titles),
            difference_table(metrics),
            time_table(milliseconds, trained),
        ]
    )
    write_whole(out / "results.md", lambda temporary: temporary.write_text(page + "\n"))
    training_curves(
        {arm: [run.curve for run in runs[arm]] for arm in ARMS}, trained, out / "training_curves.png"
    )
    _sheet(runs, labels, test_rows, paths, vendors, trained, out / "neighbours.png")
    console.print(f"\n{note}\n")
    for text in (
        results_table(metrics, titles, "simple"),
        difference_table(metrics, "simple"),
        time_table(milliseconds, trained, "simple"),
    ):
        console.print(text + "\n", highlight=False, soft_wrap=True, markup=False)
    console.print(f"Checkpoints, results.json, results.md, training_curves.png and neighbours.png are in {out}/")


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, for the curves, and for the test: classes 40%, 10% and 50%, by one fixed seed."""
    order = np.random.default_rng(SPLIT_SEED).permutation(np.unique(labels))
    test, validation = round(0.5 * len(order)), round(0.6 * len(order))
    parts = order[validation:], order[test:validation], order[:test]
    return tuple(np.flatnonzero(np.isin(labels, part)) for part in parts)


def _sheet(runs, labels, test_rows, paths, vendors, titles, path: Path) -> None:
    """Ten queries of the test, drawn at random, with their neighbours after the first seed's runs."""
    test_labels = labels[test_rows]
    found = {
        arm: search(
            runs[arm][0].embeddings,
            runs[arm][0].embeddings,
            5,
            query_ids=np.arange(len(test_rows)),
            gallery_ids=np.arange(len(test_rows)),
        )
        for arm in ARMS
    }
    with_positive = np.flatnonzero(np.bincount(test_labels)[test_labels] > 1)
    queries = np.random.default_rng(SPLIT_SEED).choice(with_positive, min(10, len(with_positive)), replace=False)
    neighbour_sheet(
        queries,
        {arm: neighbours.indices[queries] for arm, neighbours in found.items()},
        {arm: neighbours.similarity[queries] for arm, neighbours in found.items()},
        test_labels,
        [paths[row] for row in test_rows],
        [vendors[row] for row in test_rows],
        titles,
        path,
    )
