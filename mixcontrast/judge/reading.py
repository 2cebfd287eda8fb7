"""Collections from files: pairs and classes in CSV files or folders, prompt templates, class descriptions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixcontrast.data.captions import paired
from mixcontrast.data.examples import labels_of
from mixcontrast.data.found import csv_columns, existing
from mixcontrast.data.image_files import images_under
from mixcontrast.data.image_rows import ImageRow, check_images, one_each, read_image_rows
from mixcontrast.judge.collection import Classifier, Collection, ImageFiles
from mixcontrast.judge.zero_shot import prompts

TEMPLATES, DESCRIPTIONS = "templates", "descriptions"


@dataclass(frozen=True)
class Files:
    """What is judged on; each is an option of `mixcontrast judge` and `mixcontrast ensemble`.

    Attributes:
        pairs: a CSV file with a row for each image and caption that belong together.
        classes: for zero-shot classification, a folder whose subfolders are classes, or a CSV file, a row an image.
        templates: a text file with a prompt template a line, {} where the class's name goes; without, the name alone.
        descriptions: of classes, a JSON file (class to a list of texts) or a CSV file of the columns class and text.
        image_column: of image paths, from the file's own folder.
        text_column: of captions.
        label_column: of classes; of the pairs, where no --classes are given. In --classes by default label.
        domain_column: of where an image is from (the vendor, the camera); each domain is then searched on its own.
        split_column: of test, val or train; test rows are judged, val rows choose an ensemble's alpha. All rows are
            judged where it is left out.
        held_out: domains that were not trained on, joined by commas; shown apart from the others.
    """

    pairs: Path | None = None
    classes: Path | None = None
    templates: Path | None = None
    descriptions: Path | None = None
    image_column: str = "image"
    text_column: str = "caption"
    label_column: str | None = None
    domain_column: str | None = None
    split_column: str | None = None
    held_out: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.held_out, str):
            object.__setattr__(self, "held_out", as_names(self.held_out))


def as_names(given: str | None) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def read_collection(files: Files, split: str = "test") -> Collection | None:
    """What files say of the images of one part.

    Args:
        files: which they are.
        split: "test" or "val", in which no domains are told apart.

    Returns:
        The collection; None where no row is of the part.

    Raises:
        ValueError: neither pairs nor classes; a file, column or image that is not there; an empty caption; an image
            with two classes or domains; a class without texts.
    """
    rows = [row for row in _rows(files) if (row.part or "test") == split]
    if not rows:
        return None
    check_images(rows, "leave those rows out")
    number = {path: place for place, path in enumerate(dict.fromkeys(row.path for row in rows))}
    of_image = {what: one_each(rows, what) for what in ("label", "domain")}
    captioned = [row for row in rows if row.caption is not None]
    captions, pairs = paired([number[row.path] for row in captioned], [row.caption for row in captioned])
    names, labels = (), None
    classifiers: dict[str, Classifier] = {}
    if of_image["label"]:
        labelled = [path for path in number if path in of_image["label"]]
        codes, names = labels_of([of_image["label"][path] for path in labelled])
        labels = np.full(len(number), -1, np.int64)
        labels[[number[path] for path in labelled]] = codes
        classifiers = read_classifiers(names, files.templates, files.descriptions)
    elif files.templates is not None or files.descriptions is not None:
        raise ValueError(
            "--templates and --descriptions are of classes. Got none; give --classes, or --label_column of the pairs."
        )
    domains = None
    if of_image["domain"]:
        domains = np.array([of_image["domain"].get(path, "") for path in number])
        if (domains == "").any():
            raise ValueError(
                f"Each image must have a domain. Got none for {list(number)[int(np.argmax(domains == ''))]}; name the "
                "column in both files."
            )
    return Collection(
        images=ImageFiles(list(number)),
        image_names=_names(list(number)),
        texts=list(captions),
        pairs=pairs if captioned else None,
        labels=labels,
        class_names=names,
        classifiers=classifiers,
        domains=domains,
        held_out=files.held_out if split == "test" else (),
    )


def read_classifiers(
    names: tuple[str, ...], templates: Path | None = None, descriptions: Path | None = None
) -> dict[str, Classifier]:
    """Zero-shot classifiers of some classes: their names in templates, and their descriptions where there are any.

    Args:
        names: of the classes.
        templates: as `Files`.
        descriptions: as `Files`; of more classes than these, too.

    Raises:
        ValueError: a file that cannot be read, a template without `{}`, a class without a description.
    """
    found = {}
    if templates is not None or descriptions is None:
        texts, classes = prompts(names, ["{}"] if templates is None else _lines(templates))
        found[TEMPLATES] = Classifier(texts, classes)
    if descriptions is not None:
        of_class = _described(descriptions)
        lacking = [name for name in names if not of_class.get(name)]
        if lacking:
            raise ValueError(
                f"Each class needs a description. {descriptions} has none for {len(lacking)} of {len(names)}, "
                f"{', '.join(lacking[:3])}; write one for each."
            )
        texts = [text for name in names for text in of_class[name]]
        found[DESCRIPTIONS] = Classifier(texts, np.arange(len(names)).repeat([len(of_class[name]) for name in names]))
    return found


def _rows(files: Files) -> list[ImageRow]:
    """What both files say of images, the pairs first."""
    if files.pairs is None and files.classes is None:
        raise ValueError("Judging needs pairs or classes. Got neither; give --pairs pairs.csv or --classes folder.")
    rows: list[ImageRow] = []
    columns = dict(image_column=files.image_column, split_column=files.split_column)
    if files.pairs is not None:
        told = {"label": files.label_column if files.classes is None else None, "domain": files.domain_column}
        rows += read_image_rows(files.pairs, caption_column=files.text_column, told=told, **columns)
    if files.classes is not None and files.classes.is_dir():
        rows += _rows_of_folder(files)
    elif files.classes is not None:
        told = {"label": files.label_column or "label", "domain": files.domain_column}
        rows += read_image_rows(files.classes, told=told, **columns)
    return rows


def _rows_of_folder(files: Files) -> list[ImageRow]:
    folder = files.classes
    if files.domain_column or files.split_column:
        raise ValueError(
            f"A folder of classes has no columns. Got --domain_column or --split_column with {folder}; write a CSV "
            "file."
        )
    paths = images_under(folder)
    loose = [path for path in paths if path.parent == folder]
    if loose:
        raise ValueError(
            f"Images must be in a class's folder. Got {len(loose)} of {len(paths)} in {folder} itself, "
            f"{loose[0].name} first; move them."
        )
    names = [path.relative_to(folder) for path in paths]
    return [
        ImageRow(path, name.as_posix(), str(folder), told={"label": name.parts[0]})
        for path, name in zip(paths, names, strict=True)
    ]


def _names(paths: list[Path]) -> list[str]:
    """Names of files, with their folders where a name is there twice."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in paths]


def _lines(path: Path) -> list[str]:
    existing(path, "A file of templates", "Name one that is.")
    found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} must hold a template a line. Got none; a photo of a {{}}.")
    return found


def _described(path: Path) -> dict[str, list[str]]:
    """Class to its texts; empty texts are left out."""
    existing(path, "A file of class descriptions", "Name one that is.")
    found: dict[str, list[str]] = {}
    if path.suffix == ".json":
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            found = {str(name): [str(text) for text in texts if str(text).strip()] for name, texts in read.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path} must be JSON, class to a list of texts. It cannot be read so: {error}; mend it."
            ) from None
        return found
    columns = csv_columns(path, ["class", "text"])
    for name, text in zip(columns["class"], columns["text"], strict=True):
        if text.strip():
            found.setdefault(name.strip(), []).append(text.strip())
    return found
