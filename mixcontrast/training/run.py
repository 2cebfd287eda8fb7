"""The folder of a run: its config, what it ran on, logs, checkpoints, results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from mixcontrast.environment import environment
from mixcontrast.files import write_json, write_whole
from mixcontrast.retrieval import Evaluation

FREE = ("out", "test_every", "trainer.enable_progress_bar", "trainer.enable_model_summary")
"""Keys in which the same run may differ when it goes on."""


class RunFolder:
    """The folder of one run, begun or gone on with.

    Args:
        path: the folder.
        config: of the run, resolved: plain dictionaries.

    Raises:
        ValueError: the folder holds another run; says in which keys.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        file = path / "config.yaml"
        if file.exists():
            old = yaml.safe_load(file.read_text(encoding="utf-8"))
            different = [line for key, line in differences(old, config) if key not in FREE]
            if different:
                shown = "; ".join(different[:3]) + ("" if len(different) < 4 else f"; and {len(different) - 3} more")
                raise ValueError(f"{path} holds another run: {shown}. Name another folder by --out, or remove it.")
        elif self.last.exists():
            raise ValueError(f"{path} holds a checkpoint and no config.yaml. Name another folder by --out.")

    @property
    def last(self) -> Path:
        """The checkpoint that a run goes on from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint that was best on the validation part."""
        return self.path / "best.ckpt"

    @property
    def finished(self) -> bool:
        """Whether the run has its results."""
        return (self.path / "results.json").exists()

    def begin(self, seed: int, device: str) -> None:
        """Writes the config, and what this start ran on; a run that goes on keeps what each start ran on."""
        if not (self.path / "config.yaml").exists():
            text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
            write_whole(self.path / "config.yaml", lambda file: file.write_text(text, encoding="utf-8"))
        file = self.path / "environment.json"
        starts = json.loads(file.read_text())["starts"] if file.exists() else []
        write_json(file, {"seed": seed, "starts": [*starts, environment(device)]})

    def loggers(self, step: int) -> list[Logger]:
        """TensorBoard's, and CSV files a start, which `merge_logs` joins.

        Args:
            step: at which this start begins; what was logged of later ones before a kill is logged anew.
        """
        logs = self.path / "logs"
        return [
            TensorBoardLogger(logs, name="tensorboard", version="", purge_step=step or None),
            CSVLogger(logs, name="csv", version=f"from_step_{step:09d}"),
        ]

    def merge_logs(self) -> None:
        """Writes `metrics.csv`, a row a logged step, from the files of all starts; of a step done twice the last."""
        rows: list[dict[str, str]] = []
        for file in sorted((self.path / "logs" / "csv").glob("from_step_*/metrics.csv")):
            first = int(file.parent.name.rpartition("_")[2])
            rows = [row for row in rows if int(row["step"]) < first]
            with open(file, newline="", encoding="utf-8") as opened:
                rows += csv.DictReader(opened)
        if not rows:
            return
        first = ["epoch", "step", "loss"]
        names = first + sorted({name for row in rows for name in row} - set(first))

        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(opened, names, restval="")
                writer.writeheader()
                writer.writerows(rows)

        write_whole(self.path / "metrics.csv", write)

    def checkpoints(
        self, monitor: tuple[str, str] | None, every_n_epochs: int, every_n_steps: int
    ) -> list[ModelCheckpoint]:
        """What writes `best.ckpt`, and `last.ckpt` each epoch and every n steps; in this order, so that the last
        checkpoint knows of the best. Without a monitor there is no best."""
        common = {"dirpath": self.path, "enable_version_counter": False}
        last = {"filename": "last", **common}
        found = []
        if monitor is not None:
            name, mode = monitor
            found.append(
                ModelCheckpoint(filename="best", monitor=name, mode=mode, every_n_epochs=every_n_epochs,
                                save_on_train_epoch_end=True, **common)
            )  # fmt: skip
        found.append(ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **last))
        if every_n_steps:
            found.append(ModelCheckpoint(every_n_train_steps=every_n_steps, **last))
        return found

    def finish(self, found: Evaluation, facts: dict[str, Any]) -> None:
        """Writes `results.json` and `queries.csv`, which `mixcontrast compare` reads, and `results.md`."""
        found.settings["fit"] = facts
        text = found.to_markdown() + "\n"
        write_whole(self.path / "results.md", lambda file: file.write_text(text, encoding="utf-8"))
        found.save(self.path)


class Recorder(lightning.Callback):
    """Puts the run's config into its checkpoints, from which `mixcontrast embed` builds the encoder again.

    Args:
        config: plain dictionaries.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        checkpoint["config"] = self.config


def step_of(checkpoint: Path) -> int:
    """The number of steps behind a checkpoint."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, str]]:
    """Each key in which two configs of plain dictionaries differ, with a line that says how."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in dict.fromkeys([*old, *new]):
            inner = f"{key}.{name}" if key else str(name)
            if name not in old or name not in new:
                which, value = ("has", old[name]) if name in old else ("has not", new[name])
                found.append((inner, f"it {which} {inner}: {value}"))
            else:
                found += differences(old[name], new[name], inner)
        return found
    return [] if old == new else [(key, f"its {key} is {old}. Got {new}")]
