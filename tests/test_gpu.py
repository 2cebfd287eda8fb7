"""On a GPU, as on the CPU: `python -m pytest -m gpu` runs this file, and those of kernels and of retrieval."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixcontrast import (
    ClipLoss,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Linear,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    RankNContrastLoss,
    SupConLoss,
    SupReMix,
    SynCo,
    Tiled,
)
from mixcontrast.mixers.pool import largest
from tests.losses.cases import CASES as LOSSES
from tests.mixers.cases import CASES as MIXERS
from tests.mixers.cases import INTERPOLATIONS, leaves

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
GPU = "cuda"
BATCH, DIM = 64, 32
CLASSES = torch.arange(BATCH) // 4
each_loss = pytest.mark.parametrize("case", LOSSES, ids=str)
each_mixer = pytest.mark.parametrize("case", MIXERS, ids=lambda case: case.name)


def moved(what: Any) -> Any:
    """Tensors, and those inside tuples and dataclasses, as leaves on the GPU."""
    if isinstance(what, Tensor):
        return what.detach().to(GPU).requires_grad_(what.requires_grad)
    if is_dataclass(what) and not isinstance(what, type):
        return replace(what, **{field.name: moved(getattr(what, field.name)) for field in fields(what)})
    return tuple(moved(part) for part in what) if isinstance(what, tuple | list) else what


def value_and_gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)
    return [x.detach().cpu() for x in (loss, *found)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# ---- values and gradients


@each_loss
def test_a_loss_equals_the_cpu(case) -> None:
    found = []
    for to in (lambda x: x, moved):
        criterion = case.make().double()
        criterion = criterion if to is not moved else criterion.to(GPU)
        inputs = to([x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float64)])
        of = [x for x in inputs if x.is_floating_point()] + list(criterion.parameters())
        found.append(value_and_gradients(criterion(*inputs), of))
    assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@each_mixer
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_a_mixer_equals_the_cpu(case, interpolation: str, detach: bool) -> None:
    mixer, inputs = case.make(INTERPOLATIONS[interpolation], detach), case.inputs()
    tables = case.tables(mixer, inputs)
    draw = mixer.draw(tables[0], torch.Generator().manual_seed(11))
    plainly = value_and_gradients(case.value(mixer, tables, draw), leaves(inputs, mixer))
    other, inputs = copy.deepcopy(mixer).to(GPU), moved(inputs)
    there = case.value(other, case.tables(other, inputs), moved(draw))
    assert_close(value_and_gradients(there, leaves(inputs, other)), plainly, rtol=1e-8, atol=1e-10)


@each_mixer
def test_a_draw_on_the_gpu_is_one_that_the_cpu_could_make(case) -> None:
    """Its columns count, and mixing by it on the CPU gives the same loss."""
    mixer, inputs = case.make(Linear(), True).to(GPU), moved(case.inputs())
    tables = case.tables(mixer, inputs)
    draw = mixer.draw(tables[0], torch.Generator(GPU).manual_seed(3))
    there = case.value(mixer, tables, draw)
    mixer, inputs = case.make(Linear(), True), case.inputs()
    here = case.value(mixer, case.tables(mixer, inputs), to_cpu(draw))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=1e-10)


def to_cpu(what: Any) -> Any:
    if isinstance(what, Tensor):
        return what.cpu()
    if is_dataclass(what) and not isinstance(what, type):
        return replace(what, **{field.name: to_cpu(getattr(what, field.name)) for field in fields(what)})
    return tuple(to_cpu(part) for part in what) if isinstance(what, tuple) else what


@pytest.mark.parametrize("columns, count", [(5000, 64), (65_536, 1024), (300_001, 1024), (1003, 7)])
def test_the_hardest_of_a_long_queue(columns: int, count: int) -> None:
    table = torch.randn(16, columns, device=GPU)
    found = table.gather(1, largest(table, count)).sort(dim=1, descending=True).values
    torch.testing.assert_close(found.cpu(), table.cpu().topk(count, dim=1).values, rtol=0, atol=0)


# ---- criteria of a size, for what follows


def queue() -> KeyQueue:
    keys = KeyQueue(512, DIM)
    keys.enqueue(torch.randn(512, DIM, generator=torch.Generator().manual_seed(9)))
    return keys


FEW = dict(num_hardest=16, num_pair_mixes=24, num_anchor_mixes=8)
SIX = dict(num_hardest=16, num_interpolated=8, num_extrapolated=8, num_pairs=8, num_noised=4, num_gradient=4,
           num_sign=4)  # fmt: skip
KINDS = dict(anchor_negative=True, negative_negative=True)
VALUES = torch.arange(BATCH // 2).float().repeat(2)
CRITERIA: dict[str, tuple[Callable[[], nn.Module], Any]] = {  # and what follows the embeddings in a call
    "info-nce-queue": (lambda: InfoNCE(queue=queue()), "keys"),
    "mochi": (lambda: MoCHi(SupConLoss(), **FEW), CLASSES),
    "mochi-queue": (lambda: MoCHi(InfoNCE(), queue=queue(), **FEW), "keys"),
    "mochi-warm-up": (lambda: MoCHi(InfoNCE(), queue=queue(), warmup_steps=2, **FEW), "keys"),
    "synco": (lambda: SynCo(SupConLoss(), detach=False, **SIX), CLASSES),
    "synco-queue": (lambda: SynCo(InfoNCE(), queue=queue(), **SIX), "keys"),
    "metrix": (lambda: Metrix(MultiSimilarityLoss(), max_positives=3, **KINDS), CLASSES),
    "metrix-drawn": (lambda: Metrix(SupConLoss(), num_mixtures=20, **KINDS), CLASSES),
    "supremix": (lambda: SupReMix(SupConLoss()), VALUES),
    "m3-clip": (lambda: GeodesicMixup(ClipLoss()), "towers"),
    "clip-queues": (lambda: MoCHi(ClipLoss(image_queue=queue(), text_queue=queue(), same_modality=True), **FEW),
                    "towers"),
    "rank-n-contrast": (RankNContrastLoss, VALUES),
    "tiled-mochi": (lambda: Tiled(MoCHi(SupConLoss(), **FEW), rows=24), CLASSES),
    "tiled-clip": (lambda: Tiled(ClipLoss(), rows=10), "towers"),
}  # fmt: skip
each_criterion = pytest.mark.parametrize("name", CRITERIA)


class Model(nn.Module):
    """An encoder and what is called with its embeddings."""

    def __init__(self, criterion: nn.Module, second: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.criterion, self.second = nn.Linear(24, DIM), criterion, second
        self.register_buffer("scale", torch.tensor(20.0))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        embeddings = self.encoder(x)
        if self.second == "keys":
            return self.criterion(embeddings, embeddings.flip(0))
        if self.second == "towers":
            image, text = (F.normalize(part, dim=1) for part in embeddings.chunk(2))
            return self.criterion(image, text, self.scale)
        return self.criterion(embeddings, labels)


def model_of(name: str) -> tuple[Model, Tensor, Tensor]:
    """On the GPU, with a batch."""
    make, second = CRITERIA[name]
    labels = second if isinstance(second, Tensor) else CLASSES
    model = Model(make(), second if isinstance(second, str) else "labels").to(GPU)
    x = torch.randn(BATCH, 24, generator=torch.Generator().manual_seed(1))
    return model, x.to(GPU), labels.to(GPU)


# ---- half precision


@each_criterion
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaler(name: str, dtype: torch.dtype) -> None:
    """Half embeddings give the loss and gradients of float32 to the digits that they hold."""
    results = []
    for on in (False, True):
        model, x, labels = model_of(name)
        optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler(GPU, init_scale=1024.0, enabled=on and dtype == torch.float16)
        losses = []
        for step in range(4):
            torch.manual_seed(step)
            with torch.autocast(GPU, dtype=dtype, enabled=on):
                loss = model(x, labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            assert loss.dtype == torch.float32
            assert all(bool(torch.isfinite(p.grad).all()) for p in model.encoder.parameters())
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
        results.append(torch.stack(losses))
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.02)


# ---- no waiting


@pytest.fixture
def no_waiting():
    """A context in which torch raises where an operation waits for the device."""

    class Refuse:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return Refuse()


@each_criterion
def test_a_step_does_not_wait(name: str, no_waiting) -> None:
    model, x, labels = model_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        if step == 1:  # the first one loads code
            no_waiting.__enter__()
        try:
            optimizer.zero_grad()
            model(x, labels).backward()
            optimizer.step()
        except BaseException:
            no_waiting.__exit__()
            raise
    no_waiting.__exit__()


@each_loss
def test_a_loss_does_not_wait(case, no_waiting) -> None:
    criterion = case.make().float().to(GPU).train()
    inputs = moved([x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(torch.float32)])
    criterion(*inputs).backward()
    with no_waiting:
        criterion(*inputs).backward()


@each_mixer
def test_a_mixer_does_not_wait(case, no_waiting) -> None:
    mixer = case.make(Linear(), True).to(GPU).train()
    if isinstance(mixer, Metrix) and mixer.num_mixtures is None:
        mixer.max_positives = 4
    inputs = moved(case.call(case.inputs()))
    mixer(*inputs).backward()
    with no_waiting:
        mixer(*inputs).backward()


def test_a_read_is_refused(no_waiting) -> None:
    x = torch.ones(3, device=GPU)
    with no_waiting, pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


# ---- compiled, and captured

MIXED = ["mochi-labels", "mochi-queue", "synco-two-views", "metrix-max-positives", "metrix-drawn", "supremix",
         "m3-clip"]  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_mix_and_loss_compile_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    (case,) = (case for case in MIXERS if case.name == name)
    mixer, inputs = case.make(Linear(), True).to(GPU).eval(), moved(case.inputs())
    draw = mixer.draw(case.tables(mixer, inputs)[0])

    def loss(*args: Tensor) -> Tensor:
        return case.value(mixer, mixer.tables(*case.call(args)), draw)

    of = leaves(inputs, mixer)
    compiled = torch.compile(loss, fullgraph=True)(*inputs)
    plainly = value_and_gradients(loss(*inputs), of)
    assert_close(value_and_gradients(compiled, of), plainly, rtol=1e-7, atol=1e-9)


def captured(step: Callable[[], list[Tensor]], *generators: torch.Generator) -> tuple[torch.cuda.CUDAGraph, list]:
    """A CUDA graph of a step, after warming up on a stream of its own, and the tensors that a replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


