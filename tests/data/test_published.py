"""The published data sets, on stand-ins of the same layout."""

import shutil

import numpy as np
import pytest

from mixcontrast.data import (
    CUB200,
    AgeDB,
    Cars196,
    ClassData,
    CropAndFlip,
    ImageNet100,
    InShop,
    ResizeAndCrop,
    StanfordOnlineProducts,
    ValuesData,
    ViewOfImage,
    ViewsData,
)
from tests.data import standins

LOOKS = {"augment": CropAndFlip(32), "transform": ResizeAndCrop(32)}
DISJOINT = {
    "cub": (standins.cub, CUB200),
    "cars": (standins.cars, Cars196),
    "cars devkit": (lambda root: standins.cars(root, devkit=True), Cars196),
    "sop": (standins.sop, StanfordOnlineProducts),
    "in-shop": (standins.inshop, InShop),
}


@pytest.mark.parametrize("name", DISJOINT)
def test_the_published_split_is_of_disjoint_classes_and_runs(tmp_path, name):
    make, read = DISJOINT[name]
    examples = read(make(tmp_path))
    assert len(examples) == 32 and len(examples.names) == 8 and np.bincount(examples.labels).tolist() == [4] * 8
    parts = examples.published()
    assert set(examples.labels[parts.train]) == {0, 1, 2, 3} and set(examples.labels[parts.test]) == {4, 5, 6, 7}
    for row in (0, 13, 31):  # the colour tells the class: paths and labels belong together
        colour = np.random.default_rng(examples.labels[row]).integers(0, 200, 3)
        assert np.abs(np.asarray(examples[row]).mean(axis=(0, 1)) - colour - 24.5).max() < 8
    data = ClassData(examples, classes_per_batch=2, per_class=2, validation_share=0.25, **LOOKS)
    assert (data.num_classes, len(data.validation_examples)) == (3, 4)
    inputs, labels = next(iter(data.train_dataloader()))
    assert inputs.shape == (4, 3, 32, 32) and sorted(np.bincount(labels)[np.unique(labels)]) == [2, 2]
    loaders = data.test_dataloader()
    if name == "in-shop":
        queries, gallery = (next(iter(loader)) for loader in loaders)
        assert queries[1].tolist() == [0, 1, 2, 3] and gallery[1].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert data.gallery_examples.names == data.test_examples.names
    else:
        assert sorted(next(iter(loaders))[1].tolist()) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        assert not set(data.test_examples.names) & set(data.train_examples.names)


def test_imagenet_100_takes_the_classes_of_its_list(tmp_path):
    examples = ImageNet100(standins.imagenet(tmp_path), tmp_path / "imagenet100.txt")
    assert len(examples.names) == 8 and len(examples) == 8 * 8
    data = ViewsData(examples, batch_size=8, augment=ViewOfImage(32), transform=ResizeAndCrop(32))
    assert data.num_classes == 8 and len(data.test_examples) == 16 and len(data.validation_examples) == 5
    assert data.test_examples.names == data.train_examples.names == examples.names
    (first, second), labels = next(iter(data.train_dataloader()))
    assert first.shape == second.shape == (8, 3, 32, 32) and not (first == second).flatten(1).all(1).any()
    with pytest.raises(ValueError, match="A class of .* must be at .*n0144077. It is not there; .* holds n01440774"):
        (tmp_path / "list.txt").write_text("n0144077")
        ImageNet100(tmp_path, tmp_path / "list.txt")


def test_agedb_has_its_three_parts(tmp_path):
    examples = AgeDB(standins.agedb(tmp_path))
    data = ValuesData(examples, batch_size=8, **LOOKS)
    assert [len(part) for part in (data.train_examples, data.validation_examples, data.test_examples)] == [48, 6, 6]
    (first, second), ages = next(iter(data.train_dataloader()))
    assert first.shape == (8, 3, 32, 32) and ages.dtype.is_floating_point and 22 <= ages.min() <= ages.max() < 80
    assert data.test_examples.labels.tolist() == [20, 30, 40, 50, 60, 70]


def test_what_is_missing_is_said(tmp_path):
    root = standins.cub(tmp_path)
    with pytest.raises(
        ValueError, match=r"list of CUB.* must be at .*classes.txt. It is not there; .* holds klasses.txt"
    ):
        (root / "classes.txt").rename(root / "klasses.txt")
        CUB200(root)
    root = standins.sop(tmp_path / "sop")
    shutil.rmtree(root / "chair_final")
    with pytest.raises(ValueError, match="first image of .*Ebay_train.txt must be at .*0_0.JPG. It is not there"):
        StanfordOnlineProducts(root)
    (root / "Ebay_test.txt").write_text("id class path\n1 2 a\n")
    with pytest.raises(ValueError, match="must have the header 'image_id class_id super_class_id path'. Got 'id class"):
        StanfordOnlineProducts(root)
    root = standins.inshop(tmp_path / "inshop")
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:-3]))
    with pytest.raises(ValueError, match="must list every image. Got 29 lines, its first line says 32"):
        InShop(root)
    with pytest.raises(ValueError, match="A list of Cars-196 must be at"):
        Cars196(tmp_path)
