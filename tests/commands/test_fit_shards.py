"""`mixcontrast fit` by processes that each hold a share of the weights: the weights, files and results of one."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mixcontrast.cli import main
from mixcontrast.commands.fit import fit
from mixcontrast.models.lora import add_lora
from mixcontrast.retrieval import Evaluation
from mixcontrast.training.sharding import shard
from tests.commands.test_fit import assert_same, assert_same_run, saved
from tests.fitting import TOWERS, Killed, of, recipe

SGD = of("torch.optim.SGD", lr=0.5, momentum=0.9)
ADAMW = of("torch.optim.AdamW", lr=1e-2, weight_decay=1e-2)
DEEP = of("tests.fitting.Deep")
HIDDEN = {**TOWERS, "init_args": TOWERS["init_args"] | {"hidden": 16, "logit_bias": -5.0}}
MODELS = {
    "metric learning": of(
        "mixcontrast.training.MetricLearning", encoder=DEEP, optimizer=SGD, proxy_factor=2.0,
        criterion=of("mixcontrast.ProxyAnchorLoss", num_classes=8, embedding_dim=8, alpha=4.0),
    ),
    "moco": of(
        "mixcontrast.training.SelfSupervised", encoder=DEEP, optimizer=ADAMW, momentum=0.9,
        criterion=of("mixcontrast.InfoNCE", temperature=0.2, queue=of("mixcontrast.KeyQueue", size=40, dim=8)),
    ),
    "simclr": of(
        "mixcontrast.training.SelfSupervised", encoder=DEEP, optimizer=SGD, chunk_size=6,
        projector=of("mixcontrast.models.ProjectionHead", num_features=8, embedding_dim=6),
        criterion=of("mixcontrast.InfoNCE", temperature=0.2),
    ),
    "regression": of(
        "mixcontrast.training.Regression", encoder=DEEP, optimizer=SGD, criterion=of("mixcontrast.RankNContrastLoss"),
    ),
    "image text": of(
        "mixcontrast.training.ImageText", encoder=HIDDEN, optimizer=ADAMW, criterion=of("mixcontrast.SigLipLoss"),
        head_only_steps=2,
    ),
    "direct regression": of(
        "mixcontrast.training.DirectRegression", encoder=DEEP, embedding_dim=8, optimizer=SGD,
    ),
}  # fmt: skip
CLIPPED = "--trainer.gradient_clip_val=0.5"
SHARDS = "--trainer.strategy=" + str(of("mixcontrast.training.Shards"))
LIGHTNINGS = of("lightning.pytorch.strategies.ModelParallelStrategy", data_parallel_size=2, tensor_parallel_size=1,
                save_distributed_checkpoint=False)  # fmt: skip


class InShards(lightning.Callback):
    """Weights of the networks are shares, each layer of them gathered by itself; proxies are whole."""

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        world = trainer.world_size
        for network in module.networks():
            assert isinstance(network, FSDPModule)
            assert all(isinstance(part, FSDPModule) for part in network.modules() if isinstance(part, nn.Linear))
            for name, parameter in network.named_parameters():
                assert isinstance(parameter, DTensor) == (parameter.numel() > 1), name
                if isinstance(parameter, DTensor) and len(parameter) % world == 0:
                    assert parameter.to_local().numel() == parameter.numel() // world
        if module.criterion is not None:
            assert not any(isinstance(parameter, DTensor) for parameter in module.criterion.parameters())


def run(recipes: Path, out: Path, *arguments: str, callbacks: tuple[lightning.Callback, ...] = ()) -> None:
    for name, model in MODELS.items():
        options = ["--config", str(recipe(name, recipes, model=model)), "--out", str(out / name), CLIPPED]
        fit([*options, "--trainer.max_epochs=2", *arguments], callbacks=callbacks)


def assert_near_run(first: Path, second: Path, **tolerance: float) -> None:
    for file in ("last.ckpt", "best.ckpt"):
        one, two = saved(first, file), saved(second, file)
        assert one["global_step"] == two["global_step"] and one.keys() == two.keys()
        assert one["state_dict"].keys() == two["state_dict"].keys()
        for key, tensor in one["state_dict"].items():
            where = f"{first.name}, {file}, {key}: "
            torch.testing.assert_close(two["state_dict"][key], tensor, msg=lambda m, w=where: w + m, **tolerance)
        if (first / "model.pt").exists():
            assert saved(first, "model.pt")["state_dict"].keys() == saved(second, "model.pt")["state_dict"].keys()
    one, two = Evaluation.load(first), Evaluation.load(second)
    assert one.values.keys() == two.values.keys()
    for metric in one.values:
        assert one.mean(metric) == pytest.approx(two.mean(metric), abs=1e-3)


def join(rank: int, port: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank)}  # fmt: skip


def two(work, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(folder)), nprocs=2)


def as_one(rank: int, port: int, folder: str) -> None:
    join(rank, port)
    out = Path(folder)
    run(out / f"recipes {rank}", out / "two", "--trainer.devices=2", SHARDS, callbacks=(InShards(),))


@pytest.mark.slow
def test_two_processes_with_shards_train_as_one(tmp_path: Path) -> None:
    two(as_one, tmp_path)
    run(tmp_path / "recipes", tmp_path / "one")
    for name in MODELS:
        assert_near_run(tmp_path / "one" / name, tmp_path / "two" / name, rtol=1e-4, atol=1e-5)


LIKE_DDP = {
    "metric learning": (2, 6),  # while the head alone is trained, and behind; with batch norm, dropout and a mixer
    "moco": (7,),  # with a queue, a momentum encoder and projectors
    "simclr": (4,),  # with gradients that are half accumulated
    "image text": (5,),  # with queues of both towers
    "deep": (3,),  # mixed within the encoder's pass
}
CHANGES = {
    "deep": {
        "model__init_args__criterion": of("mixcontrast.DeepMetrix", loss=of("mixcontrast.MultiSimilarityLoss"),
                                          layer="backbone.2"),
        "data__init_args__classes_per_batch": 4,
    }
}  # fmt: skip


def like_ddp(rank: int, port: int, folder: str) -> None:
    join(rank, port)
    out = Path(folder)
    for name, kills in LIKE_DDP.items():
        base = "metric learning" if name == "deep" else name
        file = recipe(base, out / f"recipes {rank}" / name, **CHANGES.get(name, {}))
        command = ["fit", "--config", str(file), "--save_every", "1", "--test_every", "2", "--trainer.devices=2"]
        main([*command, "--out", str(out / "ddp" / name), "--trainer.strategy=ddp"])
        main([*command, "--out", str(out / "shards" / name), SHARDS])
        command += ["--out", str(out / "killed" / name), f"--trainer.strategy={LIGHTNINGS}"]
        for batch in kills:
            os.environ["KILL_AT"] = f"raise:{batch}"
            with pytest.raises(Killed):
                main(command)
        del os.environ["KILL_AT"]
        main(command)


@pytest.mark.slow
def test_shards_train_as_ddp_and_go_on_as_if_not_killed(tmp_path: Path) -> None:
    two(like_ddp, tmp_path)
    for name in LIKE_DDP:
        ddp, shards, killed = (tmp_path / how / name for how in ("ddp", "shards", "killed"))
        assert_near_run(ddp, shards)
        optimizers = [saved(folder)["optimizer_states"] for folder in (ddp, shards)]
        assert [len(of_one[0]["state"]) for of_one in optimizers] == [len(optimizers[0][0]["state"])] * 2
        assert_same_run(shards, killed)


@pytest.fixture
def alone() -> Iterator[None]:
    """Behind it there is no process group, and the environment is as before."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.filterwarnings("ignore")  # Lightning's, as in two processes
