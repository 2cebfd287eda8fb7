"""Losers are stopped as successive halving says, and a trial that was begun goes on as if it had not been cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mixcontrast.study import tuning
from mixcontrast.study.plan import Arm, Knob, Plan
from mixcontrast.study.tuning import Best, Report, open_study

CURVES = {0.1: [0.2, 0.5, 0.6, 0.7], 0.2: [0.1, 0.9, 0.9, 0.9], 0.3: [0.3, 0.4, 0.8, 0.6], 0.4: [0.25, 0.3, 0.2, 0.9],
          0.5: [0.35, 0.36, 0.3, 0.2], 0.6: [0.31, 0.9, 0.9, 0.95]}  # fmt: skip
ARM = Arm("some", {"trainer": {"max_epochs": 4}}, (Knob("temperature", "x", tuple(CURVES)),), ())
PLAN = Plan((ARM,), "Recall@1", "val/Recall@1", "max", 2)


class Cut(RuntimeError):
    pass


def fake_fit(cut: tuple[float, int] | None = None, log: list | None = None):
    """In place of `fit`: epochs of a curve, told to the callbacks; kept like a checkpoint between calls."""
    done: dict[float, int] = {}
    lost: list[float] = []

    def fit(arguments, *, callbacks, judged):
        assert not judged and arguments[5] == "100"
        point = float(arguments[1].rpartition("=")[2].removesuffix(".yaml"))
        trainer = SimpleNamespace(callback_metrics={}, max_epochs=4, should_stop=False)
        for epoch in range(done.get(point, 0), 4):
            trainer.current_epoch = epoch
            trainer.callback_metrics = {"val/Recall@1": torch.tensor(CURVES[point][epoch])}
            for callback in callbacks:
                callback.on_train_epoch_end(trainer, None)
            if log is not None:
                log.append((point, epoch))
            if cut == (point, epoch) and not lost:
                lost.append(point)  # the epoch is lost: it was told, and not saved
                raise Cut
            done[point] = epoch + 1
            if trainer.should_stop:
                return

    return fit


def plain_halving() -> dict[float, int]:
    """Epochs that each point is trained for: asynchronous halving, rungs at epochs 1, 2 and 4, by a plain loop."""
    rungs: dict[int, list[float]] = {1: [], 2: [], 4: []}
    trained = {}
    for point, curve in CURVES.items():
        for epoch in range(1, 5):
            best = max(curve[:epoch])
            if epoch in rungs and epoch < 4:
                rungs[epoch].append(best)
                keep = max(len(rungs[epoch]) // 2, 1)
                if best < sorted(rungs[epoch], reverse=True)[keep - 1]:
                    break
        trained[point] = epoch
    return trained


def test_losers_are_stopped_as_the_rule_says(tmp_path, monkeypatch):
    log: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning, "fit", fake_fit(log=log))
    found = tuning.tune(PLAN, ARM, tmp_path)
    trained = {point: 1 + max(epoch for at, epoch in log if at == point) for point in CURVES}
    assert trained == plain_halving() and len(set(trained.values())) > 1
    states = {trial["point"]["temperature"]: trial["state"] for trial in found["trials"]}
    assert states == {point: "finished" if epochs == 4 else "stopped" for point, epochs in trained.items()}
    finished = {point: max(CURVES[point]) for point, epochs in trained.items() if epochs == 4}
    best = max(finished, key=finished.get)
    assert found["point"] == {"temperature": best} and found["value"] == pytest.approx(finished[best])


@pytest.mark.parametrize("cut", [(0.1, 2), (0.3, 0), (0.6, 1)])
def test_a_trial_that_was_cut_goes_on(cut, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "fit", fake_fit())
    whole = tuning.tune(PLAN, ARM, tmp_path / "whole")
    log: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning, "fit", fake_fit(cut, log))
    with pytest.raises(Cut):
        tuning.tune(PLAN, ARM, tmp_path / "cut")
    assert tuning.tune(PLAN, ARM, tmp_path / "cut") == whole
    assert len(log) == len(set(log)) + 1  # only the epoch that was lost was trained again
    assert len(open_study(PLAN, ARM, tmp_path / "cut").trials) == len(CURVES)
    before = len(log)
    assert tuning.tune(PLAN, ARM, tmp_path / "cut") == whole and len(log) == before


def test_a_point_that_fails_is_kept_with_its_reason_and_the_rest_goes_on(tmp_path, monkeypatch):
    good = fake_fit()

    def fit(arguments, **options):
        if "0.2" in arguments[1]:
            raise ValueError("The loss must be finite.\nGot inf.")
        return good(arguments, **options)

    monkeypatch.setattr(tuning, "fit", fit)
    found = tuning.tune(PLAN, ARM, tmp_path)
    failed = found["trials"][1]
    assert failed["error"] == "The loss must be finite. Got inf." and failed["state"] == "failed"
    assert found["point"] != {"temperature": 0.2}

    def always(arguments, **options):
        raise ValueError("No.")

    monkeypatch.setattr(tuning, "fit", always)
    assert tuning.tune(PLAN, ARM, tmp_path / "all")["failed"] == "No."


def test_a_look_without_the_metric_tells_nothing(tmp_path):
    study = open_study(PLAN, ARM, tmp_path)
    report = Report(study.ask(), "val/Recall@1", "max")
    report.on_train_epoch_end(SimpleNamespace(callback_metrics={}, current_epoch=0), None)
    assert report.best != report.best and not report.pruned


def test_the_best_points_are_tried_with_more_seeds_and_the_mean_decides(tmp_path, monkeypatch):
    """Points 0.1 to 0.3 end with 0.7, 0.9 and 0.8 by the first seed; others say that 0.9 was luck."""
    recipe = {"trainer": {"max_epochs": 4}, "judge_every": 4}  # nothing is stopped
    arm = Arm("some", recipe, (Knob("temperature", "x", (0.1, 0.2, 0.3)),), ())
    plan = Plan((arm,), "Recall@1", "val/Recall@1", "max", 2, finalists=2, tuning_seeds=3)
    more = {(0.2, 101): 0.2, (0.2, 102): 0.3, (0.3, 101): 0.6, (0.3, 102): 0.7}
    ran: list[tuple[float, int]] = []
    first = fake_fit()

    def fit(arguments, *, callbacks, judged):
        point, seed = float(arguments[1].rpartition("=")[2].removesuffix(".yaml")), int(arguments[5])
        ran.append((point, seed))
        if seed == 100:
            first(arguments, callbacks=callbacks, judged=judged)
            return
        if (point, seed) == cut:
            raise Cut
        trainer = SimpleNamespace(callback_metrics={}, max_epochs=4, should_stop=False, current_epoch=0)
        for value in (0.1, more[point, seed], 0.05):
            trainer.callback_metrics = {"val/Recall@1": torch.tensor(value)}
            for callback in callbacks:
                callback.on_train_epoch_end(trainer, None)

    monkeypatch.setattr(tuning, "fit", fit)
    cut = (0.3, 101)
    with pytest.raises(Cut):
        tuning.tune(plan, arm, tmp_path)
    cut = None
    found = tuning.tune(plan, arm, tmp_path)
    assert [each["point"]["temperature"] for each in found["finalists"]] == [0.2, 0.3]
    assert found["finalists"][1]["values"] == pytest.approx([0.8, 0.6, 0.7])
    assert found["point"] == {"temperature": 0.3} and found["value"] == pytest.approx(0.7)
    assert len(ran) == 3 + 4 + 1  # what was finished is not run again
    assert tuning.tune(plan, arm, tmp_path) == found and len(ran) == 8


def test_the_best_value_survives_a_restart():
    best, again = Best("val/Recall@1", "min"), Best("val/Recall@1", "min")
    for value in (0.4, 0.2):
        best.on_train_epoch_end(SimpleNamespace(callback_metrics={"val/Recall@1": torch.tensor(value)}), None)
    again.load_state_dict(best.state_dict())
    again.on_train_epoch_end(SimpleNamespace(callback_metrics={"val/Recall@1": torch.tensor(0.3)}), None)
    assert again.value == pytest.approx(0.2)
