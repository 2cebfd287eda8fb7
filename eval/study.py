"""Runs the studies of configs/study_*.yaml and keeps their answers in eval/results/.

    python eval/study.py                                # study_emoji; what is finished is not run again
    python eval/study.py study_clip_emoji               # another one
    python eval/study.py study_emoji --processes 2      # any option of mixcontrast study

Writes eval/results/NAME.md, .json and its pictures of differences and hardness, and the config's second line.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS, RUNS = ROOT / "configs", ROOT / "eval/results", ROOT / "runs"
TITLES = {
    "study_emoji": "Does mixing help on emoji?",
    "study_clip_emoji": "Does mixing help two towers on emoji with captions?",
}
NOTES = {
    "study_clip_emoji": "Two linear heads, random at the start, over frozen features of EfficientNet-lite0 and MiniLM, "
    "at a temperature that is fixed and tuned. Heads that were aligned before and then fine-tuned are in "
    "[another study](clip_emoji.md).",
}
PICTURES = ("differences", "hardness")


def keep(name: str, folder: Path, results: Path = RESULTS) -> None:
    """Writes what a finished study said.

    Args:
        name: of the study, and of its config.
        folder: of the study.
        results: where it is kept.
    """
    from mixcontrast.environment import environment
    from mixcontrast.files import write_whole
    from mixcontrast.report.study_page import answer_markdown
    from mixcontrast.study.answer import summary

    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    machine = environment("cpu")
    shown = ", ".join(f"{part} {machine[part]}" for part in ("python", "torch", "lightning", "timm", "numpy"))
    took = _took(answer)
    page = [
        f"# {TITLES[name]}", "",
        f"    mixcontrast study --config configs/{name}.yaml --processes 2", "",
        *([NOTES[name], ""] if name in NOTES else []),
        answer_markdown(answer).rstrip(), "",
        f"![Paired differences]({name}_differences.svg)", "",
        f"![Similarities of positives, negatives and mixtures]({name}_hardness.svg)", "",
        f"{took} {machine['cores']} cores of {platform.machine()}, {platform.system()}; {shown}. Written by "
        f"`python eval/study.py {name}`.", "",
    ]  # fmt: skip
    answer["machine"] = {part: value for part, value in machine.items() if part != "git"}
    for path, text in (
        (results / f"{name}.md", "\n".join(page)),
        (results / f"{name}.json", json.dumps(rounded(answer), indent=1) + "\n"),
    ):
        write_whole(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    for picture in PICTURES:
        source, target = folder / "pictures" / f"{picture}.svg", results / f"{name}_{picture}.svg"
        write_whole(target, lambda temporary, source=source: shutil.copy(source, temporary))
    if results == RESULTS:
        line = f"# {took} {machine['cores']} cores. {summary(answer)} eval/results/{name}.md"
        config = CONFIGS / f"{name}.yaml"
        text = re.sub(r"\A(#[^\n]*\n)(#[^\n]*\n)*", lambda found: f"{found[1]}{wrapped(line)}\n", config.read_text())
        write_whole(config, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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

    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "study_emoji"
    if name not in TITLES:
        raise SystemExit(f"There is no study {name}. There are {', '.join(TITLES)}.")
    mixcontrast(["study", "--config", str(CONFIGS / f"{name}.yaml"), "--out", str(RUNS / name), *arguments])
    keep(name, RUNS / name)


if __name__ == "__main__":
    main()
