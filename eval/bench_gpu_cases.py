"""The contestants of eval/bench_gpu.py: steps that it times, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from bench_mixers import (
    geodesic_on_embeddings,
    metrix_on_embeddings,
    mochi_on_embeddings,
    step_of,
    supremix_on_embeddings,
    synco_on_embeddings,
)
from torch import Tensor, nn

import mixcontrast as mc

Step = Callable[[], object]
RESNET, VIT, CLIP = "ResNet-50", "ViT-B/32", "CLIP ViT-B/32"


# ---- networks


@dataclass(frozen=True)
class Network:
    """A network that is trained on random images, and texts.

    Attributes:
        module: what is trained.
        embed: of its batch, what a criterion is called with first.
        device: where it is.
    """

    module: nn.Module
    embed: Callable[[], tuple[Tensor, ...]]
    device: torch.device

    def step(self, contest: Contest, name: str) -> Step:
        """A training step in bf16 with one of a contest's contestants."""
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-5, fused=self.device.type == "cuda")

        def step() -> None:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                embeddings = self.embed()
            loss = contest.called(name, embeddings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step


def networks(small: bool) -> dict[str, tuple[Callable[[torch.device], Network], int]]:
    """Each network and its batch."""
    few, many = (16, 16) if small else (256, 1024)
    return {
        RESNET: (lambda device: _image_network("test_resnet" if small else "resnet50", few, device), few),
        VIT: (lambda device: _image_network("test_vit" if small else "vit_base_patch32_224", few, device), few),
        CLIP: (lambda device: _clip_network(small, many, device), many),
    }


def _image_network(name: str, batch: int, device: torch.device) -> Network:
    import timm

    network = timm.create_model(name, num_classes=512).to(device).train()
    images = torch.randn(batch, *network.default_cfg["input_size"], device=device)
    if "resnet" in name:
        network, images = (x.to(memory_format=torch.channels_last) for x in (network, images))

    def embed() -> tuple[Tensor, ...]:
        embeddings = network(images).float()
        return embeddings, embeddings.detach().flip(0)  # of another view, without gradient

    return Network(network, embed, device)


def _clip_network(small: bool, batch: int, device: torch.device) -> Network:
    import open_clip

    vision = dict(image_size=224, layers=12, width=768, patch_size=32)
    text = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12)
    if small:
        vision |= dict(image_size=64, layers=1, width=64)
        text |= dict(context_length=16, vocab_size=99, width=32, heads=2, layers=1)
    network = open_clip.CLIP(512, vision, text).to(device).train()
    images = torch.randn(batch, 3, vision["image_size"], vision["image_size"], device=device)
    words = torch.randint(1, text["vocab_size"], (batch, text["context_length"]), device=device)

    def embed() -> tuple[Tensor, ...]:
        image, words_of, *_ = network(images, words)
        return image.float(), words_of.float()

    return Network(network, embed, device)


# ---- mixers


@dataclass(frozen=True)
class Contest:
    """Criteria that are called with the same inputs.

    Attributes:
        inputs: of a call.
        contestants: the first two are "loss alone" and "mixed".
    """

    inputs: tuple[Tensor, ...]
    contestants: dict[str, Callable[..., Tensor]]

    def steps(self) -> dict[str, Step]:
        """A forward and backward pass of each."""
        return {name: step_of(criterion, *self.inputs) for name, criterion in self.contestants.items()}

    def called(self, name: str, embeddings: tuple[Tensor, ...]) -> Tensor:
        """The loss of a network's embeddings, of which as many numbers are read as the inputs have."""
        inputs = list(self.inputs)
        for place, embedding in zip((i for i, x in enumerate(inputs) if x.ndim == 2), embeddings, strict=False):
            inputs[place] = embedding[:, : inputs[place].shape[1]]
        return self.contestants[name](*inputs)


@dataclass(frozen=True)
class Case:
    """What is mixed, at which size.

    Attributes:
        title: of its rows.
        size: as the title ends.
        make: its contest.
        trains: the networks that are trained so.
        compiled: whether torch.compile is measured too.
    """

    title: str
    size: int
    make: Callable[[int, torch.device], Contest]
    trains: tuple[str, ...]
    compiled: bool = False


