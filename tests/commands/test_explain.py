"""`mixcontrast explain` on small recipes."""

from __future__ import annotations

import csv
import re

import pytest
import torch

from mixcontrast.cli import main
from tests.fitting import of, recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*to determine which device is supported"),
]


def explain(*arguments: object) -> None:
    main(["explain", *map(str, arguments)])


@pytest.mark.parametrize("name, kinds", [
    ("metric learning", ["positive with negative"]),
    ("moco", ["anchor with hard negative", "two hard negatives"]),
    ("regression", ["Mix-neg", "Mix-pos"]),
    ("image text", ["anchor with hard negative", "two hard negatives"]),
])  # fmt: skip
def test_what_a_recipe_mixes_is_told_and_drawn(name, kinds, tmp_path, capsys):
    explain("--config", recipe(name, tmp_path), "--out", tmp_path / "out", "--after", 3, "--anchors", 2)
    with open(tmp_path / "out" / "mixtures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({row["kind"] for row in rows}) == kinds and len({row["anchor"] for row in rows}) == 2
    assert all((tmp_path / "out" / f"sphere.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    shown = capsys.readouterr().out
    assert "Mixed columns carry" in shown and f"{len(rows)} mixtures of 2 anchors" in shown


def test_a_checkpoint_is_explained_with_its_weights(tmp_path, capsys):
    file = recipe("metric learning", tmp_path)
    main(["fit", "--config", str(file), "--out", str(tmp_path / "run")])
    best = tmp_path / "run" / "best.ckpt"
    for out, arguments in (("fresh", ()), ("trained", ("--checkpoint", best)), ("again", ("--checkpoint", best))):
        explain("--config", file, "--out", tmp_path / out, *arguments)
    fresh, trained, again = ((tmp_path / out / "mixtures.csv").read_text() for out in ("fresh", "trained", "again"))
    assert fresh != trained and trained == again
    capsys.readouterr()
    other = recipe("moco", tmp_path)
    with pytest.raises(SystemExit):
        explain("--config", other, "--out", tmp_path / "x", "--checkpoint", best)
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "must be of this recipe" in message


def test_images_are_named_by_their_captions(tmp_path):
    file = recipe("image text", tmp_path, model__init_args__criterion=of("mixcontrast.GeodesicMixup",
                                                                         loss=of("mixcontrast.ClipLoss")))  # fmt: skip
    explain("--config", file, "--out", tmp_path / "out", "--anchors", 2)
    with open(tmp_path / "out" / "mixtures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"m2-Mix", "V-Mix", "L-Mix", "VL-Mix"}
    assert all(row["class 2"].startswith("caption ") and " of " in row["class 3"] for row in rows)
    assert all(row["class"].startswith("caption ") for row in rows if row["kind"] != "VL-Mix")
    drawn = (tmp_path / "out" / "sphere.svg").read_text()
    assert "around image" in drawn and "around text" in drawn and "VL-Mix" in drawn


REPLACED = {
    "metric learning": "mixcontrast.MultiSimilarityLoss", "simclr": "mixcontrast.InfoNCE",
    "regression": "mixcontrast.RankNContrastLoss", "image text": "mixcontrast.ClipLoss",
}  # fmt: skip


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_advised_in_place_of_a_plain_criterion_can_be_explained(name, tmp_path, capsys):
    plain = recipe(name, tmp_path, model__init_args__criterion=of(REPLACED[name]))
    with pytest.raises(SystemExit):
        explain("--config", plain, "--out", tmp_path / "out")
    advised = re.search(r"such as (\w+)\((\w+)\(\)\)\.$", capsys.readouterr().err.strip())
    mixed = of(f"mixcontrast.{advised[1]}", loss=of(f"mixcontrast.{advised[2]}"))
    explain("--config", recipe(name, tmp_path, model__init_args__criterion=mixed), "--out", tmp_path / "out")
    assert "Mixed columns carry" in capsys.readouterr().out


@pytest.mark.parametrize("name, arguments, message", [
    ("simclr", (), "A criterion that mixes is explained. Got InfoNCE"),
    ("direct regression", (), "Got none; take mixcontrast.training.Regression and SupReMix(SupConLoss())."),
    ("moco", ("--after=-1",), "--after must be at least 0. Got -1."),
    ("moco", ("--after=1000",), "A run must have a batch behind 1000 steps. Got 0 of 1"),
    ("moco", ("--checkpoint=nowhere.ckpt",), "There is no checkpoint nowhere.ckpt."),
    ("moco", ("--trainer.max_epoch=1",), "There is no --trainer.max_epoch. Did you mean trainer.max_epochs?"),
])  # fmt: skip
def test_refusals_are_one_line(name, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        explain("--config", recipe(name, tmp_path), "--out", tmp_path / "out", *arguments)
    seen = capsys.readouterr().err
    assert raised.value.code == 2 and seen.count("\n") == 1 and message in seen


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
