"""`mixcontrast fit`: what a run leaves, that it goes on as if it had not been killed, and what stops it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mixcontrast.cli import main
from mixcontrast.retrieval import Evaluation, compare
from tests.fitting import RECIPES, Killed, recipe

ROOT = Path(__file__).parents[2]


def fit(*arguments: object) -> None:
    main(["fit", *map(str, arguments)])


def saved(folder: Path, name: str = "last.ckpt") -> dict:
    return torch.load(folder / name, weights_only=True)


def logged(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same(first, second, at: str = "") -> None:
    """Equal to the last bit, whatever is inside."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), at
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), at
        for key in first:
            assert_same(first[key], second[key], f"{at}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), at
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{at}[{number}]")
    else:
        assert first == second, at


def assert_same_run(first: Path, second: Path) -> None:
    one, two = saved(first), saved(second)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(one[part], two[part], part)
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    assert (first / "queries.csv").read_text() == (second / "queries.csv").read_text()
    assert saved(first, "best.ckpt")["global_step"] == saved(second, "best.ckpt")["global_step"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    file = recipe(name, tmp_path)
    fit("--config", file, "--out", tmp_path / "whole", "--save_every", 1)
    steps = saved(tmp_path / "whole")["global_step"]
    assert steps >= 6
    for batch in (2, 5, 8):  # in an epoch, before anything else is saved than its end, in another
        monkeypatch.setenv("KILL_AT", f"raise:{batch}")
        with pytest.raises(Killed):
            fit("--config", file, "--out", tmp_path / "killed", "--save_every", 1)
    monkeypatch.delenv("KILL_AT")
    fit("--config", file, "--out", tmp_path / "killed", "--save_every", 1)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    rows = logged(tmp_path / "killed")
    assert sum(bool(row["loss"]) for row in rows) == steps


def test_a_run_killed_by_the_system_goes_on(tmp_path):
    file = recipe("moco", tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "mixcontrast.cli", "fit", "--config", file, "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, tmp_path / "killed", "--save_every", "2"], env=environment | {"KILL_AT": "kill:8"}, cwd=tmp_path,
        timeout=120, capture_output=True,
    )  # fmt: skip
    assert run.returncode == -9, run.stderr.decode()[-2000:]
    assert not list((tmp_path / "killed").glob(".*.ckpt")) and not (tmp_path / "killed" / "results.json").exists()
    step = saved(tmp_path / "killed")["global_step"]
    assert 0 < step < 8
    fit("--config", file, "--out", tmp_path / "killed", "--save_every", 2)
    fit("--config", file, "--out", tmp_path / "whole", "--save_every", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_what_a_run_leaves(tmp_path, capsys):
    file = recipe("metric learning", tmp_path)
    out = tmp_path / "run"
    fit("--config", file, "--out", out, "--seed", 3, "--model.criterion.weight=0.2")
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "environment.json", "best.ckpt", "last.ckpt", "metrics.csv", "logs", "results.json", "results.md",
        "queries.csv",
    }  # fmt: skip
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["seed"] == config["data"]["init_args"]["seed"] == 3 and config["trainer"]["max_epochs"] == 3
    assert config["model"]["init_args"]["criterion"]["init_args"]["weight"] == 0.2
    assert config["model"]["init_args"]["criterion"]["init_args"]["alpha"] == 2.0  # defaults are written too
    ran = json.loads((out / "environment.json").read_text())
    assert ran["seed"] == 3 and ran["starts"][0]["torch"] == torch.__version__.split("+")[0]
    assert list((out / "logs" / "tensorboard").glob("events*"))
    rows = logged(out)
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert len(losses) == 12 and {"positives", "negatives", "val/Recall@1", "val/Recall@1 low"} <= set(rows[0])
    found = Evaluation.load(out)
    assert "Recall@1" in found.values and found.settings["fit"]["seed"] == 3
    assert compare(found, found)["Recall@1"].num_even == len(found.queries)
    shown = capsys.readouterr().out
    assert "Recall@1" in shown and "best.ckpt judged on the test part" in shown
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    fit("--config", file, "--out", out, "--seed", 3, "--model.criterion.weight=0.2")
    assert "Nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, capsys):
    file = recipe("metric learning", tmp_path)
    fit("--config", file, "--out", tmp_path / "run", "--trainer.max_epochs=2")
    with pytest.raises(SystemExit) as raised:
        fit("--config", file, "--out", tmp_path / "run", "--trainer.max_epochs=2", "--model.criterion.weight=0.2")
    message = capsys.readouterr().err
    assert raised.value.code == 2 and message.count("\n") == 1
    assert "holds another run: its model.init_args.criterion.init_args.weight is 0.4. Got 0.2" in message
