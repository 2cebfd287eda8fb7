"""An arm's hyper-parameters, chosen on the validation part: optuna's successive halving over a small grid, and the best
points once more with other seeds, since one run a point chooses the luckiest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from mixcontrast.commands.fit import fit
from mixcontrast.files import write_json
from mixcontrast.study.plan import TUNING_SEED, Arm, Plan
from mixcontrast.study.recipes import write_recipe
from mixcontrast.study.work import read

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Report(lightning.Callback):
    """Tells a trial what each look at the validation part found, and ends the run where it is a loser.

    What is told is the best so far, which is what `best.ckpt` is chosen by.

    Args:
        trial: of optuna.
        monitor: the logged name.
        mode: "max" or "min".

    Attributes:
        best: the best value so far; NaN before the first look.
        pruned: whether the run was ended.
    """

    def __init__(self, trial: Trial, monitor: str, mode: str) -> None:
        self.trial, self.monitor, self.mode = trial, monitor, mode
        self.best, self.pruned = float("nan"), False
        self.told = dict(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        if self.told:
            self.best = self.told[max(self.told)]

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.monitor not in trainer.callback_metrics:
            return
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch + 1
        self.best = _better(self.best, value, self.mode)
        if epoch in self.told:
            return
        self.trial.report(self.best, epoch)
        if epoch != trainer.max_epochs and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Best(lightning.Callback):
    """The best value that a run logs, over its restarts.

    Args:
        monitor: the logged name.
        mode: "max" or "min".

    Attributes:
        value: NaN before the first look.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.mode, self.value = monitor, mode, float("nan")

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.monitor in trainer.callback_metrics:
            self.value = _better(self.value, float(trainer.callback_metrics[self.monitor]), self.mode)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]


def _better(before: float, value: float, mode: str) -> float:
    """The better of two; NaN is before the first."""
    return value if before != before else max(before, value) if mode == "max" else min(before, value)


def tune(plan: Plan, arm: Arm, folder: Path) -> dict[str, Any]:
    """Tries the grid of an arm, point after point, and its best with more seeds: which is best, what each reached.

    Trials are kept in optuna's journal in the study's folder, runs in theirs: after a kill finished points are not run
    again, and one that was begun goes on. Points of one arm follow each other, so what is stopped does not depend on
    how many processes there are; arms are tuned side by side.

    Returns:
        `trials`, each with its point, state and looks; `finalists`, each with its point and its value of each seed; and
        `point` and `value` of the best by the mean of its seeds, or `failed`, why none is.

    Source: Li et al., MLSys 2020, arXiv 1810.05934, of the halving.
    """
    study = open_study(plan, arm, folder)
    distributions = {knob.name: CategoricalDistribution(list(knob.values)) for knob in arm.knobs}
    for point in arm.points():
        trial = _trial_of(study, point, distributions)
        if trial is not None:
            _run(plan, arm, point, study, trial, folder)
    return _chosen(plan, arm, study, folder)


def open_study(plan: Plan, arm: Arm, folder: Path) -> optuna.Study:
    """The trials of an arm, in the journal that all arms share."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    look = arm.recipe.get("judge_every", 1)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        study_name=arm.name,
        direction="maximize" if plan.mode == "max" else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),  # never asked: all points are given
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=look, reduction_factor=plan.reduction_factor),
        load_if_exists=True,
    )


def _trial_of(
    study: optuna.Study, point: dict[str, float], distributions: dict[str, CategoricalDistribution]
) -> Trial | None:
    """The trial of a point, begun or new; None where it is finished."""
    found = [trial for trial in study.get_trials(deepcopy=False) if _point(trial) == point]
    if any(trial.state in FINISHED for trial in found):
        return None
    begun = [trial for trial in found if trial.state == TrialState.RUNNING]
    if begun:  # by a process that is no more, as this one has the arm's lock
        return Trial(study, begun[0]._trial_id)
    if not found:
        study.enqueue_trial(point)
    return study.ask(distributions)


def _point(trial: FrozenTrial) -> dict[str, float]:
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _run(
    plan: Plan, arm: Arm, point: dict[str, float], study: optuna.Study, trial: Trial, folder: Path
) -> None:
    out = folder / "tuning" / arm.slug / _name(point)
    recipe = write_recipe(_recipe(out), arm.at(point))
    report = Report(trial, plan.monitor, plan.mode)
    try:
        _fit(recipe, out, TUNING_SEED, report)
    except (ValueError, TypeError, OSError) as error:
        trial.set_user_attr("error", " ".join(str(error).split()))
        study.tell(trial, state=TrialState.FAIL)
        return
    if report.pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, report.best)


def _name(point: dict[str, float]) -> str:
    """Of a point's folder."""
    return "-".join(f"{knob}={value:g}" for knob, value in point.items()) or "as-it-is"


def _recipe(out: Path) -> Path:
    """Of a point's runs."""
    return out.parent / f"{out.name}.yaml"


def _fit(recipe: Path, out: Path, seed: int, callback: lightning.Callback) -> None:
    arguments = ["--config", str(recipe), "--out", str(out), "--seed", str(seed)]
    fit([*arguments, "--trainer.enable_progress_bar=false"], callbacks=[callback], judged=False)


def _again(plan: Plan, arm: Arm, point: dict[str, float], seed: int, folder: Path) -> float | None:
    """What a point reaches with another seed, None where it fails; kept in a file."""
    first = folder / "tuning" / arm.slug / _name(point)
    out = first.parent / f"{first.name}-seed{seed}"
    file = out / "best.json"
    if not file.exists():
        best = Best(plan.monitor, plan.mode)
        try:
            _fit(_recipe(first), out, seed, best)
        except (ValueError, TypeError, OSError):
            best.value = float("nan")
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"value": None if best.value != best.value else best.value})
    return read(file)["value"]


def _chosen(plan: Plan, arm: Arm, study: optuna.Study, folder: Path) -> dict[str, Any]:
    """The best point of those that were not stopped, and all."""
    trials, complete = [], []
    for trial in sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number):
        looks = {int(epoch): value for epoch, value in trial.intermediate_values.items()}
        trials.append(
            {
                "point": _point(trial),
                "state": {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped"}.get(trial.state, "failed"),
                "looks": looks,
                "error": trial.user_attrs.get("error"),
            }
        )
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            complete.append(trial)
    if not complete:
        why = next((t["error"] for t in trials if t["error"]), "no point was trained to the end")
        return {"trials": trials, "finalists": [], "failed": why}
    sign = 1 if plan.mode == "max" else -1
    complete.sort(key=lambda trial: -sign * trial.value)  # of equal ones the first comes first
    kept = complete[: plan.finalists]
    more = range(TUNING_SEED + 1, TUNING_SEED + plan.tuning_seeds) if len(kept) > 1 else ()
    finalists = [
        {"point": _point(trial),
         "values": [trial.value, *(_again(plan, arm, _point(trial), seed, folder) for seed in more)]}
        for trial in kept
    ]  # fmt: skip
    means = [  # a seed that fails rules a point out
        -math.inf if None in each["values"] else sign * sum(each["values"]) / len(each["values"]) for each in finalists
    ]
    best = max(range(len(means)), key=means.__getitem__)
    value = sign * means[best] if means[best] > -math.inf else kept[best].value
    return {"trials": trials, "finalists": finalists, "point": finalists[best]["point"], "value": value}

