"""Tiny folders laid out as the published data sets are, so that their recipes can be built and run a step.

Each writes its lists and its images, one colour a class, under `root` and gives the root back.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def draw(path: Path, number: int, side: int = 32) -> None:
    """An image whose colour tells `number`, with a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    colour = np.random.default_rng(number // 100).integers(0, 200, 3)
    Image.fromarray((colour + rng.integers(0, 50, (side, side, 3))).astype(np.uint8)).save(path)


def cub(root: Path, num_classes: int = 8, per_class: int = 4) -> Path:
    """`num_classes` instead of 200."""
    images, labels, names = [], [], []
    for label in range(num_classes):
        name = f"{label + 1:03d}.Bird_{label + 1}"
        names.append(f"{label + 1} {name}")
        for number in range(per_class):
            images.append(f"{len(images) + 1} {name}/bird_{number}.jpg")
            labels.append(f"{len(labels) + 1} {label + 1}")
            draw(root / "images" / name / f"bird_{number}.jpg", 100 * label + number)
    for file, lines in (("images.txt", images), ("image_class_labels.txt", labels), ("classes.txt", names)):
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def cars(root: Path, num_classes: int = 8, per_class: int = 4, *, devkit: bool = False) -> Path:
    """With `cars_annos.mat`, or in two folders with the devkit, half of each class's images in each."""
    names = np.array([f"Make Model {label} 2012" for label in range(num_classes)], dtype=object)
    rows = [(label, number) for label in range(num_classes) for number in range(per_class)]

    def annotations(paths, rows, field):
        kinds = [(field, object), ("bbox_x1", "u1"), ("class", "u1"), ("test", "u1")]
        return np.array([(path, 1, label + 1, 0) for path, (label, _) in zip(paths, rows, strict=True)], dtype=kinds)

    if not devkit:
        paths = [f"car_ims/{place + 1:06d}.jpg" for place in range(len(rows))]
        for path, (label, number) in zip(paths, rows, strict=True):
            draw(root / path, 100 * label + number)
        found = {"annotations": annotations(paths, rows, "relative_im_path"), "class_names": names}
        scipy.io.savemat(root / "cars_annos.mat", found)
        return root
    (root / "devkit").mkdir(parents=True)
    for part, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        mine = [row for row in rows if row[1] % 2 == (part == "test")]
        paths = [f"{place + 1:05d}.jpg" for place in range(len(mine))]
        for path, (label, number) in zip(paths, mine, strict=True):
            draw(root / f"cars_{part}" / path, 100 * label + number)
        scipy.io.savemat(root / "devkit" / file, {"annotations": annotations(paths, mine, "fname")})
    scipy.io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    return root


def sop(root: Path, num_classes: int = 8, per_class: int = 4) -> Path:
    """The first half of the products to train on."""
    for part, classes in (("train", range(num_classes // 2)), ("test", range(num_classes // 2, num_classes))):
        lines = ["image_id class_id super_class_id path"]
        for label in classes:
            for number in range(per_class):
                path = f"chair_final/{label}_{number}.JPG"
                lines.append(f"{100 * label + number} {label + 1} 1 {path}")
                draw(root / path, 100 * label + number)
        (root / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def inshop(root: Path, num_classes: int = 8, per_class: int = 4) -> Path:
    """The first half of the items to train on; of each other, one query and the rest gallery."""
    rows = []
    for label in range(num_classes):
        for number in range(per_class):
            path = f"img/WOMEN/Dresses/id_{label:08d}/{number:02d}_1_front.jpg"
            state = "train" if label < num_classes // 2 else "gallery" if number else "query"
            rows.append(f"{path}    id_{label:08d}    {state}")
            draw(root / "Img" / path, 100 * label + number)
    (root / "Eval").mkdir()
    header = "image_name item_id evaluation_status"
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join([str(len(rows)), header, *rows]) + "\n")
    return root


def imagenet(root: Path, num_classes: int = 8, per_class: int = 6) -> Path:
    """Two classes more than the list `imagenet100.txt` names; a third as many to validate."""
    names = [f"n{1440764 + 10 * label:08d}" for label in range(num_classes + 2)]
    for label, name in enumerate(names):
        for number in range(per_class):
            draw(root / "train" / name / f"{name}_{number}.JPEG", 100 * label + number)
        for number in range(per_class // 3):
            draw(root / "val" / name / f"ILSVRC2012_val_{label:04d}{number:04d}.JPEG", 100 * label + 50 + number)
    (root / "imagenet100.txt").write_text("\n".join(reversed(names[1:-1])) + "\n")
    return root


def agedb(root: Path, num_faces: int = 60) -> Path:
    """A tenth each to validate and to test on."""
    lines = ["age,path,split"]
    for number in range(num_faces):
        path, age = f"AgeDB/{number}_Person{number % 7}_{20 + number}_m.jpg", 20 + number
        part = {0: "test", 1: "val"}.get(number % 10, "train")
        lines.append(f"{age},{path},{part}")
        draw(root / path, 100 * age)
    (root / "agedb.csv").write_text("\n".join(lines) + "\n")
    return root


def fashion_mnist(root: Path, num_train: int = 60, num_test: int = 20, *, packed: bool = True) -> Path:
    """Four idx files of squares whose grey tells the class."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", num_train), ("t10k", num_test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.tile((20 * labels + 20)[:, None, None], (1, 28, 28)).astype(np.uint8)
        images[:, 0, 0] = np.arange(count)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            (root / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return root


def pairs_folder(root: Path, num_images: int = 24) -> Path:
    """Images with two captions each, in a text file beside it."""
    for number in range(num_images):
        draw(root / f"{number:02d}.png", 100 * number)
        (root / f"{number:02d}.txt").write_text(f"picture {number}\na square that is number {number}\n")
    return root


def pairs_table(root: Path) -> Path:
    """The same as a CSV file with parts, a sixth each to validate and to test."""
    lines = ["image,caption,split"]
    for path in sorted(pairs_folder(root).glob("*.txt")):
        part = {0: "val", 1: "test"}.get(int(path.stem) % 6, "train")
        lines += [f"{path.stem}.png,{caption},{part}" for caption in path.read_text().splitlines()]
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    return root / "pairs.csv"


def pairs_shard(root: Path) -> Path:
    """The same as a WebDataset of one tar."""
    pairs_folder(root)
    with tarfile.open(root / "000.tar", "w") as tar:
        for path in sorted(root.iterdir()):
            if path.suffix in (".png", ".txt"):
                tar.add(path, path.name)
    return root / "000.tar"
