"""DeepMetrix against the same thing written plainly: the network cut in two by hand, mixtures embedded on their own."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    DeepMetrix,
    InfoNCE,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SupConLoss,
    TripletLoss,
)
from mixcontrast.mixers.metrix import Parents

from . import plain

LABELS = torch.tensor([4, 4, 4, 1, 1, 0, 0, 3, 1])  # 3 is alone


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.inside(self.act(x)))


def network() -> nn.Sequential:
    """Layers by number; batch norm before and after every cut."""
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3),
    ]  # fmt: skip
    return nn.Sequential(*parts).double()


def images(size: int = len(LABELS)) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_loss(loss, criterion, embeddings, labels, mixed, draw, proxies=None):
    """The real table, and the mixed one cell by cell."""
    z, v = plain.unit(embeddings), plain.unit(mixed)
    anchors, classes = (z, labels) if proxies is None else (plain.unit(proxies), torch.arange(len(proxies)))
    used = plain.others(len(z)) if proxies is None else torch.ones(len(anchors), len(z), dtype=torch.bool)
    real = plain.rows_of(anchors @ z.T, classes[:, None] == labels, used)
    rows = []
    for a, mine in enumerate(classes.tolist()):
        s, t = [], []
        for m, (i, j, lam) in enumerate(zip(draw.first.tolist(), draw.second.tolist(), draw.lam, strict=True)):
            target = lam if labels[i] == mine else 1 - lam if labels[j] == mine else torch.zeros(())
            if target == 0:
                wanted = criterion.negative_negative
            elif proxies is None and a in (i, j):
                wanted = criterion.anchor_negative
            else:
                wanted = criterion.positive_negative
            if wanted:
                s.append(anchors[a] @ v[m])
                t.append(target.double())
        s, t = (torch.stack(x) if x else z.new_zeros(0) for x in (s, t))
        rows.append(plain.Row(s, t, torch.ones_like(s)))
    return loss(real) + criterion.weight * loss(rows)


def proxy_nca_plainly(criterion, embeddings, labels, mixed, draw):
    p, classes, loss = plain.unit(criterion.loss.proxies), torch.arange(5), plain.nca(0.3, everything=True)
    one = torch.ones(1, 1)
    lam = draw.lam[:, None]
    target = lam * (labels[draw.first][:, None] == classes) + (1 - lam) * (labels[draw.second][:, None] == classes)
    real = plain.rows_of(plain.unit(embeddings) @ p.T, labels[:, None] == classes, one)
    return loss(real) + criterion.weight * loss(plain.rows_of(plain.unit(mixed) @ p.T, target, one))


def proxy_anchor_plainly(criterion, embeddings, labels, mixed, draw):
    loss = plain.proxy_anchor(5, 0.1)
    return plain_loss(loss, criterion, embeddings, labels, mixed, draw, criterion.loss.proxies)


SIM = partial(MultiSimilarityLoss, beta=10.0)
PLAIN_SIM = partial(plain_loss, plain.multi_similarity(2, 10, 0.5))
CASES = {
    "inputs": (SIM, dict(layer=None), PLAIN_SIM),
    "early": (SIM, dict(layer="0"), PLAIN_SIM),
    "before-norm": (SIM, dict(layer="3"), PLAIN_SIM),
    "norm-itself": (SIM, dict(layer="4"), PLAIN_SIM),
    "all-kinds": (SIM, dict(layer="2", anchor_negative=True, negative_negative=True), PLAIN_SIM),
    "anchor-negative": (SIM, dict(layer="2", positive_negative=False, anchor_negative=True), PLAIN_SIM),
    "few": (ContrastiveLoss, dict(layer="5", num_mixtures=4), partial(plain_loss, plain.contrastive())),
    "many-shared": (partial(SupConLoss, temperature=0.3), dict(layer="3", num_mixtures=25, shared_lambda=True),
                    partial(plain_loss, plain.sup_con(0.3))),
    "last-and-alpha": (SIM, dict(layer="8", alpha=0.3, weight=1.5), PLAIN_SIM),
    "proxy-anchor": (partial(ProxyAnchorLoss, 5, 3, alpha=5.0), dict(layer="3"), proxy_anchor_plainly),
    "proxy-nca": (partial(ProxyNCALoss, 5, 3, temperature=0.3), dict(layer="3"), proxy_nca_plainly),
}  # fmt: skip


def in_two_passes(encoder, layer, x, draw):
    """Embeddings, and those of the mixtures by a second pass of the rest of the network."""
    cut = 0 if layer is None else int(layer) + 1
    features = encoder[:cut](x)
    embeddings = encoder[cut:](features)
    lam = draw.lam.double().view(-1, *[1] * (features.ndim - 1))
    mixed_features = lam * features[draw.first] + (1 - lam) * features[draw.second]
    running = [value.clone() for value in encoder.buffers()]
    return embeddings, encoder[cut:](mixed_features), running  # mixtures do not enter the running statistics


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_same_written_plainly(case, training):
    loss, settings, reference = case
    torch.manual_seed(2)
    criterion = DeepMetrix(loss(), **settings).double()
    encoders = [network().train(training) for _ in range(2)]
    x1, x2 = (images().requires_grad_() for _ in range(2))
    draw = criterion.draw(LABELS, seeded())
    ours = criterion.loss_of(encoders[0], x1, LABELS, draw)
    embeddings, mixed, running = in_two_passes(encoders[1], criterion.layer, x2, draw)
    expected = reference(criterion, embeddings, LABELS, mixed, draw)
    torch.testing.assert_close(ours, expected)
    parameters = [[x, *e.parameters(), *criterion.parameters()] for x, e in ((x1, encoders[0]), (x2, encoders[1]))]
    grads = [torch.autograd.grad(ours, parameters[0]), torch.autograd.grad(expected, parameters[1])]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(encoders[0].buffers(), running, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert grads[0][0].abs().sum() > 0


def test_embeddings_are_those_without_mixing_and_no_hook_stays():
    encoder, other = network(), network()
    criterion = DeepMetrix(SIM(), layer="3")
    embeddings, mixed = criterion.embed(encoder, images(), criterion.draw(LABELS))
    torch.testing.assert_close(embeddings, other(images()))
    assert mixed.shape == (len(LABELS), 3)
    for mine, theirs in zip(encoder.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert encoder[7].momentum is None and encoder[1].momentum == 0.1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
    with pytest.raises(ValueError):
        DeepMetrix(SIM(), layer="3.inside")(encoder, images(), LABELS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


@pytest.mark.parametrize("layer", [None, "1"], ids=["inputs", "features"])
def test_mixtures_of_unit_embeddings_are_metrixs_own(layer):
    labels, x = LABELS[:7], torch.randn(7, 5, dtype=torch.float64, generator=seeded(3))
    encoder = nn.Sequential(nn.Linear(5, 4), Unit()).double() if layer else nn.Identity()
    x = x if layer else F.normalize(x, dim=1)
    deep, metrix = DeepMetrix(SIM(), layer=layer, num_mixtures=20), Metrix(SIM())
    draw = deep.draw(labels, seeded())
    (pairs,) = metrix.tables(encoder(x), labels)
    mine, row = labels[:, None], torch.arange(7)[:, None]
    first, second = (labels[columns] == mine for columns in (draw.first, draw.second))
    parents = Parents(
        left=torch.where(first, draw.first, draw.second),  # the positive
        right=torch.where(first, draw.second, draw.first),
        lam=torch.where(first, draw.lam, 1 - draw.lam).double(),
        keep=(first | second) & (draw.first != row) & (draw.second != row),
        positive=True,
    )
    torch.testing.assert_close(deep.loss_of(encoder, x, labels, draw), metrix.loss_of(pairs, (parents,)))


def test_mixtures_of_any_embeddings_are_mixed_before_they_are_divided_by_their_length():
    linear, x = nn.Linear(5, 4).double(), torch.randn(9, 5, dtype=torch.float64)
    deep = DeepMetrix(SIM(), layer="0")
    draw = deep.draw(LABELS)
    embeddings, mixed = deep.embed(nn.Sequential(linear), x, draw)
    lam = draw.lam.double()[:, None]
    torch.testing.assert_close(mixed, lam * linear(x)[draw.first] + (1 - lam) * linear(x)[draw.second])
    torch.testing.assert_close(embeddings, linear(x))


def test_inside_another_mixer_each_adds_its_own():
    encoder, x, draw = network(), images(), DeepMetrix(SIM(), layer="3").draw(LABELS)
    inner = MoCHi(SIM(), num_hardest=3, num_pair_mixes=4, num_anchor_mixes=2)
    both, alone = DeepMetrix(inner, layer="3"), DeepMetrix(SIM(), layer="3")
    torch.manual_seed(5)
    value = both.loss_of(copy.deepcopy(encoder), x, LABELS, draw)
    torch.manual_seed(5)
    embeddings = copy.deepcopy(encoder)(x)
    expected = alone.loss_of(encoder, x, LABELS, draw) - SIM()(embeddings, LABELS) + inner(embeddings, LABELS)
    torch.testing.assert_close(value, expected)


def test_gradcheck():
    encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    criterion = DeepMetrix(SIM(), layer="0")
    draw = criterion.draw(LABELS, seeded())
    x = torch.randn(9, 4, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: criterion.loss_of(encoder, x, LABELS, draw), x)


def test_draws_mix_two_classes_use_all_examples_evenly_and_repeat():
    criterion = DeepMetrix(SIM(), layer="0", num_mixtures=9 * 400)
    draw, again, other = (criterion.draw(LABELS, seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(getattr(draw, f), getattr(again, f)) for f in ("first", "second", "lam"))
    assert not torch.equal(draw.second, other.second)
    assert (LABELS[draw.first] != LABELS[draw.second]).all()
    assert (draw.first.bincount() == 400).all()
    for row in range(9):
        partners = draw.second[draw.first == row].bincount(minlength=9)[LABELS != LABELS[row]]
        assert (partners > 0.5 * 400 / len(partners)).all()
    assert 0 <= draw.lam.min() < draw.lam.max() <= 1 and draw.lam.mean().item() == pytest.approx(0.5, abs=0.02)
    assert DeepMetrix(SIM(), layer="0").draw(LABELS).first.tolist() == list(range(9))
    shared = DeepMetrix(SIM(), layer="0", shared_lambda=True).draw(LABELS)
    assert (shared.lam == shared.lam[0]).all() and shared.lam.shape == (9,)


def test_the_same_seed_gives_the_same_loss_when_called():
    criterion, values = DeepMetrix(SIM(), layer="3"), []
    for seed in (1, 1, 2):
        encoder = network()
        torch.manual_seed(seed)
        values.append(criterion(encoder, images(), LABELS).item())
    assert values[0] == values[1] != values[2]


def test_frozen_norm_and_parameters():
    encoder = network()
    encoder[4].eval()
    for parameter in encoder[:4].parameters():
        parameter.requires_grad_(False)
    before = encoder[4].running_mean.clone()
    DeepMetrix(SIM(), layer="3")(encoder, images(), LABELS).backward()
    assert torch.equal(encoder[4].running_mean, before)
    assert encoder[0].weight.grad is None and encoder[8].weight.grad.abs().sum() > 0


def test_tokens_of_a_transformer():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=12, num_heads=2, depth=3, num_classes=0
    ).double()
    x = torch.randn(9, 3, 32, 32, dtype=torch.float64)
    criterion = DeepMetrix(SIM(), layer="blocks.1")
    draw = criterion.draw(LABELS, seeded())
    embeddings, mixed = criterion.embed(vit, x, draw)
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
    tokens = vit.blocks[1](vit.blocks[0](tokens))
    lam = draw.lam.double()[:, None, None]
    rest = vit.blocks[2](lam * tokens[draw.first] + (1 - lam) * tokens[draw.second])
    torch.testing.assert_close(mixed, vit.forward_head(vit.norm(rest)))
    torch.testing.assert_close(embeddings, vit(x))


def test_norm_over_tokens_as_rows():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(11, 4), nn.BatchNorm1d(4)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.norm(x.flatten(0, 1)).view(x.shape).mean(dim=1)

    encoder, tokens = Tokens(), torch.randint(11, (9, 5))
    criterion = DeepMetrix(SIM(), layer="embed")
    draw = criterion.draw(LABELS)
    embeddings, mixed = criterion.embed(encoder, tokens, draw)
    torch.testing.assert_close(embeddings, encoder(tokens))
    lam, x = draw.lam[:, None, None], encoder.embed(tokens)
    rows = (lam * x[draw.first] + (1 - lam) * x[draw.second]).flatten(0, 1)
    torch.testing.assert_close(mixed, nn.BatchNorm1d(4)(rows).view(x.shape).mean(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_finite(dtype):
    encoder = network().float()
    with torch.autocast("cpu", dtype):
        loss = DeepMetrix(SIM(), layer="3")(encoder, images().float(), LABELS)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in encoder.parameters())


def deep(**settings) -> DeepMetrix:
    return DeepMetrix(SIM(), **{"layer": "3", **settings})


def nested(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(module, nn.Flatten(), nn.Linear(72, 3)).double()


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.swap = nn.Unflatten(0, (3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.swap(x).flatten(0, 1)


REFUSED = {
    # what it wraps
    "triplet": (lambda: DeepMetrix(TripletLoss(), layer=None), TypeError, "TripletLoss", "Use"),
    "rnc": (lambda: DeepMetrix(RankNContrastLoss(), layer=None), TypeError, "RankNContrastLoss", "Use"),
    "info-nce": (lambda: DeepMetrix(MoCHi(InfoNCE()), layer=None), TypeError, "InfoNCE", "SupConLoss"),
    "clip": (lambda: DeepMetrix(ClipLoss(), layer=None), TypeError, "ClipLoss", "SupConLoss"),
    "class": (lambda: DeepMetrix(SupConLoss, layer=None), TypeError, "ABCMeta", "use"),
    # numbers
    "weight": (lambda: deep(weight=0), ValueError, "Got 0", "0.4"),
    "alpha": (lambda: deep(alpha=-1), ValueError, "-1", "2"),
    "kinds": (lambda: deep(positive_negative=False), ValueError, "neither", "set one"),
    "number": (lambda: deep(num_mixtures=0), ValueError, "Got 0", "None"),
    "empty-name": (lambda: deep(layer=""), ValueError, "empty", "None"),
    # layers
    "near": (lambda: deep(layer="3.insid")(network(), images(), LABELS), ValueError, "'3.insid'", "'3.inside'"),
    "nothing-near": (lambda: deep(layer="layer4")(network(), images(), LABELS), ValueError, "'layer4'", "'0'"),
    "residual": (lambda: deep(layer="3.inside")(network(), images(), LABELS), ValueError, "'3.inside'", "9", "18",
                 "whole block"),
    "twice": (lambda: deep(layer="0")(nn.Sequential(*[nn.ReLU()] * 2), images(), LABELS), ValueError, "'0'",
              "not shared"),
    "tuple": (lambda: deep(layer="0")(nested(Tuple()), images(), LABELS), TypeError, "tuple", "'0'", "inside it"),
    "unused": (lambda: deep(layer="inside")(_Unused(), images(), LABELS), ValueError, "'inside'", "not called"),
    "rows": (lambda: deep(layer="0.swap")(nn.Sequential(Transposed(), nn.Flatten()), images(), LABELS), ValueError,
             "(3, 3, 2, 6, 6)", "9 examples", "first axis"),
    "integers": (lambda: deep(layer=None)(nn.Embedding(4, 3), LABELS, LABELS), TypeError, "int64", "at a layer"),
    "no-vector": (lambda: deep(layer=None)(nn.Identity(), images(), LABELS), ValueError, "encoder(inputs)", "flatten"),
    "pooled-rows": (lambda: deep(layer=None)(_Shorter(), images(), LABELS), ValueError, "18", "(17, 72)"),
    # what it is called with
    "one-class": (lambda: deep()(network(), images(), LABELS * 0), ValueError, "all 0", "several classes"),
    "values": (lambda: deep()(network(), images(), LABELS.double()), TypeError, "float64", "SupReMix"),
    "labels": (lambda: deep()(network(), images(), LABELS[:4]), ValueError, "(4,)", "one label"),
    "embeddings": (lambda: deep()(images(), images(), LABELS), TypeError, "Tensor", "the network"),
}  # fmt: skip


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class _Shorter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[1:]


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(case):
    call, error, *words = case
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_an_encoders_own_error_passes():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        deep(layer="1")(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), torch.randn(9, 6), LABELS)
