"""In open_clip's own training loop, on one process and two: open_clip's own losses without mixing, and mixed ones."""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mixcontrast import (
    ClipLoss,
    CyClipLoss,
    GeodesicMixup,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    MoCHi,
    SigLipLoss,
    SupConLoss,
    SynCo,
)
from mixcontrast.adapters.open_clip import OpenClipLoss, create_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip
    from open_clip_train.train import train_one_epoch

BATCH, STEPS, WIDTH = 8, 3, 16
FEW = dict(num_hardest=3, num_pair_mixes=4, num_anchor_mixes=2)
SIX = dict(num_hardest=3, num_interpolated=2, num_extrapolated=2, num_pairs=2, num_noised=2, num_gradient=2, num_sign=2)


def queues() -> dict:
    return dict(image_queue=KeyQueue(20, WIDTH), text_queue=KeyQueue(20, WIDTH))


MIXED = {
    "m3": lambda: GeodesicMixup(ClipLoss()),
    "m3 siglip": lambda: GeodesicMixup(SigLipLoss()),
    "mochi": lambda: MoCHi(ClipLoss(**queues()), **FEW),
    "synco siglip": lambda: SynCo(SigLipLoss(), **SIX),
    "synco own": lambda: SynCo(ClipLoss(same_modality=True, **queues()), same_modality=True, **SIX),
    "hcl": lambda: HardNegativeLoss(ClipLoss()),
    "cyclip stack": lambda: GeodesicMixup(MoCHi(CyClipLoss(ClipLoss()), **FEW)),
}


def parsed(**given) -> Namespace:
    """What open_clip's command line gives its trainer."""
    defaults = dict(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, batch_size=BATCH, world_size=1, rank=0, local_rank=0, log_every_n_steps=1, log_local=False,
        wandb=False, local_loss=False, gather_with_grad=True, siglip=False, loss_dist_impl=None, model="tiny",
    )  # fmt: skip
    return Namespace(**{**defaults, **given})


def tiny_model(siglip: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=WIDTH,
        vision_cfg=dict(layers=1, width=16, head_width=8, patch_size=8, image_size=16),
        text_cfg=dict(context_length=6, vocab_size=32, width=16, heads=2, layers=1),
        init_logit_bias=-5.0 if siglip else None,
        output_dict=True,
    ).double()


def loader(rank: int, world: int) -> dict:
    """Batches of the whole, of which each rank takes its rows."""
    generator = torch.Generator().manual_seed(4)
    share = BATCH // world
    rows = slice(rank * share, (rank + 1) * share)

    class Batches(list):
        num_batches, num_samples = STEPS, STEPS * BATCH

    batches = Batches(
        (torch.randn(BATCH, 3, 16, 16, dtype=torch.float64, generator=generator)[rows],
         torch.randint(1, 32, (BATCH, 6), generator=generator)[rows])
        for _ in range(STEPS)
    )  # fmt: skip
    return {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=batches)}


def trained(loss, args: Namespace) -> dict[str, torch.Tensor]:
    """A tiny model after a few steps of open_clip's loop."""
    model = tiny_model(args.siglip)
    module = DistributedDataParallel(model) if args.world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(7)
    train_one_epoch(module, loader(args.rank, args.world_size), loss, 0, optimizer, None, None, None, args)
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def same(found: dict, wanted: dict, **tolerance) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# ---- one process


