"""Retrieval both ways against a plain loop over domains, captions and images."""

from __future__ import annotations

import numpy as np
import pytest

from mixcontrast.judge import connected, cross_modal_retrieval
from mixcontrast.retrieval import Evaluation, compare


def case(seed: int = 0):
    """12 images of 4 things by 3 domains (one is not drawn in the last), 2 captions a thing and one of two things."""
    rng = np.random.default_rng(seed)
    things, domains = np.arange(12) // 3, np.array(["a", "b", "c"] * 4)
    pairs = [(i, 2 * t + n) for i, t in enumerate(things) for n in range(2)] + [(0, 8), (3, 8)]
    pairs = [pair for pair in pairs if pair[0] != 11]
    images = rng.normal(size=(12, 5)) + 2 * np.eye(5)[things]
    texts = rng.normal(size=(9, 5)) + 2 * np.eye(5)[[0, 0, 1, 1, 2, 2, 3, 3, 0]]
    return images, texts, np.array(pairs), domains


def plain(images, texts, pairs, domains, to_text: bool) -> dict[tuple[int, str], int]:
    """The rank of the first correct row of each query in its domain."""
    unit = [table / np.linalg.norm(table, axis=1, keepdims=True) for table in (images, texts)]
    ranks = {}
    for domain in sorted(set(domains)):
        here = [(i, t) for i, t in pairs.tolist() if domains[i] == domain]
        queries = sorted({pair[0 if to_text else 1] for pair in here})
        gallery = sorted({pair[1 if to_text else 0] for pair in here})
        for query in queries:
            good = {pair[1 if to_text else 0] for pair in here if pair[0 if to_text else 1] == query}
            mine, theirs = (unit[0][query], unit[1]) if to_text else (unit[1][query], unit[0])
            order = sorted(gallery, key=lambda row: -float(mine @ theirs[row]))
            ranks[query, domain] = 1 + min(order.index(row) for row in good)
    return ranks


@pytest.mark.parametrize("to_text", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_domain_is_searched_on_its_own(seed: int, to_text: bool) -> None:
    images, texts, pairs, domains = case(seed)
    found = cross_modal_retrieval(
        images, texts, pairs, ks=(1, 2), domains=domains, attributes={"part": {"a": "in", "b": "in", "c": "out"}},
        image_names=[f"i{row}" for row in range(12)], text_names=[f"t{row}" for row in range(9)],
    )[0 if to_text else 1]  # fmt: skip
    ranks = plain(images, texts, pairs, domains, to_text)
    assert len(found.queries) == len(ranks) == len(set(found.queries.tolist())) == len(set(found.names.tolist()))
    for place, name in enumerate(found.names.tolist()):
        domain = str(found.attributes["domain"][place])
        row = int(name[1:].partition(" ")[0])
        assert found.values["MedR"][place] == ranks[row, domain]
        assert [found.values[f"R@{k}"][place] for k in (1, 2)] == [ranks[row, domain] <= k for k in (1, 2)]
        assert found.attributes["part"][place] == ("out" if domain == "c" else "in")
    assert found.settings["galleries"] == ({"a": 9, "b": 8, "c": 6} if to_text else {"a": 4, "b": 4, "c": 3})


def test_without_domains_all_are_searched_together() -> None:
    images, texts, pairs, _ = case()
    for found, to_text in zip(cross_modal_retrieval(images, texts, pairs), (True, False), strict=True):
        ranks = plain(images, texts, pairs, np.array([""] * 12), to_text)
        assert found.median("MedR") == np.median(list(ranks.values())) and found.attributes == {}
        assert found.mean("R@5") == np.mean([rank <= 5 for rank in ranks.values()])


def test_what_hangs_together_is_drawn_whole() -> None:
    _, _, pairs, _ = case()
    images, texts = connected(pairs, 12, 9)
    assert images.tolist() == [0] * 6 + [1] * 3 + [2] * 2 + [3]  # one caption joins things 0 and 1, image 11 has none
    assert texts.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 0]


def test_saved_and_compared(tmp_path) -> None:
    images, texts, pairs, domains = case()
    one = cross_modal_retrieval(images, texts, pairs, domains=domains)[1]
    two = cross_modal_retrieval(images[:, ::-1].copy(), texts, pairs, domains=domains)[1]
    one.save(tmp_path)
    assert compare(Evaluation.load(tmp_path), two)["R@1"].difference.mean == pytest.approx(
        two.mean("R@1") - one.mean("R@1")
    )


def test_bad_input() -> None:
    images, texts, pairs, domains = case()
    for wrong, message in ((pairs + 9, "must name rows of both"), (pairs[:, :1], "image row, text row")):
        with pytest.raises(ValueError, match=message):
            cross_modal_retrieval(images, texts, wrong)
    domains[11] = "z"
    with pytest.raises(ValueError, match="none for 'z'"):
        cross_modal_retrieval(images, texts, pairs, domains=domains)
    with pytest.raises(ValueError, match="one an image"):
        cross_modal_retrieval(images, texts, pairs, domains=domains[:3])
