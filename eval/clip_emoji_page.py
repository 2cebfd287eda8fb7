"""The page of eval/clip_emoji.py, from what its runs reached."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import clip_emoji as runs_of
import numpy as np
import torch
from clip_emoji import ALPHAS, DOMAINS, GEOMETRY, KS, METHODS, SEEDS, WAYS, of_vendors
from recipes import table, write

from mixcontrast.analysis import reliability_of
from mixcontrast.environment import environment
from mixcontrast.retrieval import holm, mean_of_seeds

RESULTS = Path(__file__).resolve().parent / "results"
Runs = list[dict[str, np.ndarray]]
HEADS = [f"{way}, {domain}" for domain in DOMAINS for way in WAYS]
CELLS = [(way, vendors) for vendors in DOMAINS.values() for way in WAYS]
KINDS = {"learned": "temperature learned", "tuned": "temperature tuned"}
TITLES = {"zero-shot": "zero-shot (aligned, not fine-tuned)"} | {
    f"{name}, {kind}": f"{method.title}, {told}" for name, method in METHODS.items() for kind, told in KINDS.items()
} | {f"alpha {alpha:g}": f"alpha {alpha:g}" for alpha in ALPHAS}
LEVEL = 0.05


def values(runs: Runs, way: str, vendors: tuple[str, ...], what: str = "R@1") -> tuple[np.ndarray, np.ndarray]:
    """(S, Q) values and (Q,) emoji."""
    found = [of_vendors(one, way, vendors, what) for one in runs]
    return np.stack([each for each, _ in found]), found[0][1]


def calibration_errors(runs: Runs, vendors: tuple[str, ...]) -> np.ndarray:
    """(S,) expected calibration errors of zero-shot classification."""
    found = []
    for run in runs:
        kept = np.isin(run["zero-shot vendor"], vendors)
        sure, right = (torch.from_numpy(run[f"zero-shot {what}"][kept]) for what in ("confidence", "top-1"))
        found.append(float(reliability_of(sure, right).error))
    return np.array(found)


def differences(arms: dict[str, Runs], pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row a pair: its paired differences at R@1, cell by cell, with p-values corrected for the whole table."""
    rows = []
    for one, other in pairs:
        for head, cell in zip(HEADS, CELLS, strict=True):
            first, emoji = values(arms[one], *cell)
            apart = first - values(arms[other], *cell)[0]
            found = mean_of_seeds(apart, emoji)
            rows.append({"of": one, "against": other, "where": head, "mean": found.interval.mean,
                         "low": found.interval.low, "high": found.interval.high, "p": found.p_value,
                         "seeds better": int((apart.mean(axis=1) > 0).sum())})  # fmt: skip
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p corrected"] = float(corrected)
        told = "better" if row["mean"] > 0 else "worse"
        row["verdict"] = told if corrected < LEVEL else "no difference shown"
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The table of differences."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        bold = "" if row["verdict"] == "no difference shown" else "**"
        title = f"{TITLES[row['of']]} − {TITLES[row['against']]}"
        lines.setdefault(title, []).append(
            f"{bold}{row['mean']:+.3f}{bold} [{row['low']:+.3f}, {row['high']:+.3f}]"
        )
    return table(["", *HEADS], [[title, *cells] for title, cells in lines.items()])


