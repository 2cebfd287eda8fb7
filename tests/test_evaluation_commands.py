"""`mixcontrast evaluate` and `mixcontrast compare`, as a user types them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mixcontrast.cli import main
from mixcontrast.retrieval import CLIP, DML, evaluate, write_qrels

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
        (["compare", "nothing", "there"], "A saved evaluation is a folder"),
    ],
    ids=["relevance", "kind", "none", "half", "column", "gallery-labels", "k", "qrels", "ids", "compare"],
)
def test_bad_input_gets_one_line(folder, arguments, message):
    (folder / "half.npy").write_bytes((folder / "a.npy").read_bytes()[:300])
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert message in str(raised.value) and "\n" not in str(raised.value)
