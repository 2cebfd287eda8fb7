"""The losses of the conformance suite: a row a loss, each beside its definition as a plain loop over pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mixcontrast import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    CyClipLoss,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
    Loss,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SigLipLoss,
    SupConLoss,
    TripletLoss,
)

LABELS = torch.tensor([3, 1, 1, 7, 3, 3, 9, 1])  # 7 and 9 are alone: rows without positives
DIM = 5

# A plain row: similarities (0-dimensional tensors), targets and weights (floats) of one anchor's pairs.
Row = Callable[..., Tensor]
Table = tuple[Tensor, Tensor, Tensor]  # similarity, target, weight, each (A, C)


@dataclass(frozen=True)
class Case:
    """One loss: how it is made and called, and what it should be."""

    name: str
    make: Callable[[], Loss]
    row: Row  # (similarities, targets, weights, logit_scale, logit_bias) -> the loss of one anchor
    inputs: Callable[[torch.dtype], tuple[Tensor, ...]]  # what the loss is called with
    tables: Callable[..., list[Table]]  # (criterion, *inputs) -> its tables, plainly
    keeps_all: bool = False  # whether rows without positives enter the mean
    scaled: bool = False  # whether it reads a logit_scale of the table
    of_batch: Callable[..., Tensor] | None = None  # (criterion, *inputs) -> what is added once a batch

    def __str__(self) -> str:
        return self.name


def plain_rows(
    case: Case,
    similarity: Tensor,
    target: Tensor,
    weight: Tensor,
    scale: Tensor | float = 1.0,
    bias: Tensor | float = -1.5,
) -> Tensor:
    """(A,) one row after the other, one pair after the other."""
    rows = []
    for s, t, w in zip(similarity, target.tolist(), weight.tolist(), strict=True):
        rows.append(case.row(list(s), [float(x) for x in t], [float(x) for x in w], scale, bias))
    if case.name == "proxy_anchor":  # positives are averaged over proxies with examples, negatives over all
        rows_of = list(zip(target.tolist(), weight.tolist(), strict=True))
        with_positive = [any(x * y > 0 for x, y in zip(t, w, strict=True)) for t, w in rows_of]
        share = len(rows) / max(sum(with_positive), 1)
        return torch.stack([pull * share + push for pull, push in rows])
    return torch.stack(rows)


def plain_loss(case: Case, criterion: Loss, *inputs: Tensor) -> Tensor:
    """The whole loss: the mean over tables of the mean over their rows with a positive."""
    means = []
    scale_and_bias = inputs[2:] if case.scaled else ()
    for similarity, target, weight in case.tables(criterion, *inputs):
        rows = plain_rows(case, similarity, target, weight, *scale_and_bias)
        kept = [i for i in range(len(rows)) if case.keeps_all or bool((target[i] * weight[i] > 0).any())]
        means.append(sum(rows[i] for i in kept) / len(kept))
    total = sum(means) / len(means)
    return total if case.of_batch is None else total + case.of_batch(criterion, *inputs)


# ---- what each loss does with one row


def _split(similarities, targets, weights):
    near = [(s, w * t) for s, t, w in zip(similarities, targets, weights, strict=True) if w * t > 0]
    far = [(s, w * (1 - t)) for s, t, w in zip(similarities, targets, weights, strict=True) if w * (1 - t) > 0]
    every = [(s, w) for s, w in zip(similarities, weights, strict=True) if w > 0]
    return near, far, every


def _mean(pairs, of):
    return sum(w * of(s) for s, w in pairs) / sum(w for _, w in pairs) if pairs else torch.zeros(()).double()


def _sum(pairs, of):
    return sum((w * of(s) for s, w in pairs), torch.zeros(()).double())


def _hinge(x):
    return x if x > 0 else 0 * x


def contrastive(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    return _mean(near, lambda s: _hinge(1 - s)) + _mean(far, lambda s: _hinge(s - 0.5))


def contrastive_euclidean(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    pull = _mean(near, lambda s: _hinge((2 - 2 * s).sqrt() - 0.1))
    return pull + _mean(far, lambda s: _hinge(1.3 - (2 - 2 * s).sqrt()))


def binomial_deviance(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    pull = _mean(near, lambda s: (1 + (-2 * (s - 0.4)).exp()).log())
    return pull + _mean(far, lambda s: (1 + (30 * (s - 0.4)).exp()).log())


def multi_similarity(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    pull = (1 + _sum(near, lambda s: (-3 * (s - 0.6)).exp())).log() / 3
    return pull + (1 + _sum(far, lambda s: (20 * (s - 0.6)).exp())).log() / 20


def lifted(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    if not near or not far:
        return torch.zeros(()).double()
    return _hinge(_sum(near, lambda s: (0.2 - s).exp()).log() + _sum(far, lambda s: (s - 0.8).exp()).log())


def nca(temperature: float, positives_in_denominator: bool) -> Row:
    def row(s, t, w, *_):
        near, far, every = _split(s, t, w)
        below = every if positives_in_denominator else far
        if not near or not below:
            return torch.zeros(()).double()
        top = _sum(near, lambda s: (s / temperature).exp())
        return -(top / _sum(below, lambda s: (s / temperature).exp())).log()

    return row


def info_nce(temperature: float) -> Row:
    def row(s, t, w, *_):
        near, far, _ = _split(s, t, w)
        push = _sum(far, lambda s: (s / temperature).exp())
        return _mean(near, lambda s: -((s / temperature).exp() / ((s / temperature).exp() + push)).log())

    return row


def cross_entropy(s, t, w, scale, *_):
    near, _, every = _split(s, t, w)
    below = _sum(every, lambda s: (s * scale).exp())
    return _mean(near, lambda s: -((s * scale).exp() / below).log())


def hard_negatives(beta: float, tau_plus: float, temperature: float | None = None) -> Row:
    """As their paper has it, in numbers that do not overflow."""

    def row(s, t, w, scale, *_):
        near, far, _ = _split(s, t, w)
        scale = scale if temperature is None else 1 / temperature
        count = sum(w for _, w in far)
        total = _sum(far, lambda s: (s * scale).exp() ** (1 + beta))
        mean = _sum(far, lambda s: (s * scale).exp() ** beta) / max(count, 1e-9)

        def of(s):
            p = (s * scale).exp()
            if not far:
                return -(p / p).log()
            g = (total / mean - tau_plus * count * p) / (1 - tau_plus)
            least = count * torch.exp(-torch.as_tensor(scale, dtype=s.dtype))
            return -(p / (p + torch.maximum(g, least))).log()

        return _mean(near, of)

    return row


def consistency(criterion, image, text, *_):
    total = 0
    for j in range(len(image)):
        for k in range(len(image)):
            total = total + criterion.in_modal * (image[j] @ image[k] - text[j] @ text[k]) ** 2
            total = total + criterion.cross_modal * (image[j] @ text[k] - image[k] @ text[j]) ** 2
    return total / len(image)


def siglip(s, t, w, scale, bias):
    near, far, _ = _split(s, t, w)
    pull = _sum(near, lambda s: -torch.sigmoid(scale * s + bias).log())
    return pull + _sum(far, lambda s: -torch.sigmoid(-(scale * s + bias)).log())


def proxy_anchor(s, t, w, *_):
    near, far, _ = _split(s, t, w)
    pull = (1 + _sum(near, lambda s: (-8 * (s - 0.1)).exp())).log()
    return pull, (1 + _sum(far, lambda s: (8 * (s + 0.1)).exp())).log()


def triplet(margin: float, semi_hard: bool = False, only_violated: bool = False, euclidean: bool = False) -> Row:
    def row(s, t, w, *_):
        near, far, _ = _split(s, t, w)
        total, count = torch.zeros(()).double(), 0
        for p, _ in near:
            for n, _ in far:
                gap = (2 - 2 * n).sqrt() - (2 - 2 * p).sqrt() if euclidean else p - n
                if semi_hard and not 0 < gap < margin:
                    continue
                if only_violated and not gap < margin:
                    continue
                total, count = total + _hinge(margin - gap), count + 1
        return total / max(count, 1)

    return row


# ---- the tables each loss builds, plainly


def _embeddings(dtype):
    return torch.randn(len(LABELS), DIM, dtype=dtype, generator=torch.Generator().manual_seed(1))


def _labelled(dtype):
    return _embeddings(dtype), LABELS


def _class_indices(dtype):
    return _embeddings(dtype), torch.tensor([2, 0, 0, 1, 2, 2, 5, 0])


def _two(dtype):
    e = _embeddings(dtype)
    return e[:4], e[4:]


def _towers(dtype):
    image, text = _two(dtype)
    return normalize(image), normalize(text), torch.tensor(4.0, dtype=dtype), torch.tensor(-1.5, dtype=dtype)


def _cosines(a, b):
    return torch.stack([torch.stack([(x @ y) / (x.norm() * y.norm()) for y in b]) for x in a])


def _labels_table(_, embeddings, labels):
    same = labels[:, None] == labels
    return [(_cosines(embeddings, embeddings), same.double(), 1 - torch.eye(len(labels)).double())]


def _views_table(criterion, view1, view2):
    return _labels_table(criterion, torch.cat([view1, view2]), torch.arange(len(view1)).repeat(2))


def _queue_table(criterion, query, key):
    own = _cosines(query, key.detach()).diagonal()[:, None]
    similarity = torch.cat([_cosines(query, criterion.queue.keys), own], dim=1)
    target = torch.zeros_like(similarity)
    target[:, -1] = 1
    return [(similarity, target, torch.ones_like(similarity))]


def _towers_tables(_, image, text, scale, bias):
    return [(image @ text.T, torch.eye(len(image)), torch.ones(len(image), len(image)))] + (
        [(text @ image.T, torch.eye(len(image)), torch.ones(len(image), len(image)))]
    )


def _own_tower_tables(criterion, image, text, scale, bias):
    """Each direction with the other tower's queue, its own tower at a temperature of 0.3, and its own queue."""
    tables, size = [], len(image)
    for own, other, own_queue, other_queue in (
        (image, text, criterion.image_queue, criterion.text_queue),
        (text, image, criterion.text_queue, criterion.image_queue),
    ):
        similarity = torch.cat(
            [own @ other.T, own @ other_queue.keys.T, own @ own.T / 0.3 / scale, own @ own_queue.keys.T / 0.3 / scale],
            dim=1,
        )
        target, weight = torch.zeros(similarity.shape), torch.ones(similarity.shape)
        start = size + other_queue.fill
        for i in range(size):
            target[i, i], weight[i, start + i] = 1, 0
        tables.append((similarity, target, weight))
    return tables


