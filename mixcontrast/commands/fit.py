"""The command `mixcontrast fit`: a recipe in YAML, trained, watched, judged, and gone on with after a kill."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning
import yaml
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from mixcontrast.commands.fit_errors import build, parse
from mixcontrast.training.callbacks import Bar, LooksAtTest, RetrievalCallback
from mixcontrast.training.fitting import FitModule
from mixcontrast.training.measures import Measures
from mixcontrast.training.run import Recorder, RunFolder, step_of
from mixcontrast.training.safety import Repeatable, StopAtNaN, WholeCheckpoints, quieten, where
from mixcontrast.training.sharding import HOW, check_processes, is_sharded, strategy_of

DESCRIPTION = """Trains an encoder by a recipe in YAML, judges it on the test part, and writes a folder: config.yaml,
environment.json, best.ckpt, last.ckpt, metrics.csv, logs/, results.json, results.md and queries.csv (which mixcontrast
compare reads). The same command again goes on where it stopped. Any key of the recipe can be given here too, such as
--trainer.max_epochs=5 or --model.criterion.weight=0.2; --model.help CLASS and --data.help CLASS tell those of a class.
"""

USAGE = "mixcontrast fit --config FILE [--seed N] [--out FOLDER] [--KEY=VALUE ...]"

DEFAULTS = {
    "trainer.max_epochs": 20,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
    "trainer.use_distributed_sampler": False,
    "trainer.limit_val_batches": 0,
}


class _Help(DefaultHelpFormatter):
    """jsonargparse's help without the names of all classes that torch has."""

    def _expand_help(self, action: Any) -> str:
        return re.sub(r", known\s+subclasses:[^)]*\)", ")", super()._expand_help(action))


