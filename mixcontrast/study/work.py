"""A study's work as units that are done once, by whichever process comes first, and gone on with after a kill."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixcontrast.files import write_json
from mixcontrast.study.plan import Arm, Plan

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT = 0.5  # seconds between looks at what others do


@dataclass(frozen=True)
class Unit:
    """Something to do.

    Attributes:
        name: of its lock and its log.
        what: in words, for the terminal.
        result: the file that is written last.
        needs: files that must be there.
        do: writes the result.
    """

    name: str
    what: str
    result: Path
    needs: tuple[Path, ...]
    do: Callable[[], None]


def units_of(plan: Plan, folder: Path, seeds: int, costs: bool = True) -> list[Unit]:
    """All that there is to do, in the order in which it is begun: tuning, then seed by seed, then what a step costs."""
    found = [
        Unit(f"tune-{arm.slug}", f"tuned: {arm.name}", tuned_file(folder, arm), (), _tuning(plan, arm, folder))
        for arm in plan.arms
    ]
    for seed in range(seeds):
        for arm in plan.arms:
            result = run_folder(folder, arm, seed) / "reasons.json"
            found.append(
                Unit(f"{arm.slug}-seed{seed}", f"seed {seed}: {arm.name}", result, (tuned_file(folder, arm),),
                     _run(arm, folder, seed))
            )  # fmt: skip
    if costs:
        found += [
            Unit(f"cost-{arm.slug}", f"a step of {arm.name}", cost_file(folder, arm), (tuned_file(folder, arm),),
                 _cost(arm, folder))
            for arm in plan.arms
        ]  # fmt: skip
    return found


def tuned_file(folder: Path, arm: Arm) -> Path:
    """What tuning an arm gave."""
    return folder / "tuned" / f"{arm.slug}.json"


def run_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Of one seed of an arm."""
    return folder / "runs" / f"{arm.slug}-seed{seed}"


def cost_file(folder: Path, arm: Arm) -> Path:
    """What a step of an arm costs."""
    return folder / "costs" / f"{arm.slug}.json"


def tuned_recipe(folder: Path, arm: Arm) -> Path:
    """The arm's recipe as it was tuned."""
    return folder / "recipes" / f"{arm.slug}.yaml"


def time_file(folder: Path, name: str) -> Path:
    """When a unit was begun and ended."""
    return folder / "times" / f"{name}.json"


def time_taken(plan: Plan, folder: Path, seeds: int) -> dict[str, float | int] | None:
    """How long the units of a study took; None where none says.

    What was lost by a kill is not in it: of a unit that was begun twice the second counts.

    Returns:
        `busy seconds`, those of all units together; `wall seconds`, in which at least one was worked at, so that a
        study that lay still for a night is not said to have taken it; and `at once`, the most that were worked at
        together.
    """
    files = [time_file(folder, unit.name) for unit in units_of(plan, folder, seeds)]
    spans = sorted((found["began"], found["ended"]) for found in (read(file) for file in files if file.exists()))
    if not spans:
        return None
    wall, until = 0.0, spans[0][0]
    for began, ended in spans:
        wall += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return {
        "busy seconds": sum(ended - began for began, ended in spans),
        "wall seconds": wall,
        "at once": max(sum(began <= start < ended for began, ended in spans) for start, _ in spans),
    }


