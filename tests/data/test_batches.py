"""Batches: their draws, their shares between processes, and a real trainer that goes on where it was."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mixcontrast.data import (
    ClassData,
    CropAndFlip,
    Examples,
    ImageFolder,
    MPerClassBatchSampler,
    Parts,
    ResizeAndCrop,
    ShuffledBatchSampler,
    ValuesData,
    VectorNoise,
    ViewOfImage,
    ViewsData,
)
from mixcontrast.data.augmentation import Steps
from mixcontrast.data.sampler import DrawnBatches
from mixcontrast.data.splits import split
from tests.data import standins

NOISE = VectorNoise(std=0.5)


class Vectors(Examples):
    """Each the number of its row, four times."""

    def __init__(self, num_rows: int = 48, num_classes: int = 12, values: bool = False) -> None:
        self.names = () if values else tuple(f"class {label}" for label in range(num_classes))
        self.labels = np.arange(num_rows) % num_classes
        if values:
            self.labels = self.labels.astype(np.float32)

    def __getitem__(self, row):
        return torch.full((4,), float(row))


def of_classes(**options) -> ClassData:
    given = dict(classes_per_batch=4, per_class=2, batches_per_epoch=4, augment=NOISE, test_share=0.2, seed=3)
    return ClassData(Vectors(), **{**given, **options})


def of_views(**options) -> ViewsData:
    return ViewsData(Vectors(), **{**dict(batch_size=8, augment=NOISE, seed=3), **options})


def of_values(**options) -> ValuesData:
    return ValuesData(Vectors(values=True), **{**dict(batch_size=8, augment=NOISE, seed=3), **options})


MODULES = {"classes": of_classes, "views": of_views, "values": of_values}


def flat(batch) -> list[float]:
    inputs, labels = batch
    views = inputs if isinstance(inputs, tuple) else (inputs,)
    return torch.cat([torch.cat([view.flatten() for view in views]), labels.flatten().float()]).tolist()


def test_more_batches_go_through_the_classes_again():
    labels = np.arange(60) % 10
    once = MPerClassBatchSampler(labels, classes_per_batch=4, per_class=3, seed=0)
    more = MPerClassBatchSampler(labels, classes_per_batch=4, per_class=3, seed=0, num_batches=7)
    assert len(once) == 2 and len(more) == 7
    first, batches = list(once), list(more)
    assert batches[:2] == first and batches[2:4] != first
    for batch in batches:
        assert np.bincount(labels[batch]).max() == 3 and len(set(labels[batch])) == 4
    with pytest.raises(ValueError, match="An epoch needs a batch. Got num_batches=0"):
        MPerClassBatchSampler(labels, classes_per_batch=4, per_class=3, seed=0, num_batches=0)


def test_shuffled_batches_meet_every_row_once():
    batches = ShuffledBatchSampler(23, batch_size=5, seed=1)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 4 and first != second
    assert len({row for batch in first for row in batch}) == 20
    batches.set_epoch(0)
    assert list(batches) == first
    with pytest.raises(ValueError, match="at most all. Got batch_size=24, 23 examples"):
        ShuffledBatchSampler(23, batch_size=24, seed=1)


@pytest.mark.parametrize("name", MODULES)
def test_processes_share_the_batches_of_one(name):
    whole = list(MODULES[name]().train_dataloader().batch_sampler)
    assert len(whole) >= 2
    for world_size in (2, 4):
        shares = []
        for rank in range(world_size):
            data = MODULES[name]()
            data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
            loader = data.train_dataloader()
            shares.append(list(loader.batch_sampler))
            assert len(loader) == len(whole)
        assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
        if name == "classes":
            for batch in shares[1]:
                assert (np.bincount(data.train_examples.labels[[row for row, _ in batch]]) % 2 == 0).all()
    data = MODULES[name]()
    data.trainer = SimpleNamespace(global_rank=0, world_size=3)
    with pytest.raises(ValueError, match="equal shares of a batch. Got .* for 3 processes; take a multiple of 3"):
        data.train_dataloader()


@pytest.mark.parametrize("name", MODULES)
def test_batches_depend_on_seed_and_epoch_and_on_nothing_else(name):
    loader = MODULES[name]().train_dataloader()
    epochs = [[flat(batch) for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    torch.manual_seed(17)  # what was drawn before does not matter
    with_workers = MODULES[name](num_workers=2).train_dataloader()
    assert [[flat(batch) for batch in with_workers] for _ in range(2)] == epochs
    other = MODULES[name]().train_dataloader()
    other.batch_sampler.sampler.set_epoch(1)
    assert [flat(batch) for batch in other] == epochs[1]
    assert [flat(batch) for batch in MODULES[name](seed=4).train_dataloader()] != epochs[0]


def test_drawing_leaves_the_random_state_alone():
    dataset = of_views().train_dataloader().dataset
    state = torch.get_rng_state()
    dataset[0, (1, 2)]
    assert (torch.get_rng_state() == state).all()


def test_no_example_gets_the_draw_of_another():
    class Same(Vectors):
        def __getitem__(self, row):
            return torch.zeros(4)

    loader = ViewsData(Same(), batch_size=8, augment=NOISE).train_dataloader()
    seen = [
        tuple(view.tolist())
        for _ in range(2)
        for views, _ in loader
        for pair in zip(*views, strict=True)
        for view in pair
    ]
    assert len(set(seen)) == len(seen) == 2 * 2 * 8 * len(loader)


def test_a_loader_goes_on_with_the_next_batch():
    loader = of_views().train_dataloader()
    epochs = [[flat(batch) for batch in loader] for _ in range(2)]
    started = of_views().train_dataloader()
    begun = iter(started)
    next(begun), next(begun)
    resumed = of_views().train_dataloader()
    resumed.load_state_dict(started.state_dict())
    assert [flat(batch) for batch in resumed] == epochs[0][2:]
    assert [flat(batch) for batch in resumed] == epochs[1]
    ended = of_views().train_dataloader()
    list(ended)
    resumed = of_views().train_dataloader()
    resumed.load_state_dict(ended.state_dict())
    assert [flat(batch) for batch in resumed] == epochs[1]


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 2), []

    def training_step(self, batch, index):
        self.seen.append((self.trainer.current_epoch, index, flat(batch)))
        inputs = batch[0] if isinstance(batch[0], torch.Tensor) else batch[0][0]
        return self.layer(inputs).square().mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


class Keep(lightning.Callback):
    """A checkpoint after each step, where Lightning's own callback writes its."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fitted(data, folder, checkpoint=None, **options):
    recorder = Recorder()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, callbacks=[] if checkpoint else [Keep(folder)],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(recorder, data, ckpt_path=checkpoint)
    return recorder.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*to determine which device is supported")
