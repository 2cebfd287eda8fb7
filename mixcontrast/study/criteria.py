"""A study's list of criteria as arms: names, or criteria written out, put into the recipe that all share."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from mixcontrast.losses import SigLipLoss
from mixcontrast.study.plan import Arm, Knob, class_of, key_of
from mixcontrast.training.criteria import MODULES, parts_of, written_criterion
from mixcontrast.training.fitting import FITS, LABELS, TOWERS, VALUES, VIEWS

AUTO: dict[tuple[str, str], tuple[str, ...]] = {
    LABELS: (
        "supcon", "supcon + metrix", "supcon + mochi", "multi-similarity", "multi-similarity + metrix",
        "multi-similarity + mochi", "proxy-anchor",
    ),
    VIEWS: ("infonce", "infonce + mochi", "infonce + synco", "hard-negative", "debiased"),
    VALUES: ("l1", "supcon", "rank-n-contrast", "supcon + supremix"),
    TOWERS: ("clip", "clip + m2", "clip + m3", "clip + mochi", "clip + hard-negative", "clip + cyclip", "siglip"),
}  # fmt: skip
"""What `auto` stands for: the usual losses of a task and what mixes with them, the baseline first."""

GRID = {"learning_rate": [1e-4, 3e-4, 1e-3], "temperature": [0.05, 0.1, 0.2]}
"""What is tuned where a study does not say: for each criterion those that it has."""

TOWERS_GRID = {"temperature": [0.01, 0.03, 0.1], "weight": [1.0, 10.0]}
"""The same of two towers, beside the learning rate: the model's temperature, the weight of GeodesicMixup's terms."""

BINS = 10
DIRECT = "l1"
SIGMOID_BIAS = -10.0  # SigLIP's, where the encoder names none
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
    kinds = {module: kind for kind, module in MODULES.items()}
    if name not in kinds:
        raise ValueError(
            f"A study's recipe needs a model.class_path, one of mixcontrast.training.{', '.join(kinds)}. Got "
            f"{path or 'none'}."
        )
    if "criterion" in recipe["model"].get("init_args", {}):
        raise ValueError("A study puts the criteria into its recipe. Got one there; move it to `criteria`.")
    return kinds[name]


def grid_of(recipe: dict[str, Any], kind: tuple[str, str]) -> dict[str, list[float]]:
    """What is tuned where a study does not say.

    Of two towers, which are fine-tuned from small heads to whole networks, the learning rates are a third, once and
    three times that of the recipe; where it names none, it is not tuned.
    """
    if kind != TOWERS:
        return GRID
    rate = recipe["model"].get("init_args", {}).get("optimizer", {}).get("init_args", {}).get("lr")
    rates = {} if rate is None else {"learning_rate": [float(f"{rate * times:.2g}") for times in (1 / 3, 1, 3)]}
    return rates | TOWERS_GRID


def stand_in(recipe: dict[str, Any], kind: tuple[str, str]) -> dict[str, Any]:
    """The recipe with some criterion, so that it can be built and looked at."""
    name = {LABELS: "supcon", VIEWS: "infonce", VALUES: "rank-n-contrast", TOWERS: "clip"}[kind]
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
        if name == "logit_scale" and kind == TOWERS:
            raise ValueError(
                "A model's scale is tuned as its temperature, 1 / logit_scale. Got a grid of logit_scale; write "
                f"temperature: {[float(f'{1 / value:.3g}') for value in grid[name] if value]}."
            )
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
        _check_towers(entry["name"], _innermost(arguments["criterion"]), kind)
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
    if kind == TOWERS and issubclass(_innermost(arguments["criterion"]), SigLipLoss):
        _with_bias(arguments.get("encoder"))
    return found


def _innermost(criterion: dict[str, Any]) -> type:
    """The class of the loss that mixers, and losses around a loss, are around.

    Raises:
        ValueError: one of them is no class.
    """
    found = class_of(criterion.get("class_path", "none"))
    inner = criterion.get("init_args", {}).get("loss")
    return _innermost(inner) if isinstance(inner, dict) and "class_path" in inner else found


def _check_towers(name: str, loss: type, kind: tuple[str, str]) -> None:
    """One line where a criterion that is written out is of two towers and the recipe is not, or the reverse.

    Raises:
        ValueError: so it is.
    """
    if getattr(loss, "towers", False) != (kind == TOWERS):
        reads = "an image and a text tower" if kind != TOWERS else "examples of one kind"
        raise ValueError(
            f"{MODULES[kind]} calls its criterion with ({', '.join(kind)}). Got {loss.__name__} for {name}, which "
            f"compares {reads}; use {FITS[kind]}."
        )


def _with_bias(encoder: Any) -> None:
    """Gives towers the bias that a sigmoid loss asks for, where they name none."""
    if isinstance(encoder, dict) and "class_path" in encoder:
        if "logit_bias" in inspect.signature(class_of(encoder["class_path"])).parameters:
            arguments = encoder.setdefault("init_args", {})
            if arguments.get("logit_bias") is None:
                arguments["logit_bias"] = SIGMOID_BIAS


def _with_queue(criterion: dict[str, Any], sizes: Sizes) -> None:
    """Gives a queue to the outermost that takes one."""
    while "queue" not in class_of(criterion["class_path"]).__init__.__annotations__:
        criterion = criterion["init_args"]["loss"]
    criterion["init_args"]["queue"] = {
        "class_path": "mixcontrast.KeyQueue", "init_args": {"size": sizes.queue, "dim": sizes.embedding_dim}
    }  # fmt: skip
