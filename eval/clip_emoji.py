"""Fine-tuning two towers on emoji with captions: which mixing helps, and does tuning the temperature do as much?

    python eval/clip_emoji.py           # tunes on validation emoji, trains five seeds, writes eval/results/clip_emoji.*
    python eval/clip_emoji.py --tune    # the tuning alone

One thread; what is finished is not run again. Runs are kept under runs/clip_emoji/. The page: clip_emoji_page.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixcontrast import (
    ClipLoss,
    CyClipLoss,
    GeodesicMixup,
    HardNegativeLoss,
    KeyQueue,
    MixTerm,
    MoCHi,
    SigLipLoss,
    SynCo,
)
from mixcontrast.analysis import alignment, modality_gap, uniformity
from mixcontrast.data import EmojiCaptionFeatures, PairData
from mixcontrast.files import write_whole
from mixcontrast.judge import classify, cross_modal_retrieval, mean_embeddings
from mixcontrast.models import FeatureTowers

RUNS = Path(__file__).resolve().parents[1] / "runs" / "clip_emoji"
ALIGNED, FINE_TUNED, HELD_OUT = ("Appl", "FB", "Joy"), ("Goog", "Sams"), ("Twtr", "Wind")
DOMAINS = {"fine-tuned on": FINE_TUNED, "aligned on": ALIGNED, "never seen": HELD_OUT}
WAYS = ("image to text", "text to image")
SEEDS, TUNING_SEED = 5, 100
BATCH, EPOCHS, ALIGNMENT_EPOCHS = 256, 40, 30
ALIGNMENT_RATE = 1e-3
RATES, TEMPERATURES = (3e-4, 1e-3, 3e-3, 1e-2), (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
WEIGHT_DECAY = 0.1
KS = (1, 5, 10)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
GEOMETRY = ("alignment", "uniformity, images", "uniformity, texts", "modality gap")


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: in the tables.
        make: its criterion, of one point of its grid.
        grid: what is tuned of it, beside the temperature.
        bias: where the towers' bias begins, of a sigmoid loss.
    """

    title: str
    make: Callable[..., nn.Module]
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)
    bias: float | None = None

    def points(self) -> list[dict[str, float]]:
        """Each point of the grid."""
        return [dict(zip(self.grid, point, strict=True)) for point in itertools.product(*self.grid.values())]


def _geodesic(loss: Callable[[], nn.Module] = ClipLoss, **weights: float) -> Callable[[float], GeodesicMixup]:
    """Terms of these weights, all `times` larger."""

    def make(times: float) -> GeodesicMixup:
        terms = {
            name: MixTerm(weight * times, temperature=0.07 if name == "m2" else None)
            for name, weight in weights.items()
        }
        return GeodesicMixup(loss(), **{name: terms.get(name) for name in ("m2", "v", "l", "vl")})

    return make


def _own(temperature: float) -> ClipLoss:
    return ClipLoss(same_modality=True, same_modality_temperature=temperature)


