"""The mixers on embeddings, written plainly from their papers: every mixture is a vector of D numbers here.

Nothing of mixcontrast is read but the interpolation's own fields, a mixer's settings and the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixcontrast import Linear, SynCo


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def mixture(x1: Tensor, x2: Tensor, lam: Tensor, interpolation) -> Tensor:
    """Vectors between `x1` and `x2` (..., D), at share `lam` (...) of the first."""
    lam = torch.as_tensor(lam)[..., None]
    straight = lam * x1 + (1 - lam) * x2
    if isinstance(interpolation, Linear):
        return unit(straight) if interpolation.normalize else straight
    cosine = (x1 * x2).sum(-1, keepdim=True)
    same = cosine > 1 - 1e-6  # there slerp tends to the straight line
    t = torch.arccos(torch.where(same, 0.0, cosine))
    slerp = (torch.sin(lam * t) * x1 + torch.sin((1 - lam) * t) * x2) / torch.sin(t)
    return torch.where(same, straight, slerp)


@dataclass
class Row:
    """What one anchor sees."""

    s: Tensor
    t: Tensor
    w: Tensor

    @property
    def positive(self) -> Tensor:
        return self.w * self.t

    @property
    def negative(self) -> Tensor:
        return self.w * (1 - self.t)


def rows_of(s: Tensor, t: Tensor, w: Tensor) -> list[Row]:
    """A row each, of the cells that count."""
    t, w = t.to(s.dtype).expand_as(s), w.to(s.dtype).expand_as(s)
    return [Row(s[a][w[a] > 0], t[a][w[a] > 0], w[a][w[a] > 0]) for a in range(len(s))]


def join(*tables: list[Row]) -> list[Row]:
    """Further columns in the same rows."""
    return [Row(*(torch.cat([getattr(r, f) for r in rows]) for f in "stw")) for rows in zip(*tables, strict=True)]


def mean(loss, rows: list[Row]) -> Tensor:
    return torch.stack([loss(r) for r in rows if (r.positive > 0).any()]).mean()


def average(weight: Tensor, x: Tensor) -> Tensor:
    return (weight * x).sum() / weight.sum() if weight.sum() > 0 else x.sum() * 0


def info_nce(tau: float):
    def loss(r: Row) -> Tensor:
        push = (r.negative * (r.s / tau).exp()).sum()
        return average(r.positive, -((r.s / tau).exp() / ((r.s / tau).exp() + push)).log())

    return lambda rows: mean(loss, rows)


def sup_con(tau: float):
    return lambda rows: mean(lambda r: cross_entropy(r, 1 / tau), rows)


def cross_entropy(r: Row, scale) -> Tensor:
    return average(r.positive, -(r.s * scale - (r.w * (r.s * scale).exp()).sum().log()))


def contrastive(margin: float = 0.5):
    return lambda rows: mean(
        lambda r: average(r.positive, (1 - r.s).clamp(min=0)) + average(r.negative, (r.s - margin).clamp(min=0)), rows
    )


def binomial_deviance(b: float, g: float, m: float):
    return lambda rows: mean(
        lambda r: average(r.positive, (1 + (-b * (r.s - m)).exp()).log())
        + average(r.negative, (1 + (g * (r.s - m)).exp()).log()),
        rows,
    )


def multi_similarity(b: float, g: float, m: float):
    return lambda rows: mean(
        lambda r: (1 + (r.positive * (-b * (r.s - m)).exp()).sum()).log() / b
        + (1 + (r.negative * (g * (r.s - m)).exp()).sum()).log() / g,
        rows,
    )


def lifted(m: float):
    return lambda rows: mean(
        lambda r: ((r.positive * (-r.s).exp()).sum().log() + (r.negative * (r.s - m).exp()).sum().log()).clamp(min=0),
        rows,
    )


def nca(tau: float, *, everything: bool):
    def loss(r: Row) -> Tensor:
        below = r.w if everything else r.negative
        return (below * (r.s / tau).exp()).sum().log() - (r.positive * (r.s / tau).exp()).sum().log()

    return lambda rows: mean(loss, rows)


def proxy_anchor(alpha: float, delta: float):
    def loss(rows: list[Row]) -> Tensor:
        rows = [r for r in rows if len(r.s)]
        pull = [(1 + (r.positive * (-alpha * (r.s - delta)).exp()).sum()).log() for r in rows if (r.positive > 0).any()]
        push = [(1 + (r.negative * (alpha * (r.s + delta)).exp()).sum()).log() for r in rows]
        return torch.stack(pull).mean() + torch.stack(push).mean()

    return loss


def others(size: int) -> Tensor:
    return ~torch.eye(size, dtype=torch.bool)


def synthetic(anchors: Tensor, candidates: Tensor, mixer, draw) -> Tensor:
    """(A, M, D) what MoCHi and SynCo add to each anchor's negatives."""
    parents, itself = candidates[None].expand(len(anchors), -1, -1), anchors[:, None]
    if mixer.detach:
        parents, itself = parents.detach(), itself.detach()

    def of(columns: Tensor) -> Tensor:
        return torch.stack([parents[a][columns[a]] for a in range(len(anchors))])  # (A, S, D)

    def with_anchor(columns: Tensor, share: Tensor) -> Tensor:
        return mixture(itself.expand_as(of(columns)), of(columns), share, mixer.interpolation)

    if isinstance(mixer, SynCo):
        return torch.cat([
            with_anchor(draw.interpolated, draw.alpha),
            with_anchor(draw.extrapolated, 1 - draw.beta),
            mixture(of(draw.first), of(draw.second), draw.gamma, mixer.interpolation),
            unit(of(draw.noised) + draw.noise),
            unit(of(draw.towards) + mixer.gradient_step * itself),
            unit(of(draw.by_sign) + mixer.sign_step * itself.sign()),
        ], dim=1)  # fmt: skip
    pair = mixture(of(draw.first), of(draw.second), draw.alpha, mixer.interpolation)
    return torch.cat([pair, with_anchor(draw.negative, draw.beta)], dim=1)


