"""What a step of a recipe costs, measured in a process of its own: `python -m mixcontrast.study.cost RECIPE`."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS, FIRST = 40, 4  # the first steps load code


def cost_of(recipe: Path) -> dict[str, Any]:
    """Seconds a step, peak memory and the device of a recipe, from a fresh process.

    On a CPU seconds are of CPU, which other work on the machine changes less than those of the clock; peak memory is
    what the process's resident size gains in a step (Linux; else None). On a GPU seconds are of the clock, and peak
    memory is what torch allocated.
    """
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mixcontrast.study.cost", str(recipe)],
        env=environment, text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        return {"failed": " ".join(done.stderr.strip().splitlines()[-1:])}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(recipe: str) -> dict[str, Any]:
    """The same, in this process."""
    import lightning
    import torch

    from mixcontrast.commands.fit import fit_parser
    from mixcontrast.commands.fit_errors import parse
    from mixcontrast.training.safety import Repeatable, quieten

    torch.set_num_threads(1)

    class Clock(lightning.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.memory: int | None = None
            self.before: int | None = None
            self.start = 0.0

        def on_train_batch_start(self, trainer, module, batch, index) -> None:
            if len(self.seconds) == FIRST:
                gc.collect()
                self.before = _begin(module.device.type)
            self.start = _now(module.device.type)

        def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
            self.seconds.append(_now(module.device.type) - self.start)
            if len(self.seconds) == FIRST + 1 and self.before is not None:
                self.memory = _peak(module.device.type) - self.before
            trainer.should_stop = len(self.seconds) >= STEPS

    parser = fit_parser()
    config = parse(parser, ["--config", recipe, "--trainer.enable_progress_bar=false"])
    lightning.seed_everything(0, verbose=False)
    quieten()
    ready = parser.instantiate(config)
    ready.model.prepare(ready.data)
    clock = Clock()
    options = ready.trainer.as_dict() | {
        "logger": False, "enable_checkpointing": False, "callbacks": [Repeatable(0), clock], "limit_val_batches": 0,
    }  # fmt: skip
    trainer = lightning.Trainer(**options)
    trainer.fit(ready.model, datamodule=ready.data)
    timed = sorted(clock.seconds[FIRST:])
    return {
        "seconds a step": timed[len(timed) // 2] if timed else None,
        "peak memory": clock.memory,
        "device": trainer.strategy.root_device.type,
    }


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    import torch

    torch.accelerator.synchronize()
    return time.perf_counter()


def _begin(device: str) -> int | None:
    """Bytes in use, and the peak starts anew."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return 0
    if device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> int:
    """Bytes, of a line of the kernel's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
