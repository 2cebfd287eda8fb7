"""A run of `mixcontrast fit` to be judged: its towers before and after, and what its data keep for the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor

from mixcontrast.data.pair_data import PairData, PairPart
from mixcontrast.judge.collection import Classifier, Collection
from mixcontrast.judge.reading import DESCRIPTIONS, read_classifiers
from mixcontrast.models.fitted import made
from mixcontrast.models.towers import Towers

BEFORE, AFTER = "before", "after"


class Run:
    """The folder of a run of `ImageText`.

    Args:
        folder: of it, finished.

    Attributes:
        towers: its model, without adapters, with weights that are still to be loaded.
        weights: before and after training.

    Raises:
        ValueError: it is no such folder, or of another module.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "config.yaml"
        if not file.is_file():
            raise ValueError(
                f"A run is a folder with config.yaml. There is none in {folder}; name one of mixcontrast fit."
            )
        self.config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = self.config["model"]["class_path"]
        if kind.rpartition(".")[2] != "ImageText":
            raise ValueError(
                "What is judged has two towers: a run of mixcontrast.training.ImageText. "
                f"{folder} is a run of {kind}; its results are in {folder / 'results.md'}."
            )
        self.weights = {BEFORE: folder / "start.pt", AFTER: folder / "model.pt"}
        missing = [path.name for path in self.weights.values() if not path.is_file()]
        if missing:
            raise ValueError(f"A run is judged when it is done. {folder} lacks {', '.join(missing)}; let it end.")
        encoder = self.config["model"]["init_args"]["encoder"]
        options = {name: value for name, value in (encoder.get("init_args") or {}).items() if "lora" not in name}
        self.towers: Towers = made({"class_path": encoder["class_path"], "init_args": options})
        self._data: PairData | None = None

    @property
    def data(self) -> PairData:
        """Its data, with the parts that it was trained and watched on."""
        if self._data is None:
            from jsonargparse import ArgumentParser

            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--data", type=LightningDataModule)
            self._data = parser.instantiate(parser.parse_object({"data": self.config["data"]})).data
            self._data.use(self.towers)
        return self._data

    def collection(
        self, split: str = "test", templates: Path | None = None, descriptions: Path | None = None
    ) -> Collection | None:
        """What is judged of a part; None where it has none.

        Images of one group are a class, where some group has several images: its name is the group's first caption,
        its descriptions are all of them.

        Args:
            split: "test", or "val", in which no domains are told apart.
            templates: a text file, a template with `{}` a line; without, the class's name alone.
            descriptions: a file of descriptions in place of the captions.

        Raises:
            ValueError: templates or descriptions without classes; as `read_classifiers`.
        """
        part = self.data.test if split == "test" else self.data.validation
        if part is None:
            return None
        data = self.data.collection
        labels, names, classifiers = self._classes(part, templates, descriptions)
        texts = [str(data.captions[row]) for row in part.captions]
        return Collection(
            images=_Images(self.data, part),
            image_names=[str(data.image_names[row]) for row in part.images],
            texts=texts,
            pairs=part.pairs,
            labels=labels,
            class_names=names,
            classifiers=classifiers,
            domains=part.domains,
            held_out=part.held_out if split == "test" else (),
            prepared_texts=_Captions(self.data, part) if isinstance(data.caption(0), Tensor) else None,
        )

    def _classes(
        self, part: PairPart, templates: Path | None, descriptions: Path | None
    ) -> tuple[np.ndarray | None, tuple[str, ...], dict[str, Classifier]]:
        data = self.data.collection
        groups, labels = np.unique(data.groups[part.images], return_inverse=True)
        if len(groups) == len(part.images):
            if templates is not None or descriptions is not None:
                raise ValueError(
                    f"--templates and --descriptions are of classes. {self.folder} has none: no two of its test images "
                    "are of one group; give --classes."
                )
            return None, (), {}
        first = np.unique(labels, return_index=True)[1]
        of_class: list[list[str]] = [[] for _ in groups]
        captions_of = {int(place): number for number, place in enumerate(first)}
        for image, caption in part.pairs.tolist():
            if image in captions_of:
                of_class[captions_of[image]].append(str(data.captions[part.captions[caption]]))
        names = tuple(texts[0] for texts in of_class)
        classifiers = read_classifiers(names, templates, descriptions)
        if descriptions is None:
            classifiers[DESCRIPTIONS] = Classifier(
                [text for texts in of_class for text in texts],
                np.arange(len(names)).repeat([len(texts) for texts in of_class]),
            )
        return labels.astype(np.int64), names, classifiers


class _Images(Sequence):
    """The images of a part, as its data give them: drawn or photographed, or features."""

    def __init__(self, data: PairData, part: PairPart) -> None:
        self.data, self.part = data, part

    def __len__(self) -> int:
        return len(self.part.images)

    def __getitem__(self, place: int) -> Image.Image | Tensor:
        return self.data.collection.image(int(self.part.images[place]))


class _Captions(Sequence):
    """The captions of a part where they are features."""

    def __init__(self, data: PairData, part: PairPart) -> None:
        self.data, self.part = data, part

    def __len__(self) -> int:
        return len(self.part.captions)

    def __getitem__(self, place: int) -> Tensor:
        return self.data.collection.caption(int(self.part.captions[place]))
