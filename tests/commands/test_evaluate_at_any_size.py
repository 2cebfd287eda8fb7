"""`mixcontrast evaluate` over folders of embeddings: their columns, a kill in the middle, several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mixcontrast.cli import main
from mixcontrast.retrieval import CLIP, DML, evaluate, evaluate_pairs, exact, write_qrels
from tests.retrieval.folders import write_folder

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 200, 4000)
TABLE = (RNG.standard_normal((200, 16))[LABELS] + RNG.standard_normal((4000, 16))).astype(np.float32)
WORDS = np.array([f"class {label}" for label in LABELS])
VENDORS = RNG.integers(0, 3, 4000)
ROOT = Path(__file__).parents[2]
EVALUATE = ["evaluate", "queries.npy", "--labels", "labels.npy", "--gallery", "gallery", "--gallery_labels", "label",
            "--preset", "clip", "--memory_limit", "120KB"]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("queries.npy", TABLE[:60])
    np.save("labels.npy", LABELS[:60])
    made = {"encoder": "resnet18", "batch_size": 64, "precision": "float32"}
    write_folder(tmp_path / "gallery", TABLE, part_rows=1500, settings=made, label=LABELS, word=WORDS, vendor=VENDORS)
    return tmp_path


def test_columns_of_the_folder(folder, capsys):
    main(["evaluate", "gallery", "--labels", "word", "--by", "vendor", "--exclude", "vendor", "--preset", "dml",
          "--out", "run", "--similarity", "l2"])  # fmt: skip
    expected = evaluate(TABLE, LABELS, exclude=[(VENDORS, VENDORS)], similarity="l2").named(DML)
    shown = capsys.readouterr().out
    assert f"| Recall@1 | {expected.mean('Recall@1'):.4f} |" in shown and "| 2 | " in shown
    assert "16 dimensions, l2, exact search." in shown
    assert sorted(file.name for file in (folder / "run").iterdir()) == [
        "queries.csv", "results.csv", "results.json", "results.md"
    ]  # fmt: skip


def test_a_file_comes_before_a_column(folder, capsys):
    (folder / "label").write_text("\n".join(str(row % 500) for row in range(4000)))
    main(["evaluate", "gallery", "--labels", "label", "--ks", "[1]"])
    assert f"| hit@1 | {evaluate(TABLE, np.arange(4000) % 500, ks=(1,)).mean('hit@1'):.4f} |" in capsys.readouterr().out


def test_own_ids_for_qrels(folder, capsys):
    write_folder(folder / "asked", TABLE[:20] + np.float32(0.1), id=[f"q{n}" for n in range(20)])
    pairs = np.stack([np.arange(20), np.arange(20)], axis=1)
    write_qrels("qrels", pairs, [f"q{n}" for n in range(20)], [f"r{n}" for n in range(4000)])
    main(["evaluate", "asked", "--gallery", "gallery", "--qrels", "qrels", "--preset", "clip"])
    expected = evaluate_pairs(TABLE[:20] + np.float32(0.1), TABLE, pairs, ks=(1, 5, 10)).named(CLIP)
    assert f"| R@1 | {expected.mean('R@1'):.4f} |" in capsys.readouterr().out


def test_an_index_says_what_it_gives_away(folder, capsys):
    main(["evaluate", "gallery", "--labels", "label", "--ks", "[1, 5]", "--index", "IVF32,Flat",
          "--index_parameters", "nprobe=2"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "approximate search by IVF32,Flat nprobe=2, which finds 0." in shown and "of the exact 5 nearest" in shown


def test_k_over_the_gallery_is_said(folder, capsys):
    np.save("few.npy", TABLE[:9])
    np.save("few-labels.npy", LABELS[:9])
    main([*EVALUATE[:4], "--gallery", "few.npy", "--gallery_labels", "few-labels.npy", "--ks", "[1, 20]"])
    assert "k of 20 is over the gallery's size" in capsys.readouterr().out


def test_a_killed_run_goes_on(folder, monkeypatch, capsys):
    main([*EVALUATE, "--out", "undisturbed"])
    run = start([sys.executable, "-m", "mixcontrast.cli", *EVALUATE, "--out", "run"])
    kept = killed_in_the_middle(run, folder / "run")
    calls = []
    search = exact.nearest

    def counted(*args):
        calls.append(1)
        return search(*args)

    monkeypatch.setattr(exact, "nearest", counted)
    main([*EVALUATE, "--out", "whole"])
    of_whole = len(calls)
    main([*EVALUATE, "--out", "run"])
    assert 0 < len(kept) < of_whole and len(calls) - of_whole == of_whole - len(kept)
    same_files(folder / "undisturbed", folder / "run")


def test_a_changed_input_starts_over(folder, capsys):
    run = start([sys.executable, "-m", "mixcontrast.cli", *EVALUATE, "--out", "run"])
    kept = killed_in_the_middle(run, folder / "run")
    changed = TABLE[:60] + RNG.standard_normal((60, 16)).astype(np.float32)
    np.save("queries.npy", changed)
    main([*EVALUATE, "--out", "run"])
    main([*EVALUATE, "--out", "undisturbed"])
    same_files(folder / "undisturbed", folder / "run")
    assert not any(file.exists() for file in kept)


def test_an_index_leaves_nothing_of_a_killed_exact_search(folder, capsys):
    (folder / "run" / ".search-of-another").mkdir(parents=True)
    main([*EVALUATE, "--index", "IVF8,Flat", "--out", "run"])
    assert not list((folder / "run").glob(".search-*"))


@pytest.mark.parametrize("package, file", [("pyarrow", "gallery"), ("safetensors", "a.safetensors")])
def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch, package, file):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"need {package}.*pip install 'mixcontrast\[evaluate\]'"):
        main(["evaluate", file, "--labels", "label"])


@pytest.mark.slow
def test_torchrun_is_one_process_and_goes_on_after_a_kill(folder, capsys):
    main([*EVALUATE, "--out", "one"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                "mixcontrast.cli", *EVALUATE, "--out"]  # fmt: skip
    killed_in_the_middle(start([*torchrun, "two"]), folder / "two")
    shown = subprocess.run([*torchrun, "two"], env=environment(), capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("| R@1 |") == 1
    for name in ("queries.csv", "results.csv", "results.md"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes(), name
    assert not list((folder / "two").glob(".search-*"))


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(command):
    return subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)


def killed_in_the_middle(run, out):
    """Kills a run that has finished some blocks; these."""
    deadline = time.monotonic() + 120
    while len(kept := list(out.glob(".search-*/[!.]*.npz"))) < 3:
        assert run.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
        time.sleep(0.001)
    for pid in [run.pid, *children(run.pid)]:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    assert not (out / "results.json").exists()
    return list(out.glob(".search-*/[!.]*.npz")) or kept


def children(pid):
    """All below it: torchrun gives each of its processes a session of its own, which no signal to a group reaches."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [below for child in map(int, found) for below in (child, *children(child))]


