"""Lightning data modules: batches with several examples of a class, with two views, or with values."""

from __future__ import annotations

import hashlib
from abc import ABC
from typing import Any, Literal

import lightning
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mixcontrast.data.augmentation import Augmentation
from mixcontrast.data.examples import Examples
from mixcontrast.data.loading import Drawn, InOrder, ResumableLoader
from mixcontrast.data.sampler import DrawnBatches, MPerClassBatchSampler, ShuffledBatchSampler, natural_seed
from mixcontrast.data.splits import Parts, split, with_validation


class Data(lightning.LightningDataModule, ABC):
    """What the three share: parts, loaders for judging, and the state that a resumed run must meet again.

    Attributes:
        train_examples: with classes 0 to num_classes - 1.
        validation_examples: their classes are those of training where both have them in common, else their own.
        test_examples: the same; the queries where there is a gallery.
        gallery_examples: what they are searched in, where it is not the test part itself; else empty.
        num_classes: of the training part; 0 where there are none.
        num_features: of an input that is a vector; None for images.
    """

    train_examples: Examples
    validation_examples: Examples
    test_examples: Examples
    gallery_examples: Examples
    num_classes: int
    num_features: int | None
    transform: Augmentation | None
    num_workers: int
    eval_batch_size: int
    _expected: dict[str, Any] | None

    def train_dataloader(self) -> ResumableLoader:
        """This process's share of each batch, drawn anew each epoch."""
        raise NotImplementedError

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """`(inputs, labels)` of the validation part in order; an empty list where there is none."""
        return self._in_order(self.validation_examples) if len(self.validation_examples) else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """`(inputs, labels)` of the test part in order; of queries and gallery where there is one."""
        if len(self.gallery_examples):
            return [self._in_order(self.test_examples), self._in_order(self.gallery_examples)]
        return self._in_order(self.test_examples) if len(self.test_examples) else []

    def probe_dataloader(self) -> DataLoader:
        """`(inputs, labels)` of the training part in order, nothing drawn: for a probe on frozen embeddings."""
        return self._in_order(self.train_examples)

    def state_dict(self) -> dict[str, Any]:
        """What the run is of; its place in the epoch is in the state of the training loader."""
        return self._what()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the run goes on with what it was of.

        Raises:
            ValueError: other data, another split, other batches or another seed.
        """
        for name, value in self._what().items():
            if state_dict.get(name) != value:
                raise ValueError(
                    f"A resumed run must go on with its own data. Its checkpoint has {name} {state_dict.get(name)}, "
                    f"this run {value}; put it back, or begin a new run in another folder."
                )

    def _what(self) -> dict[str, Any]:
        raise NotImplementedError

    def _take(self, examples: Examples, parts: Parts) -> None:
        """Sets the parts, the classes of each and what is known of the inputs."""
        examples = examples.standardised(parts.train)
        (self.train_examples, self.validation_examples, self.test_examples, self.gallery_examples) = _parts(
            examples, parts
        )
        self.num_classes = len(self.train_examples.names)
        first = self.train_examples[0]
        self.num_features = first.shape[-1] if isinstance(first, Tensor) else None
        if isinstance(first, Image.Image) and (self.transform is None or self.augment is None):
            raise ValueError(
                "Images need an augment and a transform that make tensors of them. Got none; add augment: "
                "{class_path: mixcontrast.data.CropAndFlip, init_args: {size: 64}} and transform: {class_path: "
                "mixcontrast.data.ResizeAndCrop, init_args: {size: 64}}."
            )

    def _in_order(self, examples: Examples) -> DataLoader:
        return DataLoader(
            InOrder(examples, self.transform),
            self.eval_batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.accelerator.is_available(),
        )

    def _loader(self, sampler: MPerClassBatchSampler | ShuffledBatchSampler, together: int) -> ResumableLoader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        batches = DrawnBatches(sampler, seed=self.seed, together=together, rank=rank, world_size=world_size)
        return ResumableLoader(
            Drawn(self.train_examples, self.augment, views=self.views),
            batches,
            num_workers=self.num_workers,
            pin_memory=torch.accelerator.is_available(),
        )


class ClassData(Data):
    """Batches of several examples of each of several classes: `(inputs, labels)`, for metric learning.

    Args:
        examples: the labelled collection.
        classes_per_batch: classes a batch, of all processes together.
        per_class: examples of each.
        batches_per_epoch: batches that make an epoch; as many as meet every class once where left out.
        augment: an image or vector to what is trained on, drawn anew each time; vectors as they are where left out.
        transform: the same for validation and test, nothing drawn.
        validation_share: of the classes (of the published training classes, where there is a published split), kept
            for the curves; 0 for none.
        test_share: of the classes, kept for the test; where left out, the published test part, or half of the classes.
        disjoint_classes: test on classes that were not trained on; else parts are of rows, at random.
        split_seed: of the parts; apart from the seed, so that runs of several seeds are judged on the same.
        num_workers: processes that prepare batches; 0: none beside the run itself.
        eval_batch_size: examples at once in validation and test.
        seed: of the order and the augmentation.

    Raises:
        ValueError: examples without classes, batches that they cannot fill, images without a transform.
    """

    views = 1

    def __init__(
        self,
        examples: Examples,
        *,
        classes_per_batch: int = 32,
        per_class: int = 4,
        batches_per_epoch: int | None = None,
        augment: Augmentation | None = None,
        transform: Augmentation | None = None,
        validation_share: float = 0.1,
        test_share: float | None = None,
        disjoint_classes: bool = True,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if examples.labels.dtype.kind == "f" or (examples.labels < 0).any():
            raise ValueError(
                "ClassData needs a class for each example. Got "
                f"{'values' if examples.labels.dtype.kind == 'f' else 'unknown classes'} in "
                f"{type(examples).__name__}; take ValuesData or ViewsData."
            )
        self.classes_per_batch, self.per_class, self.batches_per_epoch = classes_per_batch, per_class, batches_per_epoch
        self.augment, self.transform = augment, transform
        self.num_workers, self.eval_batch_size, self.seed = num_workers, eval_batch_size, natural_seed(seed)
        parts = _split(
            examples,
            by_class=disjoint_classes,
            validation_share=validation_share,
            test_share=test_share,
            default_test_share=0.5 if disjoint_classes else 0.2,
            seed=split_seed,
        )
        self._take(examples, parts)
        self._sampler()  # batches that cannot be filled are refused before anything is trained

    def train_dataloader(self) -> ResumableLoader:
        return self._loader(self._sampler(), self.per_class)

    def _sampler(self) -> MPerClassBatchSampler:
        return MPerClassBatchSampler(
            self.train_examples.labels,
            classes_per_batch=self.classes_per_batch,
            per_class=self.per_class,
            seed=self.seed,
            num_batches=self.batches_per_epoch,
        )

    def _what(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "classes_per_batch": self.classes_per_batch,
            "per_class": self.per_class,
            "batches_per_epoch": self.batches_per_epoch,
            "training examples": _fingerprint(self.train_examples),
        }


class ViewsData(Data):
    """Batches of two views of each example: `((view1, view2), labels)`, for self-supervised learning.

    Labels are for looking only: -1 where they are not known, as where the examples have values.

    Args:
        examples: the collection.
        batch_size: examples a batch, of all processes together.
        augment: an image or vector to a view, drawn anew for each; the same vector twice where left out.
        transform: an image or vector to what is judged, nothing drawn; vectors as they are where left out.
        validation_share: of the examples, kept for the curves (of the published training part, where there is a
            published split); of the classes with `disjoint_classes`; 0 for none.
        test_share: of the same, kept for the test; where left out, the published test part, or a fifth (half of the
            classes with `disjoint_classes`).
        disjoint_classes: judge on classes that were not trained on; else parts are of examples, at random.
        split_seed: of the parts; apart from the seed, so that runs of several seeds are judged on the same.
        num_workers: processes that prepare batches; 0: none beside the run itself.
        eval_batch_size: examples at once in validation and test.
        seed: of the order and the augmentation.

    Raises:
        ValueError: fewer examples than a batch, images without a transform.
    """

    views = 2

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int = 256,
        augment: Augmentation | None = None,
        transform: Augmentation | None = None,
        validation_share: float = 0.1,
        test_share: float | None = None,
        disjoint_classes: bool = False,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.augment, self.transform = batch_size, augment, transform
        self.num_workers, self.eval_batch_size, self.seed = num_workers, eval_batch_size, natural_seed(seed)
        parts = _split(
            examples,
            by_class=disjoint_classes,
            validation_share=validation_share,
            test_share=test_share,
            default_test_share=0.5 if disjoint_classes else 0.2,
            seed=split_seed,
        )
        self._take(examples, parts)
        self._sampler()

    def train_dataloader(self) -> ResumableLoader:
        loader = self._loader(self._sampler(), 1)
        if loader.dataset.labels.is_floating_point():
            loader.dataset.labels = torch.full((len(self.train_examples),), -1)
        return loader

    def _sampler(self) -> ShuffledBatchSampler:
        return ShuffledBatchSampler(len(self.train_examples), batch_size=self.batch_size, seed=self.seed)

    def _what(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "training examples": _fingerprint(self.train_examples),
        }


class ValuesData(Data):
    """Batches of examples with one or more values each, for regression.

    With two views `((view1, view2), values)`, with one `(inputs, values)`; values (B,) or (B, L) float32.

    Args:
        examples: the collection.
        batch_size: examples a batch, of all processes together.
        views: of each example.
        augment: an image or vector to a view, drawn anew for each; vectors as they are where left out, so that two
            views are the same and differ by the encoder's dropout alone.
        transform: an image or vector to what is judged, nothing drawn; vectors as they are where left out.
        validation_share: of the examples, kept for the curves (of the published training part, where there is a
            published split without one); 0 for none.
        test_share: of the examples, kept for the test; where left out, the published test part, or a fifth.
        split_seed: of the parts; apart from the seed, so that runs of several seeds are judged on the same.
        num_workers: processes that prepare batches; 0: none beside the run itself.
        eval_batch_size: examples at once in validation and test.
        seed: of the order and the augmentation.

    Raises:
        ValueError: examples with classes, fewer than a batch, images without a transform.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int = 64,
        views: Literal[1, 2] = 2,
        augment: Augmentation | None = None,
        transform: Augmentation | None = None,
        validation_share: float = 0.1,
        test_share: float | None = None,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if examples.labels.dtype.kind != "f":
            raise ValueError(
                f"ValuesData needs a value for each example. Got classes in {type(examples).__name__}; take ClassData."
            )
        if views not in (1, 2):
            raise ValueError(f"`views` must be 1 or 2. Got {views}.")
        self.batch_size, self.views, self.augment, self.transform = batch_size, views, augment, transform
        self.num_workers, self.eval_batch_size, self.seed = num_workers, eval_batch_size, natural_seed(seed)
        parts = _split(
            examples,
            by_class=False,
            validation_share=validation_share,
            test_share=test_share,
            default_test_share=0.2,
            seed=split_seed,
        )
        self._take(examples, parts)
        self._sampler()

    def train_dataloader(self) -> ResumableLoader:
        return self._loader(self._sampler(), 1)

    def _sampler(self) -> ShuffledBatchSampler:
        return ShuffledBatchSampler(len(self.train_examples), batch_size=self.batch_size, seed=self.seed)

    def _what(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "views": self.views,
            "training examples": _fingerprint(self.train_examples),
        }