@pytest.mark.parametrize("siglip", [False, True], ids=["clip", "siglip"])
@pytest.mark.parametrize("accum", [1, 3])
def test_training_is_open_clips(siglip: bool, accum: int) -> None:
    args = parsed(siglip=siglip, accum_freq=accum)
    ours = create_loss(SigLipLoss() if siglip else ClipLoss(), args)
    before = {name: p.clone() for name, p in tiny_model(siglip).state_dict().items()}
    wanted = trained(open_clip.create_loss(args), args)
    assert not torch.equal(wanted["visual.proj"], before["visual.proj"])
    same(trained(ours, args), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_losses_train_in_its_loop(name: str, caplog) -> None:
    args = parsed(siglip="siglip" in name)
    with caplog.at_level("INFO"):
        found = trained(create_loss(MIXED[name](), args), args)
    plain = trained(open_clip.create_loss(args), args)
    assert all(bool(torch.isfinite(p).all()) for p in found.values() if p.is_floating_point())
    assert any(not torch.allclose(found[n], plain[n], rtol=1e-6, atol=1e-7) for n in plain)
    assert sum("Contrastive_loss: " in line for line in caplog.messages) >= STEPS  # its log, under its name


def test_calls_by_place_and_by_name() -> None:
    image, text = F.normalize(torch.randn(2, 6, 4), dim=-1)
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    for ours, theirs in ((ClipLoss(), open_clip.ClipLoss()), (SigLipLoss(), open_clip.loss.SigLipLoss())):
        for criterion in (ours, OpenClipLoss(ours), MoCHi(ours, warmup_steps=9, **FEW), OpenClipLoss(SynCo(ours,
                          warmup_steps=9, **SIX))):  # fmt: skip
            wanted = theirs(image, text, scale, bias)
            torch.testing.assert_close(criterion(image, text, scale, bias), wanted)
            answer = criterion(image, text, scale, bias, True)
            assert answer.keys() == theirs(image, text, scale, bias, True).keys()
            torch.testing.assert_close(answer["contrastive_loss"], wanted)
        for criterion in (ours, OpenClipLoss(ours), OpenClipLoss(MoCHi(ours, warmup_steps=9, **FEW))):
            named = dict(image_features=image, text_features=text, logit_scale=scale, logit_bias=bias)
            torch.testing.assert_close(criterion(**named, output_dict=True)["contrastive_loss"], wanted)
            labels = torch.arange(6) // 2
            assert not torch.allclose(criterion(image, text, scale, bias, labels=labels), wanted)


# ---- two processes

MODES = {
    "clip gathered": (ClipLoss, dict(gather_with_grad=True)),
    "clip local": (ClipLoss, dict(gather_with_grad=True, local_loss=True)),
    "clip default": (ClipLoss, dict()),
    "siglip": (SigLipLoss, dict()),
}


def features() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, BATCH, WIDTH, dtype=torch.float64, generator=generator).unbind()