def test_one_process_with_all_shards_trains_as_without(tmp_path: Path, alone: None) -> None:
    file = str(recipe("metric learning", tmp_path, model=MODELS["metric learning"]))
    main(["fit", "--config", file, "--out", str(tmp_path / "plain"), CLIPPED])
    fit(["--config", file, "--out", str(tmp_path / "shards"), CLIPPED, SHARDS])
    assert_near_run(tmp_path / "plain", tmp_path / "shards")
    one, two = (saved(tmp_path / name) for name in ("plain", "shards"))
    groups = [[group["params"] for group in of_one["optimizer_states"][0]["param_groups"]] for of_one in (one, two)]
    assert_same(*groups)


def test_adapters_of_attention_are_refused_in_one_line() -> None:
    pytest.importorskip("peft")
    network = nn.Sequential(nn.MultiheadAttention(8, 2))
    add_lora(network, [network], rank=2, alpha=1.0, dropout=0.0)
    with pytest.raises(ValueError, match="Got 0.base_layer; take trainer.strategy: ddp, or leave") as told:
        shard(network, None)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "options, seen",
    [
        (["--trainer.strategy=fsdp"], "Got the strategy fsdp, which flattens them; write trainer.strategy: {class_pat"),
        (["--trainer.strategy=" + str(of("lightning.pytorch.strategies.ModelParallelStrategy"))],
         "Got tensor_parallel_size: auto, save_distributed_checkpoint: true; write trainer.strategy: {class_path: "),
        ([f"--trainer.strategy={LIGHTNINGS}"], "Got data_parallel_size: 2 and 1 processes"),
        ([SHARDS, "--trainer.precision=16-mixed"], "Got precision 16-mixed; take bf16-mixed"),
    ],
)  # fmt: skip
def test_shards_made_otherwise_are_refused_in_one_line(options, seen, tmp_path, capsys) -> None:
    file = recipe("metric learning", tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--out", str(tmp_path / "run"), *options])
    line = capsys.readouterr().err
    assert seen in line and line.count("\n") == 1
