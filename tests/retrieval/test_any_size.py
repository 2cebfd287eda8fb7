"""Searched block by block, from disk, through torch: the same values to the last bit as in memory at once."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcontrast.retrieval import StoredEmbeddings, evaluate, evaluate_pairs, search
from mixcontrast.retrieval.tables import Table
from mixcontrast.retrieval.torch_search import torch_knn
from tests.retrieval.folders import write_every_kind, write_folder

SIMILARITIES = ("cosine", "inner product", "l2")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other in thousands of small searches are slow where cores are busy."""
    count = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield count
    faiss.omp_set_num_threads(count)


def same(one, other):
    assert one.num_tied == other.num_tied and one.num_without_positive == other.num_without_positive
    assert np.array_equal(one.queries, other.queries) and list(one.values) == list(other.values)
    for name, values in one.values.items():
        assert np.array_equal(values, other.values[name]), name


def tables(seed, kind, rows=90, dim=6):
    """Rows in general position, or repeated, or on a grid whose similarities are often equal, or all alike."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, dim)).astype(np.float32)
    if kind == "repeated":
        table = table[rng.integers(0, rows // 4, rows)]
    elif kind == "grid":
        table = rng.integers(-1, 2, (rows, dim)).astype(np.float32) + np.float32(0.01)
    elif kind == "alike":
        table[:] = table[0]
    return table, rng.integers(0, 9, rows), rng


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["general", "repeated", "grid", "alike"]),
    similarity=st.sampled_from(SIMILARITIES),
    ties=st.sampled_from(["expected", "optimistic", "pessimistic"]),
    limit=st.integers(8_000, 40_000),
    rule=st.booleans(),
    alone=st.booleans(),
)
def test_blocks_do_not_matter(seed, kind, similarity, ties, limit, rule, alone):
    table, labels, rng = tables(seed, kind)
    vendors = rng.integers(0, 3, len(table))
    common = dict(ks=(1, 3), similarity=similarity, ties=ties, ranks=True)
    if alone:
        given_ = (table, labels)
        exclude = [(vendors, vendors)] if rule else []
    else:
        given_ = (table[:30], labels[:30], table[30:], labels[30:])
        exclude = [(vendors[:30], vendors[30:])] if rule else []
    try:
        whole = evaluate(*given_, exclude=exclude, **common)
    except ValueError as error:
        assert "something to find" in str(error)
        return
    same(whole, evaluate(*given_, exclude=exclude, memory_limit=limit, **common))
    one = search(table[:30], table[30:], 7, similarity=similarity)
    other = search(table[:30], table[30:], 7, similarity=similarity, memory_limit=limit)
    assert np.array_equal(one.indices, other.indices) and np.array_equal(one.similarity, other.similarity)


def test_larger_tables_in_blocks(tmp_path, one_thread):
    """Large enough that products are cut and rounded in another way; on all threads and on one."""
    table, _, rng = tables(0, "general", rows=3000, dim=48)
    table[2000:2300] = table[:300]  # exact ties, far apart
    labels = rng.integers(0, 100, 3000)
    np.save(tmp_path / "a.npy", table)
    faiss.omp_set_num_threads(max(one_thread, 2))
    whole = evaluate(table, labels, ks=(1, 10), ranks=True)
    faiss.omp_set_num_threads(1)
    for limit in (700_000, 3_000_000, None):
        same(whole, evaluate(StoredEmbeddings(tmp_path / "a.npy"), labels, ks=(1, 10), ranks=True, memory_limit=limit))
    order = rng.permutation(3000)
    turned = evaluate(table[order], labels[order], ks=(1, 10), ranks=True, memory_limit=2_000_000)
    for name, values in whole.values.items():
        assert np.array_equal(values[order], turned.values[name]), name


def test_every_kind_of_store(tmp_path):
    table, labels, rng = tables(3, "repeated", rows=60)
    pairs = np.argwhere(labels[:20, None] == labels)
    grades = rng.integers(1, 4, len(pairs))
    whole = evaluate(table, labels, ks=(1, 5), ranks=True)
    by_pairs = evaluate_pairs(table[:20], table, pairs, grades, ks=(1, 5), ranks=True)
    np.save(tmp_path / "queries.npy", table[:20])
    for path in write_every_kind(tmp_path, table):
        stored = StoredEmbeddings(path)
        same(whole, evaluate(stored, labels, ks=(1, 5), ranks=True, memory_limit=9000))
        same(whole, evaluate(table, labels, stored, labels, ks=(1, 5), ranks=True, memory_limit=9000,
                             query_ids=np.arange(60), gallery_ids=np.arange(60)))  # fmt: skip
        queries = StoredEmbeddings(tmp_path / "queries.npy")
        found = evaluate_pairs(queries, stored, pairs, grades, ks=(1, 5), ranks=True, memory_limit=9000)
        same(by_pairs, found)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_search_is_brute_force(similarity):
    rng = np.random.default_rng(1)
    queries, gallery = rng.standard_normal((20, 7)) + 3, rng.standard_normal((300, 7)) + 3
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    expected = {
        "cosine": unit[0] @ unit[1].T,
        "inner product": queries @ gallery.T,
        "l2": -((queries[:, None] - gallery) ** 2).sum(-1),
    }[similarity]
    for limit in (None, 6000):
        found = search(queries, gallery, 9, similarity=similarity, memory_limit=limit)
        assert np.array_equal(found.indices, np.argsort(-expected, axis=1)[:, :9])
        np.testing.assert_allclose(
            found.similarity, np.take_along_axis(expected, found.indices, axis=1), rtol=1e-4, atol=1e-5
        )


def test_equal_similarities_are_in_the_order_of_the_gallery_also_at_the_last_place():
    gallery = np.repeat(np.random.default_rng(2).standard_normal((10, 5)), 40, axis=0)[np.arange(400) * 7 % 400]
    best = search(gallery[:5], gallery, 40)
    for k in (1, 3, 17):
        for limit in (None, 3000):
            found = search(gallery[:5], gallery, k, memory_limit=limit)
            assert np.array_equal(found.indices, best.indices[:, :k])
    assert (np.diff(best.indices, axis=1) > 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_scale_of_the_data_makes_no_ties_and_hides_none(similarity, scale):
    table, labels, _ = tables(5, "general")
    found = evaluate(table * np.float32(scale), labels, similarity=similarity)
    assert found.num_tied == 0
    same(found, evaluate(table * np.float32(scale * 16), labels, similarity=similarity))  # the same bits, shifted
    twice = np.repeat(table, 2, axis=0) * np.float32(scale)
    mixed = np.arange(180) % 9
    assert evaluate(twice, mixed, similarity=similarity).num_tied > 0


@pytest.mark.parametrize("normalize", [True, False])
def test_a_table_knows_how_long_its_rows_are(tmp_path, normalize):
    """No row is longer than it says, as it stands in memory and as it is read, and none needs so much room."""
    table = tables(3, "general")[0] * 40
    for given_as in (table, StoredEmbeddings(write_folder(tmp_path / "stored", table))):
        kept = Table("rows", given_as, normalize)
        lengths = np.linalg.norm(kept.read(10, 50).astype(np.float64), axis=1)
        most = 1 if normalize else np.linalg.norm(table, axis=1).max()
        assert lengths.max() <= kept.longest(10, 50) * (1 + 1e-7) and kept.longest(10, 50) <= most * 1.00001


def test_distances_far_from_the_origin():
    """|x|^2 + |y|^2 - 2xy has lost them; what chooses is looked at again, pair by pair."""
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((300, 24)) + 3000).astype(np.float32)
    exact = -((table[:, None].astype(np.float64) - table) ** 2).sum(-1)
    for limit in (None, 90_000):
        found = search(table, table, 5, similarity="l2", memory_limit=limit)
        assert np.array_equal(found.indices, np.argsort(-exact, axis=1, kind="stable")[:, :5])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_rows_nearer_to_each_other_than_rounding(similarity):
    """Which of them a product puts first is chance, but the first places are those of the pairs' own similarities."""
    rng = np.random.default_rng(3)
    gallery = np.repeat(10 * rng.standard_normal((20, 100)), 60, axis=0).astype(np.float32)
    gallery *= 1 + 1e-7 * rng.integers(-4, 5, gallery.shape).astype(np.float32)
    queries = gallery[::40] + rng.standard_normal((30, 100)).astype(np.float32)
    everything = search(queries, gallery, 1200, similarity=similarity)
    for limit in (None, 500_000):
        found = search(queries, gallery, 10, similarity=similarity, memory_limit=limit)
        assert np.array_equal(found.indices, everything.indices[:, :10])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [1, 5, 300])
