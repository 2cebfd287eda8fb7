"""The command `mixcontrast explain`: what the mixers of a recipe make of one batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table

from mixcontrast.commands.fit import fit_parser
from mixcontrast.commands.fit_errors import build, parse
from mixcontrast.data.pair_data import PairData
from mixcontrast.explanation import Explanation, explain
from mixcontrast.explanation.sphere import most_moved
from mixcontrast.mixers import DeepMetrix, Mixer
from mixcontrast.report.explained import kinds_table, mixtures_table, write_csv, write_picture
from mixcontrast.training import DirectRegression, ImageText, MetricLearning, Regression, SelfSupervised
from mixcontrast.training.one_batch import look_at_batches

DESCRIPTION = """Says what the mixers of a recipe make of one batch of training: which pairs, in which shares, how
similar to the anchor, and what share of the loss and of its gradient they carry. Writes mixtures.csv, sphere.png and
sphere.svg. The recipe is one of mixcontrast fit, and any key of it can be given here too."""

MIXING = {
    MetricLearning: "Metrix(MultiSimilarityLoss())",
    SelfSupervised: "MoCHi(InfoNCE())",
    Regression: "SupReMix(SupConLoss())",
    ImageText: "GeodesicMixup(ClipLoss())",
}
"""Criteria that fit what a module calls them with."""

USAGE = "mixcontrast explain --config FILE [--checkpoint FILE] [--after STEPS] [--out FOLDER] [--KEY=VALUE ...]"


def explain_command(arguments: list[str]) -> None:
    """Runs `mixcontrast explain` with the arguments behind it.

    Raises:
        ValueError: in one line, what the user can mend.
    """
    parser = fit_parser("mixcontrast explain", USAGE, DESCRIPTION)
    parser.add_argument("--checkpoint", type=Path, help="Weights of a run, such as runs/x/best.ckpt; else fresh ones.")
    parser.add_argument("--after", type=int, default=0, help="Steps of training before the batch that is explained.")
    parser.add_argument("--anchors", type=int, default=4, help="How many anchors, those whose mixtures move them most.")
    parser.add_argument("--shown", type=int, default=12, help="How many mixtures are shown; the file has all.")
    config = parse(parser, arguments)
    for name, least in (("after", 0), ("anchors", 1), ("shown", 1)):
        if config[name] < least:
            raise ValueError(f"--{name} must be at least {least}. Got {config[name]}.")
    if config.out is None:
        recipe = config.config[-1] if config.config else "recipe"
        config.out = Path("runs") / f"{Path(str(recipe)).stem}-explained"
    lightning.seed_everything(config.seed, verbose=False)
    ready = build(parser, config)
    module, data = ready.model, ready.data
    module.prepare(data)
    if not isinstance(module.criterion, Mixer | DeepMetrix):
        name = "none" if module.criterion is None else type(module.criterion).__name__
        raise ValueError(f"A criterion that mixes is explained. Got {name}; {_remedy(module)}.")
    if config.checkpoint is not None:
        load_weights(module, config.checkpoint)
    found = explained_batch(module, data, after=config.after, seed=config.seed, trainer=ready.trainer.as_dict())
    names = list(data.collection.captions if isinstance(data, PairData) else data.train_examples.names) or None
    anchors = most_moved(found, config.anchors)
    header, rows = mixtures_table(found, anchors, names)
    write_csv(config.out / "mixtures.csv", header, rows)
    write_picture(found, anchors, config.out / "sphere", names)
    show(found, anchors, names, config.shown, Console())
    Console().print(
        f"{len(rows):,} mixtures of {len(anchors)} anchors and the sphere around two are in {config.out}/",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _remedy(module: lightning.LightningModule) -> str:
    """A criterion that mixes and fits a module."""
    if isinstance(module, DirectRegression):
        return "take mixcontrast.training.Regression and SupReMix(SupConLoss())"
    for kind, fitting in MIXING.items():
        if isinstance(module, kind):
            return f"give model.criterion one, such as {fitting}"
    return "give model.criterion one"


def load_weights(module: lightning.LightningModule, checkpoint: Path) -> None:
    """Puts a run's weights into a module.

    Raises:
        ValueError: there is no such file, or it is of another module.
    """
    if not checkpoint.exists():
        raise ValueError(f"There is no checkpoint {checkpoint}. Give one of mixcontrast fit, such as runs/x/best.ckpt.")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{checkpoint} must be of this recipe. {first} Give the recipe that it was trained by."
        ) from None


def explained_batch(
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    *,
    after: int = 0,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> Explanation:
    """The batch of training behind `after` steps, explained."""
    (found,) = explained_batches(module, data, after=after, seed=seed, trainer=trainer)
    return found


def explained_batches(
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    *,
    after: int = 0,
    batches: int = 1,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> list[Explanation]:
    """Several batches of training in a row, the first behind `after` steps; the module is trained on by them.

    Args:
        module: as `mixcontrast fit` trains it.
        data: of the run.
        after: so many steps.
        batches: how many.
        seed: of the run.
        trainer: options the recipe's options of it.
    """
    found: list[Explanation] = []

    def look(criterion: torch.nn.Module, inputs: tuple[Any, ...], labels: torch.Tensor) -> None:
        if labels.device.type != "cpu":  # what is explained is drawn and counted there
            criterion, labels = copy.deepcopy(criterion).cpu(), labels.cpu()
            inputs = tuple(part.cpu() if isinstance(part, torch.Tensor) else _on_cpu(part) for part in inputs)
        inputs = tuple(part.detach() if isinstance(part, torch.Tensor) else part for part in inputs)
        classes = None if labels.is_floating_point() else labels
        found.append(explain(criterion, *inputs, classes=classes))

    look_at_batches(module, data, look, after=after, batches=batches, seed=seed, **(trainer or {}))
    if len(found) < batches:
        raise ValueError(
            f"A run must have a batch behind {after} steps. Got {len(found)} of {batches}; take fewer, by --after."
        )
    return found


def _on_cpu(part: Any) -> Any:
    return copy.deepcopy(part).cpu() if isinstance(part, torch.nn.Module) else part


def show(found: Explanation, anchors: list[int], names: list[str] | None, shown: int, console: Console) -> None:
    """The tables of kinds and of the mixtures that carry most."""
    console.print(
        f"{found.criterion}: the loss of this batch is {found.loss:.4f}. Mixed columns carry {found.of_gradient:.1%} "
        f"of its gradient by similarities{_of_loss(found)}.", highlight=False, soft_wrap=True,
    )  # fmt: skip
    header, rows = kinds_table(found)
    table = Table(*header, box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        "each: mixtures an anchor; hardest: more similar to the anchor than its hardest negative; false: negatives "
        "made of the anchor's own class; gradient: the share that they carry.", highlight=False, soft_wrap=True,
    )  # fmt: skip
    _, rows = mixtures_table(found, anchors, names, max(1, shown // len(anchors)))
    table = Table("anchor", "the first parent", "the second", "mixture", "target", "gradient", box=None,
                  header_style="bold")  # fmt: skip
    for row in rows[:shown]:
        parents = [_parent(*row[start : start + 5]) for start in (3, 8)]
        table.add_row(row[0] + _in_brackets(row[1]), *parents, row[14], row[15][:5], row[17])
    console.print(table)
    console.print(
        "A parent: its coefficient, what it is, its row and class, and its similarity to the anchor.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _parent(name: str, row: str, label: str, share: str, similarity: str) -> str:
    return f"{float(share):+.2f} {name}{' ' + row if row else ''}{_in_brackets(label)} {float(similarity):.2f}"


def _in_brackets(text: str) -> str:
    return f" ({text[:12]})" if text else ""


def _of_loss(found: Explanation) -> str:
    if found.of_loss != found.of_loss:
        return "; without them no anchor has a positive"
    return f" and {found.of_loss:.1%} of the loss"