def mochi(loss, anchors: Tensor, real: list[Row], candidates: Tensor, negative: Tensor, mixer, draw) -> Tensor:
    """`negative` (A, K): which candidates an anchor may mix."""
    s = torch.einsum("ad,amd->am", anchors, synthetic(anchors, candidates, mixer, draw))
    return loss(join(real, rows_of(s, torch.zeros_like(s), negative.any(1, keepdim=True))))


def mochi_queue(loss, mixer, inputs, draw, queue: Tensor, allowed: Tensor) -> Tensor:
    query, key = unit(inputs[0]), unit(inputs[1]).detach()
    real = join(
        rows_of(query @ queue.T, torch.zeros(1, 1), allowed),
        rows_of((query * key).sum(1, keepdim=True), torch.ones(1, 1), torch.ones(1, 1)),
    )
    return mochi(loss, query, real, queue, allowed.expand(len(query), len(queue)), mixer, draw)


def mochi_batch(loss, mixer, z: Tensor, labels: Tensor, draw) -> Tensor:
    z = unit(z)
    same = labels[:, None] == labels
    return mochi(loss, z, rows_of(z @ z.T, same, others(len(z))), z, ~same, mixer, draw)


def metrix(loss, anchors: Tensor, candidates: Tensor, same: Tensor, used: Tensor, mixer, draw) -> Tensor:
    """`same` (A, K): which are of the anchor's class; `used` (A, K): all but the anchor itself."""
    real = rows_of(anchors @ candidates.T, same, used)
    mixed = []
    for left, right, lam in metrix_parents(mixer, draw, len(anchors), same.shape[1]):
        rows = []
        for a in range(len(anchors)):
            x1 = anchors[a].expand(len(right[a]), -1) if left is None else candidates[left[a]]
            t1 = torch.ones(len(right[a])) if left is None else same[a][left[a]].to(x1.dtype)
            x2, t2 = candidates[right[a]], same[a][right[a]].to(x1.dtype)
            if mixer.detach:
                x1, x2 = x1.detach(), x2.detach()
            v = mixture(x1, x2, lam[a], mixer.interpolation)
            t = lam[a] * t1 + (1 - lam[a]) * t2
            rows.append(Row(v @ anchors[a], t.expand(len(v)), torch.ones(len(v), dtype=v.dtype)))
        mixed.append(rows)
    return loss(real) + mixer.weight * loss(join(*mixed))


