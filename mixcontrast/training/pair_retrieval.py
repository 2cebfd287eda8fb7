"""Retrieval between images and captions, judged while Lightning trains and at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning
import numpy as np
from torch import Tensor, nn

from mixcontrast.data.pair_data import PairData, PairPart
from mixcontrast.judge.cross_modal import cross_modal_retrieval
from mixcontrast.models.towers import Towers
from mixcontrast.retrieval import Evaluation
from mixcontrast.training.callbacks import embed_loader, embed_shared

TO_TEXT, TO_IMAGE = "image to text", "text to image"
KS = (1, 5, 10)


class PairRetrievalCallback(lightning.Callback):
    """Judges the validation part both ways at the end of an epoch, and logs `val/R@1` and the rest.

    `val/R@1` is the mean of both directions; `val/image to text R@1` and `val/text to image R@1` have 95% intervals
    (`... low`, `... high`) over images and captions that hang together. The towers are called in eval mode, without
    gradient, under the trainer's precision; modes and random state are put back. Under several processes each embeds
    its share, the first judges, and all log the same numbers.

    Args:
        data: whose validation part is judged.
        every_n_epochs: judges in epochs n, 2 n, and so on.
    """

    def __init__(self, data: PairData, every_n_epochs: int) -> None:
        self.data, self.every_n_epochs = data, every_n_epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.fast_dev_run or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        towers: Towers = module.encoder
        images, texts = self.data.loaders(self.data.validation)
        features = [
            embed_shared(trainer, module, loader, encode=encode)[0]
            for loader, encode in ((images, towers.encode_image), (texts, towers.encode_text))
        ]
        found: dict[str, float] | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = _logged(*judge_features(*features, self.data.validation, KS[:1]))
            except (ValueError, TypeError) as error:  # told to all: the others would wait for ever
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        for name, value in found.items():
            module.log(f"val/{name}", value, prog_bar=name == "R@1", batch_size=1, sync_dist=True)


def judge_pairs(module: nn.Module, towers: Towers, data: PairData) -> Evaluation:
    """Both directions on the test part as one evaluation, told apart by the attribute `retrieval`.

    Where domains are held out, each direction is told apart further: in-domain and held-out. Each domain is searched on
    its own.

    Args:
        module: whose device the towers are on.
        towers: the model.
        data: whose test part is judged.
    """
    images, texts = data.loaders(data.test)
    one, other = (
        embed_loader(module, loader, encode=encode)[0]
        for loader, encode in ((images, towers.encode_image), (texts, towers.encode_text))
    )
    return joined(
        *judge_features(
            one, other, data.test, KS,
            image_names=[data.collection.image_names[row] for row in data.test.images],
            text_names=[data.collection.captions[row] for row in data.test.captions],
        )
    )  # fmt: skip


def judge_features(
    image_features: Tensor, text_features: Tensor, part: PairPart, ks: tuple[int, ...] = KS, **names: Any
) -> tuple[Evaluation, Evaluation]:
    """Image to text and text to image on one part.

    Args:
        image_features: (N, D) of its images.
        text_features: (M, D) of its captions.
        part: which belong together.
        ks: cut-offs.
        names: as `cross_modal_retrieval`'s.
    """
    parts = None
    if part.held_out:
        domains = np.unique(part.domains).tolist()
        parts = {"part": {domain: "held-out" if domain in part.held_out else "in-domain" for domain in domains}}
    return cross_modal_retrieval(
        image_features, text_features, part.pairs, ks=ks, domains=part.domains, attributes=parts, **names
    )


def joined(to_text: Evaluation, to_image: Evaluation) -> Evaluation:
    """Both directions as one evaluation; of a text that is a query the number is behind those of the images."""
    both = (to_text, to_image)
    told = []
    for found, direction in zip(both, (TO_TEXT, TO_IMAGE), strict=True):
        of_part = found.attributes.get("part", np.full(len(found.queries), ""))
        told += [f"{direction}, {part}" if part else direction for part in of_part]
    offset = int(to_text.queries.max()) + 1
    settings = {direction: found.settings for found, direction in zip(both, (TO_TEXT, TO_IMAGE), strict=True)}
    attributes = {"retrieval": np.array(told)}
    if "domain" in to_text.attributes:
        domains = [
            [f"{direction}, {domain}" for domain in found.attributes["domain"]]
            for found, direction in zip(both, (TO_TEXT, TO_IMAGE), strict=True)
        ]
        attributes["domain"] = np.concatenate(domains)
    return replace(
        to_text,
        values={name: np.concatenate([found.values[name] for found in both]) for name in to_text.values},
        queries=np.concatenate([to_text.queries, to_image.queries + offset]),
        groups=np.concatenate([found.groups for found in both]),
        num_without_positive=to_text.num_without_positive + to_image.num_without_positive,
        num_tied=to_text.num_tied + to_image.num_tied,
        attributes=attributes,
        names=None if to_text.names is None else np.concatenate([found.names for found in both]),
        settings=settings,
    )


def _logged(to_text: Evaluation, to_image: Evaluation) -> dict[str, float]:
    intervals = {name: found.interval("R@1") for name, found in ((TO_TEXT, to_text), (TO_IMAGE, to_image))}
    logged = {"R@1": sum(found.mean for found in intervals.values()) / 2}
    for name, found in intervals.items():
        logged |= {f"{name} R@1": found.mean, f"{name} R@1 low": found.low, f"{name} R@1 high": found.high}
    return logged
