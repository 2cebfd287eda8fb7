"""Against the real library: in place of its loss and memory bank, in its SimCLR and MoCo modules."""

from __future__ import annotations

import copy

import pytest
import torch
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn
from torch.nn.functional import normalize

from mixcontrast import Gathered, InfoNCE, KeyQueue, MoCHi
from mixcontrast.adapters.lightly import MemoryBank, from_lightly

SIZE, WIDTH, BATCH = 24, 8, 6  # the batch divides the size, where a bank and a queue go the same way


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(12, 10)
        self.projection_head = SimCLRProjectionHead(10, 10, WIDTH)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(12, 10)
        self.projection_head = MoCoProjectionHead(10, 10, WIDTH)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


def train_simclr(criterion, steps=5):
    torch.manual_seed(0)
    model, losses = SimCLR(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x = torch.randn(BATCH, 12)
        view1, view2 = x + 0.1 * torch.randn(BATCH, 12), x + 0.1 * torch.randn(BATCH, 12)
        loss = criterion(model(view1), model(view2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def train_moco(criterion, steps=9):
    torch.manual_seed(0)
    model, losses = MoCo(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        update_momentum(model.backbone, model.backbone_momentum, m=0.9)
        update_momentum(model.projection_head, model.projection_head_momentum, m=0.9)
        x = torch.randn(BATCH, 12)
        query = model(x + 0.1 * torch.randn(BATCH, 12))
        loss = criterion(query, model.forward_momentum(x + 0.1 * torch.randn(BATCH, 12)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def assert_same_run(ours, theirs):
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(theirs[0]), rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours[1].parameters(), theirs[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_simclr_trains_the_same_model():
    theirs = NTXentLoss(temperature=0.3)
    assert_same_run(train_simclr(from_lightly(theirs)), train_simclr(theirs))


@pytest.mark.parametrize("used", [0, 1, 4, 6])
def test_moco_trains_the_same_model(used):
    """From a bank that is new, and from one written to, its pointer in the middle or back at the start."""
    torch.manual_seed(3)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(SIZE, WIDTH))
    for _ in range(used):
        theirs(torch.randn(BATCH, WIDTH, requires_grad=True), torch.randn(BATCH, WIDTH))
    ours = from_lightly(theirs)
    assert ours.queue.fill == SIZE and ours.queue.pointer == int(theirs.memory_bank.bank_ptr)
    torch.testing.assert_close(ours.queue.keys, theirs.memory_bank.bank)
    assert_same_run(train_moco(ours), train_moco(theirs))
    torch.testing.assert_close(ours.queue.keys, theirs.memory_bank.bank, rtol=1e-4, atol=1e-5)


def test_mixers_go_in_the_same_places():
    small = dict(num_hardest=4, num_pair_mixes=4, num_anchor_mixes=2)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(SIZE, WIDTH))
    plain = from_lightly(theirs)
    mixed = MoCHi(InfoNCE(temperature=plain.temperature), queue=plain.queue, **small)
    losses, _ = train_moco(mixed)
    assert losses[0] > train_moco(theirs)[0][0]  # more negatives from the first step on
    assert "queue.key_buffer" in mixed.state_dict()
    losses, _ = train_simclr(MoCHi(from_lightly(NTXentLoss(temperature=0.3)), **small))
    assert losses[0] > train_simclr(NTXentLoss(temperature=0.3))[0][0]


@pytest.mark.parametrize("feature_dim_first", [True, False])
def test_memory_bank(feature_dim_first):
    torch.manual_seed(0)
    theirs = MemoryBankModule((SIZE, WIDTH), feature_dim_first=feature_dim_first)
    queue = KeyQueue(SIZE, WIDTH)
    queue.enqueue(theirs.bank)
    ours = MemoryBank(queue, feature_dim_first=feature_dim_first)
    for step in range(7):
        output = normalize(torch.randn(BATCH, WIDTH, requires_grad=True), dim=1)
        mine, other = ours(output, update=step != 3), theirs(output, update=step != 3)
        assert mine[0] is output
        torch.testing.assert_close(mine[1], other[1])
        assert not mine[1].requires_grad
    again = MemoryBank(KeyQueue(SIZE, WIDTH), feature_dim_first=feature_dim_first)
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(output)[1], ours(output)[1])


def test_gathering_is_kept():
    assert isinstance(from_lightly(NTXentLoss(gather_distributed=True)), Gathered)
    gathered = from_lightly(NTXentLoss(gather_distributed=True, memory_bank_size=(8, 4)))
    assert gathered.criterion.queue.fill == 8


@pytest.mark.parametrize("loss", [DINOLoss(), nn.MSELoss(), InfoNCE()], ids=lambda x: type(x).__name__)
def test_other_losses_are_refused_by_name(loss):
    with pytest.raises(TypeError, match=f"knows the equal of NTXentLoss alone. Got .*{type(loss).__name__}; "):
        from_lightly(loss)


def test_queues_with_labels_are_no_bank():
    with pytest.raises(TypeError, match="MemoryBank holds a KeyQueue without labels. Got KeyQueue.*labels=True"):
        MemoryBank(KeyQueue(4, 4, labels=True))
    with pytest.raises(ValueError, match="temperature"):
        from_lightly(NTXentLoss(temperature=-0.1))