def mixers(small: bool) -> list[Case]:
    """Every mixer."""
    images, towers = (RESNET, VIT), (CLIP,)
    keys, batch, views, pairs = ((512,), 16, 16, 16) if small else ((16_384, 65_536), 256, 256, 1024)
    numbers = "(64, 64, 16)" if small else "(1024, 1024, 128)"
    mochi, of_mochi = f"MoCHi {numbers} on InfoNCE, batch {batch}, D 128, queue", _mochi(small, batch)
    synco = f"SynCo on InfoNCE, batch {batch}, D 128, queue"
    metrix = "Metrix on MultiSimilarityLoss, all positive x negative, 4 a class, D 512, batch"
    return [
        *(Case(mochi, size, of_mochi, images, compiled=size == keys[-1]) for size in keys),
        Case(synco, keys[-1], _synco(small, batch), images),
        Case(metrix, batch, _metrix, images),
        Case("SupReMix on SupConLoss, D 128, views", views, _supremix, images),
        *(Case(f"{x}-Mix on ClipLoss, D 512, batch", pairs, _geodesic((x,)), towers) for x in ("m2", "v", "l", "vl")),
        Case("m3-Mix on ClipLoss, D 512, batch", pairs, _geodesic(("m2", "v", "l", "vl")), towers, compiled=True),
    ]


def _queue(size: int, device: torch.device) -> mc.KeyQueue:
    queue = mc.KeyQueue(size, 128).to(device)
    queue.enqueue(torch.randn(size, 128, device=device))
    return queue


def _of_queue(mixer: Callable[[mc.KeyQueue], mc.Mixer], on_embeddings: Callable, batch: int) -> Callable:
    """Contestants in evaluation mode, so that each finds the same full queue; what joins it costs a copy of a batch."""

    def make(size: int, device: torch.device) -> Contest:
        queue = _queue(size, device)
        mixed = mixer(queue).eval()
        return Contest(
            (torch.randn(batch, 128, device=device), torch.randn(batch, 128, device=device)),
            {
                "loss alone": mc.InfoNCE(temperature=0.2, queue=queue).eval(),
                "mixed": mixed,
                "on embeddings": lambda *x: on_embeddings(mixed, *x),
            },
        )

    return make


def _mochi(small: bool, batch: int) -> Callable:
    few = dict(num_hardest=64, num_pair_mixes=64, num_anchor_mixes=16) if small else {}
    loss = mc.InfoNCE(temperature=0.2)
    return _of_queue(lambda queue: mc.MoCHi(loss, queue=queue, **few), mochi_on_embeddings, batch)


def _synco(small: bool, batch: int) -> Callable:
    few = dict(num_hardest=64, num_interpolated=8, num_extrapolated=8, num_pairs=8) if small else {}
    loss = mc.InfoNCE(temperature=0.2)
    return _of_queue(lambda queue: mc.SynCo(loss, queue=queue, **few), synco_on_embeddings, batch)