def test_torch_finds_what_faiss_finds(monkeypatch, similarity, k):
    rng = np.random.default_rng(k)
    queries, gallery = (rng.standard_normal((n, 8)).astype(np.float32) for n in (40, 300))
    gallery[100:110] = gallery[:10]
    gallery.flags.writeable = False  # as a memory map is
    # one block; blocks of 64 and fewer; some queries at a time
    for cells, places in ((1 << 26, 1 << 26), (64 * 1024, 1 << 26), (1024, 1 << 26), (1024, 7 * k), (1 << 26, 1)):
        monkeypatch.setattr("mixcontrast.retrieval.torch_search._CELLS", cells)
        monkeypatch.setattr("mixcontrast.retrieval.torch_search._PLACES", places)
        found, rows = torch_knn(queries, gallery, k, similarity, "cpu")
        listed = search(queries, gallery, k, similarity=similarity) if similarity != "cosine" else None
        if listed is not None:
            np.testing.assert_allclose(found, listed.similarity, atol=1e-4)
        assert (rows >= 0).all() and all(len(set(row)) == k for row in rows.tolist())


LEAVES_IT = """
import numpy as np, torch
from mixcontrast.retrieval.torch_search import torch_knn, _full_precision
matmul, table = torch.backends.cuda.matmul, np.eye(3, dtype=np.float32)
for chosen in ("high", "medium", "highest", "tf32", "none", "ieee"):
    old = chosen.startswith(("h", "m"))
    read = torch.get_float32_matmul_precision if old else lambda: matmul.fp32_precision
    if old:
        torch.set_float32_matmul_precision(chosen)
    else:
        matmul.fp32_precision = chosen
    before = read()
    with _full_precision():
        assert matmul.fp32_precision == "ieee", matmul.fp32_precision
    assert torch_knn(table, table, 1, "cosine", "cpu")[1].ravel().tolist() == [0, 1, 2]
    assert read() == before, (chosen, read(), before)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has one setting for all")
def test_the_chosen_precision_of_products_is_left_as_it_was():
    """Torch has an old and a new way to choose it, and raises where they are mixed; so in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", LEAVES_IT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_search_through_torch_gives_the_same_bits(monkeypatch, similarity):
    """As on a GPU for which faiss has no build; torch's `meta` of names: the CPU under another name."""
    table, labels, _ = tables(7, "repeated")
    expected = evaluate(table, labels, similarity=similarity, ranks=True)
    calls = []

    def counted(*args):
        calls.append(args[-1])
        return torch_knn(*args)

    monkeypatch.setattr("mixcontrast.retrieval.torch_search.torch_knn", counted)
    same(expected, evaluate(table, labels, similarity=similarity, ranks=True, device="cpu:0"))
    assert set(calls) == {"cpu:0"}


