"""The main job on a small part of the real data: what it writes, that it goes on after a kill, and what it refuses."""

import importlib.metadata
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mixcontrast import __version__
from mixcontrast.cli import main
from mixcontrast.training import comparison

SMALL = ["demo", "--max_classes", "24", "--seeds", "2", "--epochs", "2", "--classes_per_batch", "4",
         "--image_size", "32", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    main([*SMALL, "--out", str(out)])
    return out


def test_everything_is_there(run):
    results = json.loads((run / "results.json").read_text())
    assert set(results["metrics"]) == {"hit@1", "hit@2", "hit@4", "hit@8", "map@r"}
    for found in results["metrics"].values():
        for arm in ("raw", "plain", "mixed", "mixed - plain"):
            assert found[arm]["low"] <= found[arm]["mean"] <= found[arm]["high"]
        assert len(found["mixed - plain, each seed"]) == 2
        assert found["mixed - plain"]["mean"] == pytest.approx(found["mixed"]["mean"] - found["plain"]["mean"])
    assert results["classes"] == {"train": 10, "validation": 2, "test": 12}
    assert results["environment"]["torch"] == importlib.metadata.version("torch")
    assert results["recipe"]["seeds"] == 2 and min(results["milliseconds a step"].values()) > 0
    page = (run / "results.md").read_text()
    assert "Recall@1" in page and "supcon + metrix" in page
    for picture in ("training_curves.png", "neighbours.png"):
        with Image.open(run / picture) as image:
            assert image.size[0] > 800 and len(np.unique(np.asarray(image.convert("L")))) > 50
    for arm in ("plain", "mixed"):
        for seed in range(2):
            folder = run / f"{arm}-seed{seed}"
            assert (folder / "checkpoint.ckpt").exists()
            assert len((folder / "curve.csv").read_text().splitlines()) == 3
    assert not [file for file in run.rglob(".*") if file.is_file()]  # no temporary file stays


def test_paired_runs_start_alike_and_differ_by_mixing(run):
    weights = [
        torch.load(run / f"{arm}-seed0" / "checkpoint.ckpt", weights_only=True)["state_dict"]
        for arm in ("plain", "mixed")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_a_killed_run_goes_on_with_what_it_had(run, monkeypatch):
    before = json.loads((run / "results.json").read_text())
    (run / "mixed-seed1" / "run.json").unlink()  # killed before the last run was whole
    trained = []
    fit = comparison.lightning.Trainer.fit
    monkeypatch.setattr(comparison.lightning.Trainer, "fit", lambda *a, **k: trained.append(1) or fit(*a, **k))
    main([*SMALL, "--out", str(run)])
    assert len(trained) == 1
    assert json.loads((run / "results.json").read_text())["metrics"] == before["metrics"]


def test_another_recipe_is_not_taken_for_this_one(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "demo")
    trained = []
    fit = comparison.lightning.Trainer.fit
    monkeypatch.setattr(comparison.lightning.Trainer, "fit", lambda *a, **k: trained.append(1) or fit(*a, **k))
    main([*SMALL, "--learning_rate", "0.01", "--out", str(tmp_path / "demo")])
    assert len(trained) == 4


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"mixcontrast {__version__}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "0"], "--seeds must be at least 1. Got 0"),
        (["--image_size", "8"], "--image_size must be at least 32. Got 8"),
        (["--device", "gpu"], "--device must be one that is there: auto, cpu"),
        (["--loss", "triplet"], "Metrix mixes labels, and TripletLoss reads only targets of 0 and 1"),
        (["--max_classes", "24"], "A batch of 32 classes needs as many"),
    ],
)
def test_bad_choices_get_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as raised:
        main(["demo", *arguments, "--epochs", "1", "--out", str(tmp_path)])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_unknown_loss_names_those_there_are(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["demo", "--loss", "multisimilarity"])
    assert raised.value.code == 2
    assert "multi-similarity" in capsys.readouterr().err
