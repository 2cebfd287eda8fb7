"""`mixcontrast fit`: what a run leaves, that it goes on as if it had not been killed, and what stops it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Optional, Union

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mixcontrast import (
    ClipLoss,
    CyClipLoss,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    MoCHi,
    MultiSimilarityLoss,
    SupConLoss,
    SynCo,
    Tiled,
)
from mixcontrast.cli import main
from mixcontrast.commands.fit import fit_parser
from mixcontrast.data import ClassData, ResizeAndCrop
from mixcontrast.models import TimmNetwork
from mixcontrast.retrieval import Evaluation, StoredEmbeddings, compare
from mixcontrast.training import MetricLearning
from mixcontrast.training.fitting import LABELS, VIEWS, called_with
from mixcontrast.training.safety import LossIsNoNumber, StopAtNaN, rows_of_batch
from tests.fitting import RECIPES, Killed, Plain, Vectors, of, recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*to determine which device is supported"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """Such small networks lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize(
    "name, kills",
    [
        ("metric learning", (2, 5, 8)),  # in an epoch, before anything else is saved than its end, in another
        ("simclr", (4,)),  # with gradients that are half accumulated
        ("regression", (9,)),
        ("image text", (6,)),  # with queues of both towers
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name, kills, tmp_path, monkeypatch):
    file = recipe(name, tmp_path)
    fit("--config", file, "--out", tmp_path / "whole", "--save_every", 1)
    steps = saved(tmp_path / "whole")["global_step"]
    assert steps >= 6
    for batch in kills:
        monkeypatch.setenv("KILL_AT", f"raise:{batch}")
        with pytest.raises(Killed):
            fit("--config", file, "--out", tmp_path / "killed", "--save_every", 1)
    monkeypatch.delenv("KILL_AT")
    fit("--config", file, "--out", tmp_path / "killed", "--save_every", 1)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    rows = logged(tmp_path / "killed")
    assert sum(bool(row["loss"]) for row in rows) == steps


@pytest.mark.parametrize("name", ["regression by bins", "direct regression"])
def test_values_are_judged_by_their_error(name, tmp_path):
    fit("--config", recipe(name, tmp_path), "--out", tmp_path / "run", "--trainer.max_epochs=2")
    found = Evaluation.load(tmp_path / "run")
    assert list(found.values) == ["MAE"] and len(found.queries) == 24 and found.settings["R2"] < 1
    rows = logged(tmp_path / "run")
    assert {"val/MAE", "val/R2"} <= set(rows[0])


@pytest.mark.parametrize("name", ["metric learning", "moco", "regression", "direct regression", "image text"])
def test_parameters_of_sixteen_bits_are_trained_and_judged(name, tmp_path):
    fit("--config", recipe(name, tmp_path), "--trainer.precision=bf16-true", "--trainer.max_epochs=2",
        "--out", tmp_path / "run")  # fmt: skip
    assert any(value.dtype == torch.bfloat16 for value in saved(tmp_path / "run")["state_dict"].values())
    assert (tmp_path / "run" / "results.md").exists()
    losses = [float(row["loss"]) for row in logged(tmp_path / "run") if row["loss"]]
    assert len(losses) > 2 and np.isfinite(losses).all()


def test_a_run_killed_by_the_system_goes_on(tmp_path):
    file = recipe("moco", tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "mixcontrast.cli", "fit", "--config", file, "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as the run beside it here
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
        "config.yaml", "environment.json", "best.ckpt", "last.ckpt", "metrics.csv", "logs", "results.json",
        "results.md", "queries.csv",
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


def test_the_test_part_can_be_looked_at_and_changes_nothing(tmp_path):
    for every in (0, 2):
        file = recipe("metric learning", tmp_path / str(every), data__init_args__validation_share=0.0)
        fit("--config", file, "--out", tmp_path / str(every) / "run", "--trainer.max_epochs=4", "--test_every", every,
            "--model.criterion.loss.num_classes=10")  # fmt: skip
    plain, looked = (tmp_path / every / "run" for every in "02")
    assert_same(saved(plain)["state_dict"], saved(looked)["state_dict"])
    assert "test/Recall@1" not in logged(plain)[0]
    seen = [float(row["test/Recall@1"]) for row in logged(looked) if row["test/Recall@1"]]
    found = Evaluation.load(looked)
    assert len(seen) == 2 and seen[-1] == pytest.approx(found.mean("Recall@1"))  # as the end judges
    assert not (looked / "best.ckpt").exists() and found.settings["fit"]["monitor"] is None


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, capsys):
    file = recipe("metric learning", tmp_path)
    fit("--config", file, "--out", tmp_path / "run", "--trainer.max_epochs=2")
    with pytest.raises(SystemExit) as raised:
        fit("--config", file, "--out", tmp_path / "run", "--trainer.max_epochs=2", "--model.criterion.weight=0.2")
    message = capsys.readouterr().err
    assert raised.value.code == 2 and message.count("\n") == 1
    assert "holds another run: its model.init_args.criterion.init_args.weight is 0.4. Got 0.2" in message


def test_images_through_a_network_and_out_again(tmp_path):
    noise = np.random.default_rng(0)
    for number in range(48):
        file = tmp_path / "photos" / f"class{number % 8}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = noise.integers(0, 120, (24, 24, 3)) + 15 * (number % 8)
        Image.fromarray(picture.astype(np.uint8)).save(file)
    config = {
        "trainer": {**RECIPES["moco"]["trainer"], "max_epochs": 1},
        "model": of(
            "mixcontrast.training.MetricLearning", head_only_epochs=1,
            encoder=of("mixcontrast.models.TimmNetwork", name="test_resnet", embedding_dim=6, frozen_batch_norm=True),
            criterion=of("mixcontrast.DeepMetrix", loss=of("mixcontrast.MultiSimilarityLoss"), layer="backbone.layer3"),
        ),
        "data": of(
            "mixcontrast.data.ClassData",
            examples=of("mixcontrast.data.ImageFolder", root=str(tmp_path / "photos")),
            augment=of("mixcontrast.data.CropAndFlip", size=32),
            transform=of("mixcontrast.data.ResizeAndCrop", size=32),
            classes_per_batch=2, per_class=3, validation_share=0.25, test_share=0.25,
        ),
    }  # fmt: skip
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(config))
    fit("--config", tmp_path / "images.yaml", "--out", tmp_path / "run")
    checkpoint = tmp_path / "run" / "best.ckpt"
    encoder = f"checkpoint:{checkpoint}"
    main(["embed", str(tmp_path / "photos"), "--encoder", encoder, "--out", str(tmp_path / "embedded")])
    found = StoredEmbeddings(tmp_path / "embedded")
    network = TimmNetwork("test_resnet", 6)
    state = saved(tmp_path / "run", "best.ckpt")["state_dict"]
    network.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})
    transform = ResizeAndCrop(32)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    with torch.no_grad():
        expected = network.eval()(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    np.testing.assert_allclose(found.read(0, len(found)), expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit, match="has its own image size"):
        main(["embed", str(tmp_path / "photos"), "--encoder", encoder, "--out", str(tmp_path), "--image_size", "64"])


def refused(capsys, *arguments: object) -> str:
    """The one line of an error of the user's."""
    with pytest.raises(SystemExit) as raised:
        fit(*arguments)
    message = capsys.readouterr().err
    assert raised.value.code == 2 and message.count("\n") == 1 and message.startswith("mixcontrast: ")
    return message


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    poisoned = [of("tests.fitting.Poison", step=6)]
    file = recipe(
        "metric learning", tmp_path, trainer__callbacks=poisoned, model__init_args__encoder=of("tests.fitting.Plain")
    )  # fmt: skip
    config = yaml.safe_load(file.read_text())
    config["model"]["init_args"] |= {"head_only_epochs": 0, "criterion": of("mixcontrast.MultiSimilarityLoss")}
    file.write_text(yaml.safe_dump(config))
    message = refused(capsys, "--config", file, "--out", tmp_path / "run", "--save_every", 1)
    assert "At step 6 (epoch 2, batch 2, rows " in message and "of the training part" in message
    assert "must be finite" in message and f"the last good checkpoint is {tmp_path / 'run' / 'last.ckpt'}" in message
    kept = saved(tmp_path / "run")
    assert kept["global_step"] == 5 and all(bool(x.isfinite().all()) for x in kept["state_dict"].values())
    assert not (tmp_path / "run" / "results.json").exists()


def test_the_rows_that_are_named_are_those_of_the_batch(tmp_path):
    data = ClassData(Vectors(), classes_per_batch=2, per_class=3, seed=5)
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            rows = rows_of_batch(trainer, index)
            seen.append(torch.equal(batch[1], torch.from_numpy(data.train_examples.labels[rows])))
            assert torch.equal(batch[0], torch.stack([data.train_examples[row] for row in rows]))

    module = MetricLearning(Plain(), MultiSimilarityLoss(), cosine=False)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Look()], default_root_dir=tmp_path, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert seen == [True] * 8


