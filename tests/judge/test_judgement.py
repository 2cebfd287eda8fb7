"""Collections from files, embedded by small towers, judged, and put beside each other; against plain computations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax

from mixcontrast.judge.collection import Collection
from mixcontrast.judge.embedding import Embedder
from mixcontrast.judge.judgement import judge_features
from mixcontrast.judge.reading import Files, read_classifiers, read_collection
from mixcontrast.judge.tables import Beside, table_markdown
from tests.judge.drawings import COLOURS, HANDS, SmallTowers, draw, write_csv


@pytest.fixture
def rows(tmp_path):
    return draw(tmp_path)


@pytest.fixture
def files(tmp_path, rows):
    (tmp_path / "templates.txt").write_text("a {} thing\n\nthe colour {}\n")
    return Files(
        pairs=write_csv(tmp_path / "pairs.csv", rows), templates=tmp_path / "templates.txt", label_column="colour",
        domain_column="hand", held_out=("cy",),
    )  # fmt: skip


def test_a_collection_from_a_pairs_file(files) -> None:
    found = read_collection(files)
    assert len(found.images) == 12 and len(found.texts) == 8 and found.pairs.shape == (24, 2)
    assert sorted(found.class_names) == sorted(COLOURS)
    for image, text in found.pairs.tolist():
        colour = found.class_names[found.labels[image]]
        assert colour in found.texts[text] and colour in found.image_names[image]
        assert found.domains[image] in found.image_names[image]
    assert found.in_part("held-out").sum() == 4 and found.in_part("in-domain").sum() == 8
    assert found.classifiers["templates"].texts[:2] == ["a blue thing", "the colour blue"]
    assert found.images[0].mode == "RGB" and found.images[0].size == (20, 20)


def test_parts_by_a_column(files, rows) -> None:
    files = Files(pairs=files.pairs, split_column="part")
    assert len(read_collection(files).images) == 10 and len(read_collection(files, "val").images) == 2
    assert read_collection(Files(pairs=files.pairs), "val") is None


def test_classes_from_a_folder_and_from_a_file(tmp_path, rows) -> None:
    found = read_collection(Files(classes=tmp_path))
    assert found.class_names == HANDS and found.pairs is None and len(found.images) == 12
    assert found.classifiers["templates"].texts == list(HANDS)
    path = write_csv(tmp_path / "classes.csv", [{"image": row["image"], "label": row["colour"]} for row in rows])
    both = read_collection(Files(classes=path, pairs=write_csv(tmp_path / "pairs.csv", rows[:4])))
    assert len(both.images) == 12 and len(both.texts) == 2 and sorted(both.class_names) == sorted(COLOURS)


def test_descriptions(tmp_path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"b": ["b1", "b2", " "], "a": ["a1"], "c": []}))
    found = read_classifiers(("a", "b"), None, tmp_path / "d.json")
    assert list(found) == ["descriptions"] and found["descriptions"].texts == ["a1", "b1", "b2"]
    assert found["descriptions"].classes.tolist() == [0, 1, 1]
    (tmp_path / "d.csv").write_text("class,text\nb,b1\na,a1\nb,b2\n")
    (tmp_path / "t.txt").write_text("the {}\n")
    both = read_classifiers(("a", "b"), tmp_path / "t.txt", tmp_path / "d.csv")
    assert both["templates"].texts == ["the a", "the b"] and both["descriptions"].texts == ["a1", "b1", "b2"]


def features(towers: SmallTowers, collection: Collection) -> tuple[np.ndarray, np.ndarray]:
    """One image and one text at a time, in evaluation mode."""
    towers.eval()
    with torch.no_grad():
        images = torch.stack([towers.encode_image(towers.transform(image)[None])[0] for image in collection.images])
        texts = torch.stack([towers.encode_text(towers.tokenize([t]))[0] for t in collection.all_texts()])
    return images.numpy(), texts.numpy()


def test_embedding_is_one_by_one(files, monkeypatch) -> None:
    collection, towers = read_collection(files), SmallTowers()
    towers.train()
    told = []
    embedder = Embedder(towers, collection, batch_size=5, advance=told.append)
    images, texts = embedder()
    assert towers.training and sum(told) == 12 + 8 + 8
    wanted = features(towers, collection)
    np.testing.assert_allclose(images, wanted[0], atol=1e-6)
    np.testing.assert_allclose(texts, wanted[1], atol=1e-6)
    opened = towers.opened
    embedder()
    assert towers.opened == opened  # prepared images are kept
    monkeypatch.setattr("mixcontrast.judge.embedding.KEPT", 80)
    embedder = Embedder(towers, collection, batch_size=5)
    assert torch.equal(embedder()[0], images) and torch.equal(embedder()[0], images)
    assert towers.opened == opened + 24
    with torch.no_grad():
        towers.text.bias[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity for 16 of 16 texts, first 'a red square'"):
        embedder()


def ranks_in_domain(images, texts, collection, domain: str) -> list[int]:
    """Image to text, by hand."""
    pairs = [pair for pair in collection.pairs.tolist() if collection.domains[pair[0]] == domain]
    gallery = sorted({text for _, text in pairs})
    found = []
    for image in sorted({image for image, _ in pairs}):
        order = sorted(gallery, key=lambda text: -float(images[image] @ texts[text]))
        found.append(1 + min(order.index(text) for other, text in pairs if other == image))
    return found


def test_judged_by_hand(files) -> None:
    collection, towers = read_collection(files), SmallTowers(3)
    images, texts = features(towers, collection)
    found = judge_features("x", collection, torch.from_numpy(images), torch.from_numpy(texts), 7.0)
    ranks = {domain: ranks_in_domain(images, texts, collection, domain) for domain in HANDS}
    told = Beside([found], collection).told["x"]
    for k in (1, 5):
        assert told["image to text"]["held-out"][f"R@{k}"].mean == np.mean([rank <= k for rank in ranks["cy"]])
        both = ranks["ann"] + ranks["bob"]
        assert told["image to text"]["in-domain"][f"R@{k}"].mean == np.mean([rank <= k for rank in both])
    assert told["image to text"]["in-domain"]["MedR"].mean == np.median(both)

    of_texts = texts[8:].reshape(4, 2, -1).mean(axis=1)
    probabilities = softmax(7.0 * images @ (of_texts / np.linalg.norm(of_texts, axis=1, keepdims=True)).T, axis=1)
    right = probabilities.argmax(axis=1) == collection.labels
    out = collection.domains == "cy"
    classified = told["zero-shot, templates"]
    assert classified["held-out"]["top-1"].mean == right[out].mean()
    error = 0.0
    for m in range(15):
        inside = out & (np.ceil(probabilities.max(axis=1) * 15) - 1 == m)
        error += abs(right[inside].sum() - probabilities.max(axis=1)[inside].sum()) / out.sum()
    assert classified["held-out"]["ECE"].mean == pytest.approx(error, abs=1e-6)

    pairs = [pair for pair in collection.pairs.tolist() if out[pair[0]]]
    distances = [np.sum((images[i] - texts[t]) ** 2) for i, t in pairs]
    assert found.geometry["held-out"]["alignment"] == pytest.approx(np.mean(distances), rel=1e-5)
    rows = sorted({t for _, t in pairs})
    spread = [np.exp(-2 * np.sum((texts[a] - texts[b]) ** 2)) for a in rows for b in rows if a < b]
    assert found.geometry["held-out"]["uniformity, texts"] == pytest.approx(np.log(np.mean(spread)), rel=1e-4)
    gap = images[out].mean(axis=0) - texts[rows].mean(axis=0)
    assert found.geometry["held-out"]["modality gap"] == pytest.approx(np.linalg.norm(gap), rel=1e-4)


def test_weights_beside_each_other(files) -> None:
    collection = read_collection(files)
    judged = [Embedder(SmallTowers(seed), collection).judge(name) for seed, name in enumerate(("before", "after"))]
    beside = Beside(judged, collection)
    for what in ("image to text", "text to image", "zero-shot, templates"):
        for part in ("in-domain", "held-out"):
            for metric, change in beside.changed["after"][what][part].items():
                ends = [beside.told[name][what][part][metric].mean for name in ("before", "after")]
                assert change.mean == pytest.approx(ends[1] - ends[0], abs=1e-9)
                assert change.low <= change.high
    page = beside.to_markdown()
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == [
        "Image to text", "Image to text: minus before", "Image to text by domain, R@1",
        "Text to image", "Text to image: minus before", "Text to image by domain, R@1",
        "Zero-shot, templates", "Zero-shot, templates: minus before", "Zero-shot, templates by domain, top-1",
        "Embeddings on the sphere",
    ]  # fmt: skip
    value = beside.told["after"]["text to image"]["held-out"]["R@1"]
    assert f"| after | held-out | {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] |" in page
    assert "| cy | held-out |" in page and "| ann | in-domain |" in page
    found = json.loads(json.dumps(beside.to_dict(), allow_nan=False))
    held_out = found["weights"]["after"]["zero-shot, templates"]["held-out"]
    assert held_out["num_queries"] == 4 and sum(row["count"] for row in held_out["reliability"]) == 4
    assert found["minus before"]["after"]["image to text"]["held-out"]["R@1"]["mean"] == pytest.approx(
        found["weights"]["after"]["image to text"]["held-out"]["metrics"]["R@1"]["mean"]
        - found["weights"]["before"]["image to text"]["held-out"]["metrics"]["R@1"]["mean"]
    )


def test_without_domains_or_classes(files) -> None:
    collection = read_collection(Files(pairs=files.pairs))
    beside = Beside([Embedder(SmallTowers(), collection).judge("x")], collection)
    assert [table.title for table in beside.tables()] == [
        "Image to text", "Text to image", "Embeddings on the sphere"
    ]  # fmt: skip
    assert table_markdown(beside.tables()[0]).startswith("| weights | R@1 | R@5 | R@10 | MedR |\n")
    assert set(beside.to_dict()["weights"]["x"]["image to text"]) == {"all"}


def changed(rows, number: int, **values) -> list[dict[str, str]]:
    return [{**row, **values} if place == number else row for place, row in enumerate(rows)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(image="ann/pink.png"), r"pairs.csv line 5 names .*pink.png, which is not \(1 of 20"),
        (dict(caption=" "), r"A caption must not be empty. .*pairs.csv line 5 \(bob/red.png\)"),
        (dict(colour="blue"), "An image has one label. .* line 5 says 'blue' of red.png, which is 'red'"),
        (dict(hand=""), "line 5 must have a domain"),
        (dict(hand="bo"), "An image has one domain"),
        (dict(part="tset"), "a row is to test, val or train. Got 'tset'"),
    ],
)
def test_bad_rows(files, tmp_path, rows, wrong, message) -> None:
    write_csv(files.pairs, changed(rows, 3, **wrong))
    with pytest.raises(ValueError, match=message) as raised:
        read_collection(Files(**{**vars(files), "split_column": "part"}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(pairs=None), "Judging needs pairs or classes"),
        (dict(held_out=("cyd",)), "Got 'cyd'. There are ann, bob, cy. Did you mean cy?"),
        (dict(held_out=HANDS), "Some domain must not be held out"),
        (dict(domain_column=None), "No domains are known"),
        (dict(label_column=None), "--templates and --descriptions are of classes. Got none"),
        (dict(text_column="captoin"), "near it: caption"),
        (dict(templates="none.txt"), "A file of templates must be at"),
        (dict(templates="empty.txt"), "must hold a template a line"),
        (dict(templates="bad.txt"), "A template has {}"),
        (dict(descriptions="few.csv"), "has none for 3 of 4, green, red, white"),
        (dict(descriptions="bad.json"), "must be JSON, class to a list of texts"),
        (dict(classes="."), "A folder of classes has no columns"),
        (dict(classes="ann", domain_column=None, held_out=()), "Images must be in a class's folder"),
    ],
)  # fmt: skip
def test_bad_files(files, tmp_path, given, message) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_text("a photo\n")
    (tmp_path / "few.csv").write_text("class,text\nblue,as the sky\n")
    (tmp_path / "bad.json").write_text("[1]")
    for name in ("templates", "descriptions", "classes"):
        if name in given:
            given[name] = tmp_path / given[name]
    with pytest.raises(ValueError) as raised:
        read_collection(Files(**{**vars(files), **given}))
    assert message in str(raised.value) and "\n" not in str(raised.value)
