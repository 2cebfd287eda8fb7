"""What is drawn: allowed pairs only, all where there is room, evenly otherwise, and again from the same seed."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mixcontrast import Linear, Metrix, MoCHi, MultiSimilarityLoss, Pairs, SupConLoss, SupReMix
from mixcontrast.mixers.base import pick
from mixcontrast.mixers.pool import largest

from . import plain
from .cases import AGES, CASES, METRIX, MOCHI, UNEVEN, Case, embeddings


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(draw) -> list[Tensor]:
    """Every tensor of a draw, in order."""
    if isinstance(draw, Tensor):
        return [draw]
    if dataclasses.is_dataclass(draw):
        draw = tuple(getattr(draw, field.name) for field in dataclasses.fields(draw))
    return [t for part in draw for t in tensors(part)] if isinstance(draw, tuple) else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_seed_same_draw_same_loss(case: Case) -> None:
    mixer, inputs = case.make(Linear(), True), case.inputs()
    tables = case.tables(mixer, inputs)
    first, again, other = (mixer.draw(tables[0], seeded(seed)) for seed in (1, 1, 2))
    assert tensors(first) and all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert not any(t.requires_grad for t in tensors(first))
    values = [case.value(mixer, tables, draw).item() for draw in (first, first, again, other)]
    assert values[0] == values[1] == values[2] and (values[3] != values[0]) == case.is_random


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_global_seed_when_called(case: Case) -> None:
    mixer, inputs = case.make(Linear(), True).eval(), case.call(case.inputs())
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(mixer(*inputs).item())
    assert values[0] == values[1] and (values[2] != values[0]) == case.is_random


def plainly_hardest(similarity: Tensor, allowed: Tensor, count: int) -> list[set[int]]:
    columns = similarity.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True).tolist()
    return [set(row[: min(count, int(n))]) for row, n in zip(columns, allowed.sum(1), strict=True)]


@pytest.mark.parametrize("case", MOCHI, ids=lambda case: case.name)
def test_mochi_mixes_the_hardest_negatives_and_all_of_them(case: Case) -> None:
    mixer = case.make(Linear(), True)
    mixer.num_pair_mixes, mixer.num_anchor_mixes = 300, 200
    (pairs,) = case.tables(mixer, case.inputs())
    block = pairs.real[0]
    allowed = torch.as_tensor(block.negative).expand_as(block.similarity) > 0
    hardest = plainly_hardest(block.similarity.detach(), allowed, mixer.num_hardest)
    draw = mixer.draw(pairs, seeded(0))
    for columns in (draw.first, draw.second, draw.negative):
        assert [set(row) for row in columns.tolist()] == hardest
    assert draw.first.shape == (len(pairs.anchors), 300) and draw.negative.shape == (len(pairs.anchors), 200)
    assert not torch.equal(draw.first, draw.second)
    for share, end in ((draw.alpha, 1.0), (draw.beta, 0.5)):
        assert 0 <= share.min() < 0.01 * end and 0.99 * end < share.max() < end
        assert stats.kstest(share.flatten().numpy() / end, "uniform").pvalue > 0.01
    place = Counter((draw.first - draw.second).flatten().tolist())  # drawn apart from one another
    assert len(place) > 2


def test_mochi_draws_evenly_among_the_hardest() -> None:
    mixer = MoCHi(SupConLoss(), num_hardest=5, num_pair_mixes=4000, num_anchor_mixes=4000)
    pairs = Pairs.from_labels(embeddings(11), UNEVEN)
    draw = mixer.draw(pairs, seeded(3))
    for columns in (draw.first, draw.second, draw.negative):
        for row in columns:
            counts = torch.bincount(row)
            assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-4


def test_mochi_row_without_negatives_gets_no_mixture() -> None:
    pairs = Pairs.from_targets(embeddings(4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]))
    mixer = MoCHi(SupConLoss(), num_hardest=8, num_pair_mixes=5, num_anchor_mixes=3)
    mixed = mixer.mix(pairs, mixer.draw(pairs, seeded(0)))
    weight = mixed.weight[:, 4:]
    assert weight.shape == (4, 8) and bool((weight[0] == 0).all()) and bool((weight[1:] == 1).all())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 70), count=st.integers(1, 12), levels=st.integers(1, 40),
       seed=st.integers(0, 1000), turned=st.booleans())
def test_largest_equals_topk(rows: int, columns: int, count: int, levels: int, seed: int, turned: bool) -> None:
    """Odd widths, and ties: with few levels most cells are equal."""
    count = min(count, columns)
    size = (columns, rows) if turned else (rows, columns)
    table = torch.randint(levels, size, generator=seeded(seed)).float()
    table = table.mT if turned else table
    found = largest(table, count)
    assert all(len(set(row)) == count for row in found.tolist())
    values = table.gather(1, found).sort(descending=True).values
    assert torch.equal(values, table.topk(count, dim=1).values)


def test_pick_is_even_over_the_set_columns_and_never_off_them() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    drawn = pick(mask, torch.rand(4, 6000, generator=seeded(0)))
    for row, allowed in zip(drawn, mask, strict=True):
        counts = torch.bincount(row, minlength=6)
        assert bool((counts[~allowed] == 0).all())
        assert stats.chisquare(counts[allowed].numpy()).pvalue > 1e-3 if allowed.sum() > 1 else counts.max() == 6000
    ends = torch.tensor([[0.0, 1 - 2**-24]]).expand(4, 2)
    assert pick(mask, ends).tolist() == [[1, 4], [0, 0], [5, 5], [0, 5]]
    assert bool((pick(torch.zeros(2, 3, dtype=torch.bool), ends[:2]) < 3).all())


@pytest.mark.parametrize("case", METRIX, ids=lambda case: case.name)
def test_metrix_mixes_what_it_says(case: Case) -> None:
    mixer, inputs = case.make(Linear(), True), case.inputs()
    (pairs,) = case.tables(mixer, inputs)
    block = pairs.real[0]
    positive = (block.positive.expand_as(block.similarity)) > 0
    negative = (block.negative.expand_as(block.similarity)) > 0
    draw = mixer.draw(pairs, seeded(0))
    kinds = [mixer.positive_negative, mixer.anchor_negative, mixer.negative_negative]
    names = [name for name, on in zip(["positive", "anchor", "negative"], kinds, strict=True) if on]
    assert len(draw) == len(names)
    for name, (left, right, lam) in zip(
        names, plain.metrix_parents(mixer, draw, *block.similarity.shape), strict=True
    ):
        for a in range(len(pairs.anchors)):
            mine, theirs = positive[a].nonzero().flatten().tolist(), negative[a].nonzero().flatten().tolist()
            firsts = {"positive": mine, "anchor": [None], "negative": theirs}[name]
            lefts = [None] * len(right[a]) if left is None else left[a].tolist()
            seen = list(zip(lefts, right[a].tolist(), strict=True))
            assert bool(((lam[a] >= 0) & (lam[a] <= 1)).all())
            if mixer.num_mixtures is not None:
                assert len(seen) == (mixer.num_mixtures if firsts and theirs else 0)
                assert all(j in firsts and k in theirs for j, k in seen)
            elif name == "negative":
                assert Counter(frozenset(both) for both in seen) == Counter(
                    frozenset((j, k)) for j in theirs for k in theirs if j < k
                )
            else:
                if name == "positive" and mixer.max_positives is not None and theirs:
                    chosen = {j for j, _ in seen}
                    assert chosen <= set(firsts) and len(chosen) == min(len(firsts), mixer.max_positives)
                    firsts = list(chosen)
                assert Counter(seen) == Counter((j, k) for j in firsts for k in theirs)
        if mixer.shared_lambda:
            assert len({float(x) for row in lam for x in row}) == 1
    if not mixer.shared_lambda and len(draw) > 1:
        assert not torch.equal(draw[0].lam.flatten()[:5], draw[1].lam.flatten()[:5])


def test_each_positive_is_mixed_as_often_where_not_all_are() -> None:
    pairs = Pairs.from_labels(embeddings(11), UNEVEN)  # the first five are of one class
    mixer, generator = Metrix(MultiSimilarityLoss(), max_positives=3), seeded(0)
    counts = torch.zeros(11)
    for _ in range(400):
        (parents,) = mixer.draw(pairs, generator)
        assert parents.left.shape == (11, 3)
        counts[parents.left[0]] += 1
    assert not counts[[0, 5, 6, 7, 8, 9, 10]].any()
    assert bool(((counts[1:5] - 300).abs() < 5 * 400**0.5).all())


def test_metrix_lambdas_have_the_distribution() -> None:
    mixer = Metrix(MultiSimilarityLoss(), alpha=0.7, num_mixtures=2000, anchor_negative=True)
    draw = mixer.draw(Pairs.from_labels(embeddings(11), UNEVEN), seeded(0))
    for kind in draw:
        assert stats.kstest(kind.lam.flatten().numpy(), stats.beta(0.7, 0.7).cdf).pvalue > 0.01


def kept(draw, i: int) -> list[tuple[int, int]]:
    return [(int(j), int(k)) for j, k, on in zip(draw.below[i], draw.above[i], draw.keep[i], strict=True) if on]


def check_between(values: Tensor, window: float, most: int, seed: int) -> None:
    pairs = Pairs.from_values(embeddings(len(values)), values)
    draw = SupReMix(SupConLoss(), window=window, max_positive_mixes=most).draw(pairs, seeded(seed))
    assert draw.below.shape[1] <= most
    for i in range(len(values)):
        all_of_them = plain.between(values.tolist(), i, window)
        seen = kept(draw, i)
        assert set(seen) <= set(all_of_them)
        if len(all_of_them) <= most:
            assert sorted(seen) == sorted(all_of_them)  # each exactly once
        else:
            assert len(seen) == most
    low, high = values[draw.below], values[draw.above]
    mixed = draw.share * low + (1 - draw.share) * high
    torch.testing.assert_close(mixed[draw.keep], values[:, None].expand_as(mixed)[draw.keep])
    assert bool(((draw.share >= 0) & (draw.share <= 1)).all())


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-6, 6), min_size=2, max_size=14).filter(lambda v: len(set(v)) > 1),
    halves=st.booleans(),
    window=st.sampled_from([0.5, 1.0, 2.0, 5.0, 100.0]),
    most=st.sampled_from([1, 2, 3, 7, 1024]),
    seed=st.integers(0, 100),
)
def test_mix_pos_is_all_pairs_around_the_anchor(values, halves: bool, window: float, most: int, seed: int) -> None:
    check_between(torch.tensor(values, dtype=torch.float64) / (2 if halves else 1), window, most, seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mix_pos_takes_values_of_any_float(dtype: torch.dtype) -> None:
    pairs = Pairs.from_values(embeddings(len(AGES)), AGES.to(dtype))
    draw = SupReMix(SupConLoss()).draw(pairs, seeded(0))
    assert [sorted(kept(draw, i)) for i in range(len(AGES))] == [
        sorted(plain.between(AGES.tolist(), i, 5.0)) for i in range(len(AGES))
    ]


def test_capped_mix_pos_is_spread_evenly() -> None:
    values = torch.arange(11, dtype=torch.float64)
    mixer = SupReMix(SupConLoss(), window=5, max_positive_mixes=4)
    pairs, counts = Pairs.from_values(embeddings(11), values), Counter()
    generator = seeded(0)
    for _ in range(2000):
        draw = mixer.draw(pairs, generator)
        counts.update(kept(draw, 5))
    assert set(counts) == {(j, k) for j in range(5) for k in range(6, 11)}
    # the four are drawn one from each quarter of the 25, so the counts vary less than those of free draws
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    assert sum(counts.values()) == 8000


def test_mix_neg_lambdas_have_the_distribution() -> None:
    values = torch.arange(60, dtype=torch.float64)
    draw = SupReMix(SupConLoss()).draw(Pairs.from_values(embeddings(60), values), seeded(0))
    assert draw.lam.shape == (60, 60)
    assert stats.kstest(draw.lam.flatten().numpy(), stats.beta(2, 8).cdf).pvalue > 0.01
