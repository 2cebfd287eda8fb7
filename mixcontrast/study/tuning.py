"""An arm's hyper-parameters, chosen on the validation part: optuna's successive halving over a small grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from mixcontrast.commands.fit import fit
from mixcontrast.study.plan import TUNING_SEED, Arm, Plan
from mixcontrast.study.recipes import write_recipe

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
        better = max if self.mode == "max" else min
        self.best = value if self.best != self.best else better(self.best, value)
        if epoch in self.told:
            return
        self.trial.report(self.best, epoch)
        if epoch != trainer.max_epochs and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def tune(plan: Plan, arm: Arm, folder: Path) -> dict[str, Any]:
    """Tries the grid of an arm, point after point: which is best, and what each reached.

    Trials are kept in optuna's journal in the study's folder, runs in theirs: after a kill finished points are not run
    again, and one that was begun goes on. Points of one arm follow each other, so what is stopped does not depend on
    how many processes there are; arms are tuned side by side.

    Returns:
        `trials`, each with its point, state and looks, and `point` and `value` of the best, or `failed`, why none is.

    Source: Li et al., MLSys 2020, arXiv 1810.05934, of the halving.
    """
    study = open_study(plan, arm, folder)
    distributions = {knob.name: CategoricalDistribution(list(knob.values)) for knob in arm.knobs}
    for point in arm.points():
        trial = _trial_of(study, point, distributions)
        if trial is not None:
            _run(plan, arm, point, study, trial, folder)
    return _chosen(plan, study)


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
    name = "-".join(f"{knob}={value:g}" for knob, value in point.items()) or "as-it-is"
    recipe = write_recipe(folder / "tuning" / arm.slug / f"{name}.yaml", arm.at(point))
    report = Report(trial, plan.monitor, plan.mode)
    out = folder / "tuning" / arm.slug / name
    arguments = ["--config", str(recipe), "--out", str(out), "--seed", str(TUNING_SEED)]
    try:
        fit([*arguments, "--trainer.enable_progress_bar=false"], callbacks=[report], judged=False)
    except (ValueError, TypeError, OSError) as error:
        trial.set_user_attr("error", " ".join(str(error).split()))
        study.tell(trial, state=TrialState.FAIL)
        return
    if report.pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, report.best)


def _chosen(plan: Plan, study: optuna.Study) -> dict[str, Any]:
    """The best point of those that were not stopped, and all."""
    trials, best = [], None
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
            ahead = best is None or (trial.value > best.value if plan.mode == "max" else trial.value < best.value)
            best = trial if ahead else best
    found: dict[str, Any] = {"trials": trials}
    if best is None:
        return found | {"failed": next((t["error"] for t in trials if t["error"]), "no point was trained to the end")}
    return found | {"point": _point(best), "value": best.value}