@pytest.mark.parametrize(
    "name, num_workers, options",
    [("classes", 0, {}), ("views", 2, {"val_check_interval": 2}), ("values", 0, {"limit_train_batches": 3})],
)
def test_a_trainer_resumed_after_any_step_sees_the_remaining_batches(tmp_path, name, num_workers, options):
    make = MODULES[name]
    whole = fitted(make(num_workers=num_workers), tmp_path, **options)
    assert len(list(tmp_path.glob("*.ckpt"))) == len(whole) >= 9
    per_epoch = len(whole) // 3
    for step in (1, per_epoch - 1, per_epoch, per_epoch + 2) if num_workers == 0 else (per_epoch + 2,):
        rest = fitted(make(num_workers=num_workers), tmp_path, tmp_path / f"{step}.ckpt", **options)
        assert rest == whole[step:], step


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*to determine which device is supported")
def test_a_run_on_other_data_is_refused(tmp_path):
    fitted(of_classes(), tmp_path, limit_train_batches=1)
    for options, what in (
        (dict(seed=4), "seed 3, this run 4"),
        (dict(per_class=3), "per_class 2, this run 3"),
        (dict(split_seed=1), "training examples .*, this run"),
    ):
        with pytest.raises(ValueError, match=f"go on with its own data. Its checkpoint has {what}"):
            fitted(of_classes(**options), tmp_path, tmp_path / "1.ckpt")


def test_parts_have_nothing_in_common():
    parts = split(np.arange(100) % 20, validation_share=0.1, test_share=0.5, seed=0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [40, 10, 50]
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == list(range(100))
    classes = [set(part % 20) for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, classes)) == 20 == len(set().union(*classes))
    none = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="in two parts. Got 1 that are, row 3 first"):
        Parts(np.array([1, 3]), none, np.array([3, 4]))
    with pytest.raises(ValueError, match="to train on. Got none"):
        Parts(none, none, np.array([3, 4]))
    with pytest.raises(ValueError, match="Got validation_share=0.5, test_share=0.5"):
        split(np.arange(10), validation_share=0.5, test_share=0.5, seed=0)


