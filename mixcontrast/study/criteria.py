"""A study's list of criteria as arms: names, or criteria written out, put into the recipe that all share."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from mixcontrast.study.plan import Arm, Knob, class_of, key_of
from mixcontrast.training.criteria import parts_of, written_criterion
from mixcontrast.training.fitting import LABELS, VALUES, VIEWS

AUTO: dict[tuple[str, str], tuple[str, ...]] = {
    LABELS: (
        "supcon", "supcon + metrix", "supcon + mochi", "multi-similarity", "multi-similarity + metrix",
        "multi-similarity + mochi", "proxy-anchor",
    ),
    VIEWS: ("infonce", "infonce + mochi", "infonce + synco", "hard-negative", "debiased"),
    VALUES: ("l1", "supcon", "rank-n-contrast", "supcon + supremix"),
}  # fmt: skip
"""What `auto` stands for: the usual losses of a task and what mixes with them, the baseline first."""

GRID = {"learning_rate": [1e-4, 3e-4, 1e-3], "temperature": [0.05, 0.1, 0.2]}
"""What is tuned where a study does not say: for each criterion those that it has."""

BINS = 10
DIRECT = "l1"
_MODULES = {"MetricLearning": LABELS, "SelfSupervised": VIEWS, "Regression": VALUES}
_DIRECT_KEEPS = ("encoder", "optimizer", "warmup_epochs", "cosine")


@dataclass(frozen=True)
class Sizes:
    """What a criterion must know of data and encoder.

    Attributes:
        num_classes: of the training part.
        embedding_dim: of what the criterion reads.
        features: of the encoder alone.
        queue: keys, where the module has a momentum encoder; else None.
    """

    num_classes: int
    embedding_dim: int
    features: int
    queue: int | None


def kind_of(recipe: dict[str, Any]) -> tuple[str, str]:
    """What the criteria of a recipe's module are called with.

    Raises:
        ValueError: a recipe without a module, or one that a study cannot put criteria into.
    """
    path = recipe.get("model", {}).get("class_path", "") if isinstance(recipe.get("model"), dict) else ""
    name = path.rpartition(".")[2]
    if name not in _MODULES:
        raise ValueError(
            f"A study's recipe needs a model.class_path, one of mixcontrast.training.{', '.join(_MODULES)}. Got "
            f"{path or 'none'}."
        )
    if "criterion" in recipe["model"].get("init_args", {}):
        raise ValueError("A study puts the criteria into its recipe. Got one there; move it to `criteria`.")
    return _MODULES[name]


def stand_in(recipe: dict[str, Any], kind: tuple[str, str]) -> dict[str, Any]:
    """The recipe with some criterion, so that it can be built and looked at."""
    name = {LABELS: "supcon", VIEWS: "infonce", VALUES: "rank-n-contrast"}[kind]
    found = copy.deepcopy(recipe)
    found["model"].setdefault("init_args", {})["criterion"] = written_criterion(name, 2, 2, kind)
    return found


def arms_of(
    criteria: list[str | dict[str, Any]],
    baseline: str | None,
    recipe: dict[str, Any],
    grid: dict[str, list[float]],
    kind: tuple[str, str],
    sizes: Sizes,
) -> tuple[Arm, ...]:
    """The arms of a study, the baseline first.

    Args:
        criteria: names, or mappings with `name`, `criterion` (class_path, init_args; by the name where left out), and
            perhaps `grid`, which adds to or replaces parts of the common one, and `against`.
        baseline: a name among them; None: the first.
        recipe: that all share, without a criterion.
        grid: names of hyper-parameters to the values that are tried.
        kind: what criteria are called with.
        sizes: of data and encoder.

    Raises:
        ValueError: fewer than two criteria, a name twice, names that there are not, a grid that nothing has.
    """
    entries = [{"name": each} if isinstance(each, str) else dict(each) for each in criteria]
    for entry in entries:
        if set(entry) - {"name", "criterion", "grid", "against"} or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"A criterion is a name, or has name, and perhaps criterion, grid and against. Got {', '.join(entry)}."
            )
    names = [entry["name"] for entry in entries]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"A study compares two or more criteria, each once. Got {', '.join(names) or 'none'}.")
    baseline = names[0] if baseline is None else baseline
    for name, by in ((baseline, "the baseline"), *((e["against"], e["name"]) for e in entries if "against" in e)):
        if name not in names:
            raise ValueError(f"What {by} names must be among the criteria. Got {name}; there are {', '.join(names)}.")
    arms = []
    used: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry["name"] != baseline):
        full = _recipe_of(entry, recipe, kind, sizes)
        wanted = grid | entry.get("grid", {})
        knobs = []
        for name, values in wanted.items():
            key = key_of(full, name)
            if key is not None:
                used.add(name)
                knobs.append(Knob(name, key, _values_of(name, values, entry["name"])))
            elif name in entry.get("grid", {}):
                raise ValueError(
                    f"A criterion's own grid is of what it or the optimizer has. Got {name}, which {entry['name']} has "
                    "not; leave it out."
                )
        own = entry.get("against", _without_mixing(entry["name"], names))
        against = () if entry["name"] == baseline else tuple(dict.fromkeys([baseline, *([own] if own else [])]))
        arms.append(Arm(entry["name"], full, tuple(knobs), against))
    for name in grid:
        if name not in used:
            raise ValueError(
                f"A grid is of what criteria or optimizer have: learning_rate, temperature, weight, margin, ... Got "
                f"{name}, which none has."
            )
    slugs = [arm.slug for arm in arms]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"Names of criteria must differ in letters or digits. Got {', '.join(names)}.")
    return tuple(arms)


def _values_of(name: str, values: Any, criterion: str) -> tuple[float, ...]:
    """The values of a grid, whole numbers as such.

    Raises:
        ValueError: no list of numbers.
    """
    try:
        found = tuple(value if isinstance(value, int) else float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if not found:
        raise ValueError(
            f"A grid has a list of numbers for each name. Got {values!r} for {name} of {criterion}; write such as "
            "{weight: [0.2, 0.4, 1.0]}."
        )
    return found


def _without_mixing(name: str, names: list[str]) -> str | None:
    """The loss of a mixed criterion alone, where the study has it."""
    loss, plus, _ = name.partition("+")
    return loss.strip() if plus and loss.strip() in names else None


def _recipe_of(
    entry: dict[str, Any], recipe: dict[str, Any], kind: tuple[str, str], sizes: Sizes
) -> dict[str, Any]:
    found = copy.deepcopy(recipe)
    arguments = found["model"].setdefault("init_args", {})
    if "criterion" in entry:
        arguments["criterion"] = copy.deepcopy(entry["criterion"])
        class_of(arguments["criterion"].get("class_path", "none"))
    elif kind == VALUES and entry["name"] == DIRECT:
        kept = {name: arguments[name] for name in _DIRECT_KEEPS if name in arguments}
        found["model"] = {
            "class_path": "mixcontrast.training.DirectRegression",
            "init_args": kept | {"embedding_dim": sizes.features},
        }
    else:
        arguments["criterion"] = written_criterion(entry["name"], sizes.num_classes, sizes.embedding_dim, kind)
        loss, mixers = parts_of(entry["name"], kind)
        if kind == VALUES and loss.make.__name__ == "SupConLoss" and not mixers:
            arguments["bins"] = BINS
        if kind == VIEWS and sizes.queue is not None:
            _with_queue(arguments["criterion"], sizes)
    return found


def _with_queue(criterion: dict[str, Any], sizes: Sizes) -> None:
    """Gives a queue to the outermost that takes one."""
    while "queue" not in class_of(criterion["class_path"]).__init__.__annotations__:
        criterion = criterion["init_args"]["loss"]
    criterion["init_args"]["queue"] = {
        "class_path": "mixcontrast.KeyQueue", "init_args": {"size": sizes.queue, "dim": sizes.embedding_dim}
    }  # fmt: skip
