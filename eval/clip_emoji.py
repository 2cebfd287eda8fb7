"""Fine-tuning two towers on emoji with captions: which mixing helps, and does tuning the temperature do as much?

    python eval/clip_emoji.py           # tunes on validation emoji, trains five seeds, writes eval/results/clip_emoji.*
    python eval/clip_emoji.py --tune    # the tuning alone

One thread; what is finished is not run again. Runs are kept under runs/clip_emoji/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import ROOT, interval, table, verdict_of, write
from torch import Tensor, nn

from mixcontrast import ClipLoss, CyClipLoss, GeodesicMixup, HardNegativeLoss, MixTerm, MoCHi, SynCo
from mixcontrast.data import EmojiCaptionFeatures, PairData
from mixcontrast.environment import environment
from mixcontrast.files import write_whole
from mixcontrast.judge import cross_modal_retrieval
from mixcontrast.models import FeatureTowers

RUNS, RESULTS = ROOT / "runs" / "clip_emoji", ROOT / "eval" / "results"
ALIGNED, FINE_TUNED, HELD_OUT = ("Appl", "FB", "Joy"), ("Goog", "Sams"), ("Twtr", "Wind")
DOMAINS = {"fine-tuned on": FINE_TUNED, "aligned on": ALIGNED, "never seen": HELD_OUT}
WAYS = ("image to text", "text to image")
SEEDS, TUNING_SEED = 5, 100
BATCH, EPOCHS, ALIGNMENT_EPOCHS = 256, 40, 30
ALIGNMENT_RATE = 1e-3
RATES, TEMPERATURES = (3e-4, 1e-3, 3e-3, 1e-2), (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: in the tables.
        make: its criterion, of one point of its grid.
        grid: what is tuned of it, beside the temperature.
    """

    title: str
    make: Callable[..., nn.Module]
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def points(self) -> list[dict[str, float]]:
        """Each point of the grid."""
        return [dict(zip(self.grid, point, strict=True)) for point in itertools.product(*self.grid.values())]


def _geodesic(**weights: float) -> Callable[[float], GeodesicMixup]:
    """Terms of these weights, all `times` larger."""

    def make(times: float) -> GeodesicMixup:
        terms = {
            name: MixTerm(weight * times, temperature=0.07 if name == "m2" else None)
            for name, weight in weights.items()
        }
        return GeodesicMixup(ClipLoss(), **{name: terms.get(name) for name in ("m2", "v", "l", "vl")})

    return make


def _own(temperature: float) -> ClipLoss:
    return ClipLoss(same_modality=True, same_modality_temperature=temperature)


FEW = dict(num_pair_mixes=64, num_anchor_mixes=16)
SIX = dict(num_interpolated=16, num_extrapolated=16, num_pairs=16, num_noised=8, num_gradient=8, num_sign=8)
TIMES, HARDEST, OWN = {"times": (1.0, 10.0)}, {"hardest": (16, 64)}, {"temperature": (0.07, 0.15)}
METHODS = {
    "plain": Method("plain", ClipLoss),
    "m2": Method("m2-Mix", _geodesic(m2=0.01), TIMES),
    "v": Method("V-Mix", _geodesic(v=0.05), TIMES),
    "l": Method("L-Mix", _geodesic(l=0.05), TIMES),
    "vl": Method("VL-Mix", _geodesic(vl=0.1), TIMES),
    "m3": Method("m3-Mix", _geodesic(m2=0.01, v=0.05, l=0.05, vl=0.1), TIMES),
    "own": Method("same-modality negatives", _own, OWN),
    "mochi_own": Method(
        "MoCHi, same modality",
        lambda temperature: MoCHi(_own(temperature), num_hardest=64, same_modality=True, **FEW), OWN),
    "mochi": Method("MoCHi, cross-modal", lambda hardest: MoCHi(ClipLoss(), num_hardest=int(hardest), **FEW), HARDEST),
    "synco_own": Method(
        "SynCo, same modality",
        lambda temperature: SynCo(_own(temperature), num_hardest=64, same_modality=True, **SIX), OWN),
    "synco": Method("SynCo, cross-modal", lambda hardest: SynCo(ClipLoss(), num_hardest=int(hardest), **SIX), HARDEST),
    "hcl": Method("HCL", lambda beta: HardNegativeLoss(ClipLoss(), beta=beta, tau_plus=0.0), {"beta": (0.25, 1.0)}),
    "cyclip": Method("CyCLIP", lambda weight: CyClipLoss(ClipLoss(), in_modal=weight, cross_modal=weight),
                     {"weight": (0.25, 0.025)}),
}  # fmt: skip