def sentences(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What can be told."""

    def told(row: dict[str, Any]) -> str:
        return f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] ({row['where']})"

    plain, tuned = (
        [row for row in tables["temperature"] if row["of"] == name] for name in ("plain, learned", "plain, tuned")
    )
    gained, lost = ([row for row in plain if row["verdict"] == verdict] for verdict in ("better", "worse"))
    shown_tuned = [row for row in tuned if row["verdict"] != "no difference shown"]
    lines = [
        f"Fine-tuning by the plain loss gains {', '.join(map(told, gained)) or 'nothing that can be told'}, and loses "
        f"{', '.join(map(told, lost)) or 'nothing that can be told'}.",
        "Tuning the temperature instead of learning it: "
        + (", ".join(map(told, shown_tuned)) or f"no difference shown; the largest is {told(max(tuned, key=_size))}")
        + ".",
    ]
    of_half = tables["ensemble"]
    half = {verdict: [row for row in of_half if row["verdict"] == verdict] for verdict in ("better", "worse")}
    lines.append(
        "Weights half way between the aligned and the fine-tuned ones (WiSE-FT)"
        + "".join(
            f"{' gain' if verdict == 'better' else '; they lose'} "
            + (", ".join(f"{told(row)} over {_end(row['against'])}" for row in rows) or "nothing that can be told")
            for verdict, rows in half.items()
        )
        + "."
    )
    for kind, words in (("learned", "both at the temperature that is learned"), ("tuned", "both at a tuned one")):
        rows = tables[kind]
        better, worse = ([row for row in rows if row["verdict"] == verdict] for verdict in ("better", "worse"))
        lines.append(
            f"Mixing or re-weighting against the plain loss, {words}: of {len(rows)} differences {len(better)} are "
            f"gains and {len(worse)} are losses"
            + "".join(f"; {TITLES[row['of']].partition(',')[0]} {told(row)}" for row in [*better, *worse])
            + "."
        )
    return lines


def _end(name: str) -> str:
    return "the aligned ones" if name == "alpha 0" else "the fine-tuned ones"


def _size(row: dict[str, Any]) -> float:
    return abs(row["mean"])


def write_page(arms: dict[str, Runs], tuning: dict[str, Any]) -> None:
    """The tables, as Markdown and as JSON."""
    between = {name: arms[name] for name in (f"alpha {alpha:g}" for alpha in ALPHAS)}
    arms = {name: runs for name, runs in arms.items() if name not in between}
    mixings = [name for name in METHODS if name not in ("plain", "siglip_m3")]
    against = {name: "plain" for name in mixings} | {"siglip_m3": "siglip"}
    pairs_of = {
        "temperature": [("plain, learned", "zero-shot"), ("plain, tuned", "plain, learned")],
        **{kind: [(f"{one}, {kind}", f"{other}, {kind}") for one, other in against.items()] for kind in KINDS},
        "beyond": [(f"{name}, learned", "plain, tuned") for name in mixings],
        "own": [(f"{name}, tuned", "own, tuned") for name in ("mochi_own", "synco_own")],
        "ensemble": [("alpha 0.5", "alpha 0"), ("alpha 0.5", "alpha 1")],
    }
    tables = {name: differences(arms | between, pairs) for name, pairs in pairs_of.items()}
    seconds = [float(run["seconds"]) for name in arms if name != "zero-shot" for run in arms[name]]
    machine = environment("cpu")
    counts = [len(values(arms["zero-shot"], *cell)[1]) for cell in CELLS]
    facts: dict[str, Any] = {
        **{f"R@{k}": {name: dict(zip(HEADS, of_arm(runs, f"R@{k}"), strict=True)) for name, runs in arms.items()}
           for k in KS},
        "zero-shot": {name: of_classes(runs) for name, runs in (arms | between).items()},
        "geometry": {name: geometry(runs) for name, runs in arms.items()},
        "ensemble": {name: dict(zip(HEADS, of_arm(runs), strict=True)) for name, runs in between.items()},
        "differences": [{"table": name, **row} for name, rows in tables.items() for row in rows],
        "tuning": tuning, "seeds": SEEDS, "queries": dict(zip(HEADS, counts, strict=True)),
        "CPU seconds a run": float(np.median(seconds)),
        "machine": {name: value for name, value in machine.items() if name != "git"},
    }  # fmt: skip
    page = [
        "# Fine-tuning two towers on emoji with captions", "", "    python eval/clip_emoji.py", "",
        *(f"- {line}" for line in sentences(tables)), "",
        "Two linear heads (256) over frozen features of EfficientNet-lite0 (drawings at 64 pixels) and MiniLM (names, "
        "other names, keywords). They are aligned on drawings by three vendors "
        f"({', '.join(runs_of.ALIGNED)}; {runs_of.ALIGNMENT_EPOCHS} epochs of the plain loss), which stands for a "
        f"pretrained CLIP, and fine-tuned on those by two others ({', '.join(runs_of.FINE_TUNED)}; {runs_of.EPOCHS} "
        f"epochs, {runs_of.BATCH} pairs a batch, AdamW, cosine). Two more ({', '.join(runs_of.HELD_OUT)}) are never "
        "trained on. Judged among emoji that were in no training, each vendor searched on its own: any caption of the "
        "emoji is right for a drawing, any drawing of an emoji of it for a caption. Queries a column: "
        f"{', '.join(map(str, counts))}.", "",
        f"Means of {SEEDS} seeds, which begin from the same alignment and meet the same batches. [95% intervals] are "
        "over seeds and emoji, Student's; bold: p below 0.05, corrected by Holm's procedure for all differences of a "
        f"table. The learning rate (of {', '.join(f'{rate:g}' for rate in runs_of.RATES)}, by the plain loss), the "
        f"temperature (of {', '.join(f'{t:g}' for t in runs_of.TEMPERATURES)}; fixed) and two settings of each mixing "
        "were chosen on other emoji with another seed, one run a point; intervals leave out what that choice may be "
        f"off. A run takes {np.median(seconds):.1f} seconds of CPU, one thread, on {machine['cores']} cores of "
        f"{platform.machine()}, Python {machine['python']}, torch {machine['torch']}.", "",
        "## R@1", "",
        table(["", *HEADS, "temperature at the end", "chosen"],
              [[TITLES[name], *(f"{value:.3f}" for value in of_arm(runs)), _temperature(runs), _point(tuning, name)]
               for name, runs in arms.items()]), "",
        "R@5 and R@10 are in the JSON file beside this page.", "",
        "## Fine-tuning, and tuning its temperature", "", shown(tables["temperature"]), "",
        "## Mixing, both at the temperature that is learned", "", shown(tables["learned"]), "",
        "## Mixing, both with the temperature tuned", "", shown(tables["tuned"]), "",
        "## Mixing at the temperature that is learned, against tuning the temperature and no mixing", "",
        shown(tables["beyond"]), "",
        "## Mixtures of the own modality, against its real negatives alone", "", shown(tables["own"]), "",
        "## Zero-shot classification, calibration and geometry", "",
        "Drawings among the emoji, each the mean of its captions; ECE in 15 bins at the arm's own temperature; the gap "
        "and the alignment on vendors never seen.", "",
        table(["", *(f"top-1, {domain}" for domain in DOMAINS), *(f"ECE, {domain}" for domain in DOMAINS),
               "alignment", "modality gap"],
              [[TITLES[name], *(f"{value:.3f}" for value in of_classes(runs).values()),
                *(f"{geometry(runs)[f'{what}, never seen']:.3f}" for what in ("alignment", "modality gap"))]
               for name, runs in arms.items()]), "",
        "## Between the aligned and the fine-tuned weights (WiSE-FT)", "",
        "Weights (1 - alpha) times the aligned ones and alpha times the plain loss's at the temperature that is "
        "learned: R@1, and top-1 and ECE of zero-shot classification.", "",
        table(["alpha", *HEADS, *(f"top-1, {domain}" for domain in DOMAINS), *(f"ECE, {domain}" for domain in DOMAINS)],
              [[name.removeprefix("alpha "), *(f"{value:.3f}" for value in of_arm(runs)),
                *(f"{value:.3f}" for value in of_classes(runs).values())] for name, runs in between.items()]), "",
        "R@1:", "", shown(tables["ensemble"]), "",
    ]  # fmt: skip
    write(RESULTS / "clip_emoji.md", "\n".join(page))
    write(RESULTS / "clip_emoji.json", json.dumps(facts, indent=1) + "\n")


def of_arm(runs: Runs, what: str = "R@1") -> list[float]:
    """The means of an arm, cell by cell."""
    return [float(values(runs, *cell, what)[0].mean()) for cell in CELLS]


def of_classes(runs: Runs) -> dict[str, float]:
    """Top-1 and ECE of zero-shot classification, domain by domain."""
    top = {f"top-1, {name}": float(values(runs, "zero-shot", of, "top-1")[0].mean()) for name, of in DOMAINS.items()}
    return top | {f"ECE, {name}": float(calibration_errors(runs, of).mean()) for name, of in DOMAINS.items()}


def geometry(runs: Runs) -> dict[str, float]:
    """Where embeddings lie, domain by domain."""
    names = [f"{what}, {domain}" for what in GEOMETRY for domain in DOMAINS]
    return {name: float(np.mean([run[name] for run in runs])) for name in names}


def _temperature(runs: Runs) -> str:
    return f"{np.mean([run['temperature'] for run in runs]):.3f}"


def _point(tuning: dict[str, Any], name: str) -> str:
    if name == "zero-shot":
        return ""
    of = tuning["chosen"][name]
    return ", ".join([f"rate {of['rate']:g}", *(f"{key} {value:g}" for key, value in of["point"].items())])
