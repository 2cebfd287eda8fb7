"""At first the head alone: what rests keeps its weights and its statistics, and moves afterwards."""

from __future__ import annotations

import lightning
import pytest
import torch
from torch import Tensor, nn

from mixcontrast import DeepMetrix, InfoNCE, KeyQueue, MultiSimilarityLoss, SupConLoss, SupReMix
from mixcontrast.data import ClassData, ValuesData, VectorNoise, ViewsData
from mixcontrast.models import ProjectionHead
from mixcontrast.training import DirectRegression, MetricLearning, Regression, SelfSupervised
from mixcontrast.training.safety import quieten
from tests.fitting import Measured, Network, Vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Kept(lightning.Callback):
    """The encoder's tensors before training and behind each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer, module) -> None:
        self.on_train_epoch_end(trainer, module)

    def on_train_epoch_end(self, trainer, module) -> None:
        self.states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        assert all(part.training for part in module.encoder.modules())


class Bare(nn.Sequential):
    """A network without a head."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU())


LABELLED = lambda: ClassData(Vectors(), classes_per_batch=2, per_class=3)  # noqa: E731
VALUED = lambda: ValuesData(Measured(), batch_size=16)  # noqa: E731
VIEWED = lambda: ViewsData(Vectors(num_classes=5, per_class=24), batch_size=16, augment=VectorNoise())  # noqa: E731
ONE = dict(cosine=False, head_only_epochs=1)


@pytest.mark.parametrize(
    "module, data, rests",
    [
        (lambda: MetricLearning(Network(), MultiSimilarityLoss(), **ONE), LABELLED, "encoder.backbone."),
        (lambda: MetricLearning(Network(), DeepMetrix(MultiSimilarityLoss(), layer="backbone.2"), **ONE), LABELLED,
         "encoder.backbone."),
        (lambda: Regression(Network(), SupReMix(SupConLoss()), **ONE), VALUED, "encoder.backbone."),
        (lambda: Regression(Bare(), SupReMix(SupConLoss()), projector=ProjectionHead(8, 4), **ONE), VALUED, "encoder."),
        (lambda: DirectRegression(Bare(), 8, **ONE), VALUED, "encoder."),
        (lambda: SelfSupervised(Network(), InfoNCE(), **ONE), VIEWED, "encoder.backbone."),
        (lambda: SelfSupervised(Network(), InfoNCE(queue=KeyQueue(40, 8)), momentum=0.5, **ONE), VIEWED,
         ("encoder.backbone.", "momentum_encoder.backbone.")),
        (lambda: SelfSupervised(Bare(), InfoNCE(), projector=ProjectionHead(8, 4), momentum=0.5, **ONE), VIEWED,
         ("encoder.", "momentum_encoder.")),
    ],
    ids=["metric learning", "deep", "regression", "regression, projector", "direct regression", "simclr", "moco",
         "moco, projector"],
)  # fmt: skip
def test_what_rests_stays_to_the_last_statistic(module, data, rests, tmp_path):
    torch.manual_seed(0)
    kept = Kept()
    quieten()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[kept], default_root_dir=tmp_path, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module(), datamodule=data())
    before, alone, all_of_it = kept.states
    resting = [name for name in before if name.startswith(rests)]
    assert any(name.endswith("running_mean") for name in resting)
    for name in resting:
        assert torch.equal(before[name], alone[name]), name
        assert not torch.equal(alone[name], all_of_it[name]), name
    trained = [name for name in before if name.endswith("weight") and name not in resting]
    assert trained and not any(torch.equal(before[name], alone[name]) for name in trained)


def test_a_head_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="an encoder whose part `head` has weights. Got Bare"):
        Regression(Bare(), SupReMix(SupConLoss()), head_only_epochs=1)
    with pytest.raises(ValueError, match="at least 0. Got -1"):
        DirectRegression(Bare(), 8, head_only_epochs=-1)
    with pytest.raises(ValueError, match="an encoder whose part `head` has weights. Got Bare"):
        SelfSupervised(Bare(), InfoNCE(), head_only_epochs=1)


def test_the_copy_of_a_head_follows_it_while_the_rest_rests(tmp_path):
    """Behind a step the copy is the old one moved by 1 - momentum to where the encoder now is."""

    class Follows(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index) -> None:
            self.old = {name: p.clone() for name, p in module.momentum_encoder.named_parameters()}

        def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
            new = dict(module.encoder.named_parameters())
            for name, slow in module.momentum_encoder.named_parameters():
                torch.testing.assert_close(slow, 0.75 * self.old[name] + 0.25 * new[name])
                assert torch.equal(slow, new[name]) == name.startswith("backbone.") or trainer.current_epoch

    torch.manual_seed(0)
    quieten()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Follows()], default_root_dir=tmp_path, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(SelfSupervised(Network(), InfoNCE(), momentum=0.75, **ONE), datamodule=VIEWED())
