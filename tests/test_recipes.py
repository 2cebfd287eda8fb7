"""The recipes in configs/: each can be read, the published ones run a step on stand-ins, and their tables are right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mixcontrast.cli import main
from mixcontrast.commands.fit import fit_parser
from mixcontrast.commands.fit_errors import parse
from mixcontrast.models import OpenClip
from mixcontrast.retrieval import Evaluation
from tests.data import standins
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

ROOT = Path(__file__).parents[1]
NO_RECIPES = ("demo", "study")
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem.partition("_")[0] not in NO_RECIPES)
STANDINS = {
    "cub": standins.cub, "cars": standins.cars, "sop": standins.sop, "inshop": standins.inshop,
    "imagenet100": standins.imagenet, "agedb": standins.agedb,
}  # fmt: skip
PUBLISHED = [path.stem for path in RECIPES if path.stem.partition("_")[0] in STANDINS]
PAIRED = {  # on images and captions of one's own: what makes some, and where a recipe says where they are
    "clip_csv": (standins.pairs_table, "csv"),
    "clip_lit": (standins.pairs_shard, "shards"),
    "clip_lora": (standins.pairs_folder, "root"),
}
QUICK = {
    "cub_multi_similarity_metrix_feature", "cars_proxy_anchor_metrix", "sop_contrastive_metrix",
    "inshop_multi_similarity", "imagenet100_moco_mochi", "agedb_supremix",
}  # fmt: skip


@pytest.fixture(scope="module")
def parser():
    return fit_parser()


@pytest.fixture(scope="module")
def recipes():
    """eval/recipes.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "eval" / "recipes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["recipes"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_read_and_says_how_to_run_it_and_what_it_gave(path, parser):
    command, gave = path.read_text(encoding="utf-8").splitlines()[:2]
    assert command == f"# mixcontrast fit --config configs/{path.name}"
    assert gave.startswith("# ") and "..." not in gave
    if path.stem in {*PUBLISHED, *PAIRED}:
        assert gave.startswith("# Not run here: it needs ")
    assert parse(parser, ["--config", str(path)]).model.class_path.startswith("mixcontrast.training.")


def test_each_recipe_is_published_or_in_a_table(recipes):
    ran = {name for group in recipes.GROUPS.values() for name in group.arms}
    assert {path.stem for path in RECIPES} == ran | set(PUBLISHED) | set(PAIRED)


def _step(name: str, root: Path, out: Path) -> None:
    """A published recipe, one step of its, with a tiny network on a stand-in."""
    data, network = "--data.init_args.", "--model.init_args."
    arguments = [
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--judge_every=1",
        *([] if name.startswith("agedb") else ["--test_every=1"]), "--trainer.enable_progress_bar=false",
        f"{network}encoder.init_args.name=test_resnet",
        f"{data}augment.init_args.size=32", f"{data}transform.init_args.size=32", f"{data}num_workers=0",
        f"{data}examples.init_args.root={root}",
    ]  # fmt: skip
    kind = name.partition("_")[0]
    if kind in ("imagenet100", "agedb"):
        arguments += [f"{data}batch_size=8", f"{network}projector.init_args.num_features=96"]
        if kind == "imagenet100":
            arguments.append(f"{data}examples.init_args.synsets={root / 'imagenet100.txt'}")
            if "mochi" in name:
                arguments.append(f"{network}criterion.init_args.warmup_steps=0")
        else:
            arguments.append(f"{network}warmup_epochs=0")
    else:
        arguments += [
            f"{data}classes_per_batch=2", f"{network}encoder.init_args.pretrained=false",
            f"{network}head_only_epochs=0",
        ]  # fmt: skip
    if "feature" in name:
        arguments.append(f"{network}criterion.init_args.layer=backbone.layer3")
    if "proxy" in name:
        loss = "loss.init_args." if "metrix" in name else ""
        arguments.append(f"{network}criterion.init_args.{loss}num_classes=4")
    main(["fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--out", str(out), *arguments])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)  # fmt: skip
def test_a_published_recipe_runs_a_step_on_data_laid_out_the_same(name, tmp_path):
    root = STANDINS[name.partition("_")[0]](tmp_path / "data")
    _step(name, root, tmp_path / "run")
    found, kind = Evaluation.load(tmp_path / "run"), name.partition("_")[0]
    assert {"imagenet100": "linear probe", "agedb": "MAE"}.get(kind, "Recall@1") in found.values
    facts = found.settings["fit"]
    assert facts["steps"] == 1
    watched = kind == "agedb"  # alone has a published validation part
    logged = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert ("test/" in logged, "val/" in logged) == (not watched, watched)
    recipe = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert ("\ntest_every: " in recipe) == (not watched)
    if "mixcontrast.Metrix\n" in recipe:  # of so many examples a class, a proxy among them or an example
        per_class = int(recipe.partition("per_class: ")[2].partition("\n")[0])
        assert f"max_positives: {per_class - ('proxy' not in name)} " in recipe
    assert (facts["judged"], facts["monitor"]) == (("best.ckpt", "val/MAE") if watched else ("last.ckpt", None))


