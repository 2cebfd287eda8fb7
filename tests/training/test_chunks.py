"""`chunk_size`: the weights of the whole batch, the random numbers of one pass, and the memory of a chunk."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixcontrast import (
    ClipLoss,
    DeepMetrix,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
)
from mixcontrast.data import ClassData, PairData, ValuesData, VectorNoise, ViewsData
from mixcontrast.models import FeatureTowers
from mixcontrast.training import ImageText, MetricLearning, Regression, SelfSupervised
from mixcontrast.training.chunks import in_chunks
from mixcontrast.training.safety import quieten
from tests.fitting import WIDTH, CaptionedVectors, Measured, Network, Vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start"),
]


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 8))


def mochi(queue: KeyQueue | None) -> MoCHi:
    return MoCHi(InfoNCE(), queue=queue, num_hardest=6, num_pair_mixes=5, num_anchor_mixes=3)


MODULES: dict[str, tuple[Callable[[int | None], lightning.LightningModule], Callable]] = {
    "metric learning": (
        lambda size: MetricLearning(network(), Metrix(ProxyAnchorLoss(8, 8)), optimizer=sgd, chunk_size=size),
        lambda: ClassData(Vectors(), classes_per_batch=4, per_class=3),
    ),
    "moco": (
        lambda size: SelfSupervised(network(), mochi(KeyQueue(40, 8)), momentum=0.9, optimizer=sgd, chunk_size=size),
        lambda: ViewsData(Vectors(num_classes=5, per_class=24), batch_size=16, augment=VectorNoise()),
    ),
    "simclr": (
        lambda size: SelfSupervised(network(), InfoNCE(), projector=nn.Linear(8, 6), optimizer=sgd, chunk_size=size),
        lambda: ViewsData(Vectors(num_classes=5, per_class=24), batch_size=16, augment=VectorNoise()),
    ),
    "regression": (
        lambda size: Regression(network(), SupReMix(SupConLoss()), optimizer=sgd, chunk_size=size),
        lambda: ValuesData(Measured(), batch_size=16, augment=VectorNoise()),
    ),
    "clip": (
        lambda size: ImageText(towers(), GeodesicMixup(ClipLoss()), optimizer=sgd, chunk_size=size),
        lambda: PairData(CaptionedVectors(), batch_size=16),
    ),
    "siglip": (
        lambda size: ImageText(towers(logit_bias=-10.0), SigLipLoss(), optimizer=sgd, chunk_size=size),
        lambda: PairData(CaptionedVectors(), batch_size=16),
    ),
}


def towers(**options) -> FeatureTowers:
    return FeatureTowers(8, hidden=16, image_features=WIDTH, text_features=WIDTH, **options)


def trained(name: str, chunk_size: int | None, **options) -> dict[str, Tensor]:
    make, data = MODULES[name]
    lightning.seed_everything(0, verbose=False)
    module, data = make(chunk_size), data()
    module.prepare(data)
    quieten()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, precision="64-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.global_step >= 2
    return module.state_dict()


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}], ids=["", "summed"])
@pytest.mark.parametrize("name", MODULES)
def test_gives_the_weights_of_the_whole_batch(name: str, options: dict) -> None:
    wanted, found = trained(name, None, **options), trained(name, 5, **options)
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")
    if "clip" in name:
        assert wanted["encoder.logit_scale"] != towers().double().logit_scale


def drawing() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 8))


@pytest.mark.parametrize("autocast", [False, True])
def test_both_passes_draw_the_same_and_count_once(autocast: bool) -> None:
    """Dropout, batch norm and autocast are those of one pass of each chunk."""
    plain, other = drawing(), drawing()
    x, labels = torch.randn(14, WIDTH), torch.arange(14) // 2

    def step(net: nn.Module, embed: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = Metrix(SupConLoss())(embed(x).float(), labels)
        after = torch.rand(3)
        loss.backward()
        return torch.cat([loss.detach()[None], after])

    wanted = step(plain, lambda x: torch.cat([plain(part) for part in (x[:5], x[5:10], x[10:])]))
    found = step(other, lambda x: in_chunks(other, x, 5, other))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad)
    for one, two in zip(plain.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


def test_the_backward_pass_repeats_and_has_a_derivative() -> None:
    grads = []
    for size in (None, 5):
        torch.manual_seed(0)
        net, x = network(), torch.randn(14, WIDTH, requires_grad=True)
        loss = in_chunks(net, x, size, net).square().sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
        of_x.square().sum().backward()
        grads.append([x.grad, *(p.grad for p in net.parameters())])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's, of what it goes on with
def test_a_compiled_step_has_the_gradients_of_one_that_is_not() -> None:
    net, x = network(), torch.randn(14, WIDTH)
    net(x).square().sum().backward()
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    torch.compile(lambda x: in_chunks(net, x, 5, net).square().sum(), backend="eager")(x).backward()
    for parameter, grad in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_chunks_are_as_equal_as_can_be() -> None:
    sizes: list[int] = []
    in_chunks(lambda x: (sizes.append(len(x)), x)[1], torch.randn(11, 2), 5, nn.Identity())
    assert sizes == [4, 4, 3]


class Alive(TorchDispatchMode):
    """How many bytes of tensors that were made under it live, at most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    self.known.add(key)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, key, storage.nbytes())
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_activations_of_one_chunk_are_alive() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.Linear(64, 64), nn.Tanh())]
    net = nn.Sequential(*layers)
    x, labels = torch.randn(1024, 64), torch.arange(1024) // 4
    most = {}
    for size in (None, 64):
        alive = Alive()
        with alive:
            embeddings = in_chunks(net, x, size, net)
            (embeddings * labels[:, None]).sum().backward()
            del embeddings
        most[size] = alive.most
        net.zero_grad()
    activations = 1024 * 64 * 4  # of one layer, in bytes
    assert most[None] > 6 * activations
    assert most[64] < 6 * activations / 2 + 4 * activations


def test_a_module_in_chunks_needs_less() -> None:
    most = []
    for size in (None, 16):
        torch.manual_seed(0)
        deep = nn.Sequential(nn.Linear(WIDTH, 512), *(nn.Tanh() for _ in range(8)), nn.Linear(512, 8))
        module = MetricLearning(deep, Metrix(MultiSimilarityLoss(), num_mixtures=2), chunk_size=size)
        module.log = module.log_dict = lambda *args, **options: None
        module._trainer = type("T", (), {"current_epoch": 0, "global_step": 1, "log_every_n_steps": 50})()
        alive = Alive()
        batch = torch.randn(256, WIDTH), torch.arange(256) // 2
        with alive:
            module.training_step(batch, 0).backward()
        most.append(alive.most)
    assert most[1] < most[0] / 2


def test_refusals() -> None:
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1, or None for all at once. Got 0."):
        MetricLearning(network(), SupConLoss(), chunk_size=0)
    with pytest.raises(ValueError, match="reads the whole batch. Got chunk_size 4; leave it out, or mix embeddings"):
        MetricLearning(network(), DeepMetrix(SupConLoss(), layer="0"), chunk_size=4)


def test_batch_norm_is_warned_of() -> None:
    module = MetricLearning(Network(), SupConLoss(), chunk_size=4)
    module._trainer = type("T", (), {"strategy": None})()
    with pytest.warns(UserWarning, match=r"Got chunk_size 4 and 1 of it in training \(encoder.backbone.1\); freeze"):
        module.setup("fit")
    module.encoder.backbone[1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.setup("fit")