def test_each_part_numbers_its_classes():
    data = of_classes()
    assert data.num_classes == len(data.train_examples.names) == 9
    for part in (data.train_examples, data.validation_examples, data.test_examples):
        for row in range(len(part)):
            assert part.names[part.labels[row]] == f"class {int(part[row][0]) % 12}"
    shared = ViewsData(Vectors(), batch_size=8, augment=NOISE)
    assert shared.train_examples.names == shared.test_examples.names == Vectors().names
    inputs, labels = next(iter(shared.test_dataloader()))
    assert (inputs[:, 0] % 12 == labels).all() and (inputs[:, 0].diff() > 0).all()
    inputs, labels = next(iter(shared.probe_dataloader()))
    assert len(labels) == len(shared.train_examples) and (inputs[:, 0] % 12 == labels).all()
    assert ClassData(Vectors(), classes_per_batch=2, validation_share=0).val_dataloader() == []


def test_shapes_of_what_is_given():
    (first, second), labels = next(iter(ViewsData(Vectors(values=True), batch_size=8).train_dataloader()))
    assert first.shape == second.shape == (8, 4) and labels.tolist() == [-1] * 8
    inputs, values = next(iter(of_values(views=1).train_dataloader()))
    assert inputs.shape == (8, 4) and values.shape == (8,) and values.dtype == torch.float32


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ClassData(Vectors(values=True)), "needs a class for each example. Got values in Vectors"),
        (lambda: ValuesData(Vectors()), "needs a value for each example. Got classes in Vectors"),
        (lambda: of_classes(classes_per_batch=40), "as many. Got 9; take fewer"),
        (lambda: of_views(batch_size=400), "at most all"),
        (lambda: of_views(seed=-1), "must not be negative. Got -1"),
        (lambda: ViewsData(Vectors(values=True), disjoint_classes=True), "need the class of each example"),
    ],
)
def test_data_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_need_a_transform_and_a_broken_one_is_one_line(tmp_path):
    for number in range(8):
        standins.draw(tmp_path / f"class {number // 4}" / f"{number}.png", 100 * number)
    folder = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="Images need an augment and a transform .* add augment"):
        ViewsData(folder, batch_size=2)
    looks = dict(augment=CropAndFlip(16), transform=ResizeAndCrop(16), test_share=0.0, validation_share=0.0)
    (tmp_path / "class 1" / "5.png").write_bytes(b"broken")
    with pytest.raises(ValueError) as caught:
        list(ViewsData(folder, batch_size=8, num_workers=1, **looks).train_dataloader())
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_looks_of_an_image():
    torch.manual_seed(0)
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8))
    grey = colour.convert("L")
    still = ResizeAndCrop(28, resize=32)
    assert still(colour).shape == (3, 28, 28) and (still(colour) == still(colour)).all() and still(grey).shape[0] == 3
    assert ResizeAndCrop(28, mean=(0.5,), std=(0.5,))(colour).shape == (1, 28, 28)
    for look in (CropAndFlip(28), ViewOfImage(28), ViewOfImage(28, mean=(0.5,), std=(0.5,))):
        first, second = look(grey), look(grey)
        assert first.shape == second.shape == (len(look.steps.transforms[-1].mean), 28, 28) and (first != second).any()
    with pytest.raises(ValueError, match="one or three numbers each. Got 2 and 3"):
        CropAndFlip(28, mean=(0.1, 0.2))
    with pytest.raises(ValueError, match="`resize` must be at least `size`"):
        ResizeAndCrop(28, resize=20)
    steps = Steps(list(still.steps.transforms))
    assert (steps(colour) == still(colour)).all()


def test_looks_of_a_vector():
    torch.manual_seed(0)
    vector = torch.ones(10_000)
    noisy = VectorNoise(std=0.3)(vector)
    assert abs(noisy.std() - 0.3) < 0.02 and abs(noisy.mean() - 1) < 0.02
    masked = VectorNoise(std=0.0, mask=0.25)(vector)
    assert set(masked.tolist()) == {0.0, 1.0} and abs(masked.mean() - 0.75) < 0.02
    with pytest.raises(ValueError, match="`mask` in"):
        VectorNoise(mask=1.0)


def test_seeds_of_neighbours_differ():
    batches = DrawnBatches(ShuffledBatchSampler(64, batch_size=16, seed=0), seed=0)
    seeds = [seed for _ in range(3) for batch in batches for _, pair in batch for seed in pair]
    assert len(set(seeds)) == len(seeds) == 3 * 128