def fit_parser(
    prog: str = "mixcontrast fit", usage: str = USAGE, description: str = DESCRIPTION
) -> LightningArgumentParser:
    """What the command and a recipe may say."""
    parser = LightningArgumentParser(
        prog=prog, usage=usage, description=description, formatter_class=_Help, exit_on_error=False,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("-c", "--config", action="config", help="A recipe: a YAML file of the keys below.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, batches, augmentation and mixing.")
    parser.add_argument("--out", type=Path, help="The folder of the run. By default runs/ and the recipe's name.")
    parser.add_argument(
        "--judge_every", type=int, default=1, help="Epochs between looks at the validation part; best.ckpt is of these."
    )
    parser.add_argument(
        "--test_every", type=int, default=0,
        help="Epochs between looks at the test part, logged as test/..., for recipes without a validation part; "
        "nothing is chosen by them. 0: none before the end.",
    )  # fmt: skip
    parser.add_argument(
        "--save_every", type=int, default=500, help="Steps between writes of last.ckpt; each epoch writes it as well."
    )
    _whole_numbers_first()
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.add_lightning_class_args(FitModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(lightning.LightningDataModule, "data", subclass_mode=True)
    parser.set_defaults(DEFAULTS)
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


def _whole_numbers_first() -> None:
    """Makes `limit_train_batches: 1` one batch, never the share 1.0, which is all.

    typing keeps `Union[int, float]` and `Union[float, int]` as one, whichever a process made first, and the first that
    fits is what a number of a recipe becomes; sentence-transformers makes the other.
    """
    kinds = lightning.Trainer.__init__.__annotations__
    for name, kind in kinds.items():
        if {int, float} <= set(get_args(kind)):
            kinds[name] = int | float | None


def fit_command(arguments: list[str]) -> None:
    """Runs `mixcontrast fit` with the arguments behind it.

    Raises:
        SystemExit: status 2 and one line for what the user can mend.
    """
    fit(arguments)


def fit(arguments: list[str], *, callbacks: Sequence[lightning.Callback] = (), judged: bool = True) -> RunFolder:
    """Trains by a recipe, or goes on, and judges.

    Args:
        arguments: of the command.
        callbacks: further ones, which see what the judges of the validation part logged; one that sets
            `trainer.should_stop` ends the run.
        judged: False: trains and looks at the validation part alone; the test part is never read, and there are no
            results.

    Returns:
        The folder of the run.

    Raises:
        ValueError: in one line, what the user can mend.
    """
    parser = fit_parser()
    config = parse(parser, arguments)
    if config.save_every < 0:
        raise ValueError(f"`save_every` must be at least 0. Got {config.save_every}; 0 writes each epoch only.")
    if config.test_every < 0:
        raise ValueError(f"`test_every` must be at least 0. Got {config.test_every}; 0 judges it at the end only.")
    plain = _plain(parser, config)
    if config.out is None:
        recipe = config.config[-1] if config.config else "fit"
        config.out = Path("runs") / Path(str(recipe)).stem
        plain["out"] = str(config.out)
    folder = RunFolder(config.out, plain)
    console = Console(quiet=rank_zero_only.rank != 0)
    if folder.finished:
        line = f"{folder.path} is finished. Nothing to do; its results are in results.md."
        console.print(line, highlight=False, soft_wrap=True)
        return folder
    with warnings.catch_warnings():
        quieten()
        lightning.seed_everything(config.seed, verbose=False)
        ready = build(parser, config)
        _fit(folder, ready, console, callbacks, judged)
    return folder


def _fit(
    folder: RunFolder, ready: Namespace, console: Console, callbacks: Sequence[lightning.Callback], judged: bool
) -> None:
    """Trains, then judges the best checkpoint, or the last where there is no validation part."""
    module, data, seed = ready.model, ready.data, ready.seed
    module.prepare(data)
    if judged and not data.test_dataloader():
        raise ValueError("A run is judged. Got no test part; set a test_share above 0.")
    begun = folder.last.exists()
    step = step_of(folder.last) if begun else 0
    watched = bool(data.val_dataloader())  # without a validation part, as published recipes are, there is no best
    name, mode = module.monitor(data)
    judges = module.judges(data, ready.judge_every) if watched else []
    retrieval = next((judge for judge in judges if isinstance(judge, RetrievalCallback)), None)
    own: list[lightning.Callback] = [
        *judges,
        *callbacks,
        *([LooksAtTest(partial(module.judge_test, data), ready.test_every)] if judged and ready.test_every else []),
        Measures(retrieval),
        Repeatable(seed),
        StopAtNaN(),
        Recorder(folder.config),
        *([Bar()] if ready.trainer.enable_progress_bar is not False else []),
        *folder.checkpoints((name, mode) if watched else None, ready.judge_every, ready.save_every),
    ]
    options = ready.trainer.as_dict()
    options["callbacks"] = [*(options["callbacks"] or []), *own]
    options["plugins"] = [*(options["plugins"] or []), WholeCheckpoints()]
    options["default_root_dir"] = folder.path
    if options["logger"] is None:
        options["logger"] = folder.loggers(step)
    options["strategy"] = strategy_of(folder.config["trainer"], options["strategy"])
    try:
        trainer = lightning.Trainer(**options)
    except MisconfigurationException as error:  # no ValueError
        raise ValueError(str(error)) from None
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise ValueError(
            "A recipe is trained by processes that each hold the whole model, or a share of it. "
            f"Got the strategy {type(trainer.strategy).__name__}; set trainer.strategy: ddp, or for shards {HOW}."
        )
    check_processes(folder.config["trainer"], trainer)
    if trainer.is_global_zero:
        folder.begin(seed, trainer.strategy.root_device.type)
        if not begun:
            module.begun(folder.path, folder.config)
        how = f"goes on after step {step:,}" if begun else "begins"
        console.print(f"{folder.path} {how}, on {trainer.strategy.root_device.type}", highlight=False, soft_wrap=True)
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=folder.last if begun else None, weights_only=True)
    except SystemExit:  # Lightning's, of a keyboard interrupt
        if not trainer.interrupted:
            raise
        kept = f"goes on from {folder.last}" if folder.last.exists() else "begins anew"
        raise SystemExit(f"mixcontrast: stopped; the same command {kept}.") from None
    except (ValueError, TypeError) as error:
        if trainer.fit_loop.total_batch_idx < 0:
            raise
        kept = f"the last good checkpoint is {folder.last}" if folder.last.exists() else "no checkpoint was written yet"
        raise ValueError(f"At {where(trainer)}: {error} Nothing was changed by that step; {kept}.") from None
    if trainer.is_global_zero:
        folder.merge_logs()
    if not judged or not (trainer.is_global_zero or is_sharded(trainer)):
        return
    chosen = folder.best if folder.best.exists() else folder.last
    module.load_file(chosen)
    module.to(trainer.strategy.root_device)
    found = module.judge_test(data)
    facts = {
        "seed": seed, "steps": trainer.global_step, "epochs": trainer.current_epoch, "judged": chosen.name,
        "seconds of this start": round(time.perf_counter() - start, 1),
        "CPU seconds of this start": round(time.process_time() - cpu_start, 1), "from step": step,
        "monitor": name if watched else None,
    }  # fmt: skip
    module.ended(folder.path, folder.config)
    if not trainer.is_global_zero:
        return
    folder.finish(found, facts)
    console.print(found.to_markdown(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{chosen.name} judged on the test part; all is in {folder.path}/", highlight=False, soft_wrap=True)


def _plain(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """The whole config as plain dictionaries, without the names of the files that it was read from."""
    text = parser.dump(config, skip_unset=False, skip_link_targets=False, format="yaml")
    plain = yaml.safe_load(text)
    plain.pop("config", None)
    return plain
