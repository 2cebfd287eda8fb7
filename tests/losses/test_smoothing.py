"""Targets of ClipLoss spread over a row: torch's own label smoothing, with queues and mixtures too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mixcontrast import ClipLoss, GeodesicMixup, HardNegativeLoss, KeyQueue, MoCHi
from tests.losses.test_towers import SIZE, WIDTH, towers

SCALE, SHARE = 5.0, 0.2


def test_it_is_torchs_cross_entropy_with_label_smoothing() -> None:
    image, text = towers()
    logits, target = SCALE * image @ text.T, torch.arange(SIZE)
    wanted = sum(F.cross_entropy(table, target, label_smoothing=SHARE) for table in (logits, logits.T)) / 2
    found = ClipLoss(label_smoothing=SHARE)(image, text, SCALE)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(x, (image, text)) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_columns_of_a_queue_have_their_share() -> None:
    image, text = towers()
    queue = KeyQueue(4, WIDTH).double()
    keys = F.normalize(torch.randn(4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    queue.enqueue(keys)
    loss = ClipLoss(text_queue=queue, label_smoothing=SHARE).eval()
    target = torch.arange(SIZE)
    to_text, to_image = SCALE * image @ torch.cat([text, keys]).T, SCALE * text @ image.T
    wanted = sum(F.cross_entropy(table, target, label_smoothing=SHARE) for table in (to_text, to_image)) / 2
    torch.testing.assert_close(loss(image, text, SCALE), wanted)


def test_no_share_is_the_plain_loss_under_mixers_too() -> None:
    image, text = towers()
    for make in (lambda loss: MoCHi(loss, num_hardest=3, num_pair_mixes=4, num_anchor_mixes=2), GeodesicMixup):
        values = []
        for share in (0.0, 1e-9, SHARE):
            torch.manual_seed(0)
            values.append(make(ClipLoss(label_smoothing=share))(image, text, SCALE))
        torch.testing.assert_close(values[0], values[1])
        assert values[2] > values[0]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"`label_smoothing` must lie in \[0, 1\). Got"):
        ClipLoss(label_smoothing=share)


def test_hard_negatives_are_not_smoothed() -> None:
    with pytest.raises(TypeError, match="leave label_smoothing out"):
        HardNegativeLoss(ClipLoss(label_smoothing=SHARE))