@pytest.mark.parametrize("name", ["mochi", "synco", "metrix", "metrix-drawn", "supremix", "m3-clip"])
def test_a_captured_step_draws_anew_at_each_replay(name: str) -> None:
    model, x, labels = model_of(name)
    mixer, of = model.criterion, list(model.encoder.parameters())
    generator = torch.Generator(GPU)

    def step() -> list[Tensor]:
        if model.second == "towers":
            tables = mixer.tables(*F.normalize(model.encoder(x), dim=1).chunk(2), model.scale)
            loss = mixer.loss_of_towers(tables, mixer.draw(tables[0], generator))
        else:
            (pairs,) = mixer.tables(model.encoder(x), labels)
            loss = mixer.loss_of(pairs, mixer.draw(pairs, generator))
        return [loss.detach(), *torch.autograd.grad(loss, of)]

    generator.manual_seed(1)
    graph, out = captured(step, generator)
    values = []
    for seed in (5, 6, 5):
        generator.manual_seed(seed)
        graph.replay()
        values.append([part.clone() for part in out])
    assert_close(values[2], values[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(values[1][0], values[0][0], rtol=1e-7, atol=0)
    generator.manual_seed(5)
    assert_close(step(), values[0], rtol=1e-4, atol=1e-6)


def test_a_captured_step_reads_what_joins_the_queue_between_replays() -> None:
    criterion = InfoNCE(queue=queue()).to(GPU).eval()
    query = torch.randn(BATCH, DIM, device=GPU, requires_grad=True)
    key = torch.randn(BATCH, DIM, device=GPU)

    def step() -> list[Tensor]:
        loss = criterion(query, key)
        return [loss.detach(), *torch.autograd.grad(loss, query)]

    graph, out = captured(step)
    for _ in range(3):
        criterion.queue.enqueue(torch.randn(BATCH, DIM, device=GPU))
        graph.replay()
        assert_close([x.clone() for x in out], step(), rtol=1e-5, atol=1e-6)
    assert criterion.queue.pointer == 3 * BATCH


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")  # torch's own way to capture
@pytest.mark.parametrize(
    "make", [SupConLoss, lambda: MoCHi(MultiSimilarityLoss(), **FEW)], ids=["loss", "mixer"]
)
def test_a_criterion_as_a_graphed_callable(make) -> None:
    embeddings = torch.randn(BATCH, DIM, device=GPU, requires_grad=True)
    labels = CLASSES.to(GPU)
    criterion = make().to(GPU)
    plainly = criterion(embeddings, labels).detach()  # no graph of another stream may be alive at a capture
    sample = embeddings.detach().clone().requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(criterion), (sample, labels))
    loss = graphed(embeddings, labels)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(loss, plainly, rtol=0.05, atol=0.05)  # another draw
    assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())
