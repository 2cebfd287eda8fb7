"""Equal to the libraries that users have today: values and gradients, in float64."""

from __future__ import annotations

import pytest
import pytorch_metric_learning.losses as pml
import torch
from lightly.loss import NTXentLoss
from open_clip import loss as open_clip
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer
from torch.nn.functional import normalize

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    TripletLoss,
)

LABELS = torch.arange(8).repeat_interleave(4)
cosine, mean = CosineSimilarity(), MeanReducer()


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    return torch.randn(32, 16, dtype=torch.float64, requires_grad=True)


def assert_same(ours, theirs, leaves, **tolerance):
    torch.testing.assert_close(ours, theirs, **tolerance)
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ContrastiveLoss(), pml.ContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=cosine, reducer=mean)),
        (
            ContrastiveLoss(positive_margin=0.3, negative_margin=0.1),
            pml.ContrastiveLoss(pos_margin=0.3, neg_margin=0.1, distance=cosine, reducer=mean),
        ),
        (ContrastiveLoss(euclidean=True), pml.ContrastiveLoss(reducer=mean)),
        (MultiSimilarityLoss(), pml.MultiSimilarityLoss()),
        (MultiSimilarityLoss(alpha=18, beta=75, base=0.77), pml.MultiSimilarityLoss(alpha=18, beta=75, base=0.77)),
        (SupConLoss(), pml.SupConLoss()),
        (SupConLoss(temperature=0.5), pml.SupConLoss(temperature=0.5)),
        (NCALoss(), pml.NCALoss()),
        (NCALoss(temperature=1 / 6), pml.NCALoss(softmax_scale=3)),
        (
            LiftedStructureLoss(),
            pml.GeneralizedLiftedStructureLoss(distance=cosine, neg_margin=1, pos_margin=0),
        ),
        (TripletLoss(), pml.TripletMarginLoss(margin=0.1, distance=cosine, reducer=mean)),
        (TripletLoss(margin=0.4, euclidean=True), pml.TripletMarginLoss(margin=0.4, reducer=mean)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_pytorch_metric_learning(embeddings, ours, theirs):
    assert_same(ours(embeddings, LABELS), theirs(embeddings, LABELS), [embeddings])


def test_ntxent(embeddings):
    two_views = torch.arange(16).repeat(2)
    ours, theirs = InfoNCE(temperature=0.1), pml.NTXentLoss(0.1)
    assert_same(ours(embeddings[:16], embeddings[16:]), theirs(embeddings, two_views), [embeddings])


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("kind", ["semihard", "all"])
def test_mined_triplets(embeddings, kind, euclidean):
    """Theirs a triplet, averaged as ours are: within an anchor, then over anchors."""
    distance = {} if euclidean else {"distance": cosine}
    mined = TripletMarginMiner(margin=0.2, type_of_triplets=kind, **distance)(embeddings, LABELS)
    peer = pml.TripletMarginLoss(margin=0.2, reducer=DoNothingReducer(), **distance)
    losses = peer(embeddings, LABELS, mined)["loss"]["losses"]
    total = torch.zeros(32).double().index_add(0, mined[0], losses)
    count = torch.zeros(32).double().index_add(0, mined[0], torch.ones_like(losses))
    ours = TripletLoss(margin=0.2, semi_hard=kind == "semihard", only_violated=kind == "all", euclidean=euclidean)
    assert_same(ours(embeddings, LABELS), (total / count.clamp(min=1)).mean(), [embeddings])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ProxyAnchorLoss(10, 16), pml.ProxyAnchorLoss(10, 16)),
        (ProxyNCALoss(10, 16, temperature=0.5), pml.ProxyNCALoss(10, 16, softmax_scale=1)),
        (ProxyNCALoss(10, 16), pml.ProxyNCALoss(10, 16, softmax_scale=9)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_proxies(embeddings, ours, theirs):
    ours, theirs = ours.double(), theirs.double()
    with torch.no_grad():
        theirs.proxies.copy_(ours.proxies)
    one, other = ours(embeddings, LABELS), theirs(embeddings, LABELS)
    torch.testing.assert_close(one, other)
    mine = torch.autograd.grad(one, [embeddings, ours.proxies])
    for a, b in zip(mine, torch.autograd.grad(other, [embeddings, theirs.proxies]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def towers(embeddings):
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    unit = normalize(embeddings)
    return unit[:16], unit[16:], scale, bias


def test_open_clip(embeddings):
    image, text, scale, _ = towers(embeddings)
    assert_same(ClipLoss()(image, text, scale), open_clip.ClipLoss()(image, text, scale), [embeddings, scale])
    ours = ClipLoss()(image, text, scale, output_dict=True)
    assert ours.keys() == open_clip.ClipLoss()(image, text, scale, output_dict=True).keys()


def test_open_clip_siglip(embeddings):
    image, text, scale, bias = towers(embeddings)
    ours, theirs = SigLipLoss(), open_clip.SigLipLoss()
    assert_same(ours(image, text, scale, bias), theirs(image, text, scale, bias), [embeddings, scale, bias])
    assert_same(ours(image, text, scale), theirs(image, text, scale, None), [embeddings, scale])


def test_lightly(embeddings):
    view1, view2 = embeddings[:16], embeddings[16:]
    assert_same(InfoNCE(temperature=0.5)(view1, view2), NTXentLoss(temperature=0.5)(view1, view2), [embeddings])


def test_lightly_memory_bank():
    """Theirs starts with random keys, ours with the same ones given; the batch divides the bank, where theirs agree."""
    torch.manual_seed(0)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(12, 5))
    ours = InfoNCE(temperature=0.2, queue=KeyQueue(12, 5))
    ours.queue.enqueue(theirs.memory_bank.bank)
    for _ in range(7):
        query, key = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
        assert_same(ours(query, key), theirs(query, key), [query], rtol=1e-5, atol=1e-6)


# ---- Rank-N-Contrast has no peer: against its definition, N^3


def plain_rank_n_contrast(embeddings, values, temperature, normalized=False):
    values = values if values.ndim == 2 else values[:, None]
    z = normalize(embeddings) if normalized else embeddings
    total = 0
    for i in range(len(z)):
        terms = []
        for j in range(len(z)):
            if j == i:
                continue
            far = (values[i] - values[j]).norm()
            at_least = [k for k in range(len(z)) if k != i and (values[i] - values[k]).norm() >= far]
            logits = torch.stack([-(z[i] - z[k]).norm() / temperature for k in at_least])
            terms.append(logits.logsumexp(0) + (z[i] - z[j]).norm() / temperature)
        total = total + torch.stack(terms).mean()
    return total / len(z)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(10, generator=torch.Generator().manual_seed(1)).double(),
        torch.tensor([1.0, 3, 3, 2, 1, 5, 5, 5, 2, 4]),  # ties, on both sides of an anchor too
        torch.tensor([0.0] * 9 + [1.0]),
        torch.tensor([[0.0, 1], [1, 0], [1, 1], [0, 0], [0, 1], [2, 1], [1, 2], [3, 3], [0, 3], [3, 0]]),
        torch.randn(10, 3, generator=torch.Generator().manual_seed(2)).double(),
    ],
    ids=["different", "ties", "all_but_one", "two_dimensions_with_ties", "three_dimensions"],
)
def test_rank_n_contrast(embeddings, values, normalized):
    ours = RankNContrastLoss(temperature=1.5, normalize=normalized)(embeddings[:10], values)
    plain = plain_rank_n_contrast(embeddings[:10], values.double(), 1.5, normalized)
    assert_same(ours, plain, [embeddings], rtol=1e-8, atol=1e-10)


def test_rank_n_contrast_of_a_permuted_batch(embeddings):
    values, order = torch.randn(32).round(decimals=1), torch.randperm(32)
    loss = RankNContrastLoss()
    torch.testing.assert_close(loss(embeddings[order], values[order]), loss(embeddings, values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rank_n_contrast_under_autocast(dtype):
    e = torch.randn(4, 5).repeat(3, 1)  # duplicates, whose distance has no gradient
    e[8:] = -e[:4]
    e.requires_grad_()
    values = torch.tensor([1.0, 2, 3, 4] * 3)
    with torch.autocast("cpu", dtype=dtype):
        loss = RankNContrastLoss()(e, values)
    torch.testing.assert_close(loss, RankNContrastLoss()(e, values))
    assert torch.autograd.grad(loss, e)[0].isfinite().all()


def test_rank_n_contrast_compiles_in_one_graph(embeddings):
    torch._dynamo.reset()
    criterion, values = RankNContrastLoss(), torch.randn(32).round(decimals=1)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    assert_same(compiled(embeddings, values), criterion(embeddings, values), [embeddings])