def test_an_infinite_loss_is_seen_before_the_step():
    trainer = SimpleNamespace(world_size=1)
    with pytest.raises(LossIsNoNumber, match="The loss must be finite. Got inf"):
        StopAtNaN().on_before_backward(trainer, None, torch.tensor(torch.inf))
    StopAtNaN().on_before_backward(trainer, None, torch.tensor(1.0))


def test_a_loss_that_was_copied_is_read_behind_its_backward_pass(monkeypatch):
    """The arithmetic of the way of a GPU, without one."""
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda on: None, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    summed = SimpleNamespace(reduce=lambda bad, reduce_op: bad + 1)  # another rank's loss is no number
    one, two = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2, strategy=summed)
    for trainer, loss, bad in ((one, 1.0, False), (one, torch.nan, True), (one, torch.inf, True), (two, 1.0, True)):
        stop = StopAtNaN()
        stop._host = torch.empty(2)
        stop.on_after_backward(trainer, None)  # nothing was copied yet
        stop._copy(trainer, torch.tensor(loss))
        if bad:
            with pytest.raises(LossIsNoNumber, match=f"Got {loss:g}"):
                stop.on_after_backward(trainer, None)
        else:
            stop.on_after_backward(trainer, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_a_gpu_is_not_waited_for_before_its_backward_pass():
    stop, trainer = StopAtNaN(), SimpleNamespace(world_size=1)
    losses = [torch.tensor(loss, device="cuda") for loss in (1.0, torch.nan)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        stop.on_before_backward(trainer, None, losses[0])
        stop.on_after_backward(trainer, None)
        stop.on_before_backward(trainer, None, losses[1])
        with pytest.raises(LossIsNoNumber, match="Got nan"):
            stop.on_after_backward(trainer, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_batch_is_not_all_of_them(tmp_path, monkeypatch):
    """Whatever was imported first: typing has one entry for both orders of a union."""
    kinds = lightning.Trainer.__init__.__annotations__
    for name in ("limit_train_batches", "val_check_interval"):
        monkeypatch.setitem(kinds, name, Optional[Union[float, int]])  # noqa: UP007, UP045
    given = ["--config", str(recipe("metric learning", tmp_path)), "--trainer.limit_train_batches=1"]
    read = fit_parser().parse_args([*given, "--trainer.val_check_interval=0.5"]).trainer
    assert isinstance(read.limit_train_batches, int) and read.val_check_interval == 0.5


def test_a_big_batch_is_tiled_by_a_recipe(tmp_path):
    """Tiles of a loss change nothing but the last digits."""
    loss = of("mixcontrast.SupConLoss", temperature=0.2)
    found = []
    for name, criterion in (("whole", loss), ("tiled", of("mixcontrast.Tiled", criterion=loss, rows=2))):
        model = of("mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plain"), criterion=criterion)
        fit("--config", recipe("metric learning", tmp_path / name, model=model), "--out", tmp_path / name / "run",
            "--trainer.max_epochs=1")  # fmt: skip
        found.append(saved(tmp_path / name / "run")["state_dict"])
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_labelled_queue_is_given_labels_wherever_it_is(tmp_path):
    mixer = of("mixcontrast.SynCo", loss=of("mixcontrast.InfoNCE"), num_hardest=4, num_interpolated=2, num_pairs=2,
               num_extrapolated=2, num_noised=1, num_gradient=1, num_sign=1,
               queue=of("mixcontrast.KeyQueue", size=40, dim=8, labels=True))  # fmt: skip
    model = of("mixcontrast.training.SelfSupervised", encoder=of("tests.fitting.Plain"), criterion=mixer, momentum=0.9)
    fit("--config", recipe("moco", tmp_path, model=model), "--out", tmp_path / "run", "--trainer.max_epochs=1")
    assert {"proxy task", "proxy task mixed"} <= set(logged(tmp_path / "run")[0])
    kept = [value for name, value in saved(tmp_path / "run")["state_dict"].items() if name.endswith("label_buffer")]
    assert len(kept) == 1 and 0 <= int(kept[0].min()) and int(kept[0].max()) > 0


def test_a_loss_around_a_loss_is_called_as_it():
    """HCL and CyCLIP are losses that wrap one."""
    assert called_with(HardNegativeLoss(InfoNCE())) == VIEWS
    assert called_with(MoCHi(HardNegativeLoss(SupConLoss()))) == LABELS
    assert called_with(Tiled(SynCo(SupConLoss(), queue=KeyQueue(8, 8)))) == VIEWS
    assert called_with(CyClipLoss(HardNegativeLoss(ClipLoss()))) == ("image_features", "text_features")
