"""Known answers: what was planted is found, and where nothing is, nothing is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mixcontrast.files import write_json
from mixcontrast.report.study_page import answer_markdown, write_page
from mixcontrast.retrieval import Evaluation, holm, mean_of_seeds
from mixcontrast.study.answer import answer_of, at_the_edge, summary
from mixcontrast.study.plan import Arm, Knob, Plan
from mixcontrast.study.work import run_folder, time_file, tuned_file
from tests.report.test_page import Page

GROUPS = np.arange(160) // 4
KNOB = Knob("learning_rate", "model.init_args.optimizer.init_args.lr", (0.1, 0.01, 0.001))


def plan_of(*names: str, metric: str = "Recall@1", mode: str = "max", **against: tuple[str, ...]) -> Plan:
    arms = tuple(
        Arm(name, {"trainer": {"max_epochs": 4}}, (KNOB,), against.get(name, (names[0],) if name != names[0] else ()))
        for name in names
    )
    return Plan(arms, metric, f"val/{metric}", mode, 3)


def leave(folder, plan: Plan, values: dict[str, np.ndarray], failed: dict[str, str] = {}) -> None:  # noqa: B006
    """What the units of a study leave, of (S, Q) values."""
    for arm in plan.arms:
        file = tuned_file(folder, arm)
        file.parent.mkdir(parents=True, exist_ok=True)
        trials = [
            {"point": {"learning_rate": 0.1}, "state": "stopped", "looks": {"2": 0.3}, "error": None},
            {"point": {"learning_rate": 0.01}, "state": "finished", "looks": {"2": 0.4, "4": 0.5}, "error": None},
            {"point": {"learning_rate": 0.001}, "state": "finished", "looks": {"2": 0.3, "4": 0.4}, "error": None},
        ]
        reached = ([0.2, 0.2, 0.2], [0.5, 0.6, 0.4], [0.4, 0.4, 0.1])
        finalists = [{"point": t["point"], "values": values} for t, values in zip(trials, reached, strict=True)]
        found = {"trials": trials, "finalists": finalists, "point": {"learning_rate": 0.01}, "value": 0.5}
        file.write_text(json.dumps(found))
        for seed, row in enumerate(values[arm.name]):
            run = run_folder(folder, arm, seed)
            reasons = {"curve": [[2, 0.4], [4, 0.5]], "uniformity": -1.0 - 0.1 * seed, "utilization": 0.2}
            if arm.name in failed:
                run.mkdir(parents=True)
                reasons = {"failed": failed[arm.name]}
            else:
                Evaluation({plan.metric: row}, np.arange(len(row)), GROUPS, 0, 0).save(run)
            (run / "reasons.json").write_text(json.dumps(reasons))


def noisy(rng: np.random.Generator, seeds: int) -> np.ndarray:
    of_seed = 0.01 * rng.normal(size=(seeds, 1))
    return 0.5 + of_seed + 0.1 * rng.normal(size=40)[GROUPS] + 0.1 * rng.normal(size=(seeds, 160))


def test_a_planted_gain_and_a_planted_loss_are_found_and_the_rest_is_not(tmp_path):
    rng = np.random.default_rng(0)
    base = noisy(rng, 6)
    values = {"plain": base, "good": base + 0.05 + 0.02 * rng.normal(size=base.shape),
              "bad": base - 0.05 + 0.02 * rng.normal(size=base.shape),
              "same": base + 0.05 * rng.normal(size=base.shape)}  # fmt: skip
    plan = plan_of(*values)
    leave(tmp_path, plan, values)
    answer = answer_of(plan, tmp_path, 6)
    found = {each["criterion"]: each for each in answer["differences"]}
    assert {name: each["verdict"] for name, each in found.items()} == {
        "good": "helps", "bad": "hurts", "same": "cannot be told"
    }  # fmt: skip
    assert found["good"]["seeds better"] == 6 and found["bad"]["seeds better"] == 0
    assert found["good"]["difference"]["mean"] == pytest.approx(0.05, abs=0.01)
    assert "good helps: Recall@1 +0.0" in found["good"]["sentence"] and "p < 0.001" in found["good"]["sentence"]
    assert summary(answer) == (
        "Good is better than the tuned plain; bad is worse than the tuned plain; of same nothing can be told with 6 "
        "seeds."
    )


def test_p_values_are_corrected_for_all_comparisons(tmp_path):
    rng = np.random.default_rng(1)
    base = noisy(rng, 5)
    values = {name: base + shift + 0.08 * rng.normal(size=base.shape)
              for name, shift in (("plain", 0), ("a", 0.01), ("a + b", 0.02), ("c", 0.0))}  # fmt: skip
    plan = plan_of(*values, **{"a + b": ("plain", "a")})
    leave(tmp_path, plan, values)
    found = answer_of(plan, tmp_path, 5)["differences"]
    assert [(each["criterion"], each["against"]) for each in found] == [
        ("a", "plain"), ("a + b", "plain"), ("a + b", "a"), ("c", "plain")
    ]  # fmt: skip
    expected = [mean_of_seeds(values[each["criterion"]] - values[each["against"]], GROUPS).p_value for each in found]
    assert [each["p"] for each in found] == pytest.approx(expected)
    assert [each["p corrected"] for each in found] == pytest.approx(holm(expected))
    assert [each["what"] for each in found].count("its own loss alone") == 1


def test_where_there_is_nothing_almost_nothing_is_found(tmp_path):
    """Of 10 studies of three criteria that do nothing, 5% may name one; more than 2 has a chance of 1%."""
    named = 0
    for number in range(10):
        rng = np.random.default_rng(number)
        base = noisy(rng, 4)
        values = {name: base + 0.02 * rng.normal(size=(4, 1)) + 0.05 * rng.normal(size=base.shape)
                  for name in ("plain", "a", "b", "c")}  # fmt: skip
        plan = plan_of(*values)
        leave(tmp_path / str(number), plan, values)
        verdicts = [each["verdict"] for each in answer_of(plan, tmp_path / str(number), 4)["differences"]]
        named += set(verdicts) != {"cannot be told"}
    assert named <= 2


def test_so_many_seeds_as_are_asked_for_do_tell(tmp_path):
    rng = np.random.default_rng(3)
    base = noisy(rng, 4)
    values = {"plain": base, "maybe": base + 0.03 + 0.03 * np.array([[1.0], [-1.2], [0.9], [-0.7]])}
    plan = plan_of(*values)
    leave(tmp_path / "few", plan, values)
    (few,) = answer_of(plan, tmp_path / "few", 4)["differences"]
    needed = few["seeds that would tell"]
    assert few["verdict"] == "cannot be told" and 4 < needed < 30
    assert f"{needed} seeds would tell it in four studies of five" in few["sentence"]
    base = noisy(rng, 2 * needed)
    more = {"plain": base, "maybe": base + 0.03 + 0.03 * rng.normal(size=(len(base), 1))}
    leave(tmp_path / "more", plan, more)
    assert answer_of(plan, tmp_path / "more", 2 * needed)["differences"][0]["verdict"] == "helps"


def test_a_smaller_error_helps(tmp_path):
    rng = np.random.default_rng(0)
    base = 3 + noisy(rng, 4)
    values = {"l1": base, "less": base - 0.2 + 0.02 * rng.normal(size=base.shape)}
    plan = plan_of(*values, metric="MAE", mode="min")
    leave(tmp_path, plan, values)
    answer = answer_of(plan, tmp_path, 4)
    (found,) = answer["differences"]
    assert found["verdict"] == "helps" and found["difference"]["high"] < 0 and found["seeds better"] == 4
    assert answer["question"]["better"] == "lower"


def test_one_seed_tells_of_its_queries_alone(tmp_path):
    base = noisy(np.random.default_rng(0), 1)
    plan = plan_of("plain", "same")
    leave(tmp_path, plan, {"plain": base, "same": base + 0.1 * np.random.default_rng(1).normal(size=base.shape)})
    (found,) = answer_of(plan, tmp_path, 1)["differences"]
    assert found["sentence"].endswith("run at least two.") and found["seeds that would tell"] is None


def test_a_criterion_that_cannot_be_trained_is_told_and_left_out(tmp_path):
    base = noisy(np.random.default_rng(0), 3)
    plan = plan_of("plain", "broken", "same")
    leave(tmp_path, plan, dict.fromkeys(("plain", "broken", "same"), base), {"broken": "The loss must be finite."})
    answer = answer_of(plan, tmp_path, 3)
    assert answer["failed"] == {"broken": "The loss must be finite."} and list(answer["criteria"]) == ["plain", "same"]
    assert "broken could not be trained: The loss must be finite." in answer_markdown(answer)
    with pytest.raises(ValueError, match="needs its baseline and another criterion trained. Got errors in plain: Bad."):
        leave(tmp_path / "x", plan, dict.fromkeys(("plain", "broken", "same"), base), {"plain": "Bad."})
        answer_of(plan, tmp_path / "x", 3)


def test_a_metric_that_is_not_judged_is_refused(tmp_path):
    base = noisy(np.random.default_rng(0), 3)
    leave(tmp_path, plan_of("plain", "same"), {"plain": base, "same": base})
    with pytest.raises(ValueError, match="Got Recall@9; there are Recall@1."):
        answer_of(plan_of("plain", "same", metric="Recall@9"), tmp_path, 3)


def test_the_page_stands_alone_and_has_every_criterion(tmp_path):
    base = noisy(np.random.default_rng(0), 3)
    names = ("plain", "<b>bold</b>", "same")
    plan = plan_of(*names)
    leave(tmp_path, plan, {name: base + 0.01 * number for number, name in enumerate(names)})
    answer = answer_of(plan, tmp_path, 3)
    answer["costs"] = {"plain": {"seconds a step": 0.0123, "peak memory": 5 << 20, "device": "cpu"}}
    path = write_page(tmp_path / "study.html", answer, {"torch": "2", "nothing": None})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "<b>bold" not in text and "12.3" in text and not [link for link in page.links if not link.startswith("#")]
    assert len(set(page.ids)) == len(page.ids)
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {
        f"{name}.{kind}" for name in ("differences", "values", "tuning", "curves") for kind in ("png", "svg")
    }  # fmt: skip
    chosen = "| plain | learning rate 0.01 |  | 0.500, 0.600, 0.400 | 0.3000 for 0.5000: learning rate 0.001 |"
    told = answer_markdown(answer)
    assert f"{chosen} 3 points, 1 stopped early |" in told
    assert "Chosen on the validation part, by one run a point and the best 3 by the mean of 3 seeds" in told
    assert "| plain | 12.3 | 5.0 |" in answer_markdown(answer) and "It took" not in text


def test_what_was_chosen_at_the_edge_of_its_grid_is_said(tmp_path):
    base = noisy(np.random.default_rng(0), 3)
    plan = plan_of("plain", "edge", "within")
    leave(tmp_path, plan, dict.fromkeys(("plain", "edge", "within"), base))
    file = tuned_file(tmp_path, plan.arms[1])
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"point": {"learning_rate": 0.001}, "value": 0.4}))
    answer = answer_of(plan, tmp_path, 3)
    to_edge, to_within = answer["differences"]
    assert to_edge["sentence"].endswith(" edge was chosen at the edge of the grid: learning rate 0.001.")
    assert "edge of the grid" not in to_within["sentence"] + summary(answer)
    answer["criteria"]["plain"]["at the edge"] = {"learning_rate": 0.1}  # of the baseline it is said once
    assert summary(answer).endswith("seeds. plain was chosen at the edge of the grid: learning rate 0.1.")
    told = answer_markdown(answer)
    assert "| edge | learning rate 0.001 | learning rate 0.001 | 0.400, 0.400, 0.100 |" in told
    text = write_page(tmp_path / "study.html", answer, {}).read_text(encoding="utf-8")
    for shown in (told, text):
        assert "intervals leave out that another run of the grid might have chosen otherwise" in shown


@pytest.mark.parametrize("values, chosen, edges", [
    ((0.1,), 0.1, {}), ((0.1, 0.2), 0.1, {"learning_rate": 0.1}), ((0.2, 0.1, 0.3), 0.2, {}),
    ((0.2, 0.1, 0.3), 0.3, {"learning_rate": 0.3}),
])  # fmt: skip
def test_an_edge_is_the_least_or_greatest_of_several(values, chosen, edges):
    arm = Arm("a", {}, (Knob("learning_rate", "x", values),), ())
    assert at_the_edge(arm, {"learning_rate": chosen}) == edges


def test_the_time_is_that_in_which_something_was_done(tmp_path):
    base = noisy(np.random.default_rng(0), 2)
    plan = plan_of("plain", "same")
    leave(tmp_path, plan, {"plain": base, "same": base})
    assert answer_of(plan, tmp_path, 2)["time"] is None
    spans = {"tune-plain": (0, 100), "tune-same": (50, 90), "plain-seed0": (100, 160),
             "same-seed1": (5000, 5030), "same-seed2": (6000, 7000)}  # fmt: skip
    for name, (began, ended) in spans.items():  # a night between; the third seed is not asked about
        write_json(time_file(tmp_path, name), {"began": began, "ended": ended})
    answer = answer_of(plan, tmp_path, 2)
    assert answer["time"] == {"busy seconds": 230, "wall seconds": 190, "at once": 2}
    told = "It took 3 minutes, with up to 2 processes at once."
    assert told in answer_markdown(answer)
    assert told in write_page(tmp_path / "study.html", answer, {}).read_text(encoding="utf-8")
