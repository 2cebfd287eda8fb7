"""Two and three real processes give the loss and gradients of one with the whole batch, for every loss and mixer."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mixcontrast import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
    GeodesicMixup,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
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
    TripletLoss,
)
from mixcontrast.distributed import Gathered

BATCH, WIDTH, SEED = 24, 6, 3


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


def result(name: str, rows: slice, seed: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The second step's loss and gradients, so that what the first step enqueued has been read."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(5, WIDTH).double()
    criterion, kind = criteria()[name]
    wrapped = Gathered(criterion)
    for step in range(2):
        torch.manual_seed(SEED + step + (dist.get_rank() if dist.is_initialized() else 0))  # ranks differ
        if seed is not None:
            torch.manual_seed(int(torch.randint(2**62, (1,))))  # what rank 0 sends
        loss = wrapped(*inputs(kind, encoder, rows))
        grads = torch.autograd.grad(loss, [*encoder.parameters(), *criterion.parameters()])
    return loss.detach(), [grad.detach() for grad in grads]


def worker(rank: int, world: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    found = {}
    for name in criteria():
        rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        loss, grads = result(name, rows, None)
        for grad in grads:
            dist.all_reduce(grad)
        found[name] = (loss, [grad / world for grad in grads])
    uneven = ""
    try:
        Gathered(SupConLoss())(torch.randn(4 + rank, 3), torch.arange(4 + rank) % 2)
    except ValueError as error:
        uneven = str(error)
    torch.save((found, uneven), f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_are_one(world, tmp_path):
    mp.spawn(worker, (world, str(tmp_path / "store"), str(tmp_path / "found")), nprocs=world)
    expected = {name: result(name, slice(None), SEED) for name in criteria()}
    for rank in range(world):
        found, uneven = torch.load(f"{tmp_path / 'found'}.{rank}", weights_only=True)
        assert uneven.startswith("Every rank must have a batch of the same size. Got [4, 5") and "\n" not in uneven
        for name, (loss, grads) in expected.items():
            torch.testing.assert_close(found[name][0], loss, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
            for got, wanted in zip(found[name][1], grads, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_alone_it_is_the_criterion():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(8, 4), torch.arange(8) // 2
    assert Gathered(SupConLoss())(embeddings, labels) == SupConLoss()(embeddings, labels)


def test_only_ours_are_wrapped():
    with pytest.raises(TypeError, match="wraps a mixcontrast loss or mixer. Got Linear"):
        Gathered(torch.nn.Linear(2, 2))
