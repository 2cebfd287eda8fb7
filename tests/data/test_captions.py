"""Images with captions: what each source holds, the batches, the parts, and what is refused."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixcontrast.data import CaptionFolder, CaptionTable, CaptionTars, EmojiCaptions, PairData
from mixcontrast.data.emoji_captions import captions_of_emoji
from mixcontrast.models import FeatureTowers, OpenClip
from tests.data.standins import draw
from tests.fitting import WIDTH, CaptionedVectors
from tests.models import tiny

ROWS = [
    ("a.png", "a cat", "cat", "train", "ann"),
    ("a.png", "  one grey cat ", "cat", "train", "ann"),
    ("b.png", "a cat", "cat", "train", "bob"),
    ("c.png", "a dog", "dog", "val", "ann"),
    ("d.png", "a dog, asleep", "dog", "val", "bob"),
    ("e.png", "a horse", "horse", "test", "bob"),
]


def table(folder: Path, rows: list[tuple[str, ...]] = ROWS) -> Path:
    for number, name in enumerate(sorted({row[0] for row in ROWS})):
        draw(folder / name, 100 * number)
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "kind", "split", "hand"), *rows])
    return folder / "pairs.csv"


def told(pairs) -> set[tuple[str, str]]:
    return {(Path(pairs.image_names[image]).stem, pairs.captions[text]) for image, text in pairs.pairs.tolist()}


WANTED = {(Path(row[0]).stem, row[1].strip()) for row in ROWS}


def test_a_table_a_folder_and_tars_say_the_same(tmp_path: Path) -> None:
    rows = table(tmp_path)
    for name, text in WANTED:
        file = tmp_path / f"{name}.txt"
        before = file.read_text() if file.exists() else "\n"
        file.write_text(f"{before}{text}\n\n")
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for path in sorted([*tmp_path.glob("*.png"), *tmp_path.glob("*.txt")], key=lambda path: path.stem):
            tar.add(path, path.name)
    found = CaptionTable(rows), CaptionFolder(tmp_path), CaptionTars(str(tmp_path / "shard-{0..0}.tar"))
    for pairs in found:
        assert told(pairs) == WANTED and len(pairs) == 5 and len(pairs.captions) == len(set(pairs.captions)) == 5
        names = [Path(name).stem for name in pairs.image_names]
        assert np.array_equal(np.asarray(pairs.image(names.index("c"))), np.asarray(Image.open(tmp_path / "c.png")))
        assert len(set(pairs.groups)) == 5 and pairs.domains is None


def test_groups_domains_and_parts_of_a_table(tmp_path: Path) -> None:
    pairs = CaptionTable(table(tmp_path), group_column="kind", domain_column="hand", split_column="split")
    assert pairs.groups.tolist() == [0, 0, 1, 1, 2] and pairs.domains.tolist() == ["ann", "bob", "ann", "bob", "bob"]
    data = PairData(pairs, batch_size=2)
    assert data.train_rows.tolist() == [0, 1]
    # a dog is described by two captions, each of one image: both belong to both, as images of a group share captions
    part = data.validation
    assert [pairs.captions[row] for row in part.captions] == ["a dog", "a dog, asleep"]
    assert part.pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert data.test.images.tolist() == [4]


def test_domains_held_out_are_judged_and_never_trained_on() -> None:
    pairs = CaptionedVectors()
    data = PairData(pairs, batch_size=16, held_out=["west"])
    in_training = pairs.domains[data.train_rows]
    assert set(in_training) == {"north", "south"} and set(pairs.domains[data.validation.images]) == {"north", "south"}
    assert set(data.test.domains) == {"north", "south", "west"} and data.test.held_out == ("west",)
    of_parts = [set(pairs.groups[rows]) for rows in (data.train_rows, data.validation.images, data.test.images)]
    assert not of_parts[0] & of_parts[1] and not (of_parts[0] | of_parts[1]) & of_parts[2]
    assert set.union(*of_parts) == set(range(40)) and len(of_parts[2]) == 8


def batches(data: PairData, epoch: int = 0) -> list:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)
    return list(loader)


def test_an_epoch_meets_each_image_once_with_a_caption_of_its_own() -> None:
    pairs = CaptionedVectors()
    data = PairData(pairs, batch_size=8)
    data.use(FeatureTowers(4, image_features=WIDTH, text_features=WIDTH))
    first, again, later = batches(data), batches(data), batches(data, 1)
    seen, drawn = [], []
    for (images, texts), labels in first:
        for image, text, (group, caption) in zip(images, texts, labels.tolist(), strict=True):
            row = int((pairs.image_rows == image).all(dim=1).nonzero())
            assert group == pairs.groups[row] and (row, caption) in {tuple(pair) for pair in pairs.pairs.tolist()}
            assert torch.equal(text, pairs.text_rows[caption])
            seen.append(row)
            drawn.append((row, caption))
    assert len(seen) == len(set(seen)) == len(first) * 8
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one[1], two[1])
    others = [(int((pairs.image_rows == image).all(dim=1).nonzero()), caption)
              for (images, _), labels in later for image, caption in zip(images, labels[:, 1].tolist(), strict=True)]
    assert set(others) - set(drawn)  # another caption now and then
    assert {caption % 2 for _, caption in drawn} == {0, 1}


def test_towers_bring_their_transforms_and_tokenizer(tmp_path: Path) -> None:
    rows = table(tmp_path)
    towers = OpenClip("tiny_clip", config=tiny.clip(tmp_path))
    data = PairData(CaptionTable(rows, split_column="split"), batch_size=2)
    data.use(towers)
    (images, texts), labels = batches(data)[0]
    assert images.shape == (2, 3, 16, 16) and texts.shape == (2, 12) and labels.shape == (2, 2)
    caption = data.collection.captions[labels[0, 1]]
    assert torch.equal(texts[0], towers.tokenize([caption])[0])
    judged, words = data.test_dataloader()
    ((image, place),) = list(judged)
    assert place.tolist() == [0] and torch.equal(image[0], towers.transform(data.collection.image(4)))
    assert torch.equal(next(iter(words))[0], towers.tokenize(["a horse"]))


def test_emoji_have_names_other_names_and_keywords() -> None:
    found = captions_of_emoji()
    assert {"red apple", "apple"} <= set(found["🍎"]) and any("fruit" in text.split(", ") for text in found["🍎"])
    assert "red heart" in found["❤"] and not any("\ufe0f" in emoji for emoji in found)
    assert all(text and text == text.strip(" :") and "_" not in text for texts in found.values() for text in texts)
    assert all(len(set(texts)) == len(texts) for texts in found.values())


@pytest.mark.slow
def test_drawings_have_the_captions_of_their_emoji() -> None:
    pairs, known = EmojiCaptions(max_classes=400, vendors=["Goog", "Twtr"]), captions_of_emoji()
    assert set(pairs.domains) == {"Goog", "Twtr"} and len(pairs) == len(pairs.image_names)
    assert pairs.image(0).size == (72, 72)
    of_images = {}
    for image, text in pairs.pairs.tolist():
        of_images.setdefault(image, set()).add(pairs.captions[text])
    for row, name in enumerate(pairs.image_names):
        emoji, vendor = name.split()
        assert of_images[row] == set(known[emoji]) and pairs.domains[row] == vendor


def refusals(folder: Path) -> dict:
    good = table(folder)
    (folder / "latin.csv").write_bytes("image,caption\na.png,caf\u00e9\n".encode("latin-1"))
    (folder / "bare").mkdir()
    draw(folder / "bare" / "x.png", 1)
    (folder / "blank").mkdir()
    draw(folder / "blank" / "y.png", 1)
    (folder / "blank" / "y.txt").write_text("\n \n")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    for name, texts in (("lone", []), ("both", [b"  "])):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for suffix, content in (("png", picture.getvalue()), *(("txt", text) for text in texts)):
                for key in ("1", "2") if suffix == "png" or name == "both" else ("1",):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def changed(line: int, column: int, value: str) -> Path:
        rows = [list(row) for row in ROWS]
        rows[line][column] = value
        where = folder / f"{line}{column}"
        where.mkdir(exist_ok=True)
        return table(where, [tuple(row) for row in rows])

    vectors = CaptionedVectors()
    joined = CaptionedVectors()
    joined.pairs = np.unique(np.concatenate([joined.pairs, [[row, 0] for row in range(len(joined))]]), axis=0)
    return {
        "image": (lambda: CaptionTable(changed(3, 0, "z.png")), "z.png, which is not (1 of 6", "root"),
        "caption": (lambda: CaptionTable(changed(3, 1, " ")), "line 5 (c.png) has one (1 of 6", "leave it out"),
        "column": (lambda: CaptionTable(good, caption_column="text"), "'text'", "caption"),
        "two groups": (lambda: CaptionTable(changed(1, 2, "dog"), group_column="kind"), "line 3 says 'dog'",
                       "mend one"),
        "no group": (lambda: CaptionTable(changed(1, 2, ""), group_column="kind"), "line 3 must have a group. Got an "
                     "empty kind", "fill it in"),
        "encoding": (lambda: CaptionTable(folder / "latin.csv"), "latin.csv must be a CSV file in UTF-8", "mend it"),
        "folder": (lambda: CaptionTable(folder / "bare"), "bare must be a CSV file", "mend it"),
        "part": (lambda: CaptionTable(changed(3, 3, "tset"), split_column="split"), "'tset'", "test"),
        "no file": (lambda: CaptionTable(folder / "pears.csv"), "pairs.csv", "Name one"),
        "no text file": (lambda: CaptionFolder(folder / "bare"), "has no x.txt", "write one"),
        "no caption": (lambda: CaptionFolder(folder / "blank"), "y.txt has one", "leave it out"),
        "no shard": (lambda: CaptionTars(str(folder / "gone.tar")), "gone.tar", "Name those"),
        "no txt": (lambda: CaptionTars(str(folder / "lone.tar")), "txt", "tars"),
        "blank txt": (lambda: CaptionTars(str(folder / "both.tar")), "item 1 has one", "leave it out"),
        "domain": (lambda: PairData(vectors, batch_size=8, held_out=["wset"]), "'wset'", "west"),
        "batch": (lambda: PairData(vectors, batch_size=800), "batch_size=800", "another batch size"),
        "joined": (lambda: PairData(joined, batch_size=8), "120 of 120", "split_column"),
        "features": (lambda: PairData(vectors, batch_size=8).use(OpenClip("tiny_clip", config=tiny.clip(folder))),
                     "features in CaptionedVectors", "FeatureTowers"),
    }  # fmt: skip


def test_refused_in_one_line(tmp_path: Path) -> None:
    for name, (call, seen, remedy) in refusals(tmp_path).items():
        with pytest.raises(ValueError) as raised:
            call()
        message = str(raised.value)
        assert "\n" not in message and seen in message and remedy in message, (name, message)


def test_a_run_goes_on_with_its_own_pairs_only() -> None:
    vectors = CaptionedVectors()
    data = PairData(vectors, batch_size=8)
    state = data.state_dict()
    data.load_state_dict(state)
    for other in (PairData(vectors, batch_size=8, held_out=["west"]), PairData(vectors, batch_size=8, split_seed=1)):
        with pytest.raises(ValueError, match="training pairs"):
            other.load_state_dict(state)
