"""Measures of tables and mixtures against plain loops over cells."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mixcontrast import (
    Block,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    Pairs,
    SupConLoss,
    SupReMix,
)
from mixcontrast.analysis import false_negatives, gradient_shares, hardness, proxy_task_accuracy

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2])


def embeddings(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed_by(criterion, *inputs):
    (pairs,) = criterion.tables(*inputs)
    return pairs, criterion.mix(pairs, criterion.draw(pairs))


def mochi(**settings):
    return MoCHi(InfoNCE(), num_hardest=6, num_pair_mixes=5, num_anchor_mixes=3, **settings)


def filled(labels=False):
    queue = KeyQueue(20, 4, labels=labels)
    queue.enqueue(embeddings(20, 9).float(), *([torch.arange(20) % 4] if labels else []))
    return queue


def plain_accuracy(pairs):
    found = []
    for s, t, w in zip(pairs.similarity.tolist(), pairs.target.tolist(), pairs.weight.tolist(), strict=True):
        cells = [(a, b) for a, b, c in zip(s, t, w, strict=True) if c > 0]
        positive, negative = [a for a, b in cells if b == 1], [a for a, b in cells if b == 0]
        if positive and negative:
            most = max(negative)
            chance = 1 / (1 + negative.count(most))
            found.append(sum(1 if p > most else chance if p == most else 0 for p in positive) / len(positive))
    return sum(found) / len(found)


TABLES = {
    "views": lambda: Pairs.from_views(embeddings(8, 1), embeddings(8, 1) + 0.8 * embeddings(8, 2)),
    "labels": lambda: Pairs.from_labels(embeddings(8, 1), LABELS),
    "queue": lambda: Pairs.from_queue(embeddings(8, 1), embeddings(8, 2), filled().keys),
    "mochi": lambda: mixed_by(mochi(queue=filled()).eval(), embeddings(8, 1), embeddings(8, 1))[1],
    "supremix": lambda: mixed_by(SupReMix(SupConLoss()), embeddings(8, 1), torch.tensor([1.0, 2, 2, 3, 3, 4, 5, 9]))[1],
    "ties": lambda: Pairs.from_labels(embeddings(3, 1)[[0, 0, 0, 0, 1, 2]], torch.tensor([0, 0, 1, 1, 2, 0])),
    "soft": lambda: Pairs.from_targets(embeddings(6, 1), torch.eye(6).roll(1, 0) + 0.5 * torch.eye(6).roll(2, 0)),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_proxy_task_accuracy_is_a_loop(table):
    pairs = table()
    assert proxy_task_accuracy(pairs).item() == pytest.approx(plain_accuracy(pairs), abs=1e-6)


def test_a_collapsed_encoder_scores_chance_and_mixing_makes_it_harder():
    ones = torch.ones(8, 4)
    assert proxy_task_accuracy(Pairs.from_views(ones, ones)).item() == pytest.approx(1 / 15)
    criterion = MoCHi(InfoNCE(), num_hardest=20, num_pair_mixes=0, num_anchor_mixes=20, queue=filled()).eval()
    pairs, mixed = mixed_by(criterion, embeddings(40, 1), embeddings(40, 1) + embeddings(40, 2))
    assert proxy_task_accuracy(mixed) < proxy_task_accuracy(pairs)


def test_a_table_without_negatives_is_refused():
    pairs = Pairs(torch.eye(2), (Block(torch.eye(2), 1.0, 1.0),))
    with pytest.raises(ValueError, match="none among 2 anchors and 2 columns"):
        proxy_task_accuracy(pairs)


CRITERIA = {
    "mochi-queue": lambda: (mochi(queue=filled()).eval(), embeddings(8, 1), embeddings(8, 2)),
    "mochi-oracle": lambda: (mochi(queue=filled(True)).eval(), embeddings(8, 1), embeddings(8, 2), LABELS),
    "metrix": lambda: (Metrix(MultiSimilarityLoss()), embeddings(8, 1), LABELS),
    "metrix-drawn": lambda: (Metrix(MultiSimilarityLoss(), num_mixtures=4, negative_negative=True), embeddings(8, 1),
                             LABELS),
    "supremix": lambda: (SupReMix(SupConLoss()), embeddings(8, 1), torch.tensor([1.0, 2, 2, 3, 3, 4, 5, 9])),
}  # fmt: skip


@pytest.mark.parametrize("made", CRITERIA.values(), ids=CRITERIA)
def test_hardness_sorts_every_cell_that_counts(made):
    pairs, mixed = mixed_by(*made())
    found = hardness(pairs, mixed)
    skip = 0 if isinstance(made()[0], Metrix) else pairs.shape[1]  # Metrix's second table is mixtures alone

    def cells(table, start, of):
        s, t, w = (x[:, start:].flatten().tolist() for x in (table.similarity, table.target, table.weight))
        return sorted(a for a, b, c in zip(s, t, w, strict=True) if c > 0 and of(b))

    kinds = {"positive": lambda t: t == 1, "negative": lambda t: t == 0, "between": lambda t: 0 < t < 1}
    for name, of in kinds.items():
        assert sorted(getattr(found, name).tolist()) == pytest.approx(cells(pairs, 0, of), abs=1e-6)
        assert sorted(getattr(found, f"mixed_{name}").tolist()) == pytest.approx(cells(mixed, skip, of), abs=1e-6)
    assert len(found.mixed_target) == len(found.mixed_between) and len(found.mixtures) > 0
    assert all(not x.requires_grad and x.ndim == 1 for x in dataclasses.astuple(found))


def test_hardness_without_mixtures_and_of_another_batch():
    pairs = Pairs.from_labels(embeddings(8, 1), LABELS)
    assert len(hardness(pairs).mixtures) == 0 and len(hardness(pairs, pairs).mixtures) == 0
    with pytest.raises(ValueError, match="8 anchors before and 7 after"):
        hardness(pairs, Pairs.from_labels(embeddings(7, 1), LABELS[:7]))


def test_mochi_mixtures_are_harder_than_its_negatives():
    found = hardness(*mixed_by(mochi(queue=filled()).eval(), embeddings(8, 1), embeddings(8, 2)))
    assert found.mixed_negative.mean() > found.negative.mean()


def test_false_negatives_is_a_loop():
    criterion = mochi(queue=filled()).eval()
    (pairs,) = criterion.tables(embeddings(8, 1), embeddings(8, 2))
    draw = criterion.draw(pairs)
    mine, theirs = LABELS.clone(), torch.arange(20) % 4
    mine[3], theirs[5] = -1, -1
    for parents in ((draw.first, draw.second), (draw.negative,)):
        hits = []
        for a in range(8):
            for columns in zip(*(p[a].tolist() for p in parents), strict=True):
                labels = [theirs[c].item() for c in columns]
                if mine[a] >= 0 and -1 not in labels:
                    same = [label == mine[a] for label in labels]
                    hits.append((any(same), all(same)))
        found = false_negatives(mine, theirs, *parents)
        assert found.count == len(hits) > 0
        assert found.any == pytest.approx(sum(any_ for any_, _ in hits) / len(hits)) and found.any > 0
        assert found.all == pytest.approx(sum(all_ for _, all_ in hits) / len(hits))


def test_the_class_oracle_leaves_no_false_negative():
    criterion = mochi(queue=filled(True)).eval()
    (pairs,) = criterion.tables(embeddings(8, 1), embeddings(8, 2), LABELS)
    draw = criterion.draw(pairs)
    assert false_negatives(LABELS, criterion.queue.labels, draw.first, draw.second).any == 0
    keep = torch.zeros(8, 1, dtype=torch.bool)
    keep[2] = True
    assert false_negatives(LABELS, criterion.queue.labels, draw.negative, keep=keep).count == draw.negative.shape[1]


@pytest.mark.parametrize("made", CRITERIA.values(), ids=CRITERIA)
def test_gradient_shares_are_those_of_one_cell_at_a_time(made):
    criterion, *inputs = made()
    pairs, mixed = mixed_by(criterion, *inputs)
    tables = (pairs, mixed) if isinstance(criterion, Metrix) else (mixed,)

    def reduce(*tables):
        return sum(w * criterion.loss.reduce(t) for w, t in zip((1.0, 0.4), tables, strict=False))

    shares = gradient_shares(reduce, *tables)
    assert [len(s) for s in shares] == [len(t.blocks) for t in tables]
    assert torch.cat(shares).sum().item() == pytest.approx(1, abs=1e-6)
    sums = []
    for number, table in enumerate(tables):
        for place, block in enumerate(table.blocks):
            total, step = 0.0, 1e-5
            base = block.similarity.detach().double()
            for cell in range(base.numel()):
                values = []
                for sign in (1, -1):
                    moved = base.clone()
                    moved.view(-1)[cell] += sign * step
                    others = [
                        [dataclasses.replace(b, similarity=b.similarity.detach().double()) for b in t] for t in tables
                    ]
                    others[number][place] = dataclasses.replace(block, similarity=moved)
                    changed = (dataclasses.replace(t, blocks=tuple(b)) for t, b in zip(tables, others, strict=True))
                    values.append(reduce(*changed).item())
                total += abs(values[0] - values[1]) / (2 * step)
            sums.append(total)
    expected = torch.tensor(sums, dtype=torch.float64) / sum(sums)
    torch.testing.assert_close(torch.cat(shares).double(), expected, atol=1e-5, rtol=1e-4)


def test_gradient_shares_leave_the_batch_as_it_was_even_without_gradient():
    x = embeddings(8, 1).requires_grad_()
    (pairs,) = SupConLoss().tables(x, LABELS)
    with torch.no_grad():
        (shares,) = gradient_shares(SupConLoss().reduce, pairs)
    assert shares.tolist() == [1.0] and x.grad is None and pairs.similarity.requires_grad


PAIRS = Pairs.from_labels(embeddings(8, 1), LABELS)
COLUMNS = torch.zeros(8, 2, dtype=torch.long)
REFUSED = {
    "no-table": (lambda: gradient_shares(SupConLoss().reduce), ValueError, "none", "tables"),
    "constant": (lambda: gradient_shares(lambda p: torch.zeros(()), PAIRS), ValueError, "without gradient", "reduce"),
    "zero": (lambda: gradient_shares(lambda p: 0 * p.similarity.sum(), PAIRS), ValueError, "is 0", "batch"),
    "no-parents": (lambda: false_negatives(LABELS, LABELS), ValueError, "[]", "draw"),
    "shape": (lambda: false_negatives(LABELS, LABELS, COLUMNS[:3]), ValueError, "(3, 2)", "8 anchors"),
    "columns": (lambda: false_negatives(LABELS, LABELS[:2], COLUMNS + 2), ValueError, "2 to 2", "2 candidates"),
    "unknown": (lambda: false_negatives(LABELS * 0 - 1, LABELS, COLUMNS), ValueError, "-1", "known"),
    "floats": (lambda: false_negatives(LABELS.float(), LABELS, COLUMNS), TypeError, "float32", "integers"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(case):
    call, error, *words = case
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value
