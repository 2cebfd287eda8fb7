"""Two and four real processes give the loss and gradients of one with the whole batch, for every loss and mixer."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixcontrast import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
    DeepMetrix,
    GeodesicMixup,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
    Linear,
    Loss,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    SynCo,
    Tiled,
    TripletLoss,
    cached_backward,
)
from mixcontrast.distributed import Gathered
from mixcontrast.mixers.joining import DeepDraw

from .losses.cases import CASES as LOSSES
from .mixers.cases import CASES as MIXERS

BATCH, WIDTH, SEED = 24, 6, 3
IN_TILES = ("loss triplet", "loss proxy_anchor", "loss cyclip", "mochi-clip-labels-queues", "metrix-all-kinds",
            "synco-two-views", "supremix", "m3-odd")  # fmt: skip


def queue() -> KeyQueue:
    generator = torch.Generator().manual_seed(0)
    filled = KeyQueue(40, WIDTH).double()
    filled.enqueue(torch.randn(31, WIDTH, dtype=torch.float64, generator=generator))
    return filled


def criteria() -> dict:
    """Each criterion with the kind of its inputs."""
    small = dict(num_hardest=6, num_pair_mixes=5, num_anchor_mixes=3)
    six = dict(num_hardest=6, num_interpolated=3, num_extrapolated=3, num_pairs=3, num_noised=2, num_gradient=2,
               num_sign=2)  # fmt: skip
    return {
        "contrastive": (ContrastiveLoss(), "labels"),
        "triplet": (TripletLoss(), "labels"),
        "multi-similarity": (MultiSimilarityLoss(), "labels"),
        "binomial deviance": (BinomialDevianceLoss(), "labels"),
        "lifted structure": (LiftedStructureLoss(), "labels"),
        "nca": (NCALoss(), "labels"),
        "supcon": (SupConLoss(), "labels"),
        "proxy nca": (ProxyNCALoss(6, WIDTH).double(), "labels"),
        "proxy anchor": (ProxyAnchorLoss(6, WIDTH).double(), "labels"),
        "rank-n-contrast": (RankNContrastLoss(), "values"),
        "infonce": (InfoNCE(), "views"),
        "infonce queue": (InfoNCE(queue=queue()), "views"),
        "clip": (ClipLoss(), "towers"),
        "siglip": (SigLipLoss(), "towers"),
        "mochi queue": (MoCHi(InfoNCE(), queue=queue(), **small), "views"),
        "mochi": (MoCHi(SupConLoss(), **small), "labels"),
        "metrix": (Metrix(MultiSimilarityLoss()), "labels"),
        "metrix drawn": (Metrix(SupConLoss(), num_mixtures=4, anchor_negative=True), "labels"),
        "metrix proxies": (Metrix(ProxyAnchorLoss(6, WIDTH).double()), "labels"),
        "supremix": (SupReMix(SupConLoss(), window=2.0), "values"),
        "hcl": (HardNegativeLoss(InfoNCE()), "views"),
        "synco queue": (SynCo(InfoNCE(), queue=queue(), **six), "views"),
        "cyclip labels": (CyClipLoss(ClipLoss(same_modality=True)), "labelled towers"),
        "mochi clip queues": (MoCHi(ClipLoss(image_queue=queue(), text_queue=queue()), **small), "towers"),
        "synco siglip own": (SynCo(SigLipLoss(same_modality=True), same_modality=True, **six), "labelled towers"),
        "m3 labels": (GeodesicMixup(ClipLoss()), "labelled towers"),
        "m3": (GeodesicMixup(ClipLoss()), "towers"),
        "stack": (MoCHi(Metrix(MultiSimilarityLoss()), **small), "labels"),
    }


def inputs(kind: str, encoder: torch.nn.Module, rows: slice) -> tuple:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, BATCH, 5, dtype=torch.float64, generator=generator)
    one, two = encoder(first[rows]), encoder(second[rows])
    if kind == "labels":
        return one, (torch.arange(BATCH) % 6)[rows]
    if kind == "values":
        return one, (torch.arange(BATCH) % 8 / 2).double()[rows]
    if kind == "views":
        return one, two
    unit = torch.nn.functional.normalize
    called = unit(one, dim=-1), unit(two, dim=-1), torch.tensor(10.0, dtype=torch.float64), torch.tensor(-5.0).double()
    return called if kind == "towers" else (*called, False, (torch.arange(BATCH) % 9)[rows])


def result(name: str, rows: slice, world: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The second step's loss and gradients, so that what the first step enqueued has been read."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(5, WIDTH).double()
    criterion, kind = criteria()[name]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    wrapped = Gathered(criterion) if ranks > 1 else alone(criterion, inputs(kind, encoder, rows), world)
    for step in range(2):
        torch.manual_seed(SEED + step + (dist.get_rank() if ranks > 1 else 0))  # ranks differ
        loss = wrapped(*inputs(kind, encoder, rows))
        grads = torch.autograd.grad(loss, [*encoder.parameters(), *criterion.parameters()])
    return loss.detach(), [grad.detach() for grad in grads]


def alone(criterion, called: tuple, world: int, rows: int = 1000):
    """What many ranks should give, in one process: a loss as it is, a mixer in tiles of the ranks' shares."""
    if isinstance(criterion, Loss) and rows == 1000:
        return criterion
    training = criterion.training
    with torch.no_grad():
        anchors = len(criterion.eval().plans(*called)[0].anchors)
    criterion.train(training)
    return Tiled(criterion, rows=min(rows, -(-anchors // world)))


# Every loss and mixer of the conformance suites


def cases() -> dict:
    """Makes each criterion and its inputs, of which a multiple of four examples is kept."""
    found = {f"loss {case.name}": (case.make, partial(case.inputs, torch.float64)) for case in LOSSES}
    for case in MIXERS:
        found[case.name] = (partial(case.make, Linear(), False), lambda case=case: case.call(case.inputs()))
    return found


def kinds(world: int) -> list[tuple[str, int, int | None]]:
    """Each case with the number of processes and rows a tile."""
    return [(name, world, None) for name in cases()] + [(name, world, 3) for name in IN_TILES if world == 2]


def shortened(called: tuple) -> list:
    sizes = [len(x) for x in called if isinstance(x, torch.Tensor) and x.ndim]
    return [x.detach()[: min(sizes) // 4 * 4] if isinstance(x, torch.Tensor) and x.ndim else x for x in called]


def of_case(name: str, world: int, tile: int | None) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """The loss, the gradients of what each rank has a part of, and those of what all have."""
    make, make_inputs = cases()[name]
    criterion, called = make().double().eval(), shortened(make_inputs())
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    mine, shared = [], []
    for i, x in enumerate(called):
        if isinstance(x, torch.Tensor) and x.ndim:
            x = x[len(x) // ranks * rank :][: len(x) // ranks].clone()
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim != 1 and (not x.ndim or i < 2):
            x = x.detach().requires_grad_()
            (mine if x.ndim else shared).append(x)
        called[i] = x
    shared += list(criterion.parameters())
    torch.manual_seed(SEED + rank)
    if ranks > 1:
        wrapped = Gathered(criterion if tile is None else Tiled(criterion, rows=tile))
    else:
        wrapped = alone(criterion, called, world, 1000 if tile is None else tile)
    loss = wrapped(*called)
    grads = torch.autograd.grad(loss, [*mine, *shared], allow_unused=True, materialize_grads=True)
    return loss.detach(), list(grads[: len(mine)]), list(grads[len(mine) :])


def deep_criteria() -> dict:
    similar = MultiSimilarityLoss(beta=10.0)
    return {
        "inputs": DeepMetrix(similar, layer=None),
        "all kinds": DeepMetrix(similar, layer="1", num_mixtures=5, anchor_negative=True, negative_negative=True),
        "proxy rows": DeepMetrix(ProxyAnchorLoss(6, WIDTH, alpha=4.0), layer="1"),
        "proxy columns": DeepMetrix(ProxyNCALoss(6, WIDTH), layer="0", num_mixtures=7),
        "mean of rows": DeepMetrix(SupConLoss(), layer="0"),
    }


def deep(rank: int, world: int, ranks: int) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
    """Loss and gradients where each of `ranks` mixes its own part of the batch; in one process by hand."""
    x = torch.randn(BATCH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels, share, found = torch.arange(BATCH) % 6, BATCH // ranks, {}
    for name, criterion in deep_criteria().items():
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, WIDTH)).double()
        for proxies in criterion.double().parameters():
            torch.nn.init.normal_(proxies)
        torch.manual_seed(SEED + rank)  # ranks differ
        if world > 1:
            rows = slice(rank * share, (rank + 1) * share)
            loss = Gathered(criterion)(encoder, x[rows], labels[rows])
        else:
            seed = int(torch.randint(2**62, (1,)))
            draws = [criterion.draw(part, torch.Generator().manual_seed(seed + number))
                     for number, part in enumerate(labels.split(share))]  # fmt: skip
            first, second = (torch.cat([getattr(draw, name) + number * share for number, draw in enumerate(draws)])
                             for name in ("first", "second"))  # fmt: skip
            loss = criterion.loss_of(encoder, x, labels, DeepDraw(first, second, torch.cat([d.lam for d in draws])))
        shared = list(criterion.parameters())
        grads = torch.autograd.grad(loss, [*encoder.parameters(), *shared])
        found[name] = loss.detach(), [grad.detach() for grad in grads]
    return found


def cached(rank: int, world: int) -> list[torch.Tensor]:
    """The gradients of a network whose ranks embed their batch in chunks."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, WIDTH)).double()
    ranked = DistributedDataParallel(network) if world > 1 else network
    x = torch.randn(BATCH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    labels = (torch.arange(BATCH) // 3)[own]
    views = list(zip(x[own].split(4), x[own].flip(1).split(4), strict=True))
    criterion = Gathered(SupConLoss())
    if world > 1:
        for _ in range(2):
            network.zero_grad()
            cached_backward((ranked, ranked), views, lambda a, b: criterion(torch.cat([a, b]), labels.repeat(2)))
    else:
        SupConLoss()(network(torch.cat([x, x.flip(1)])), labels.repeat(2)).backward()
    return [p.grad for p in network.parameters()]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world in (4, 2):
        if rank < world:
            work(rank, world, f"{folder}/meet{world}", f"{folder}/found{world}")


def work(rank: int, world: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    found = {}
    for name in criteria():
        rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        loss, grads = result(name, rows, world)
        for grad in grads:
            dist.all_reduce(grad)
        found[name] = (loss, [grad / world for grad in grads])
    of_cases = {key: of_case(*key) for key in kinds(world)}
    uneven = ""
    try:
        Gathered(SupConLoss())(torch.randn(4 + rank, 3), torch.arange(4 + rank) % 2)
    except ValueError as error:
        uneven = str(error)
    of_deep = deep(rank, world, world)
    for _, grads in of_deep.values():
        for grad in grads:  # DistributedDataParallel's mean
            dist.all_reduce(grad)
            grad /= world
    torch.save((found, of_cases, cached(rank, world), of_deep, uneven), f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def close(got, wanted, name, tolerance=1e-9) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=4)
    return folder


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one(world, folder):
    expected = {name: result(name, slice(None), world) for name in criteria()}
    expected_cases = {key: of_case(*key) for key in kinds(world)}
    from_cache, from_deep = cached(0, 1), deep(0, 1, world)
    for rank in range(world):
        found, of_cases, of_cache, of_deep, uneven = torch.load(folder / f"found{world}.{rank}", weights_only=True)
        assert uneven.startswith("Every rank must have a batch of the same size. Got [4, 5") and "\n" not in uneven
        for name, (loss, grads) in expected.items():
            close(found[name][0], loss, name)
            for got, wanted in zip(found[name][1], grads, strict=True):
                close(got, wanted, name)
        for name, (loss, mine, shared) in expected_cases.items():
            got, of_mine, of_shared = of_cases[name]
            close(got, loss, name)
            for one, other in zip(of_mine, mine, strict=True):  # DistributedDataParallel takes the mean
                close(one / world, other.chunk(world)[rank], name)
            for one, other in zip(of_shared, shared, strict=True):
                close(one, other, name)
        for got, wanted in zip(of_cache, from_cache, strict=True):
            close(got, wanted, "cached")
        for name, wanted in from_deep.items():
            close(of_deep[name], wanted, f"deep, {name}")


class Wide(TorchDispatchMode):
    """The numbers of the largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_a_rank_makes_its_rows_alone(monkeypatch):
    """As one of four: of 64 x 64 cells it makes a quarter."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(dist, "all_gather", lambda parts, tensor: [part.copy_(tensor) for part in parts])
    embeddings, labels = torch.randn(16, 4, requires_grad=True), torch.arange(16) // 2
    with Wide() as seen:
        Gathered(SupConLoss())(embeddings, labels).backward()
    assert seen.most == 64 * 16


def test_alone_it_is_the_criterion():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(8, 4), torch.arange(8) // 2
    assert Gathered(SupConLoss())(embeddings, labels) == SupConLoss()(embeddings, labels)
    encoder, deep, values = torch.nn.Linear(4, 3), DeepMetrix(SupConLoss(), layer=None), []
    for criterion in (deep, Gathered(deep)):
        torch.manual_seed(1)
        values.append(criterion(encoder, embeddings, labels))
    assert values[0] == values[1]


def test_only_ours_are_wrapped():
    for wrong in (torch.nn.Linear(2, 2), Gathered(SupConLoss())):
        with pytest.raises(TypeError, match="wraps a mixcontrast loss or mixer. Got (Linear|Gathered)"):
            Gathered(wrong)