class _Part(Examples):
    """Some rows of a collection.

    Args:
        examples: the collection.
        rows: (M,) which of it.
        classes: the old classes that become 0, 1, ...; None: labels stay, as values do.
    """

    def __init__(self, examples: Examples, rows: np.ndarray, classes: np.ndarray | None) -> None:
        self.examples, self.rows = examples, rows
        self.labels, self.names = examples.labels[rows], examples.names
        if classes is not None:
            new = np.full(len(examples.names) + 1, -1)  # the last stands for -1, the unknown class
            new[classes] = np.arange(len(classes))
            self.labels = new[self.labels]
            self.names = tuple(examples.names[label] for label in classes)

    def __getitem__(self, row: int) -> Image.Image | Tensor:
        return self.examples[int(self.rows[row])]


def _split(
    examples: Examples,
    *,
    by_class: bool,
    validation_share: float,
    test_share: float | None,
    default_test_share: float,
    seed: int,
) -> Parts:
    """The published parts, unless a share for the test is asked for; else parts at random."""
    published = examples.published() if test_share is None else None
    if published is not None:
        apart = (
            examples.labels.dtype.kind == "i"
            and not np.isin(examples.labels[published.test], examples.labels[published.train]).any()
        )
        groups = examples.labels if apart else examples.groups()
        return with_validation(published, groups, share=validation_share, seed=seed)
    if by_class and (examples.labels.dtype.kind == "f" or (examples.labels < 0).any()):
        raise ValueError(
            f"Parts of disjoint classes need the class of each example. Got {type(examples).__name__} without; take "
            "disjoint_classes: false."
        )
    return split(
        examples.labels if by_class else examples.groups(),
        validation_share=validation_share,
        test_share=default_test_share if test_share is None else test_share,
        seed=seed,
    )