def _metrix(batch: int, device: torch.device) -> Contest:
    import pytorch_metric_learning.losses as losses

    loss = mc.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)
    mixer = mc.Metrix(loss, max_positives=3)
    return Contest(
        (torch.randn(batch, 512, device=device), torch.arange(batch // 4, device=device).repeat_interleave(4)),
        {
            "loss alone": loss,
            "mixed": mixer,
            "on embeddings": lambda *x: metrix_on_embeddings(mixer, *x),
            "pytorch-metric-learning, loss alone": losses.MultiSimilarityLoss(18, 75, 0.77),
        },
    )


def _supremix(views: int, device: torch.device) -> Contest:
    values = (torch.rand(views // 2, device=device) * 80).round().repeat(2)
    classes, loss = values.long(), mc.SupConLoss(temperature=0.3)
    mixer = mc.SupReMix(loss)
    return Contest(
        (torch.randn(views, 128, device=device), values),
        {
            "loss alone": lambda x, _: loss(x, classes),
            "mixed": mixer,
            "on embeddings": lambda *x: supremix_on_embeddings(mixer, *x),
        },
    )


def _geodesic(names: tuple[str, ...]) -> Callable[[int, torch.device], Contest]:
    def make(batch: int, device: torch.device) -> Contest:
        import open_clip

        terms = dict.fromkeys(("m2", "v", "l", "vl"))
        terms |= {name: mc.MixTerm(0.05, temperature=0.07 if name == "m2" else None) for name in names}
        mixer = mc.GeodesicMixup(mc.ClipLoss(), **terms)
        return Contest(
            (*F.normalize(torch.randn(2, batch, 512, device=device), dim=-1), torch.full((), 100.0, device=device)),
            {
                "loss alone": mc.ClipLoss(),
                "mixed": mixer,
                "on embeddings": lambda *x: geodesic_on_embeddings(mixer, *x),
                "open_clip, loss alone": open_clip.ClipLoss(),
            },
        )

    return make


# ---- big batches


def batch_sizes(small: bool) -> tuple[int, ...]:
    return (64, 128) if small else (16_384, 65_536, 131_072)


def clip_batches(size: int, device: torch.device, small: bool) -> dict[str, Step]:
    import open_clip

    rows = 16 if small else 2048
    image, text = F.normalize(torch.randn(2, size, 512, device=device), dim=-1)
    scale = torch.full((), 100.0, device=device)

    def step(criterion: Callable) -> Step:
        return step_of(criterion, image, text, scale)

    return {
        "open_clip ClipLoss": step(open_clip.ClipLoss()),
        "open_clip ClipLoss, TF32": step(open_clip.ClipLoss()),
        "ClipLoss, whole": step(mc.ClipLoss()),
        f"Tiled(ClipLoss, rows={rows})": step(mc.Tiled(mc.ClipLoss(), rows=rows)),
        f"Tiled(ClipLoss, rows={rows}), TF32": step(mc.Tiled(mc.ClipLoss(), rows=rows)),
        f"Tiled(V-Mix on ClipLoss, rows={rows})": step(
            mc.Tiled(mc.GeodesicMixup(mc.ClipLoss(), m2=None, l=None, vl=None), rows=rows)
        ),
        f"Tiled(m3-Mix on ClipLoss, rows={rows})": step(mc.Tiled(mc.GeodesicMixup(mc.ClipLoss()), rows=rows)),
    }


def class_batches(size: int, device: torch.device, small: bool) -> dict[str, Step]:
    rows = 16 if small else 2048
    embeddings = torch.randn(size, 512, device=device)
    labels = torch.arange(size // 4, device=device).repeat_interleave(4)
    few = dict(num_hardest=8, num_pair_mixes=8, num_anchor_mixes=4)
    few = few if small else dict(num_hardest=256, num_pair_mixes=256, num_anchor_mixes=64)

    def step(criterion: Callable) -> Step:
        return step_of(criterion, embeddings, labels)

    return {
        "SupConLoss, whole": step(mc.SupConLoss()),
        f"Tiled(SupConLoss, rows={rows})": step(mc.Tiled(mc.SupConLoss(), rows=rows)),
        f"Tiled(SupConLoss, rows={rows}), TF32": step(mc.Tiled(mc.SupConLoss(), rows=rows)),
        f"Tiled(Metrix(num_mixtures=64) on SupConLoss, rows={rows})": step(
            mc.Tiled(mc.Metrix(mc.SupConLoss(), num_mixtures=64), rows=rows)
        ),
        f"Tiled(MoCHi {tuple(few.values())} on SupConLoss, rows={rows})": step(
            mc.Tiled(mc.MoCHi(mc.SupConLoss(), **few), rows=rows)
        ),
    }


# ---- the hardest of a queue, and retrieval


def hardest(num_keys: int, device: torch.device, small: bool) -> tuple[dict[str, Step], int]:
    """The stages of a MoCHi step, and how many similarities it has."""
    batch, count = (8, 64) if small else (256, 1024)
    few = dict(num_hardest=count, num_pair_mixes=count, num_anchor_mixes=count // 8)
    queue = _queue(num_keys, device)
    query, key = torch.randn(2, batch, 128, device=device)
    mixer = mc.MoCHi(mc.InfoNCE(temperature=0.2), queue=queue, **few).eval()
    alone = mc.InfoNCE(temperature=0.2, queue=queue).eval()
    with torch.no_grad():
        (pairs,) = mixer.tables(query, key)
        table = pairs.blocks[0].similarity
    steps = {
        "similarities, one product": lambda: torch.mm(query, queue.keys.T),
        "the largest cell of each row": lambda: table.amax(dim=1),
        "torch.topk": lambda: table.topk(count, dim=1, sorted=False),
        "MoCHi.draw: search, and drawing": lambda: mixer.draw(pairs),
        "InfoNCE, forward and backward": step_of(alone, query, key),
        "MoCHi on InfoNCE, forward and backward": step_of(mixer, query, key),
    }
    return steps, table.numel()


def searches(small: bool) -> list[tuple[int, int, int, int]]:
    """Queries, gallery, D, k."""
    if small:
        return [(64, 500, 32, 5), (16, 500, 32, 300)]
    return [(20_000, 1_000_000, 512, 10), (20_000, 1_000_000, 512, 100), (2_000, 1_000_000, 512, 3000)]


def search(num_queries: int, num_gallery: int, dim: int, k: int, device: torch.device) -> tuple[dict[str, Step], float]:
    """The stages of a search, and the floating-point operations of its products."""
    from mixcontrast.retrieval import search as find
    from mixcontrast.retrieval.torch_search import torch_knn

    queries, gallery = torch.randn(num_queries, dim, device=device), torch.randn(num_gallery, dim, device=device)
    on_host: tuple[np.ndarray, np.ndarray] = queries.cpu().numpy(), gallery.cpu().numpy()
    name = str(device) if device.type != "cpu" else "cpu:0"  # the way of GPUs, on a CPU

    def products() -> None:
        for part in queries.split(1024):
            for block in gallery.split(65_536):
                part @ block.T

    steps = {
        "products alone": products,
        "torch_knn": lambda: torch_knn(*on_host, k, "inner product", name),
        "search": lambda: find(*on_host, k, similarity="inner product", device=name),
    }
    return steps, 2.0 * num_queries * num_gallery * dim
