"""CSV files whose rows name images, with captions or with what else is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixcontrast.data.found import csv_columns

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # as written, as meant


@dataclass(frozen=True)
class ImageRow:
    """What a row says of an image.

    Attributes:
        path: of the image.
        name: of it, as written.
        where: the row is, for messages.
        caption: of it; None: the file has none.
        told: "label", "domain" and the like to what the row says.
        part: "train", "val" or "test"; None: the file tells no parts.
    """

    path: Path
    name: str
    where: str
    caption: str | None = None
    told: Mapping[str, str] = field(default_factory=dict)
    part: str | None = None


def read_image_rows(
    csv: Path,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    told: Mapping[str, str | None] | None = None,
    split_column: str | None = None,
    root: Path | None = None,
) -> list[ImageRow]:
    """The rows of a CSV file with a header; whether the images are there is not looked at.

    Args:
        csv: the file.
        image_column: of the images' paths, from the root.
        caption_column: of captions.
        told: "label", "domain" and the like to their columns; None: the file has none.
        split_column: whether a row is to train, val (valid, validation) or test.
        root: the folder of the images; that of the CSV file where left out.

    Raises:
        ValueError: no file or column, an empty caption or entry, a part that is none.
    """
    of = {what: column for what, column in (told or {}).items() if column is not None}
    wanted = (image_column, caption_column, *of.values(), split_column)
    columns = csv_columns(csv, [name for name in wanted if name is not None])
    names, root = columns[image_column], root or csv.parent
    where = [f"{csv} line {line}" for line in range(2, len(names) + 2)]
    captions: Sequence[str | None] = [None] * len(names)
    if caption_column is not None:
        captions = [text.strip() for text in columns[caption_column]]
        check_captions(captions, [f"{at} ({name})" for at, name in zip(where, names, strict=True)])
    rows = []
    for number, name in enumerate(names):
        says = {what: columns[column][number].strip() for what, column in of.items()}
        for what, value in says.items():
            if not value:
                raise ValueError(f"{where[number]} must have a {what}. Got an empty {of[what]}; fill it in.")
        part = None if split_column is None else _part(columns[split_column][number], where[number])
        rows.append(ImageRow(root / name, name, where[number], captions[number], says, part))
    return rows


def check_captions(texts: Sequence[str], where: Sequence[str]) -> None:
    """One line where a caption is empty.

    Raises:
        ValueError: so it is.
    """
    empty = [at for at, text in zip(where, texts, strict=False) if not text]
    if empty:
        raise ValueError(
            f"A caption must not be empty. {empty[0]} has one ({len(empty)} of {len(texts)} are so); write it, or "
            "leave it out."
        )


def check_images(rows: Sequence[ImageRow], remedy: str) -> None:
    """One line where an image is not there.

    Args:
        rows: whose images are read.
        remedy: beside mending the file, for the message.

    Raises:
        ValueError: so it is.
    """
    missing = [row for row in rows if not row.path.is_file()]
    if missing:
        raise ValueError(
            f"Each image must be there. {missing[0].where} names {missing[0].path}, which is not ({len(missing)} of "
            f"{len(rows)} rows are so); mend the file, or {remedy}."
        )


def one_each(rows: Sequence[ImageRow], what: str) -> dict[Path, str]:
    """Image to what is told of it, of those of which it is told; `what` may be "part".

    Raises:
        ValueError: two rows say two things of an image.
    """
    found: dict[Path, str] = {}
    for row in rows:
        value = row.part if what == "part" else row.told.get(what)
        if value is not None and found.setdefault(row.path, value) != value:
            raise ValueError(
                f"An image has one {what}. {row.where} says {value!r} of {row.path.name}, which is {found[row.path]!r} "
                "elsewhere; mend one of them."
            )
    return found


def _part(written: str, where: str) -> str:
    found = PARTS.get(written.strip().lower())
    if found is None:
        raise ValueError(f"{where}: a row is to test, val or train. Got {written.strip()!r}; write one of them.")
    return found