def _parts(examples: Examples, parts: Parts) -> tuple[_Part, _Part, _Part, _Part]:
    """Training, validation, test and gallery.

    The training classes are numbered from 0. A part that has some of them keeps their numbers, others after them; a
    part that has none numbers its own. Queries and gallery are numbered alike.
    """
    rows = (parts.train, parts.validation, parts.test, parts.gallery)
    if examples.labels.dtype.kind == "f":
        return tuple(_Part(examples, part, None) for part in rows)
    of_training = _classes(examples.labels[parts.train])
    judged = _classes(examples.labels[np.concatenate([parts.test, parts.gallery])])
    numbered = []
    for classes in (_classes(examples.labels[parts.validation]), judged):
        others = np.setdiff1d(classes, of_training)
        numbered.append(np.concatenate([of_training, others]) if len(others) < len(classes) else others)
    every = (of_training, *numbered, numbered[1])
    return tuple(_Part(examples, part, classes) for part, classes in zip(rows, every, strict=True))


def _classes(labels: np.ndarray) -> np.ndarray:
    found = np.unique(labels)
    return found[found >= 0]


def _fingerprint(examples: Examples) -> str:
    """A short name of how many there are, of their labels and of their rows."""
    digest = hashlib.sha256(repr((len(examples), examples.names)).encode())
    digest.update(np.ascontiguousarray(examples.labels).data)
    if isinstance(examples, _Part):
        digest.update(np.ascontiguousarray(examples.rows).data)
    return digest.hexdigest()[:16]
