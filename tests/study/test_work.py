"""Units are done once, by one process, and are taken up again when it is no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock

from mixcontrast.files import write_json
from mixcontrast.study.plan import Arm, Plan
from mixcontrast.study.work import Unit, _did, units_of, work_together


def unit(folder, log: list[str], name: str = "a") -> Unit:
    def do() -> None:
        log.append(name)
        print("told to the log")
        write_json(folder / f"{name}.json", {})

    return Unit(name, name, folder / f"{name}.json", (), do)


def test_a_unit_is_done_once_and_its_words_go_to_its_log(tmp_path, capsys):
    log: list[str] = []
    (tmp_path / "locks").mkdir()
    only = unit(tmp_path, log)
    assert _did(only, tmp_path, [only]) and not _did(only, tmp_path, [only])
    assert log == ["a"] and capsys.readouterr().out == "1 of 1  a\n"
    took = json.loads((tmp_path / "times" / "a.json").read_text())
    assert 0 <= took["ended"] - took["began"] < 10 and abs(took["ended"] - time.time()) < 10
    assert (tmp_path / "logs" / "a.log").read_text() == "told to the log\n"


def test_what_another_process_holds_is_left_to_it_and_taken_up_when_it_is_killed(tmp_path):
    (tmp_path / "locks").mkdir()
    lock, log = tmp_path / "locks" / "a.lock", []
    code = (
        f"import time, filelock; held = filelock.FileLock({str(lock)!r}); held.acquire(); print(1, flush=True); "
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline()
        only = unit(tmp_path, log)
        assert not _did(only, tmp_path, [only]) and log == []
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for _ in range(50):
        if _did(only, tmp_path, [only]):
            break
        time.sleep(0.1)
    assert log == ["a"]


@pytest.mark.parametrize("visible, count, seen", [
    (None, 4, ["0", "1", "2", "3", "0"]),
    ("2,GPU-5", 2, ["2", "GPU-5", "2", "GPU-5", "2"]),
    ("1, 3,7", 3, ["1", "3", "7", "1", "3"]),
    ("3", 1, ["3"] * 5),
    (None, 1, [None] * 5),
    (None, 0, [None] * 5),
    ("", 0, [""] * 5),
])  # fmt: skip
def test_each_process_sees_one_device_in_turn(visible, count, seen, tmp_path, monkeypatch):
    """What is passed on: a process that is spawned takes the environment of the moment in which it starts."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    starts: list[str | None] = []

    class Process:
        exitcode = 0

        def __init__(self, target, args, kwargs) -> None: ...

        def start(self) -> None:
            starts.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

        def join(self) -> None: ...

    monkeypatch.setattr("multiprocessing.get_context", lambda kind: SimpleNamespace(Process=Process))
    mine: list[str | None] = []
    monkeypatch.setattr(
        "mixcontrast.study.work.work", lambda *_, **__: mine.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    work_together(tmp_path, 1, 5)
    assert mine + starts == seen
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_the_lock_of_a_unit_that_failed_is_free_again(tmp_path):
    (tmp_path / "locks").mkdir()

    def do() -> None:
        raise RuntimeError("no")

    broken = Unit("a", "a", tmp_path / "a.json", (), do)
    try:
        _did(broken, tmp_path, [broken])
    except RuntimeError:
        pass
    with FileLock(tmp_path / "locks" / "a.lock", timeout=0):
        pass


def test_runs_wait_for_tuning_and_seeds_go_side_by_side(tmp_path):
    arms = tuple(Arm(name, {}, (), ()) for name in ("one", "two + three"))
    units = units_of(Plan(arms, "m", "val/m", "max", 3), tmp_path, 2)
    assert [each.name for each in units] == [
        "tune-one", "tune-two_three", "one-seed0", "two_three-seed0", "one-seed1", "two_three-seed1", "cost-one",
        "cost-two_three",
    ]  # fmt: skip
    assert all(each.needs == (units["two" in each.name].result,) for each in units[2:])
