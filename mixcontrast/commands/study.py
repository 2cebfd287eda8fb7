"""The command `mixcontrast study`: does mixing help on my data?"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console

from mixcontrast.commands.fit import fit_parser
from mixcontrast.commands.fit_errors import build, parse
from mixcontrast.environment import environment
from mixcontrast.files import write_json, write_whole
from mixcontrast.report.study_page import answer_markdown, write_page
from mixcontrast.retrieval.results import SMALLER_IS_BETTER
from mixcontrast.study.answer import answer_of
from mixcontrast.study.criteria import AUTO, Sizes, arms_of, grid_of, kind_of, stand_in
from mixcontrast.study.plan import Plan
from mixcontrast.study.recipes import write_recipe
from mixcontrast.study.work import work_together
from mixcontrast.training.image_text import ImageText
from mixcontrast.training.pair_retrieval import KS, TO_IMAGE, TO_TEXT
from mixcontrast.training.safety import quieten
from mixcontrast.training.self_supervised import SelfSupervised

DESCRIPTION = """Does mixing help on my data? Tunes each criterion on the validation part, trains each over paired seeds
with equal budget, and says of each whether it helps, hurts, or cannot be told with so many seeds, and why. Writes a
folder: study.html, answer.md, answer.json, pictures/ (PNG, SVG), recipes/ (tuned, for mixcontrast fit), and all runs.
The same command again goes on where it stopped; copies of it, on other machines too, share the work through the folder.
"""

USAGE = "mixcontrast study --config FILE [--seeds N] [--processes N] [--out FOLDER]"


def study_parser() -> ArgumentParser:
    """What the command and its config may say."""
    parser = ArgumentParser(
        prog="mixcontrast study", usage=USAGE, description=DESCRIPTION, formatter_class=DefaultHelpFormatter,
        exit_on_error=False, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("-c", "--config", action="config", help="A YAML file of the keys below.")
    parser.add_argument(
        "--criteria", type=str | list[str | dict[str, Any]], default="auto",
        help="Names such as 'supcon + metrix' or 'clip + m3', or mappings with name and perhaps criterion (class_path, "
        "init_args), grid (of a mixer's weight, say) and against; or auto, the usual ones of the task.",
    )  # fmt: skip
    parser.add_argument("--baseline", type=str | None, help="One of the criteria; the first where it is left out.")
    parser.add_argument("--recipe", type=dict, help="A recipe of mixcontrast fit without a criterion; all share it.")
    parser.add_argument(
        "--grid", type=dict[str, list[float]] | None,
        help="Hyper-parameters and the values that are tried, of each criterion those that it has: learning_rate, "
        "temperature (of two towers the model's: where the learned one begins, or the fixed one), weight, margin, ... "
        "By default the usual ones of the task.",
    )  # fmt: skip
    parser.add_argument("--reduction_factor", type=int, default=3, help="Of successive halving: one in so many stays.")
    parser.add_argument("--finalists", type=int, default=3, help="Of a criterion's points, tried with more seeds.")
    parser.add_argument(
        "--tuning_seeds", type=int, default=1, help="Of each finalist, whose mean decides; none of them is judged."
    )
    parser.add_argument("--metric", type=str | None, help="That is asked about; the one that is tuned for by default.")
    parser.add_argument("--queue_size", type=int, default=4096, help="Keys, where the recipe has a momentum encoder.")
    parser.add_argument("--seeds", type=int, default=5, help="Paired seeds, 0 and on; more can be added later.")
    parser.add_argument("--processes", type=int, default=1, help="Processes that work at once.")
    parser.add_argument("--threads", type=int, default=1, help="Of each process.")
    parser.add_argument(
        "--costs", type=bool, default=True, help="Measure what a step costs, each criterion in a process of its own."
    )
    parser.add_argument("--out", type=Path | None, help="The folder. By default runs/ and the config's name.")
    return parser


def study_command(arguments: list[str]) -> None:
    """Runs `mixcontrast study` with the arguments behind it.

    Raises:
        ValueError: in one line, what the user can mend.
    """
    config = parse(study_parser(), arguments)
    least_of = {"seeds": 1, "processes": 1, "threads": 1, "queue_size": 1, "reduction_factor": 2, "finalists": 1,
                "tuning_seeds": 1}  # fmt: skip
    for name, least in least_of.items():
        if config[name] < least:
            raise ValueError(f"--{name} must be at least {least}. Got {config[name]}.")
    if not config.recipe:
        raise ValueError("A study needs a recipe. Give one by --config FILE, such as configs/study_emoji.yaml.")
    folder = config.out
    if folder is None:
        folder = Path("runs") / (Path(str(config.config[-1])).stem if config.config else "study")
    console = Console()
    torch.set_num_threads(config.threads)
    plan = plan_of(config)
    plan.write(folder)
    tried = sum(len(arm.points()) for arm in plan.arms)
    console.print(
        f"{folder}: {len(plan.arms)} criteria, {tried} points of their grids on the validation part, {config.seeds} "
        f"seeds each; {plan.metric} on the test part.", highlight=False, soft_wrap=True,
    )  # fmt: skip
    try:
        work_together(folder, config.seeds, config.processes, threads=config.threads, costs=config.costs)
    except KeyboardInterrupt:
        raise SystemExit("mixcontrast: stopped; the same command goes on.") from None
    answer = answer_of(plan, folder, config.seeds)
    write_json(folder / "answer.json", answer)
    text = answer_markdown(answer)
    write_whole(folder / "answer.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_page(folder / "study.html", answer, environment(_device(answer)))
    console.print("\n" + text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"The page is {folder}/study.html; pictures and tuned recipes are beside it.", highlight=False,
                  soft_wrap=True)  # fmt: skip


def plan_of(config: Any) -> Plan:
    """The study of a config: its recipe is built once, so that what is wrong with it is told before anything is run.

    Raises:
        ValueError: in one line, what the user can mend.
    """
    recipe = _mappings(config.recipe)
    kind = kind_of(recipe)
    with tempfile.TemporaryDirectory() as temporary:
        file = write_recipe(Path(temporary) / "recipe.yaml", stand_in(recipe, kind))
        parser = fit_parser()
        parsed = parse(parser, ["--config", str(file), "--trainer.enable_progress_bar=false"])
    with warnings.catch_warnings():
        quieten()
        lightning.seed_everything(0, verbose=False)
        ready = build(parser, parsed)
    module, data = ready.model, ready.data
    module.prepare(data)
    for part, loader, key in (
        ("validation", data.val_dataloader(), "validation_share"), ("test", data.test_dataloader(), "test_share")
    ):  # fmt: skip
        if not loader:
            raise ValueError(
                f"A study tunes on a validation part and asks a test part. Got no {part} part; set a {key}."
            )
    monitor, mode = module.monitor(data)
    sizes = _sizes(module, data, config.queue_size)
    criteria = _mappings(config.criteria)
    if isinstance(criteria, str):
        if criteria != "auto":
            raise ValueError(f"`criteria` must be a list, or auto. Got {criteria}.")
        criteria = list(AUTO[kind])
    grid = grid_of(recipe, kind) if config.grid is None else config.grid
    arms = arms_of(criteria, config.baseline, recipe, grid, kind, sizes)
    metric = config.metric or monitor.removeprefix("val/")
    if isinstance(module, ImageText):
        _check_directions(metric)
    better = "min" if metric in SMALLER_IS_BETTER else "max"
    if better != mode:
        raise ValueError(f"`metric` must be better as what is tuned for is, {monitor}. Got {metric}.")
    return Plan(arms, metric, monitor, mode, config.reduction_factor, config.finalists, config.tuning_seeds)


def _check_directions(metric: str) -> None:
    """One line where two towers are not judged by a metric.

    Raises:
        ValueError: so it is.
    """
    known = [f"{way}R@{k}" for way in ("", f"{TO_TEXT} ", f"{TO_IMAGE} ") for k in KS]
    if metric not in known:
        raise ValueError(
            f"`metric` of two towers must be R@k, the mean of both directions, or that of one. Got {metric}; there are "
            f"{', '.join(known)}."
        )


def _mappings(value: Any) -> Any:
    """Plain mappings and lists: jsonargparse makes namespaces of what looks like a class."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _mappings(part) for name, part in value.items()}
    return [_mappings(part) for part in value] if isinstance(value, list | tuple) else value


def _sizes(module: lightning.LightningModule, data: lightning.LightningDataModule, queue_size: int) -> Sizes:
    """What criteria must know, by embedding two examples; those of two towers need nothing."""
    if isinstance(module, ImageText):
        return Sizes(0, 0, 0, None)
    loader = data.probe_dataloader()
    batch = next(iter(loader))[0][:2]
    module.eval()
    with torch.no_grad():
        features = module.encoder(batch)
        projector = getattr(module, "projector", None)
        projected = features if projector is None else projector(features)
    queue = queue_size if isinstance(module, SelfSupervised) and module.momentum is not None else None
    return Sizes(data.num_classes, projected.shape[1], features.shape[1], queue)


def _device(answer: dict[str, Any]) -> str:
    return next((cost["device"] for cost in answer["costs"].values() if "device" in cost), "cpu")