def read(file: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def _tuning(plan: Plan, arm: Arm, folder: Path) -> Callable[[], None]:
    def do() -> None:
        from mixcontrast.study.recipes import write_recipe
        from mixcontrast.study.tuning import tune

        found = tune(plan, arm, folder)
        if "point" in found:
            told = ", ".join(f"{name} {value:g}" for name, value in found["point"].items())
            note = f"{plan.monitor} {found['value']:.4f} on the validation part"
            note += f", best of the grid: {told}" if told else ""
            write_recipe(tuned_recipe(folder, arm), arm.at(found["point"]), note)
        write_json(tuned_file(folder, arm), found)

    return do


def _run(arm: Arm, folder: Path, seed: int) -> Callable[[], None]:
    def do() -> None:
        from mixcontrast.commands.fit import fit
        from mixcontrast.study.reasons import reasons_of

        result, out = run_folder(folder, arm, seed) / "reasons.json", run_folder(folder, arm, seed)
        failed = read(tuned_file(folder, arm)).get("failed")
        if failed is not None:
            write_json(result, {"failed": failed})
            return
        recipe = tuned_recipe(folder, arm)
        arguments = ["--config", str(recipe), "--out", str(out), "--seed", str(seed)]
        try:
            fit([*arguments, "--trainer.enable_progress_bar=false"])
        except (ValueError, TypeError) as error:
            write_json(result, {"failed": " ".join(str(error).split())})
            return
        write_json(result, reasons_of(recipe, out, seed))

    return do


def _cost(arm: Arm, folder: Path) -> Callable[[], None]:
    def do() -> None:
        from mixcontrast.study.cost import cost_of

        failed = read(tuned_file(folder, arm)).get("failed")
        found = cost_of(tuned_recipe(folder, arm)) if failed is None else {"failed": failed}
        write_json(cost_file(folder, arm), found)

    return do


def work(folder: Path, seeds: int, *, threads: int = 1, costs: bool = True) -> None:
    """Does what nobody else does until all is done, and tells of it, a line each.

    A unit is done by the process that holds its lock, which the system lets go when that process ends, however it ends;
    so another takes it up at once, and the runs inside go on from their checkpoints. Locks are those of the file
    system, so processes of several machines may share a folder where these work between machines (NFS 4, Lustre).

    Args:
        folder: of the study.
        seeds: how many.
        threads: of this process.
        costs: whether what a step costs is measured.
    """
    import torch

    torch.set_num_threads(threads)
    units = units_of(Plan.read(folder), folder, seeds, costs)
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    while True:
        todo = [unit for unit in units if not unit.result.exists()]
        if not todo:
            return
        if not any(_did(unit, folder, units) for unit in todo if all(file.exists() for file in unit.needs)):
            time.sleep(WAIT)  # others are at what is left


def _did(unit: Unit, folder: Path, units: list[Unit]) -> bool:
    """Whether this process did it now."""
    try:
        with FileLock(folder / "locks" / f"{unit.name}.lock", timeout=0):
            if unit.result.exists():
                return False
            began = time.time()
            with _logged(folder / "logs" / f"{unit.name}.log"):
                unit.do()
            write_json(time_file(folder, unit.name), {"began": began, "ended": time.time()})
    except Timeout:
        return False
    done = sum(each.result.exists() for each in units)
    print(f"{done} of {len(units)}  {unit.what}", flush=True)
    return True


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What is printed meanwhile goes to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def visible_devices() -> list[str]:
    """The CUDA devices that this process may use, as $CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [device.strip() for device in named.split(",") if device.strip()][: torch.cuda.device_count()]


def one_device_each(processes: int, devices: Sequence[str]) -> list[str | None]:
    """The device that each process sees, in turn; None, as it is, where there are not two.

    >>> one_device_each(3, ["0", "2"])
    ['0', '2', '0']
    """
    return [devices[number % len(devices)] if len(devices) > 1 else None for number in range(processes)]


def _see(device: str | None) -> None:
    if device is not None:
        os.environ[VISIBLE] = device


def work_together(folder: Path, seeds: int, processes: int, *, threads: int = 1, costs: bool = True) -> None:
    """The same in several processes, this one among them.

    Where several CUDA devices can be seen, each process sees one of them. A process that ends by an error is told of;
    what it had begun is done by another.
    """
    others, options = [], {"threads": threads, "costs": costs}
    before = os.environ.get(VISIBLE)
    if processes > 1:
        os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        context = multiprocessing.get_context("spawn")
        mine, *theirs = one_device_each(processes, visible_devices())
        for device in theirs:  # a process that is spawned has the environment of that moment
            _see(device)
            others.append(context.Process(target=work, args=(folder, seeds), kwargs=options))
            others[-1].start()
        _see(mine)
    try:
        work(folder, seeds, **options)
    except BaseException:
        for process in others:
            process.terminate()
        raise
    finally:
        for process in others:
            process.join()
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before
    if any(process.exitcode for process in others):
        print(f"A process ended by an error; another did what it had begun. See {folder}/logs.", file=sys.stderr)
