"""What `mixcontrast embed` reads: image folders, CSV files, WebDatasets and BEIR's folders, an item at a time."""

from __future__ import annotations

import csv
import difflib
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Items(ABC):
    """Images or texts with their ids.

    Attributes:
        ids: N texts, each once.
        columns: name to N values of what else is known of the items: texts or integers.
        kind: "image" or "text".
    """

    ids: list[str]
    columns: dict[str, list[Any]]
    kind: str

    @abstractmethod
    def load(self, index: int) -> Image.Image | str:
        """The item, an image on white.

        Raises:
            OSError: the image is not there or broken.
            ValueError: the text is empty.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Where the item is from, for messages."""

    def __len__(self) -> int:
        return len(self.ids)


class ImageFolder(Items):
    """Images in a folder; where they are in subfolders, the first of these is the class, in the column `label`.

    Raises:
        ValueError: the folder holds no images.
    """

    kind = "image"

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
        if not self.paths:
            raise ValueError(f"{folder} holds no images ({', '.join(IMAGES)}). Name a folder that does, or a CSV file.")
        names = [path.relative_to(folder) for path in self.paths]
        self.ids = [name.as_posix() for name in names]
        self.columns = {}
        if all(len(name.parts) > 1 for name in names):
            self.columns["label"] = [name.parts[0] for name in names]

    def load(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return on_white(image)

    def where(self, index: int) -> str:
        return str(self.paths[index])


class CsvItems(Items):
    """Rows of a CSV file with a header, each an image (a path, from the file's own folder) or a text.

    Args:
        path: the file.
        image_column: the column of image paths, or
        text_column: the column of texts.
        id_column: the column of ids; row numbers from 0 without it.
        columns: further columns to keep.

    Raises:
        ValueError: no rows, a column that is not there, an id twice.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_column: str | None = None,
        text_column: str | None = None,
        id_column: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self.path = path
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError(f"{path} holds no rows under a header. Write a header and a row an item.")
        if (image_column is None) == (text_column is None):
            raise ValueError(
                f"Say whether images or texts of {path} are embedded: --image_column or --text_column. "
                f"Its columns are {', '.join(rows[0])}; name one of them."
            )
        self.column = image_column or text_column
        self.kind = "text" if image_column is None else "image"
        for name in (self.column, id_column, *columns):
            if name is not None and name not in rows[0]:
                near = difflib.get_close_matches(name, rows[0], 1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(f"{path} has no column {name!r}. There are {', '.join(rows[0])}.{hint}")
        self.values = [row[self.column] or "" for row in rows]
        self.ids = [str(number) if id_column is None else row[id_column] for number, row in enumerate(rows)]
        kept = dict.fromkeys([*columns, *([self.column] if self.kind == "text" else [])])
        self.columns = {name: _typed([row[name] for row in rows]) for name in kept if name != id_column}

    def load(self, index: int) -> Image.Image | str:
        if self.kind == "text":
            if not self.values[index].strip():
                raise ValueError("the text is empty")
            return self.values[index]
        with Image.open(self.path.parent / self.values[index]) as image:
            return on_white(image)

    def where(self, index: int) -> str:
        named = f" ({self.values[index]})" if self.kind == "image" else ""
        return f"{self.path} row {index + 1}, column {self.column}{named}"


class WebDataset(Items):
    """Tar files in the WebDataset layout: files of one name are an item, whose image or text is embedded.

    The tars are listed once, so that any item can be read by itself. Columns: the fields `cls` (integer or text) and,
    for images, `txt`.

    Args:
        paths: tar files, in order.
        texts: embed the field `txt` instead of the image.

    Raises:
        ValueError: no item has what is to be embedded, a key twice, a tar that cannot be read.
    """

    def __init__(self, paths: Sequence[Path], *, texts: bool = False) -> None:
        self.kind = "text" if texts else "image"
        fields: dict[str, dict[str, tuple[Path, int, int]]] = defaultdict(dict)
        for path in paths:
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        if member.isfile():
                            folder, _, name = member.name.rpartition("/")
                            key, _, field = name.partition(".")
                            key = f"{folder}/{key}" if folder else key
                            if field.lower() in fields[key]:
                                raise ValueError(
                                    f"Keys must be unique. Got {key} twice, again in {path}; number the items anew."
                                )
                            fields[key][field.lower()] = (path, member.offset_data, member.size)
            except (OSError, tarfile.TarError) as error:
                raise ValueError(f"{path} cannot be read as a tar file: {error}. Is it whole?") from None
        wanted = ("txt",) if texts else tuple(suffix[1:] for suffix in IMAGES)
        self.items = []
        self.ids = []
        kept = []
        for key, found in fields.items():
            field = next((name for name in wanted if name in found), None)
            if field is not None:
                self.ids.append(key)
                self.items.append(found[field])
                kept.append(found)
        if not self.items:
            raise ValueError(
                f"No item of {', '.join(map(str, paths)) or 'no tar files'} has one of {', '.join(wanted)}; "
                "name WebDataset tars of images, or embed texts by --text_column txt."
            )
        self.columns = {}
        for field in ("cls", "txt"):
            if all(field in found for found in kept):
                values = [_bytes(found[field]).decode("utf-8").strip() for found in kept]
                self.columns[{"cls": "label"}.get(field, field)] = _typed(values)

    def load(self, index: int) -> Image.Image | str:
        data = _bytes(self.items[index])
        if self.kind == "image":
            with Image.open(io.BytesIO(data)) as image:
                return on_white(image)
        text = data.decode("utf-8")
        if not text.strip():
            raise ValueError("the text is empty")
        return text

    def raw(self, index: int) -> bytes:
        """The bytes of the item."""
        return _bytes(self.items[index])

    def where(self, index: int) -> str:
        return f"{self.items[index][0]}, item {self.ids[index]}"


class BeirTexts(Items):
    """The corpus or the queries of a folder in BEIR's layout; its qrels are read by `mixcontrast evaluate --qrels`.

    A document is its title and its text, joined by a space.

    Args:
        folder: holds `corpus.jsonl` and `queries.jsonl`.
        part: "corpus" or "queries".

    Raises:
        ValueError: the file is not there, a line that is not JSON with `_id` and `text`, an id twice.

    Source: Thakur et al., NeurIPS 2021, arXiv 2104.08663.
    """

    kind = "text"

    def __init__(self, folder: Path, part: str) -> None:
        if part not in ("corpus", "queries"):
            raise ValueError(f"A BEIR folder has the parts corpus and queries. Got --part {part}; name one of them.")
        self.path = folder / f"{part}.jsonl"
        self.ids, self.texts = [], []
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    self.ids.append(str(row["_id"]))
                    self.texts.append(" ".join(t for t in (row.get("title") or "", row["text"]) if t))
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{self.path} line {number} must be JSON with _id and text. Got {error!r}; mend the line."
                    ) from None
        if not self.ids:
            raise ValueError(f"{self.path} is empty. It holds a line of JSON an item.")
        self.columns = {"text": self.texts}

    def load(self, index: int) -> str:
        if not self.texts[index].strip():
            raise ValueError("the text is empty")
        return self.texts[index]

    def where(self, index: int) -> str:
        return f"{self.path} line {index + 1}"


def open_items(
    data: str,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] = (),
    part: str | None = None,
) -> Items:
    """The items of a folder of images, a CSV file, WebDataset tars (`shards/{000..009}.tar`) or a BEIR folder.

    Raises:
        ValueError: nothing is there, or an option that does not fit what is; ids that are not unique.
    """
    path = Path(data)
    of_csv = image_column or id_column or columns
    if data.endswith(".tar"):
        if of_csv or part or text_column not in (None, "txt"):
            raise ValueError("A WebDataset takes --text_column txt, and no other column. Leave the others out.")
        items: Items = WebDataset(tars(data), texts=text_column == "txt")
    elif path.suffix == ".csv" and path.is_file():
        items = CsvItems(
            path, image_column=image_column, text_column=text_column, id_column=id_column, columns=columns
        )
    elif path.is_dir() and ((path / "corpus.jsonl").exists() or (path / "queries.jsonl").exists()):
        if part is None:
            raise ValueError(f"{path} is a BEIR folder. Say which part: --part corpus or --part queries.")
        items = BeirTexts(path, part)
    elif path.is_dir():
        if of_csv or text_column or part:
            raise ValueError(f"{path} is a folder of images, which has no columns or parts. Leave those options out.")
        items = ImageFolder(path)
    else:
        raise ValueError(
            "Data are a folder of images, a .csv file, WebDataset .tar files or a BEIR folder. "
            f"Got {data}, which is {'none of these' if path.exists() else 'not there'}; name one of them."
        )
    seen: dict[str, int] = {}
    for index, name in enumerate(items.ids):
        if name in seen:
            raise ValueError(
                f"Ids must be unique. Got {name!r} in {items.where(seen[name])} and in {items.where(index)}; "
                "name another id column, or mend one."
            )
        seen[name] = index
    return items


def on_white(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, transparent parts white."""
    if image.mode in ("RGB", "L"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def tars(pattern: str) -> list[Path]:
    """The files that a pattern with braces names: `shards/{000..009}.tar`."""
    import braceexpand

    return [Path(name) for name in braceexpand.braceexpand(pattern)]


def _bytes(at: tuple[Path, int, int]) -> bytes:
    path, offset, size = at
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _typed(values: Sequence[str]) -> list[Any]:
    """Integers where all are written as such, else texts."""
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        return list(values)
    return numbers if all(str(n) == v for n, v in zip(numbers, values, strict=True)) else list(values)