def _queued() -> ClipLoss:
    return ClipLoss(image_queue=KeyQueue(1024, 256, labels=2), text_queue=KeyQueue(1024, 256, labels=2))


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
    "mochi_queue": Method("MoCHi, queues of 1,024",
                          lambda hardest: MoCHi(_queued(), num_hardest=int(hardest), **FEW), HARDEST),
    "synco_own": Method(
        "SynCo, same modality",
        lambda temperature: SynCo(_own(temperature), num_hardest=64, same_modality=True, **SIX), OWN),
    "synco": Method("SynCo, cross-modal", lambda hardest: SynCo(ClipLoss(), num_hardest=int(hardest), **SIX), HARDEST),
    "hcl": Method("HCL", lambda beta: HardNegativeLoss(ClipLoss(), beta=beta, tau_plus=0.0), {"beta": (0.25, 1.0)}),
    "cyclip": Method("CyCLIP", lambda weight: CyClipLoss(ClipLoss(), in_modal=weight, cross_modal=weight),
                     {"weight": (0.25, 0.025)}),
    "smooth": Method("label smoothing (BANG's)", lambda smoothing: ClipLoss(label_smoothing=smoothing),
                     {"smoothing": (0.1, 0.2)}),
    "siglip": Method("SigLIP", SigLipLoss, bias=-10.0),
    "siglip_m3": Method("SigLIP + m3-Mix", _geodesic(SigLipLoss, m2=0.01, v=0.05, l=0.05, vl=0.1), TIMES, bias=-10.0),
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
            image, text, *scale_and_bias = towers(
                self.emoji.image_features[images], self.emoji.text_features[captions]
            )
            loss = criterion(image, text, *(x for x in scale_and_bias if x is not None), labels=labels)
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
        """What a query and a drawing reach, with its vendor and its emoji; and where embeddings lie.

        Retrieval both ways; zero-shot classification among the part's emoji, each the mean of its captions, with the
        confidence of the softmax at the towers' temperature.
        """
        image = towers.encode_image(self.emoji.image_features[torch.from_numpy(part.images)])
        text = towers.encode_text(self.emoji.text_features[torch.from_numpy(part.captions)])
        both = cross_modal_retrieval(image, text, part.pairs, ks=KS, domains=part.domains)
        found = {}
        for way, of_way in zip(WAYS, both, strict=True):
            found |= {f"{way} R@{k}": of_way.values[f"R@{k}"] for k in KS}
            found |= {f"{way} vendor": of_way.attributes["domain"], f"{way} emoji": of_way.groups}
        emoji = self.emoji.groups[part.images]
        names, labels = np.unique(emoji, return_inverse=True)
        told = np.unique(np.stack([labels[part.pairs[:, 0]], part.pairs[:, 1]], axis=1), axis=0)
        classifier = mean_embeddings(text[torch.from_numpy(told[:, 1])], told[:, 0], len(names))
        zero_shot = classify(image, classifier, labels, logit_scale=towers.logit_scale.exp().item())
        found |= {"zero-shot top-1": zero_shot.evaluation.values["top-1"], "zero-shot confidence": zero_shot.confidence,
                  "zero-shot vendor": part.domains, "zero-shot emoji": emoji}  # fmt: skip
        for domain, vendors in DOMAINS.items():
            pairs = torch.from_numpy(part.pairs[np.isin(part.domains, vendors)[part.pairs[:, 0]]])
            if not len(pairs):  # of the validation part, vendors that are never seen
                continue
            images, texts = image[pairs[:, 0].unique()], text[pairs[:, 1].unique()]
            values = (alignment(image[pairs[:, 0]], text[pairs[:, 1]]), uniformity(images), uniformity(texts),
                      modality_gap(images, texts))  # fmt: skip
            found |= {f"{name}, {domain}": np.array(float(v)) for name, v in zip(GEOMETRY, values, strict=True)}
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

    def trained(self, method: str, seed: int, rate: float, temperature: float | None,
                point: dict[str, float]) -> FeatureTowers:  # fmt: skip
        """The towers after fine-tuning."""
        towers = FeatureTowers(256, logit_bias=METHODS[method].bias)
        towers.load_state_dict(self.aligned(seed), strict=METHODS[method].bias is None)
        self.train(towers, METHODS[method].make(**point), FINE_TUNED, seed, epochs=EPOCHS, rate=rate,
                   temperature=temperature)  # fmt: skip
        return towers

    def tried(self, file: Path, method: str, rate: float, temperature: float | None, point: dict[str, float]) -> float:
        """R@1 of both ways on validation emoji, by the vendors that are fine-tuned on; kept in a file."""
        if not file.exists():
            towers = self.trained(method, TUNING_SEED, rate, temperature, point)
            keep(file, self.judge(towers, self.validation))
        with np.load(file) as saved:
            return float(np.mean([of_vendors(saved, way, FINE_TUNED)[0].mean() for way in WAYS]))

    def weights(self, name: str, seed: int, of: dict[str, Any] | None) -> tuple[dict[str, Tensor], float]:
        """Weights of an arm, and the CPU seconds of their training; of none, as they were aligned."""
        if of is None:
            return self.aligned(seed), 0.0
        file = RUNS / "weights" / f"{name.replace(', ', '-')}-seed{seed}.pt"
        if not file.exists():
            self.aligned(seed)
            start = time.process_time()
            towers = self.trained(name.partition(", ")[0], seed, of["rate"], of["temperature"], of["point"])
            saved = {"weights": towers.state_dict(), "seconds": time.process_time() - start}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda temporary: torch.save(saved, temporary))
        saved = torch.load(file, weights_only=True)
        return saved["weights"], saved["seconds"]

    def judged(self, name: str, weights: dict[str, Tensor], seed: int, seconds: float = 0.0) -> dict[str, np.ndarray]:
        """What weights reach on the test part; kept in a file."""
        file = RUNS / "judged" / f"{name.replace(', ', '-')}-seed{seed}.npz"
        if not file.exists():
            towers = FeatureTowers(256, logit_bias=0.0 if "logit_bias" in weights else None)
            towers.load_state_dict(weights)
            found = self.judge(towers, self.test)
            keep(file, found | {"seconds": np.array(seconds),
                                "temperature": np.array(1 / towers.logit_scale.exp().item())})  # fmt: skip
        with np.load(file) as saved:
            return dict(saved)


def keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a file whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda temporary: _save(temporary, arrays))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def of_vendors(
    found: Mapping[str, np.ndarray], way: str, vendors: tuple[str, ...], what: str = "R@1"
) -> tuple[np.ndarray, np.ndarray]:
    """A value of each query of some vendors, and their emoji."""
    kept = np.isin(found[f"{way} vendor"], vendors)
    return found[f"{way} {what}"][kept], np.unique(found[f"{way} emoji"][kept], return_inverse=True)[1]


def tune(study: Study) -> dict[str, Any]:
    """What was chosen on validation emoji by the vendors that are fine-tuned on, and all that was tried."""

    def reached(method: str, rate: float, temperature: float | None, point: dict[str, float]) -> float:
        told = "-".join([method, f"{rate:g}", "learned" if temperature is None else f"{temperature:g}",
                         *(f"{value:g}" for value in point.values())])  # fmt: skip
        return study.tried(RUNS / "tuning" / f"{told}.npz", method, rate, temperature, point)

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
    """Every arm's runs of all seeds; and those of weights between the aligned ones and the plain loss's (WiSE-FT)."""
    arms: dict[str, list[dict[str, np.ndarray]]] = {}
    for seed in range(SEEDS):
        for name, of in {"zero-shot": None, **tuning["chosen"]}.items():
            weights, seconds = study.weights(name, seed, of)
            arms.setdefault(name, []).append(study.judged(name, weights, seed, seconds))
        plain = "plain, learned"
        first, second = study.aligned(seed), study.weights(plain, seed, tuning["chosen"][plain])[0]
        for alpha in ALPHAS:
            name = f"alpha {alpha:g}"
            between = {key: (1 - alpha) * first[key] + alpha * second[key] for key in first}
            arms.setdefault(name, []).append(study.judged(name, between, seed))
        print(f"seed {seed} is done", flush=True)
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="stop after the tuning")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study()
    tuning = tune(study)
    if not given.tune:
        from clip_emoji_page import write_page

        write_page(judged(study, tuning), tuning)


if __name__ == "__main__":
    main()