def metrix_parents(mixer, draw, num_anchors: int, num_columns: int):
    """Left and right columns and lambdas of the mixtures that count, a list of them an anchor, for each kind."""
    for kind in draw:
        size = kind.lam.shape[1] if kind.lam.ndim else kind.keep.shape[1] if kind.right is None else kind.right.shape[1]
        keep = kind.keep.expand(num_anchors, size)
        lam = kind.lam.expand(num_anchors, size)
        place = torch.arange(size)
        left, right, lams = [], [], []
        for a in range(num_anchors):
            now = place[keep[a]]
            if kind.right is None:
                left.append(None if kind.left is None else kind.left[a][now // num_columns])
                right.append(now % num_columns)
            else:
                left.append(None if kind.left is None else kind.left[a][now])
                right.append(kind.right[a][now])
            lams.append(lam[a][now])
        yield (None if kind.left is None else left), right, lams


def between(values: list[float], i: int, window: float) -> list[tuple[int, int]]:
    """All (j, k) with `y_j < y_i < y_k`, both within the window."""
    y = values
    near = [j for j in range(len(y)) if abs(y[j] - y[i]) <= window]
    return [(j, k) for j in near for k in near if y[j] < y[i] < y[k]]


def supremix(loss, mixer, z: Tensor, values: Tensor, draw) -> Tensor:
    z = unit(z)
    y = values if values.ndim == 2 else values[:, None]

    def weight(mine: Tensor, theirs: Tensor) -> Tensor:
        if mixer.magnify_power is None:
            return torch.ones(len(theirs), dtype=z.dtype)
        return (mine - theirs).abs().pow(mixer.magnify_power).sum(-1) + 1

    rows = []
    for i in range(len(z)):
        parents = z.detach() if mixer.detach else z
        apart = [k for k in range(len(z)) if not torch.equal(y[k], y[i])]
        rest = [k for k in range(len(z)) if k != i]
        equal = torch.tensor([torch.equal(y[k], y[i]) for k in rest], dtype=z.dtype)
        parts = [Row(z[rest] @ z[i], equal, weight(y[i], y[rest]))]
        if mixer.negatives and apart:
            lam = draw.lam[i][apart]
            v = mixture(parents[i].expand(len(apart), -1), parents[apart], lam, mixer.interpolation)
            label = lam[:, None] * y[i] + (1 - lam[:, None]) * y[apart]
            parts.append(Row(v @ z[i], torch.zeros(len(v), dtype=z.dtype), weight(y[i], label)))
        if mixer.positives:
            both = between(values.tolist(), i, mixer.window)
            if len(both) > mixer.max_positive_mixes:
                both = [(int(j), int(k)) for j, k in zip(draw.below[i], draw.above[i], strict=True)]
            if both:
                low, high = torch.tensor(both).T
                lam = (y[high, 0] - y[i, 0]) / (y[high, 0] - y[low, 0])
                v = mixture(parents[low], parents[high], lam, mixer.interpolation)
                one = torch.ones(len(v), dtype=z.dtype)
                parts.append(Row(v @ z[i], one, one))
        rows.append(join(*([p] for p in parts))[0])
    return loss(rows)


def geodesic(mixer, inputs, draw, *, siglip: bool) -> Tensor:
    image, text, scale, *bias = inputs
    image, text = unit(image), unit(text)
    bias = bias[0] if bias else 0.0
    size, turned = len(image), torch.arange(len(image)).flip(0)

    def loss(s: Tensor, t: Tensor, temperature: float | None) -> Tensor:
        by = scale if temperature is None else 1 / temperature
        rows = rows_of(s, t, torch.ones_like(s))
        if not siglip:
            return torch.stack([cross_entropy(r, by) for r in rows]).mean()
        yes = [(r.t * torch.sigmoid(r.s * by + bias).log()).sum() for r in rows]
        no = [((1 - r.t) * torch.sigmoid(-r.s * by - bias).log()).sum() for r in rows]
        return -(torch.stack(yes) + torch.stack(no)).mean()

    def held(x: Tensor) -> Tensor:
        return x.detach() if mixer.detach else x

    def m(x1: Tensor, x2: Tensor, lam: Tensor) -> Tensor:
        return mixture(held(x1), held(x2), lam, mixer.interpolation)

    def two(lam: Tensor) -> Tensor:
        t = torch.zeros(size, size, dtype=image.dtype)
        for i in range(size):
            t[i, i] += lam
            t[i, size - 1 - i] += 1 - lam
        return t

    one = torch.eye(size, dtype=image.dtype)
    terms = []  # name, table with images in rows, the same with texts in rows, target
    if draw.m2 is not None:
        v = m(image, text, draw.m2)
        plain = image @ text.T
        terms.append(("m2", torch.where(one > 0, plain, image @ v.T), torch.where(one > 0, plain.T, text @ v.T), one))
    if draw.v is not None:
        s = m(image, image[turned], draw.v) @ text.T
        terms.append(("v", s, s.T, two(draw.v)))
    if draw.l is not None:
        s = image @ m(text, text[turned], draw.l).T
        terms.append(("l", s, s.T, two(draw.l)))
    if draw.vl is not None:
        s = m(image, image[turned], draw.vl) @ m(text, text[turned], draw.vl).T
        terms.append(("vl", s, s.T, two(draw.vl)))
    decay = mixer.epoch + 1 if mixer.decay_with_epoch else 1
    both = [0, 1]
    total = sum(loss((image @ text.T, text @ image.T)[d], one, None) for d in both)
    for name, *tables, target in terms:
        term = mixer.terms[name]
        for d in both:
            target_d = target if d == 0 else target.T
            total = total + term.weight / decay * loss(tables[d], target_d, term.temperature)
    return total / len(both)




def towers(mixer, inputs, draw, *, siglip: bool, queues: dict, same_modality: bool, temperature: float) -> Tensor:
    """MoCHi or SynCo around a loss of two towers; `queues` are keys and labels of "image" and "text"."""
    image, text, scale, bias, _, labels = (*inputs, None, None)[:6]
    features = {"image": unit(image), "text": unit(text)}
    labels = torch.arange(len(image)) if labels is None else labels
    total = 0
    for own, other in (("image", "text"), ("text", "image")):
        anchors = features[own]

        def columns(name: str, own: str = own) -> tuple[Tensor, Tensor, Tensor]:
            """Candidates of a tower, and which are negatives and positives of each anchor."""
            z, mine = features[name], labels
            same = mine[:, None] == mine if mine.ndim == 1 else paired(mine, own, name)
            nothing = torch.zeros(len(z), 0, dtype=torch.bool)
            keys, of_keys = queues.get(name, (z[:0], labels[:0]))
            apart = torch.ones(len(z), len(keys)).bool()
            if of_keys is not None and len(keys):
                apart = mine[:, None] != of_keys if mine.ndim == 1 else ~paired(mine, own, name, of_keys)
            queued = apart if len(keys) else nothing
            return torch.cat([z, keys]), torch.cat([~same, queued], 1), torch.cat([same, queued & False], 1)

        candidates, apart, same = columns(other)
        real = rows_of(scale * anchors @ candidates.T + bias, same, apart | same)
        if same_modality:
            of_own, apart_of_own, _ = columns(own)
            s = anchors @ of_own.T / temperature + bias
            real = join(real, rows_of(s, torch.zeros_like(s), apart_of_own))
        by = scale
        if mixer.same_modality:
            candidates, apart, by = of_own, apart_of_own, 1 / temperature
        s = by * torch.einsum("ad,amd->am", anchors, synthetic(anchors, candidates, mixer, draw)) + bias
        rows = join(real, rows_of(s, torch.zeros_like(s), apart.any(1, keepdim=True)))
        if siglip:
            each = [-((r.t * torch.sigmoid(r.s).log()).sum() + ((1 - r.t) * torch.sigmoid(-r.s).log()).sum())
                    for r in rows]  # fmt: skip
        else:
            each = [cross_entropy(r, 1.0) for r in rows]
        total = total + torch.stack(each).mean() / 2
    return total


def paired(labels: Tensor, own: str, name: str, of_keys: Tensor | None = None) -> Tensor:
    """(A, C): a text belongs to an image where a pair has both numbers; two of one tower, where they share either."""
    mine, theirs = labels.tolist(), (labels if of_keys is None else of_keys).tolist()
    if own == name:
        return torch.tensor([[a[0] == b[0] or a[1] == b[1] for b in theirs] for a in mine])
    known = {tuple(row) for row in mine + theirs}
    if own == "image":
        return torch.tensor([[(a[0], b[1]) in known for b in theirs] for a in mine])
    return torch.tensor([[(b[0], a[1]) in known for b in theirs] for a in mine])