def gradients_of(loss, rows: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of two linear towers, a scale and a bias, as a rank of DistributedDataParallel has them before the mean."""
    torch.manual_seed(3)
    towers = torch.nn.ModuleList([torch.nn.Linear(WIDTH, 6), torch.nn.Linear(WIDTH, 6)]).double()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    image, text = (F.normalize(t(x[rows]), dim=-1) for t, x in zip(towers, features(), strict=True))
    value = loss(image_features=image, text_features=text, logit_scale=scale, logit_bias=bias, output_dict=True)
    value = value["contrastive_loss"]
    grads = torch.autograd.grad(value, [*towers.parameters(), scale, bias], allow_unused=True, materialize_grads=True)
    return value.detach(), [g.clone() for g in grads]


def mean_over_ranks(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    for tensor in tensors:
        dist.all_reduce(tensor)
    return [tensor / dist.get_world_size() for tensor in tensors]


def worker(rank: int, world: int, file: str, out: str) -> None:
    warnings.simplefilter("ignore")  # open_clip gathers by a function that torch has put aside
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    place = dict(rank=rank, world_size=world)
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    found = {}
    for name, (ours, flags) in MODES.items():
        theirs = (open_clip.loss.ClipLoss if ours is ClipLoss else open_clip.loss.SigLipLoss)(**place, **flags)
        for whose, loss in (("ours", OpenClipLoss(ours(), **place, **flags)), ("theirs", theirs)):
            value, grads = gradients_of(loss, rows)
            found[name, whose] = (value, mean_over_ranks(grads))
    for siglip in (False, True):
        for local in (False, True):
            args = parsed(siglip=siglip, local_loss=local, batch_size=BATCH // world, **place)
            ours = create_loss(SigLipLoss() if siglip else ClipLoss(), args)
            found["trained", siglip, local] = trained(ours, args)
            if not siglip:
                found["trained by theirs", siglip, local] = trained(open_clip.create_loss(args), args)
    for name in MIXED:
        args = parsed(siglip="siglip" in name, batch_size=BATCH // world, **place)
        found["trained", name] = trained(create_loss(MIXED[name](), args), args)
    torch.save(found, f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (2, str(folder / "store"), str(folder / "found")), nprocs=2)
    return [torch.load(f"{folder / 'found'}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", MODES)
def test_values_and_gradients_are_open_clips_on_two_processes(two_ranks, name: str) -> None:
    alone_value, alone = gradients_of(MODES[name][0](), slice(None))
    for found in two_ranks:
        value, grads = found[name, "ours"]
        torch.testing.assert_close(value, alone_value, rtol=1e-9, atol=1e-9)
        theirs = torch.stack([ranks[name, "theirs"][0] for ranks in two_ranks]).mean()
        torch.testing.assert_close(value, theirs, rtol=1e-9, atol=1e-9)
        _, wanted = found[name, "theirs"]
        for place, (got, one, other) in enumerate(zip(grads, alone, wanted, strict=True)):
            torch.testing.assert_close(got, one, rtol=1e-6, atol=1e-10)
            if name == "clip default" and place < 4:  # open_clip divides the towers' by the number of ranks
                other = 2 * other
            torch.testing.assert_close(got, other, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("siglip", [False, True], ids=["clip", "siglip"])
def test_training_on_two_processes_is_open_clips_on_one(two_ranks, siglip: bool) -> None:
    args = parsed(siglip=siglip)
    wanted = trained(open_clip.create_loss(args), args)
    for found in two_ranks:
        for local in (False, True):
            same(found["trained", siglip, local], wanted, rtol=1e-8, atol=1e-10)
            if not siglip:
                same(found["trained", siglip, local], found["trained by theirs", siglip, local], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_losses_train_alike_on_both_ranks(two_ranks, name: str) -> None:
    one, other = (found["trained", name] for found in two_ranks)
    same(one, other, rtol=0, atol=0)
    assert all(bool(torch.isfinite(p).all()) for p in one.values() if p.is_floating_point())
    if name == "hcl":  # nothing is drawn: one process with the whole batch does the same
        same(one, trained(create_loss(MIXED[name](), parsed()), parsed()), rtol=1e-8, atol=1e-10)


# ---- bad input

REFUSED = {
    "class loss": (lambda: OpenClipLoss(SupConLoss()), TypeError, "SupConLoss", "ClipLoss or SigLipLoss"),
    "mixed class loss": (lambda: OpenClipLoss(MoCHi(InfoNCE())), TypeError, "MoCHi", "ClipLoss or SigLipLoss"),
    "theirs": (lambda: OpenClipLoss(open_clip.ClipLoss()), TypeError, "ClipLoss", "of mixcontrast"),
    "horovod": (lambda: OpenClipLoss(ClipLoss(), use_horovod=True), ValueError, "use_horovod=True", "torchrun"),
    "local": (lambda: OpenClipLoss(ClipLoss(), local_loss=True, world_size=2), ValueError, "gather_with_grad=False",
              "--gather-with-grad"),
    "no group": (lambda: OpenClipLoss(ClipLoss(), world_size=2)(torch.eye(2), torch.eye(2), 1.0), ValueError,
                 "rank 0 of 2", "torchrun"),
    "distill": (lambda: create_loss(ClipLoss(), parsed(distill=True)), ValueError, "distill=True", "own loss"),
    "coca": (lambda: create_loss(ClipLoss(), parsed(model="coca_ViT-B-32")), ValueError, "coca_ViT-B-32", "own loss"),
    "siglip": (lambda: create_loss(GeodesicMixup(CyClipLoss(SigLipLoss())), parsed()), ValueError, "SigLipLoss",
               "change one"),
    "not siglip": (lambda: create_loss(ClipLoss(), parsed(siglip=True)), ValueError, "siglip=True and ClipLoss",
                   "change one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    call, error, seen, remedy = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".") and seen in message and remedy in message, message


def test_its_state_is_the_criterions() -> None:
    loss = OpenClipLoss(MoCHi(ClipLoss(**queues()), **FEW))
    image, text = F.normalize(torch.randn(2, BATCH, WIDTH), dim=-1)
    loss(image, text, 10.0)
    other = OpenClipLoss(MoCHi(ClipLoss(**queues()), **FEW), world_size=2)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    torch.testing.assert_close(other.criterion.loss.text_queue.keys, text)
    assert other.criterion.loss.image_queue.fill == BATCH and other.criterion.step == 1