def _with_queues(make) -> Loss:
    queues = [KeyQueue(6, DIM).double(), KeyQueue(6, DIM).double()]
    for seed, queue in enumerate(queues):
        keys = torch.randn(3 + seed, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(7 + seed))
        queue.enqueue(keys)
    loss = make(image_queue=queues[0], text_queue=queues[1], same_modality=True, same_modality_temperature=0.3)
    return loss.eval()  # eval: the same queues at each call


def _proxies_table(criterion, embeddings, labels):
    target = labels[:, None] == torch.arange(len(criterion.proxies))
    return [(_cosines(embeddings, criterion.proxies), target.double(), torch.ones_like(target).double())]


def _proxy_anchors_table(criterion, embeddings, labels):
    ((similarity, target, weight),) = _proxies_table(criterion, embeddings, labels)
    return [(similarity.T, target.T, weight.T)]


def _moco() -> InfoNCE:
    queue = KeyQueue(6, DIM).double()
    queue.enqueue(torch.randn(4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    return InfoNCE(temperature=0.2, queue=queue).eval()  # eval: the same queue at each call


def _with_proxies(criterion: Loss) -> Loss:
    with torch.no_grad():
        criterion.proxies.copy_(torch.randn(criterion.proxies.shape, generator=torch.Generator().manual_seed(3)))
    return criterion


CASES = [
    Case("contrastive", ContrastiveLoss, contrastive, _labelled, _labels_table),
    Case(
        "contrastive_euclidean",
        lambda: ContrastiveLoss(euclidean=True, positive_margin=0.1, negative_margin=1.3),
        contrastive_euclidean,
        _labelled,
        _labels_table,
    ),
    Case(
        "binomial_deviance",
        lambda: BinomialDevianceLoss(beta=2, gamma=30, margin=0.4),
        binomial_deviance,
        _labelled,
        _labels_table,
    ),
    Case(
        "multi_similarity",
        lambda: MultiSimilarityLoss(alpha=3, beta=20, base=0.6),
        multi_similarity,
        _labelled,
        _labels_table,
    ),
    Case(
        "lifted",
        lambda: LiftedStructureLoss(positive_margin=0.2, negative_margin=0.8),
        lifted,
        _labelled,
        _labels_table,
    ),
    Case("nca", lambda: NCALoss(temperature=0.3), nca(0.3, True), _labelled, _labels_table),
    Case(
        "nca_negatives_below",
        lambda: NCALoss(temperature=0.3, positives_in_denominator=False),
        nca(0.3, False),
        _labelled,
        _labels_table,
    ),
    Case("sup_con", lambda: SupConLoss(temperature=0.25), lambda s, t, w, *_: cross_entropy(s, t, w, 4), _labelled,
         _labels_table),
    Case("info_nce", lambda: InfoNCE(temperature=0.2), info_nce(0.2), _two, _views_table),
    Case("info_nce_queue", _moco, info_nce(0.2), _two, _queue_table),
    Case("clip", ClipLoss, cross_entropy, _towers, _towers_tables, scaled=True),
    Case("siglip", SigLipLoss, siglip, _towers, lambda *a: _towers_tables(*a)[:1], scaled=True),
    Case("clip_more_columns", lambda: _with_queues(ClipLoss), cross_entropy, _towers, _own_tower_tables, scaled=True),
    Case("siglip_more_columns", lambda: _with_queues(SigLipLoss), siglip, _towers, _own_tower_tables, scaled=True),
    Case(
        "cyclip",
        lambda: CyClipLoss(ClipLoss(), in_modal=0.4, cross_modal=0.7),
        cross_entropy,
        _towers,
        _towers_tables,
        scaled=True,
        of_batch=consistency,
    ),
    Case(
        "hard_negatives",
        lambda: HardNegativeLoss(InfoNCE(temperature=0.5), beta=0.7, tau_plus=0.1),
        hard_negatives(0.7, 0.1, 0.5),
        _two,
        _views_table,
    ),
    Case(
        "debiased",
        lambda: HardNegativeLoss(SupConLoss(temperature=0.5), beta=0, tau_plus=0.2),
        hard_negatives(0, 0.2, 0.5),
        _labelled,
        _labels_table,
    ),
    Case(
        "hard_negatives_clip",
        lambda: HardNegativeLoss(ClipLoss(), beta=1.5, tau_plus=0.05),
        hard_negatives(1.5, 0.05),
        _towers,
        _towers_tables,
        scaled=True,
    ),
    Case("triplet", lambda: TripletLoss(margin=0.3), triplet(0.3), _labelled, _labels_table),
    Case(
        "triplet_euclidean",
        lambda: TripletLoss(margin=0.3, euclidean=True),
        triplet(0.3, euclidean=True),
        _labelled,
        _labels_table,
    ),
    Case(
        "triplet_semi_hard",
        lambda: TripletLoss(margin=0.3, semi_hard=True),
        triplet(0.3, semi_hard=True),
        _labelled,
        _labels_table,
    ),
    Case(
        "triplet_only_violated",
        lambda: TripletLoss(margin=0.3, only_violated=True),
        triplet(0.3, only_violated=True),
        _labelled,
        _labels_table,
    ),
    Case(
        "proxy_nca",
        lambda: _with_proxies(ProxyNCALoss(6, DIM, temperature=0.3)),
        nca(0.3, True),
        _class_indices,
        _proxies_table,
    ),
    Case(
        "proxy_nca_negatives_below",
        lambda: _with_proxies(ProxyNCALoss(6, DIM, temperature=0.3, positives_in_denominator=False)),
        nca(0.3, False),
        _class_indices,
        _proxies_table,
    ),
    Case(
        "proxy_anchor",
        lambda: _with_proxies(ProxyAnchorLoss(6, DIM, alpha=8)),
        proxy_anchor,
        _class_indices,
        _proxy_anchors_table,
        keeps_all=True,
    ),
]
