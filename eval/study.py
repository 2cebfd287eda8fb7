"""Runs the study of configs/study_emoji.yaml and keeps its answer in eval/results/.

    python eval/study.py                    # goes on where it was stopped; what is finished is not run again
    python eval/study.py --processes 2      # any option of mixcontrast study

Writes eval/results/study_emoji.md, .json and its pictures of differences and hardness, and the config's second line.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG, RESULTS, RUN = ROOT / "configs/study_emoji.yaml", ROOT / "eval/results", ROOT / "runs/study_emoji"
PICTURES = ("differences", "hardness")


def keep(folder: Path, results: Path = RESULTS) -> None:
    """Writes what a finished study said."""
    from mixcontrast.environment import environment
    from mixcontrast.files import write_whole
    from mixcontrast.report.study_page import answer_markdown
    from mixcontrast.study.answer import summary

    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    machine = environment("cpu")
    shown = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "lightning", "timm", "numpy"))
    took = _took(answer)
    page = [
        "# Does mixing help on emoji?", "",
        "    mixcontrast study --config configs/study_emoji.yaml --processes 2", "",
        answer_markdown(answer).rstrip(), "",
        "![Paired differences](study_emoji_differences.svg)", "",
        "![Similarities of positives, negatives and mixtures](study_emoji_hardness.svg)", "",
        f"{took} {machine['cores']} cores of {platform.machine()}, {platform.system()}; {shown}. Written by "
        "`python eval/study.py`.", "",
    ]  # fmt: skip
    answer["machine"] = {name: value for name, value in machine.items() if name != "git"}
    for path, text in (
        (results / "study_emoji.md", "\n".join(page)),
        (results / "study_emoji.json", json.dumps(rounded(answer), indent=1) + "\n"),
    ):
        write_whole(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    for name in PICTURES:
        source, target = folder / "pictures" / f"{name}.svg", results / f"study_emoji_{name}.svg"
        write_whole(target, lambda temporary, source=source: shutil.copy(source, temporary))
    if results == RESULTS:
        line = f"# {took} {machine['cores']} cores. {summary(answer)} eval/results/study_emoji.md"
        text = re.sub(r"\A(#[^\n]*\n)(#[^\n]*\n)*", lambda found: f"{found[1]}{wrapped(line)}\n", CONFIG.read_text())
        write_whole(CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _took(answer: dict) -> str:
    """`In 8 minutes, with up to 2 processes at once, on`; where it is not known, `On`."""
    from mixcontrast.study.answer import duration

    took = duration(answer["time"])
    return "On" if took is None else f"In {took}, on"


def rounded(value):
    """Numbers to six digits, so that a file stays small."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def wrapped(line: str) -> str:
    """A comment of lines of 120 at most."""
    import textwrap

    return "\n".join(f"# {part}" for part in textwrap.wrap(line.removeprefix("# "), 117))


def main() -> None:
    from mixcontrast.cli import main as mixcontrast

    mixcontrast(["study", "--config", str(CONFIG), "--out", str(RUN), *sys.argv[1:]])
    keep(RUN)


if __name__ == "__main__":
    main()
