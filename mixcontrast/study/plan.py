"""What a study is of: its arms, each a recipe of `mixcontrast fit` with a grid, and the folder that it lives in."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mixcontrast.files import write_whole
from mixcontrast.training.run import differences

TUNING_SEED = 100  # and on: none of those that are judged, which count from 0


@dataclass(frozen=True)
class Knob:
    """A hyper-parameter that is tuned.

    Attributes:
        name: what a person calls it.
        key: of the recipe, with dots.
        values: that are tried.
    """

    name: str
    key: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """A criterion of the study.

    Attributes:
        name: as the study names it.
        recipe: of `mixcontrast fit`, before tuning.
        knobs: that are tuned.
        against: the arms that it is compared with: the baseline, and its own loss without mixing.
    """

    name: str
    recipe: dict[str, Any]
    knobs: tuple[Knob, ...]
    against: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    def points(self) -> list[dict[str, float]]:
        """The grid, a point after the other."""
        names = [knob.name for knob in self.knobs]
        return [
            dict(zip(names, values, strict=True)) for values in itertools.product(*(knob.values for knob in self.knobs))
        ]

    def at(self, point: dict[str, float]) -> dict[str, Any]:
        """The recipe at a point of the grid."""
        recipe = copy.deepcopy(self.recipe)
        for knob in self.knobs:
            put(recipe, knob.key, point[knob.name])
        return recipe


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        arms: the baseline first.
        metric: that is asked about, of the test part.
        monitor: its like on the validation part, as it is logged.
        mode: "max" or "min", whichever of it is better.
        reduction_factor: of successive halving.
        finalists: how many of an arm's best points are tried with more seeds.
        tuning_seeds: how many seeds a finalist has in all.
    """

    arms: tuple[Arm, ...]
    metric: str
    monitor: str
    mode: str
    reduction_factor: int
    finalists: int = 1
    tuning_seeds: int = 1

    @property
    def baseline(self) -> Arm:
        """What all others are compared with."""
        return self.arms[0]

    def write(self, folder: Path) -> None:
        """Writes `study.yaml`, or goes on with the study that is there.

        Raises:
            ValueError: the folder holds another study; says in which keys.
        """
        file, plain = folder / "study.yaml", _plain(self)
        if file.exists():
            different = [line for _, line in differences(yaml.safe_load(file.read_text(encoding="utf-8")), plain)]
            if different:
                more = "" if len(different) < 3 else f"; and {len(different) - 2} more"
                raise ValueError(
                    f"{folder} holds another study: {'; '.join(different[:2])}{more}. Name another folder by --out, or "
                    "remove it."
                )
            return
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        write_whole(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """What `write` wrote."""
        plain = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        arms = tuple(
            Arm(
                name, arm["recipe"],
                tuple(Knob(knob, of["key"], tuple(of["values"])) for knob, of in arm["tuned"].items()),
                tuple(arm["against"]),
            )
            for name, arm in plain.pop("criteria").items()
        )  # fmt: skip
        return cls(arms=arms, **plain)


def _plain(plan: Plan) -> dict[str, Any]:
    """As YAML has it: mappings by name, and lists for tuples."""

    def lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: lists(part) for name, part in value.items()}
        return [lists(part) for part in value] if isinstance(value, list | tuple) else value

    plain = asdict(plan)
    plain["criteria"] = {
        arm["name"]: {
            "against": arm["against"],
            "tuned": {knob["name"]: {"key": knob["key"], "values": knob["values"]} for knob in arm["knobs"]},
            "recipe": arm["recipe"],
        }
        for arm in plain.pop("arms")
    }
    return lists(plain)


def put(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Sets a key with dots."""
    *path, last = key.split(".")
    for word in path:
        recipe = recipe[word]
    recipe[last] = value


def key_of(recipe: dict[str, Any], name: str) -> str | None:
    """The key of a hyper-parameter in a recipe: of its optimizer, of its criterion, the innermost, or else of its
    module; None: none has it.

    `learning_rate` is the optimizer's `lr`. `temperature` is a loss's own; the losses of two towers read the model's,
    and there it is the module's: where the learned one begins, or what it stays at where it is not learned.
    """
    model = recipe["model"].setdefault("init_args", {})
    if name in ("learning_rate", "lr", "weight_decay"):
        if "optimizer" not in model:
            return None
        return f"model.init_args.optimizer.init_args.{'lr' if name == 'learning_rate' else name}"
    found, part, at = None, model.get("criterion"), "model.init_args.criterion"
    while isinstance(part, dict) and "class_path" in part:
        if name in inspect.signature(class_of(part["class_path"])).parameters:
            found = f"{at}.init_args.{name}"
            part.setdefault("init_args", {})
        part, at = part.get("init_args", {}).get("loss"), f"{at}.init_args.loss"
    if found is None and name in inspect.signature(class_of(recipe["model"].get("class_path", ""))).parameters:
        return f"model.init_args.{name}"
    return found


def class_of(path: str) -> type:
    """The class that a recipe names.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"A class_path must name a class. Got {path}, which there is not.") from None
