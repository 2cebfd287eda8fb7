"""`mixcontrast evaluate` and `mixcontrast compare`, as a user types them."""

import json

import ir_measures
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mixcontrast.cli import main
from mixcontrast.retrieval import CLIP, DML, clustering_agreement, evaluate, read_run, write_qrels

RNG = np.random.default_rng(0)
LABELS = np.arange(60) // 4
TABLE = (3 * np.eye(15)[LABELS] + 0.9 * RNG.standard_normal((60, 15))).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", TABLE)
    np.save("b.npy", TABLE + RNG.standard_normal(TABLE.shape).astype(np.float32))
    save_file({"embeddings": torch.from_numpy(TABLE)}, "a.safetensors")
    lines = ["class,vendor,id"] + [f"c{label},v{row % 4},r{row}" for row, label in enumerate(LABELS)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    np.save("labels.npy", LABELS)
    return tmp_path


def test_classes_of_a_csv(folder, capsys):
    main(["evaluate", "a.safetensors", "--labels", "rows.csv:class", "--preset", "dml", "--by", "rows.csv:vendor",
          "--out", "run"])  # fmt: skip
    expected = evaluate(TABLE, LABELS).named(DML)
    shown = capsys.readouterr().out
    assert f"| Recall@1 | {expected.mean('Recall@1'):.4f} |" in shown and "| v3 | 15 |" in shown
    assert "60 queries, 60 gallery rows of 15 dimensions, cosine" in shown
    saved = json.loads((folder / "run" / "results.json").read_text())
    assert saved["metrics"]["MAP@R"]["mean"] == pytest.approx(expected.mean("MAP@R"))
    assert set(saved["by"]["vendor"]) == {"v0", "v1", "v2", "v3"}
    assert {f.name for f in (folder / "run").iterdir()} == {
        "results.json", "results.md", "results.csv", "queries.csv"
    }  # fmt: skip


def test_a_gallery_with_exclusions(folder, capsys):
    main(["evaluate", "a.npy", "--labels", "labels.npy", "--gallery", "b.npy", "--gallery_labels", "labels.npy",
          "--exclude", "rows.csv:vendor", "--preset", "clip", "--ks", "[1, 5]"])  # fmt: skip
    vendors = np.arange(60) % 4
    expected = evaluate(
        TABLE, LABELS, np.load("b.npy"), LABELS, exclude=[(vendors, vendors)], ks=(1, 5), ranks=True
    ).named(CLIP)
    shown = capsys.readouterr().out
    for name in ("R@1", "R@5"):
        assert f"| {name} | {expected.mean(name):.4f} |" in shown
    assert f"| MedR | {expected.median('MedR'):.4f} |" in shown


def test_qrels(folder, capsys):
    write_qrels("qrels", [[0, 1], [0, 2], [7, 5]], np.arange(60), [f"r{n}" for n in range(60)], [2, 1, 1])
    np.save("ids.npy", np.arange(60))
    main(["evaluate", "a.npy", "--gallery", "b.npy", "--qrels", "qrels", "--query_ids", "ids.npy",
          "--gallery_ids", "rows.csv:id", "--preset", "trec", "--ks", "[10]"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "| ndcg_cut_10 |" in shown and "58 queries have nothing to find" in shown


def test_a_run_is_written_and_judged(folder, capsys):
    """Ours by evaluate_run, and by ir-measures through its files."""
    write_qrels("qrels", [[0, 1], [0, 2], [7, 5]], [f"r{n:03d}" for n in range(60)], [f"{n:03d}" for n in range(60)])
    (folder / "ids.txt").write_text("\n".join(f"r{n:03d}" for n in range(60)))
    (folder / "numbers.txt").write_text("\n".join(f"{n:03d}" for n in range(60)))  # 007 is not 7
    main(["evaluate", "a.npy", "--gallery", "b.npy", "--qrels", "qrels", "--query_ids", "ids.txt", "--gallery_ids",
          "numbers.txt", "--preset", "trec", "--ks", "1,10", "--run", "runs/a.trec", "--out", "dense"])  # fmt: skip
    dense = capsys.readouterr().out
    main(["evaluate_run", "runs/a.trec", "qrels", "--ks", "[1, 10]", "--out", "listed"])
    listed = capsys.readouterr().out
    rows = [line for line in listed.splitlines() if line.startswith("| ") and "Rprec" not in line]
    assert len(rows) > 10 and all(row in dense for row in rows)
    assert "2 queries with something to find. 58 queries have nothing" in listed
    run = list(ir_measures.read_trec_run("runs/a.trec"))
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], ir_measures.read_trec_qrels("qrels"), run)
    assert f"| ndcg_cut_10 | {theirs[ir_measures.nDCG @ 10]:.4f} |" in listed and len(run) == 600
    assert (folder / "dense" / "queries.csv").read_text().splitlines()[1].startswith("0,r000,")
    assert (folder / "listed" / "queries.csv").read_text().splitlines()[1].startswith("r000,")


def test_a_run_of_queries_among_themselves_and_clusters(folder, capsys):
    main(["evaluate", "a.npy", "--labels", "rows.csv:class", "--exclude", "rows.csv:vendor", "--ks", "3",
          "--run", "a.run", "--clusters", "true", "--out", "run"])  # fmt: skip
    agreement = clustering_agreement(TABLE, LABELS)
    assert f"NMI {agreement['nmi']:.4f}, AMI {agreement['ami']:.4f}." in capsys.readouterr().out
    assert json.loads((folder / "run" / "results.json").read_text())["clustering"] == agreement
    listed = read_run("a.run")
    assert len(listed) == 60 and all(len(scores) == 3 for scores in listed.values())
    assert all(int(query) % 4 != int(d) % 4 for query, scores in listed.items() for d in scores)


def test_changed_queries_are_named(folder, capsys):
    for name in ("a", "b"):
        main(["evaluate", f"{name}.npy", "--labels", "labels.npy", "--gallery", "a.npy", "--gallery_labels",
              "labels.npy", "--query_ids", "rows.csv:id", "--gallery_ids", "rows.csv:id",
              "--out", f"run-{name}"])  # fmt: skip
    main(["compare", "run-b", "run-a"])
    assert "changed most, by name: r" in capsys.readouterr().out


def test_what_cannot_be_an_integer_is_a_text(folder, capsys):
    """Beyond 64 bits, and forms that int() would merge."""
    large, zeros = (lambda n: str(2**70 + n)), (lambda n: "0" * (n % 3) + "7" + "1" * (n // 3))
    for name, form in (("large", large), ("zeros", zeros)):
        (folder / name).write_text("\n".join(form(label) for label in LABELS.tolist()))
        main(["evaluate", "a.npy", "--labels", name, "--ks", "1"])
        assert f"| hit@1 | {evaluate(TABLE, LABELS, ks=(1,)).mean('hit@1'):.4f} |" in capsys.readouterr().out


def test_two_runs_compared(folder, capsys):
    for name in ("a", "b"):
        main(["evaluate", f"{name}.npy", "--labels", "labels.npy", "--out", f"run-{name}"])
    capsys.readouterr()
    main(["compare", "run-b", "run-a", "--out", "difference.md"])
    shown = capsys.readouterr().out
    assert "| map@r |" in shown and "changed most, by row" in shown
    assert (folder / "difference.md").read_text() == shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "a.npy"], "--labels or by --qrels"),
        (["evaluate", "a.txt", "--labels", "labels.npy"], "Embeddings are .npy, .safetensors, .parquet"),
        (["evaluate", "none.npy", "--labels", "labels.npy"], "none.npy cannot be read as embeddings"),
        (["evaluate", "half.npy", "--labels", "labels.npy"], "half.npy cannot be read as embeddings"),
        (["evaluate", "a.npy", "--labels", "rows.csv:colour"], "no column 'colour'; there are class, vendor, id"),
        (["evaluate", "a.npy", "--labels", "labels.npy", "--gallery", "b.npy"], "A gallery needs its labels"),
        (["evaluate", "a.npy", "--labels", "labels.npy", "--ks", "[0]"], "`k` must be at least 1"),
        (["evaluate", "a.npy", "--qrels", "labels.npy"], "--qrels name ids"),
        (["evaluate", "a.npy", "--labels", "labels.npy", "--query_ids", "labels.npy"], "--query_ids and --gallery_ids"),
        (["evaluate", "a.npy", "--labels", "lacking.csv:class"],
         "--labels needs a value in each row. lacking.csv:class has none for 2 of 60 rows, first row 7 (from 0)"),
        (["evaluate", "a.npy", "--labels", "floats.npy"], "--labels takes integers or texts. Got float64"),
        (["evaluate", "a.npy", "--labels", "labels.npy", "--ks", "1,x"], "--ks are whole numbers"),
        (["evaluate", "a.npy", "--qrels", "labels.npy", "--clusters", "true"], "--clusters compares clusters"),
        (["evaluate", "nowhere", "--labels", "labels.npy"], "which is not there"),
        (["evaluate_run", "rows.csv", "rows.csv"], "A line of a run is"),
        (["compare", "nothing", "there"], "A saved evaluation is a folder"),
    ],
    ids=["relevance", "kind", "none", "half", "column", "gallery-labels", "k", "qrels", "ids", "lacking", "floats",
         "ks", "clusters", "nowhere", "run", "compare"],
)
def test_bad_input_gets_one_line(folder, arguments, message):
    np.save("floats.npy", LABELS.astype(float))
    rows = [f"c{label},v" if row not in (7, 9) else (",v" if row == 7 else "") for row, label in enumerate(LABELS)]
    (folder / "lacking.csv").write_text("\n".join(["class,vendor", *rows]).replace("\n\n", "\n ,\n") + "\n")
    (folder / "half.npy").write_bytes((folder / "a.npy").read_bytes()[:300])
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert message in str(raised.value) and "\n" not in str(raised.value)
