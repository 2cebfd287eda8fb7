"""TREC files: what we write ir-measures reads, and what it writes we read."""

import ir_measures
import numpy as np
import pytest

from mixcontrast.retrieval import evaluate_pairs, read_judgements, read_qrels, read_run, search, write_qrels, write_run

RNG = np.random.default_rng(0)
QUERIES, GALLERY = RNG.standard_normal((6, 4)), RNG.standard_normal((20, 4))
QUERY_IDS, GALLERY_IDS = [f"q{n}" for n in range(6)], [f"d{n:03d}" for n in range(20)]
PAIRS = np.stack([np.arange(12) % 6, RNG.permutation(20)[:12]], axis=1)
GRADES = RNG.integers(1, 4, 12)


def test_ir_measures_reads_ours(tmp_path):
    write_run(tmp_path / "run.trec", search(QUERIES, GALLERY, 20), QUERY_IDS, GALLERY_IDS)
    write_qrels(tmp_path / "qrels.txt", PAIRS, QUERY_IDS, GALLERY_IDS, GRADES)
    theirs = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10, ir_measures.AP @ 10],
        ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")),
        ir_measures.read_trec_run(str(tmp_path / "run.trec")),
    )
    ours = evaluate_pairs(QUERIES, GALLERY, PAIRS, GRADES, ks=(10,))
    assert ours.mean("ndcg@10") == pytest.approx(theirs[ir_measures.nDCG @ 10], abs=1e-6)
    assert ours.mean("map@10") == pytest.approx(theirs[ir_measures.AP @ 10], abs=1e-6)


def test_there_and_back(tmp_path):
    write_qrels(tmp_path / "qrels", PAIRS, QUERY_IDS, GALLERY_IDS, GRADES)
    pairs, grades = read_qrels(tmp_path / "qrels", QUERY_IDS, GALLERY_IDS)
    assert np.array_equal(pairs, PAIRS) and np.array_equal(grades, GRADES)
    found = search(QUERIES, GALLERY, 3)
    write_run(tmp_path / "run", found, QUERY_IDS, GALLERY_IDS)
    run = read_run(tmp_path / "run")
    assert list(run) == QUERY_IDS
    assert list(run["q2"]) == [GALLERY_IDS[g] for g in found.indices[2]]
    assert np.array_equal(np.float32(list(run["q2"].values())), found.similarity[2])
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file stays


def test_beir_and_negative_grades_and_queries_without_row(tmp_path):
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td003\t2\nq2\td004\t-1\nq99\td001\t1\n")
    pairs, grades = read_qrels(tmp_path / "test.tsv", QUERY_IDS, GALLERY_IDS)
    assert pairs.tolist() == [[1, 3], [2, 4]] and grades.tolist() == [2, 0]


def test_rows_left_out_are_not_written(tmp_path):
    ids = np.arange(3)
    found = search(GALLERY[:3], GALLERY[:3], 3, query_ids=ids, gallery_ids=ids)
    write_run(tmp_path / "run", found, ids, ids)
    assert all(query not in scores and len(scores) == 2 for query, scores in read_run(tmp_path / "run").items())


@pytest.mark.parametrize(
    "text, message",
    [("q1 0 d001\n\nq1 0 d001 x\n", "line 1"), ("q1 0 unknown 1\n", "'unknown'"), ("q1 0 d001 1 extra\n", "line 1")],
    ids=["grade", "document", "fields"],
)
def test_bad_qrels_get_their_line(tmp_path, text, message):
    (tmp_path / "qrels").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_qrels(tmp_path / "qrels", QUERY_IDS, GALLERY_IDS)
    assert "\n" not in str(raised.value)


def test_other_bad_input(tmp_path):
    with pytest.raises(ValueError, match="20 rows, 19 names"):
        read_qrels(tmp_path / "qrels", QUERY_IDS, [*GALLERY_IDS[:19], "d000"])
    with pytest.raises(ValueError, match="'a b'"):
        write_qrels(tmp_path / "qrels", [[0, 0]], ["a b"], ["d"])
    with pytest.raises(ValueError, match="whole numbers. Got fractions"):
        write_qrels(tmp_path / "qrels", [[0, 0]], ["a"], ["d"], [0.5])
    (tmp_path / "qrels").write_text("x1 0 d001 1\n")
    with pytest.raises(ValueError, match="none of the 6 ids, the first 'q0'"):
        read_qrels(tmp_path / "qrels", QUERY_IDS, GALLERY_IDS)
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq1 0 d1 2\n")
    with pytest.raises(ValueError, match="A pair has one grade. Got 'd1' for 'q1' with another in line 2"):
        read_judgements(tmp_path / "qrels")
    for text, message in (
        ("q1 Q0 d1 1 0.5\n", "line 1"),
        ("q1 Q0 d1 1 nan x\n", "line 1"),
        ("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", "Got 'd1' for 'q1' again in line 2"),
    ):
        (tmp_path / "run").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path / "run")
