"""Rankings of other programs, judged: as ir-measures judges them, and as we judge our own search."""

from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Rprec, Success, nDCG

from mixcontrast.retrieval import (
    TREC,
    Evaluation,
    compare,
    evaluate_pairs,
    evaluate_run,
    read_judgements,
    search,
    write_qrels,
    write_run,
)

RNG = np.random.default_rng(0)


def drawn(graded, seed, queries=12, documents=40):
    """A run of different depths, and qrels of other documents too."""
    rng = np.random.default_rng(seed)
    run = {}
    for q in range(queries):
        scores = rng.permutation(1000)[: rng.integers(1, documents)] / 7 - 50
        listed = rng.permutation(documents)[: len(scores)]
        run[f"q{q}"] = {f"d{d}": float(score) for d, score in zip(listed, scores, strict=True)}
    qrels = {
        f"q{q}": {f"d{d}": int(g) for d, g in enumerate(rng.integers(0, 4 if graded else 2, documents)) if d % 3 == 0}
        for q in range(queries)
    }
    qrels["q0"]["d0"] = 1
    return run, qrels


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ir_measures_agrees(graded, seed):
    run, qrels = drawn(graded, seed)
    found = evaluate_run(run, qrels, ks=(1, 5, 100)).named(TREC)
    for k in (1, 5, 100):
        theirs = {f"ndcg_cut_{k}": nDCG @ k, f"P_{k}": P @ k, f"recall_{k}": R @ k, f"map_cut_{k}": AP @ k,
                  f"success_{k}": Success @ k, "recip_rank": RR, "Rprec": Rprec}  # fmt: skip
        measured = {(m.measure, m.query_id): m.value for m in ir_measures.iter_calc(list(theirs.values()), qrels, run)}
        for name, measure in theirs.items():
            for query, value in zip(found.queries.tolist(), found.values[name], strict=True):
                assert value == pytest.approx(measured[measure, query], abs=1e-6), (name, query)


def test_our_own_run_is_what_we_judge(tmp_path):
    queries, gallery = RNG.standard_normal((8, 4)), RNG.standard_normal((30, 4))
    gallery[20:] = gallery[:10]  # ties, which the file keeps
    pairs = np.stack([np.arange(24) % 8, RNG.permutation(30)[:24]], axis=1)
    grades = RNG.integers(1, 4, 24)
    names = [f"q{n}" for n in range(8)], [f"d{n}" for n in range(30)]
    write_run(tmp_path / "run", search(queries, gallery, 30), *names)
    write_qrels(tmp_path / "qrels", pairs, *names, grades)
    write_qrels(tmp_path / "test.tsv", pairs, *names, grades, beir=True)
    assert (tmp_path / "test.tsv").read_text().startswith("query-id\tcorpus-id\tscore\nq0\td")
    assert read_judgements(tmp_path / "qrels") == read_judgements(tmp_path / "test.tsv")
    expected = evaluate_pairs(queries, gallery, pairs, grades, ks=(1, 30))
    found = evaluate_run(tmp_path / "run", tmp_path / "test.tsv", ks=(1, 30))
    for name, values in expected.values.items():
        np.testing.assert_allclose(found.values[name], values, atol=1e-12, err_msg=name)
    assert found.num_tied == expected.num_tied
    by_name = compare(replace(expected, names=np.array(names[0])), found.of_queries(np.arange(8)[::-1]))
    assert by_name["ndcg@30"].num_even == 8
    with pytest.raises(ValueError, match="Got 8 and 7, 7 in both"):
        compare(found, found.of_queries(np.arange(7)))
    again = Evaluation.load(found.save(tmp_path / "saved"))
    assert again.queries.tolist() == names[0] and compare(found, again)["mrr"].num_even == 8


def test_queries_of_one_side():
    qrels = {"q1": {"a": 1}, "q2": {"a": 2}, "q4": {"a": 0}}
    found = evaluate_run({"q1": {"a": 1.0}, "q3": {"a": 1.0}}, qrels, ks=(1,))
    assert found.queries.tolist() == ["q1", "q2"] and found.values["hit@1"].tolist() == [1, 0]
    assert found.num_without_positive == 2 and found.settings["num_not_in_run"] == 1


def test_equal_scores_have_no_order():
    for run in ({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1.0, "a": 1.0}}):
        assert evaluate_run(run, {"q": {"a": 1}}, ks=(1,)).values["hit@1"].tolist() == [0.5]
        assert evaluate_run(run, {"q": {"a": 1}}, ks=(1,), ties="pessimistic").values["mrr"].tolist() == [0.5]


@pytest.mark.parametrize(
    "run, qrels, options, message",
    [
        ({"q": {"a": 1.0}}, {"Q": {"a": 1}}, {}, "a query in common that has something to find. Got 1 queries and 1"),
        ({"q": {"a": float("nan")}}, {"q": {"a": 1}}, {}, "Scores of a run must be finite"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, {"ks": (0,)}, "`k` must be at least 1"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, {"ties": "first"}, "`ties` one of expected"),
    ],
)
def test_bad_input_gets_its_line(run, qrels, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        evaluate_run(run, qrels, **options)
    assert "\n" not in str(raised.value)