def same_files(one, other):
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "gallery", "--labels", "colour"], "or a column of gallery: id, label, word, vendor"),
        (["evaluate", "queries.npy", "--labels", "label"], "label cannot be read"),
        (["evaluate", "gallery", "--labels", "labels.npy"], "Got 60 in the file labels.npy for 4000 rows"),
        ([*EVALUATE, "--memory_limit", "much"], "--memory_limit is a number of bytes. Got 'much'"),
        ([*EVALUATE, "--index", "Nonsense"], "must be a faiss factory string"),
        (["evaluate", "narrow.npy", "--labels", "labels.npy", "--gallery", "gallery", "--gallery_labels", "label"],
         "`queries` and `gallery` must be of one width. Got queries (60, 3), gallery (4000, 16)"),
        (["evaluate", "unfinished", "--labels", "label"], "unfinished: it has parts and no manifest.json"),
    ],
    ids=["column", "no-column", "length", "bytes", "index", "width", "unfinished"],
)  # fmt: skip
def test_bad_input_gets_one_line(folder, arguments, message):
    np.save("narrow.npy", TABLE[:60, :3])
    (write_folder(folder / "unfinished", TABLE[:20]) / "manifest.json").unlink()
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert message in str(raised.value) and "\n" not in str(raised.value)