class Study:
    """The emoji, split once, and what is trained and judged on them."""

    def __init__(self) -> None:
        self.emoji = EmojiCaptionFeatures(image_size=64)
        self.data = PairData(
            self.emoji, batch_size=BATCH, held_out=list(HELD_OUT), validation_share=0.2, test_share=0.4
        )
        self.validation, self.test = self.data.validation, self.data.test
        first = np.searchsorted(self.emoji.pairs[:, 0], np.arange(len(self.emoji) + 1))
        self.captions_of = [self.emoji.pairs[first[row] : first[row + 1], 1] for row in range(len(self.emoji))]

    def rows(self, vendors: tuple[str, ...]) -> np.ndarray:
        """Training images of some vendors."""
        rows = self.data.train_rows
        return rows[np.isin(self.emoji.domains[rows], vendors)]

    def train(
        self, towers: FeatureTowers, criterion: nn.Module, vendors: tuple[str, ...], seed: int, *, epochs: int,
        rate: float, temperature: float | None,
    ) -> None:  # fmt: skip
        """Trains in place: AdamW, a warm-up of a tenth, then a cosine; a temperature that is given is not learned."""
        if temperature is not None:
            nn.init.constant_(towers.logit_scale, math.log(1 / temperature))
        towers.logit_scale.requires_grad_(temperature is None)
        learned = [p for p in towers.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        batches = list(self.batches(self.rows(vendors), epochs, seed))
        torch.manual_seed(seed)
        for step, (images, captions, labels) in enumerate(batches, 1):
            share, warm = step / len(batches), min(1.0, 10 * step / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (1 + math.cos(math.pi * share)) / 2
            image, text, scale, _ = towers(self.emoji.image_features[images], self.emoji.text_features[captions])
            loss = criterion(image, text, scale, labels=labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                towers.logit_scale.clamp_(max=math.log(100))

    def batches(self, rows: np.ndarray, epochs: int, seed: int):
        """Images with a caption each, and their labels: emoji and caption."""
        rng = np.random.default_rng(seed)
        for _ in range(epochs):
            order = rng.permutation(rows)
            for start in range(0, len(order) - BATCH + 1, BATCH):
                images = order[start : start + BATCH]
                captions = np.array([rng.choice(self.captions_of[row]) for row in images])
                labels = np.stack([self.emoji.groups[images], captions], axis=1)
                yield torch.from_numpy(images), torch.from_numpy(captions), torch.from_numpy(labels)

    @torch.no_grad()
    def judge(self, towers: FeatureTowers, part) -> dict[str, np.ndarray]:
        """R@1 of each query both ways, with its vendor and its emoji."""
        image = towers.encode_image(self.emoji.image_features[torch.from_numpy(part.images)])
        text = towers.encode_text(self.emoji.text_features[torch.from_numpy(part.captions)])
        both = cross_modal_retrieval(image, text, part.pairs, ks=(1,), domains=part.domains)
        found = {}
        for way, of_way in zip(WAYS, both, strict=True):
            found |= {f"{way} R@1": of_way.values["R@1"], f"{way} vendor": of_way.attributes["domain"],
                      f"{way} emoji": of_way.groups}  # fmt: skip
        return found

    def aligned(self, seed: int) -> dict[str, Tensor]:
        """Weights after alignment, at the temperature that it learned; made once and kept."""
        file = RUNS / f"aligned-seed{seed}.pt"
        if file.exists():
            return torch.load(file, weights_only=True)
        torch.manual_seed(seed)
        towers = FeatureTowers(256)
        self.train(towers, ClipLoss(), ALIGNED, seed + 1000, epochs=ALIGNMENT_EPOCHS, rate=ALIGNMENT_RATE,
                   temperature=None)  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda temporary: torch.save(towers.state_dict(), temporary))
        return towers.state_dict()

    def run(self, file: Path, seed: int, part, method: str | None, rate: float, temperature: float | None,
            point: dict[str, float]) -> dict[str, np.ndarray]:  # fmt: skip
        """One run, or what it left; without a method the towers as they were aligned."""
        if not file.exists():
            start = time.process_time()
            towers = FeatureTowers(256)
            towers.load_state_dict(self.aligned(seed))
            if method is not None:
                begun = time.process_time()
                self.train(towers, METHODS[method].make(**point), FINE_TUNED, seed, epochs=EPOCHS, rate=rate,
                           temperature=temperature)  # fmt: skip
                start = begun
            found = self.judge(towers, part)
            found["seconds"] = np.array(time.process_time() - start)
            found["temperature"] = np.array(1 / towers.logit_scale.exp().item())
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda temporary: _save(temporary, found))
        with np.load(file) as saved:
            return dict(saved)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def of_vendors(found: dict[str, np.ndarray], way: str, vendors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """R@1 and the emoji of the queries of some vendors."""
    kept = np.isin(found[f"{way} vendor"], vendors)
    return found[f"{way} R@1"][kept], np.unique(found[f"{way} emoji"][kept], return_inverse=True)[1]


def tune(study: Study) -> dict[str, Any]:
    """What was chosen on validation emoji by the vendors that are fine-tuned on, and all that was tried."""

    def reached(method: str, rate: float, temperature: float | None, point: dict[str, float]) -> float:
        told = "-".join([method, f"{rate:g}", "learned" if temperature is None else f"{temperature:g}",
                         *(f"{value:g}" for value in point.values())])  # fmt: skip
        file = RUNS / "tuning" / f"{told}.npz"
        found = study.run(file, TUNING_SEED, study.validation, method, rate, temperature, point)
        return float(np.mean([of_vendors(found, way, FINE_TUNED)[0].mean() for way in WAYS]))

    tried: dict[str, list] = {}
    for learned in (True, False):
        temperatures = (None,) if learned else TEMPERATURES
        points = [(reached("plain", rate, t, {}), rate, t) for rate in RATES for t in temperatures]
        tried[f"plain, {'learned' if learned else 'tuned'}"] = [
            {"R@1": value, "rate": rate, "temperature": t} for value, rate, t in points
        ]
    rates = {kind: max(tried[f"plain, {kind}"], key=lambda row: row["R@1"])["rate"] for kind in ("learned", "tuned")}
    chosen = {}
    for method, kind in itertools.product(METHODS, ("learned", "tuned")):
        temperatures = (None,) if kind == "learned" else TEMPERATURES
        rows = [
            {"R@1": reached(method, rates[kind], t, point), "temperature": t, "point": point}
            for t in temperatures
            for point in METHODS[method].points()
        ]
        chosen[f"{method}, {kind}"] = max(rows, key=lambda row: row["R@1"]) | {"rate": rates[kind]}
        tried[f"{method}, {kind}"] = rows
        print(f"{method}, {kind}", chosen[f"{method}, {kind}"], flush=True)
    return {"chosen": chosen, "tried": tried}


def judged(study: Study, tuning: dict[str, Any]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Every arm's runs of all seeds."""
    arms: dict[str, list[dict[str, np.ndarray]]] = {}
    for seed in range(SEEDS):
        arms.setdefault("zero-shot", []).append(
            study.run(RUNS / f"zero-shot-seed{seed}.npz", seed, study.test, None, 0.0, None, {})
        )
        for name, of in tuning["chosen"].items():
            file = RUNS / f"{name.replace(', ', '-')}-seed{seed}.npz"
            method, _, _ = name.partition(", ")
            found = study.run(file, seed, study.test, method, of["rate"], of["temperature"], of["point"])
            arms.setdefault(name, []).append(found)
        print(f"seed {seed} is done", flush=True)
    return arms


def values(arms: list[dict[str, np.ndarray]], way: str, vendors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(S, Q) R@1 and (Q,) emoji."""
    found = [of_vendors(one, way, vendors) for one in arms]
    return np.stack([each for each, _ in found]), found[0][1]


def write_page(arms: dict[str, list[dict[str, np.ndarray]]], tuning: dict[str, Any]) -> None:
    """The tables, as Markdown and as JSON."""
    heads = [f"{way}, {domain}" for domain in DOMAINS for way in WAYS]
    cells = [(way, vendors) for vendors in DOMAINS.values() for way in WAYS]
    titles = {"zero-shot": "zero-shot (aligned, not fine-tuned)"} | {
        f"{name}, {kind}": f"{method.title}, {'temperature learned' if kind == 'learned' else 'temperature tuned'}"
        for name, method in METHODS.items()
        for kind in ("learned", "tuned")
    }
    means = {name: [values(runs, *cell)[0].mean() for cell in cells] for name, runs in arms.items()}
    facts: dict[str, Any] = {"R@1": {name: dict(zip(heads, row, strict=True)) for name, row in means.items()}}

    def differences(pairs: list[tuple[str, str]]) -> list[list[str]]:
        rows = []
        for one, other in pairs:
            row = [f"{titles[one]} − {titles[other]}"]
            for head, cell in zip(heads, cells, strict=True):
                first, emoji = values(arms[one], *cell)
                apart = first - values(arms[other], *cell)[0]
                mean, low, high = interval(apart, emoji)
                verdict = verdict_of(low, high)
                better = int((apart.mean(axis=1) > 0).sum())
                facts.setdefault("differences", []).append(
                    {"of": one, "against": other, "where": head, "mean": mean, "low": low, "high": high,
                     "seeds better": better, "verdict": verdict}
                )  # fmt: skip
                bold = "" if verdict == "no difference shown" else "**"
                row.append(f"{bold}{mean:+.3f}{bold} [{low:+.3f}, {high:+.3f}]")
            rows.append(row)
        return rows

    mixings = [name for name in METHODS if name != "plain"]
    of_temperature = differences([("plain, learned", "zero-shot"), ("plain, tuned", "plain, learned")])
    of_learned = differences([(f"{name}, learned", "plain, learned") for name in mixings])
    of_tuned = differences([(f"{name}, tuned", "plain, tuned") for name in mixings])
    beyond = differences([(f"{name}, learned", "plain, tuned") for name in mixings])
    of_own = differences([(f"{name}, tuned", "own, tuned") for name in ("mochi_own", "synco_own")])
    rows = [
        [titles[name], *(f"{value:.3f}" for value in means[name]), _temperature(arms[name]), _point(tuning, name)]
        for name in arms
    ]
    seconds = [float(run["seconds"]) for name in arms if name != "zero-shot" for run in arms[name]]
    machine = environment("cpu")
    counts = [len(values(arms["zero-shot"], *cell)[1]) for cell in cells]
    facts |= {"tuning": tuning, "seeds": SEEDS, "queries": dict(zip(heads, counts, strict=True)),
              "CPU seconds a run": float(np.median(seconds)),
              "machine": {name: value for name, value in machine.items() if name != "git"}}  # fmt: skip
    header = ["", *heads]
    page = [
        "# Fine-tuning two towers on emoji with captions", "", "    python eval/clip_emoji.py", "",
        "Two linear heads (256) over frozen features of EfficientNet-lite0 (drawings at 64 pixels) and MiniLM (names, "
        "other names, keywords). They are aligned on drawings by three vendors "
        f"({', '.join(ALIGNED)}; {ALIGNMENT_EPOCHS} epochs of the plain loss), which stands for a pretrained CLIP, and "
        f"fine-tuned on those by two others ({', '.join(FINE_TUNED)}; {EPOCHS} epochs, {BATCH} pairs a batch, AdamW, "
        f"cosine). Two more ({', '.join(HELD_OUT)}) are never trained on. Judged is R@1 among emoji that were in no "
        "training, each vendor searched on its own: any caption of the emoji is right for a drawing, any drawing of an "
        f"emoji of it for a caption. Queries a column: {', '.join(map(str, counts))}.", "",
        f"Means of {SEEDS} seeds, which begin from the same alignment and meet the same batches. [95% intervals] are "
        "over seeds and emoji, Student's, not corrected for how many there are; bold: it does not hold 0. The learning "
        f"rate (of {', '.join(f'{rate:g}' for rate in RATES)}, by the plain loss), the temperature (of "
        f"{', '.join(f'{t:g}' for t in TEMPERATURES)}; fixed) and two settings of each mixing were chosen on other "
        f"emoji with another seed. A run takes {np.median(seconds):.1f} seconds of CPU, one thread, on "
        f"{machine['cores']} cores of {platform.machine()}, Python {machine['python']}, torch {machine['torch']}.", "",
        "## R@1", "", table([*header, "temperature at the end", "chosen"], rows), "",
        "## Fine-tuning, and tuning its temperature", "", table(header, of_temperature), "",
        "## Mixing, both at the temperature that is learned", "", table(header, of_learned), "",
        "## Mixing, both with the temperature tuned", "", table(header, of_tuned), "",
        "## Mixing at the temperature that is learned, against tuning the temperature and no mixing", "",
        table(header, beyond), "",
        "## Mixtures of the own modality, against its real negatives alone", "", table(header, of_own), "",
    ]  # fmt: skip
    write(RESULTS / "clip_emoji.md", "\n".join(page))
    write(RESULTS / "clip_emoji.json", json.dumps(facts, indent=1) + "\n")


def _temperature(runs: list[dict[str, np.ndarray]]) -> str:
    return f"{np.mean([run['temperature'] for run in runs]):.3f}"


def _point(tuning: dict[str, Any], name: str) -> str:
    if name == "zero-shot":
        return ""
    of = tuning["chosen"][name]
    return ", ".join([f"rate {of['rate']:g}", *(f"{key} {value:g}" for key, value in of["point"].items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="stop after the tuning")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study()
    tuning = tune(study)
    if not given.tune:
        write_page(judged(study, tuning), tuning)


if __name__ == "__main__":
    main()
