"""Search through faiss indices: what is found is judged, what is not found is missed, and how much that is, is said."""

import numpy as np
import pytest

from mixcontrast.retrieval import StoredEmbeddings, evaluate, evaluate_pairs, search

RNG = np.random.default_rng(0)
LABELS = np.arange(2000) // 5
TABLE = (RNG.standard_normal((400, 16))[LABELS] + 0.6 * RNG.standard_normal((2000, 16))).astype(np.float32)


@pytest.mark.parametrize("similarity", ["cosine", "inner product", "l2"])
def test_an_index_that_searches_everything_is_exact(tmp_path, similarity):
    np.save(tmp_path / "a.npy", TABLE)
    exact = evaluate(TABLE, LABELS, similarity=similarity)
    for queries in (TABLE, StoredEmbeddings(tmp_path / "a.npy")):
        found = evaluate(queries, LABELS, similarity=similarity, index="IVF16,Flat", index_parameters="nprobe=16",
                         memory_limit=400_000)  # fmt: skip
        assert found.settings["index"]["recall_of_exact@8"]["mean"] == 1
        assert found.settings["search"] == "approximate" and found.settings["index"]["factory"] == "IVF16,Flat"
        for name, values in exact.values.items():
            np.testing.assert_allclose(values, found.values[name], err_msg=name)


@pytest.mark.parametrize("index", ["HNSW8", "PQ8x4", "OPQ4,IVF8,PQ4x4"])
def test_what_is_given_away_is_counted(index):
    exact = search(TABLE[:300], TABLE, 10)
    found = search(TABLE[:300], TABLE, 10, index=index)
    shares = [len(set(a) & set(b[v])) / 10 for a, b, v in zip(exact.indices, found.indices, found.valid, strict=True)]
    assert found.recall.low - 0.05 <= np.mean(shares) <= found.recall.high + 0.05 and np.mean(shares) < 1
    assert exact.recall is None and found.recall.low <= found.recall.mean <= found.recall.high


def test_more_of_it_searched_gives_less_away():
    few, many = (search(TABLE[:200], TABLE, 10, index="IVF64,Flat", index_parameters=f"nprobe={n}") for n in (1, 16))
    assert few.recall.mean < many.recall.mean


def test_what_is_not_found_is_missed_and_never_an_item():
    """Lists of few rows, one of them searched: faiss pads with -1, which as an index is the last row."""
    gallery = np.concatenate([np.eye(16), -np.eye(16)]).astype(np.float32)
    found = search(gallery, gallery, 20, index="IVF8,Flat")
    assert not found.valid.all() and found.indices.min() >= 0
    assert (found.valid.sum(axis=1) < 20).any() and np.isneginf(found.similarity[~found.valid]).all()
    labels = np.zeros(32, int)
    judged = evaluate(gallery, labels, ks=(1, 31), index="IVF8,Flat", ranks=True)
    assert np.allclose(judged.values["recall@31"] * 31, judged.values["precision@31"] * 31)
    assert judged.mean("recall@31") < 1
    alone = evaluate_pairs(gallery[:1], gallery, [[0, 16]], ks=(1,), index="IVF8,Flat", ranks=True)
    assert alone.values["first_rank"].tolist() == [32] and alone.values["hit@1"].tolist() == [0]


def test_rules_hold():
    vendors = np.arange(2000) % 3
    found = search(TABLE, TABLE, 5, query_ids=np.arange(2000), gallery_ids=np.arange(2000),
                   exclude=[(vendors, vendors)], index="HNSW16", index_parameters="efSearch=64")  # fmt: skip
    assert (vendors[found.indices] != vendors[:, None])[found.valid].all() and found.valid.mean() > 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(index="IVF12x,Nonsense"), "must be a faiss factory string .*Got 'IVF12x,Nonsense'"),
        (dict(index="PQ7"), "Got 'PQ7'"),
        (dict(index="IVF4,Flat", index_parameters="probes=3"), "Got 'IVF4,Flat' with 'probes=3'"),
        (dict(index="IVF4000,Flat"), "Got 'IVF4000,Flat'"),
    ],
)
def test_bad_input_gets_its_line(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        search(TABLE, TABLE, 3, **options)
    assert "\n" not in str(raised.value)
