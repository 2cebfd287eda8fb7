"""Writes what was measured in eval/results/*.json into README.md, between its marks.

    python eval/readme_table.py

`<!-- gains -->` ... `<!-- /gains -->`: of each recipe that mixes, its paired difference to the same loss alone.
`<!-- study -->` ... `<!-- /study -->`: what the study on emoji said.
`<!-- study clip -->` ... `<!-- /study clip -->`: what the study of two towers said, in short.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results"
MIXERS = {"metrix": "Metrix", "mochi": "MoCHi", "supremix": "SupReMix", "geodesic": "m3-Mix", "synco": "SynCo"}
ALONE = {"supremix": "supcon"}  # mixers whose loss alone has a recipe of another name
LOSSES = {
    "contrastive": "contrastive", "multi_similarity": "multi-similarity", "proxy_anchor": "proxy anchor",
    "moco": "MoCo v2", "simclr": "SimCLR", "supcon": "SupCon", "emoji": "CLIP",
}  # fmt: skip
DATA = {
    "emoji": "emoji, unseen", "fashion": "Fashion-MNIST", "concrete": "concrete, MPa",
    "diamonds": "diamonds, log price", "valence": "words, valence", "clip": "emoji with captions",
}  # fmt: skip


def gains(results: Path = RESULTS) -> str:
    """A row a recipe that mixes: the first metric alone and mixed, and the paired difference."""
    rows = []
    for key, name in DATA.items():
        file = results / f"{key}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        first = next(iter(next(iter(found["recipes"].values()))["metrics"]))
        for each in found["differences"]:
            loss, _, mixer = each["recipe"].removeprefix(f"{key}_").rpartition("_")
            alone = each["against"].removeprefix(f"{key}_")
            if each["metric"] != first or mixer not in MIXERS or alone != (loss or ALONE[mixer]):
                continue
            plain, mixed = (found["recipes"][each[which]]["metrics"][first][0] for which in ("against", "recipe"))
            mean, low, high = each["difference"]
            rows.append(
                [
                    f"[{name}](eval/results/{key}.md)", f"{LOSSES[alone]} + {MIXERS[mixer]}",
                    f"{first}{' (lower is better)' * (first == 'MAE')}", f"{plain:.3f}", f"{mixed:.3f}",
                    f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
                    "< 0.001" if each["p corrected"] < 0.001 else f"{each['p corrected']:.3f}",
                    f"{each['seeds better']} of {found['seeds']}", each["verdict"],
                ]
            )  # fmt: skip
    header = ["data", "mixing", "metric", "alone", "mixed", "difference [95% interval]", "p, corrected", "seeds better",
              "so"]  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def study(results: Path = RESULTS) -> str:
    """The sentences of the study on emoji, and how long it took where that was kept."""
    found = json.loads((results / "study_emoji.json").read_text(encoding="utf-8"))
    lines = "\n".join(f"- {each['sentence']}" for each in found["differences"])
    if found.get("time") is None:
        return lines
    minutes, processes = found["time"]["wall seconds"] / 60, found["time"]["at once"]
    return f"In {minutes:.0f} minutes on {found['machine']['cores']} cores, up to {processes} runs at once:\n\n{lines}"


def study_in_short(results: Path = RESULTS) -> str:
    """The answer of the study of two towers in a sentence or two, and how long it took."""
    from mixcontrast.study.answer import summary

    found = json.loads((results / "study_clip_emoji.json").read_text(encoding="utf-8"))
    minutes, cores = found["time"]["wall seconds"] / 60, found["machine"]["cores"]
    return f"In {minutes:.0f} minutes on {cores} cores: {summary(found)}"


def between(text: str, mark: str, content: str) -> str:
    """The text with other content between a pair of marks.

    Raises:
        ValueError: the text has not the pair once.
    """
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", flags=re.S)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"README.md must have <!-- {mark} --> and <!-- /{mark} --> once.")
    return pattern.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)


def updated(text: str, results: Path = RESULTS) -> str:
    """The README with what the results say now."""
    text = between(text, "gains", gains(results))
    text = between(text, "study", study(results))
    return between(text, "study clip", study_in_short(results))


def main() -> None:
    from mixcontrast.files import write_whole

    path = ROOT / "README.md"
    text = updated(path.read_text(encoding="utf-8"))
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