@pytest.mark.parametrize("name", PAIRED)
def test_a_recipe_of_pairs_runs_a_step_on_some_of_its_kind(name, tmp_path):
    make, key = PAIRED[name]
    data, towers = "--data.init_args.", "--model.init_args.encoder.init_args."
    config = tiny.clip(tmp_path)
    torch.save({"state_dict": OpenClip("tiny_clip", config=config).weights()}, tmp_path / "tiny.pt")
    main(["fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--out", str(tmp_path / "run"),
          "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false",
          "--trainer.max_epochs=1", f"{data}batch_size=8", f"{data}num_workers=0",
          f"{data}pairs.init_args.{key}={make(tmp_path / 'data')}", f"{towers}name=tiny_clip",
          f"{towers}pretrained={tmp_path / 'tiny.pt'}", f"{towers}config={config}", "--model.init_args.warmup_epochs=0",
          *([f"{data}validation_share=0.25", f"{data}test_share=0.25"] if name != "clip_csv" else [])])  # fmt: skip
    found = Evaluation.load(tmp_path / "run")
    assert "R@1" in found.values and found.settings["fit"]["steps"] == 1
    assert (tmp_path / "run" / "model.pt").exists()


def _saved(folder: Path, values: dict[str, np.ndarray], groups: np.ndarray | None, **settings) -> None:
    facts = {"fit": {"CPU seconds of this start": 2.0, "from step": 0, "monitor": "val/MAE"}, **settings}
    Evaluation(values, np.arange(len(next(iter(values.values())))), groups, 0, 0, settings=facts).save(folder)


def test_a_table_pairs_seeds_and_says_where_mixing_does_not_help(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    group = recipes.Group("A task", "Of some.", ("Recall@1",), {"plain": "plain", "good": "good", "bad": "bad"},
                          (("good", "plain"), ("bad", "plain")), {})  # fmt: skip
    monkeypatch.setattr(recipes, "GROUPS", {"task": group})
    rng = np.random.default_rng(0)
    for seed in range(5):
        plain = rng.random(200)
        for name, values in (("plain", plain), ("good", plain + 0.1), ("bad", plain + 0.01 * rng.normal(size=200))):
            _saved(tmp_path / "runs" / f"{name}-seed{seed}", {"Recall@1": values}, np.arange(200) // 4)
    for name in group.arms:
        file = tmp_path / "configs" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("# command\n# old\n# older\nseed: 0\n")
    recipes.write_group("task", tmp_path / "runs", 5)
    page = (tmp_path / "results" / "task.md").read_text()
    assert "| good against plain | Recall@1 | +0.100 [+0.100, +0.100] | < 0.001 | 5 of 5 | better |" in page
    assert "no difference shown" in page.split("bad against plain")[1]
    facts = json.loads((tmp_path / "results" / "task.json").read_text())
    assert facts["recipes"]["good"]["CPU seconds"] == 2.0 and len(facts["differences"][0]["each seed"]) == 5
    lines = (tmp_path / "configs" / "good.yaml").read_text().splitlines()
    assert lines[0] == "# command" and lines[1].startswith("# Recall@1 0.") and lines[-1] == "seed: 0"
    assert lines[2] == "# Recall@1 +0.100 [+0.100, +0.100] against plain; eval/results/task.md." and len(lines) == 4
    recipes.write_group("task", tmp_path / "runs", 5)  # again: nothing grows
    assert len((tmp_path / "configs" / "good.yaml").read_text().splitlines()) == 4


def test_r2_is_what_each_run_said_and_seeds_widen_an_interval(recipes, tmp_path):
    rng = np.random.default_rng(0)
    wanted, given = rng.normal(size=300), []
    for seed in range(3):
        off = np.abs((0.2 + 0.1 * seed) * rng.normal(size=300))
        given.append(1 - (off**2).mean() / wanted.var())
        _saved(tmp_path / f"a-seed{seed}", {"MAE": off}, None, R2=given[-1])
    found = recipes.load("a", tmp_path, 3)
    assert found.values["R2"].mean(axis=1) == pytest.approx(given)
    _, low, high = recipes.interval(found.values["MAE"], found.groups)
    _, of_one, to_one = recipes.interval(found.values["MAE"].mean(axis=0, keepdims=True), found.groups)
    assert high - low > 1.5 * (to_one - of_one)  # seeds differ by much more than rows do


def test_an_interval_over_classes_is_the_librarys_where_there_is_one_seed(recipes):
    from mixcontrast.retrieval import bootstrap_interval

    groups = np.random.default_rng(0).integers(0, 60, 500)
    values = np.random.default_rng(1).random(500) + groups / 60
    groups = np.unique(groups, return_inverse=True)[1]
    mean, low, high = recipes.interval(values[None], groups)
    library = bootstrap_interval(values, groups=groups)
    assert (mean, low, high) == pytest.approx((library.mean, library.low, library.high), abs=0.01)


def test_a_finished_run_is_not_run_again(recipes, tmp_path, capsys):
    jobs = [("no_such_recipe", tmp_path / "a", ())]
    _saved(tmp_path / "a", {"MAE": np.ones(4)}, None)
    recipes.run(jobs, 1)
    assert capsys.readouterr().out == "1 runs, 1 finished\n"