def test_settings_say_how_it_was_measured(tmp_path):
    table, labels, _ = tables(9, "general")
    made = {"encoder": "resnet", "batch_size": 64, "precision": "bfloat16"}
    folder = write_folder(tmp_path / "a", table.astype(np.float16), settings=made)
    found = evaluate(StoredEmbeddings(folder), labels, memory_limit=4000).settings
    assert found["precision"] == {"queries": "float16", "gallery": "float16", "search": "float32"}
    assert found["encoder"] == {"queries": made, "gallery": made}
    assert (found["memory_limit"], found["block_rows"], found["device"]) == (4000, 13, "cpu")
    assert evaluate(table.astype(np.float64), labels).settings["precision"]["queries"] == "float64"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(memory_limit=0), "`memory_limit` is a number of bytes. Got 0"),
        (dict(similarity="euclidean"), "`similarity` must be one of cosine, inner product, l2. Got 'euclidean'"),
        (dict(device="cuda:77"), "`device` must be one that torch finds here. Got 'cuda:77'"),
        (dict(device="gpu"), "`device` must be one that torch finds here. Got 'gpu'"),
        (dict(index_parameters="nprobe=2"), "`index_parameters` are those of an index"),
    ],
)
def test_bad_input_gets_its_line(options, message):
    table, labels, _ = tables(0, "general")
    with pytest.raises(ValueError, match=message) as raised:
        evaluate(table, labels, **options)
    assert "\n" not in str(raised.value)
