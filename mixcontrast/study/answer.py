"""The answer of a study: what helps, what hurts, what cannot be told with so many seeds, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval import SeededMean, SeededRuns, holm, mean_of_seeds, seeds_that_tell
from mixcontrast.retrieval.results import SMALLER_IS_BETTER
from mixcontrast.study.plan import Arm, Plan
from mixcontrast.study.work import cost_file, read, run_folder, time_taken, tuned_file

SIGNIFICANCE = 0.05


def answer_of(plan: Plan, folder: Path, seeds: int) -> dict[str, Any]:
    """The answer, from what the units left, as plain dictionaries.

    A criterion is compared with the tuned baseline and, where it mixes, with its own loss alone, seed by seed and query
    by query. P-values are corrected for all comparisons together by Holm's procedure.

    Raises:
        ValueError: the baseline could not be trained, or no other criterion could.
    """
    reasons = {
        arm.name: [read(run_folder(folder, arm, seed) / "reasons.json") for seed in range(seeds)] for arm in plan.arms
    }
    failed = {
        name: line for name, of_seeds in reasons.items() for line in [_failure(of_seeds)] if line is not None
    }
    kept = [arm for arm in plan.arms if arm.name not in failed]
    if plan.baseline.name in failed or len(kept) < 2:
        told = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise ValueError(f"A study needs its baseline and another criterion trained. Got errors in {told}")
    runs = {
        arm.name: SeededRuns.load([run_folder(folder, arm, s) for s in range(seeds)]).by_direction() for arm in kept
    }
    first = runs[plan.baseline.name]
    if plan.metric not in first.values:
        raise ValueError(
            f"`metric` must be one that the test part is judged by. Got {plan.metric}; there are "
            f"{', '.join(first.values)}."
        )
    comparisons = [(arm, other) for arm in kept for other in arm.against if other not in failed]
    means = [
        mean_of_seeds(runs[arm.name].values[plan.metric] - runs[other].values[plan.metric], first.groups)
        for arm, other in comparisons
    ]
    corrected = holm([mean.p_value for mean in means])
    differences = [
        _difference(plan, arm, other, mean, p, runs, len(means), seeds)
        for (arm, other), mean, p in zip(comparisons, means, corrected, strict=True)
    ]
    tuned = {arm.name: read(tuned_file(folder, arm)) for arm in kept}
    edges = {arm.name: at_the_edge(arm, tuned[arm.name]["point"]) for arm in kept}
    for each in differences:
        each["sentence"] += edge_sentence(each["criterion"], edges[each["criterion"]])
    return {
        "question": {
            "metric": plan.metric, "better": "lower" if plan.metric in SMALLER_IS_BETTER else "higher",
            "baseline": plan.baseline.name, "seeds": seeds, "comparisons": len(means),
            "queries": int(len(first.groups)), "groups of queries": int(first.groups.max()) + 1,
            "epochs": plan.baseline.recipe.get("trainer", {}).get("max_epochs", 20),
        },
        "criteria": {
            arm.name: _criterion(runs[arm.name], reasons[arm.name], tuned[arm.name]) | {"at the edge": edges[arm.name]}
            for arm in kept
        },
        "differences": differences,
        "failed": failed,
        "time": time_taken(plan, folder, seeds),
        "costs": {arm.name: read(file) for arm in kept for file in [cost_file(folder, arm)] if file.exists()},
    }  # fmt: skip


def _failure(of_seeds: list[dict[str, Any]]) -> str | None:
    return next((each["failed"] for each in of_seeds if "failed" in each), None)


def at_the_edge(arm: Arm, point: dict[str, float]) -> dict[str, float]:
    """What was chosen of an arm at the least or greatest value that was tried: beyond it may be better."""
    return {
        knob.name: point[knob.name]
        for knob in arm.knobs
        if len(knob.values) > 1 and point[knob.name] in (min(knob.values), max(knob.values))
    }


def edge_sentence(name: str, edges: dict[str, float]) -> str:
    """What stands behind a sentence where a criterion was chosen at the edge of its grid; else nothing."""
    return f" {name} was chosen at the edge of the grid: {in_words(edges)}." if edges else ""


def in_words(point: dict[str, float]) -> str:
    """`learning rate 0.001, temperature 0.1`."""
    return ", ".join(f"{knob.replace('_', ' ')} {value:g}" for knob, value in point.items())


def duration(time: dict[str, Any] | None) -> str | None:
    """How long a study took, in words; None where it is not known.

    >>> duration({"busy seconds": 900.0, "wall seconds": 470.0, "at once": 2})
    '8 minutes, with up to 2 processes at once'
    """
    if time is None:
        return None
    seconds = time["wall seconds"]
    for size, unit in ((3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= 1.5 * size or size == 1:
            number = round(seconds / size)
            shown = f"{number} {unit}{'s' * (number != 1)}"
            break
    processes = "one process" if time["at once"] == 1 else f"up to {time['at once']} processes at once"
    return f"{shown}, with {processes}"


def _criterion(runs: SeededRuns, reasons: list[dict[str, Any]], tuned: dict[str, Any]) -> dict[str, Any]:
    return {
        "metrics": {
            metric: _mean(values, runs.groups, metric in runs.shares) for metric, values in runs.values.items()
        },
        "each seed": {name: values.mean(axis=1).tolist() for name, values in runs.values.items()},
        "tuned": tuned["point"],
        "tuning": tuned["trials"],
        "finalists": tuned["finalists"],
        "curves": [each["curve"] for each in reasons],
        "why": why_of(reasons),
    }


def _mean(values: np.ndarray, groups: np.ndarray, share: bool) -> dict[str, float]:
    """A mean with its interval, which does not leave the range of shares where it is one."""
    found = mean_of_seeds(values, groups).interval
    low, high = found.low, found.high
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return {"mean": found.mean, "low": low, "high": high}


def why_of(reasons: list[dict[str, Any]]) -> dict[str, Any]:
    """Measures over seeds, each a mean with the spread of seeds (standard deviation), and summed counts."""
    found: dict[str, Any] = {}
    for name in ("uniformity", "alignment", "modality gap", "utilization", "rank correlation", "temperature",
                 "share of the loss", "share of the gradient"):  # fmt: skip
        values = [each[name] for each in reasons if each.get(name) is not None]
        if values:
            found[name] = _spread(values)
    explained = [each for each in reasons if "similarities" in each]
    if not explained:
        return found
    found["similarities"] = {
        name: np.sum([each["similarities"][name] for each in explained], axis=0).tolist()
        for name in explained[0]["similarities"]
    }
    found["means"] = {
        name: _spread([each["means"][name] for each in explained if name in each["means"]])
        for name in explained[0]["means"]
    }
    found["kinds"] = []
    for place, kind in enumerate(explained[0]["kinds"]):
        of_kind = [each["kinds"][place] for each in explained]
        numbers = [name for name in kind if name != "kind"]
        spreads = {name: _spread([each[name] for each in of_kind if name in each]) for name in numbers}
        found["kinds"].append({"kind": kind["kind"]} | spreads)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def _difference(
    plan: Plan, arm: Arm, other: str, mean: SeededMean, p: float, runs: dict[str, SeededRuns], count: int, seeds: int
) -> dict[str, Any]:
    interval = mean.interval
    better = -1 if plan.metric in SMALLER_IS_BETTER else 1
    each = (runs[arm.name].values[plan.metric] - runs[other].values[plan.metric]).mean(axis=1)
    verdict = "cannot be told"
    if p < SIGNIFICANCE:
        verdict = "helps" if better * interval.mean > 0 else "hurts"
    needed = None
    if verdict == "cannot be told" and seeds > 1:
        needed = seeds_that_tell(mean, significance=SIGNIFICANCE / count)
    return {
        "criterion": arm.name,
        "against": other,
        "what": "the tuned baseline" if other == plan.baseline.name else "its own loss alone",
        "difference": {"mean": interval.mean, "low": interval.low, "high": interval.high},
        "p": mean.p_value,
        "p corrected": p,
        "each seed": each.tolist(),
        "seeds better": int((better * each > 0).sum()),
        "verdict": verdict,
        "seeds that would tell": needed,
        "sentence": sentence(arm.name, other, plan.metric, mean, p, verdict, needed, count),
    }


def sentence(
    name: str, other: str, metric: str, mean: SeededMean, p: float, verdict: str, needed: int | None, count: int
) -> str:
    """One plain sentence of a difference.

    Args:
        name: of the criterion.
        other: what it is compared with.
        metric: that is compared.
        mean: the difference.
        p: corrected.
        verdict: "helps", "hurts" or "cannot be told".
        needed: how many seeds would tell; None: no number would.
        count: of comparisons that p is corrected for.
    """
    seeds = mean.num_seeds
    interval = mean.interval
    shown = f"{metric} {interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    probable = f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    corrected = f"{probable} corrected for {count} comparison{'s' * (count > 1)}"
    if verdict != "cannot be told":
        return f"{name} {verdict}: {shown} against {other}, {corrected}."
    with_seeds = f"{seeds} seed{'s' * (seeds > 1)}"
    told = f"Whether {name} helps over {other} cannot be told with {with_seeds}: {shown}, {corrected}"
    if seeds < 2:
        return f"{told}; run at least two."
    if needed is not None and needed > seeds:
        return f"{told}; if the difference is what it seems, {needed} seeds would tell it in four studies of five."
    if needed is not None:
        return f"{told}; as many seeds again would probably tell."
    of_test = f"these {mean.num_groups:,} groups of queries"
    return f"{told}; no number of seeds up to 1,000 would tell so small a difference on {of_test}."


def summary(answer: dict[str, Any]) -> str:
    """The answer in a sentence or two."""
    question, found = answer["question"], answer["differences"]
    to_baseline = [each for each in found if each["against"] == question["baseline"]]
    parts = []
    for verdict, word in (("helps", "better"), ("hurts", "worse")):
        names = [each["criterion"] for each in to_baseline if each["verdict"] == verdict]
        if names:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{_list(names)} {verb} {word} than the tuned {question['baseline']}")
    open_ = [each["criterion"] for each in to_baseline if each["verdict"] == "cannot be told"]
    if open_:
        parts.append(f"of {_list(open_)} nothing can be told with {question['seeds']} seeds")
    text = "; ".join(parts)
    own = [each for each in found if each["against"] != question["baseline"]]
    if own:
        told = [f"{each['criterion']} {each['verdict']}" for each in own]
        text += f". Against their own loss alone: {'; '.join(told)}"
    of_baseline = edge_sentence(question["baseline"], answer["criteria"][question["baseline"]]["at the edge"])
    return text[:1].upper() + text[1:] + "." + of_baseline


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
