"""What is logged of a batch, by what the criterion is and is called with."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    GeodesicMixup,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    RankNContrastLoss,
    SupConLoss,
    SupReMix,
    SynCo,
    Tiled,
)
from mixcontrast.training.measures import measures_of

FEW = dict(num_hardest=4, num_pair_mixes=4, num_anchor_mixes=2)
SIX = dict(num_hardest=4, num_interpolated=2, num_extrapolated=2, num_pairs=2, num_noised=1, num_gradient=1, num_sign=1)
LABELLED = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3
VALUED = LABELLED[0], torch.linspace(0, 1, 12)
VIEWS = LABELLED[0], LABELLED[0].roll(1, 0) + LABELLED[0]
TOWERS = tuple(normalize(view, dim=1) for view in VIEWS) + (torch.tensor(10.0), None, False, None)
TASK, BOTH = {"proxy task"}, {"proxy task", "proxy task mixed"}
OF_VIEWS, OF_TOWERS = {"alignment", "uniformity"}, {"alignment", "uniformity", "modality gap"}


@pytest.mark.parametrize(
    "criterion, inputs, names",
    [
        (MultiSimilarityLoss(), LABELLED, set()),
        (Metrix(MultiSimilarityLoss()), LABELLED, set()),  # utilization is of what was judged
        (MoCHi(ContrastiveLoss(), **FEW), LABELLED, BOTH),
        (MoCHi(ContrastiveLoss(), warmup_steps=1, **FEW), LABELLED, TASK),
        (SynCo(SupConLoss(), **SIX), LABELLED, BOTH),
        (Metrix(MoCHi(MultiSimilarityLoss(), **FEW)), LABELLED, BOTH),
        (RankNContrastLoss(), VALUED, {"rank correlation"}),
        (SupReMix(SupConLoss()), VALUED, {"rank correlation"}),
        (InfoNCE(), VIEWS, OF_VIEWS | TASK),
        (HardNegativeLoss(InfoNCE()), VIEWS, OF_VIEWS | TASK),
        (MoCHi(InfoNCE(), queue=KeyQueue(24, 6), **FEW), VIEWS, OF_VIEWS | BOTH),
        (SynCo(InfoNCE(), queue=KeyQueue(24, 6), **SIX), VIEWS, OF_VIEWS | BOTH),
        (SynCo(SupConLoss(), queue=KeyQueue(24, 6), **SIX), VIEWS, OF_VIEWS | BOTH),
        (Tiled(MoCHi(InfoNCE(), **FEW), rows=4), VIEWS, OF_VIEWS | BOTH),
        (ClipLoss(), TOWERS, OF_TOWERS),
        (GeodesicMixup(ClipLoss()), TOWERS, OF_TOWERS),
        (MoCHi(ClipLoss(), **FEW), TOWERS, OF_TOWERS | BOTH),
        (SynCo(ClipLoss(), **SIX), TOWERS, OF_TOWERS | BOTH),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, torch.nn.Module) else "",
)
def test_each_mixer_has_its_own_measures_and_looking_changes_nothing(criterion, inputs, names):
    criterion.train()
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    found = measures_of(criterion, inputs)
    assert set(found) == names and all(bool(value.isfinite()) for value in found.values())
    assert criterion.training and all(torch.equal(criterion.state_dict()[name], before[name]) for name in before)


def test_they_are_what_they_say():
    image, text = TOWERS[:2]
    found = measures_of(MoCHi(ClipLoss(), **FEW), TOWERS)
    table = image @ text.T
    places = torch.arange(12)
    tops = [(rows.argmax(dim=1) == places).float().mean() for rows in (table, table.T)]
    assert float(found["proxy task"]) == pytest.approx(float(sum(tops) / 2))
    assert float(found["proxy task mixed"]) <= float(found["proxy task"])
    assert float(found["alignment"]) == pytest.approx(float((image - text).square().sum(dim=1).mean()), rel=1e-5)
    apart = [torch.pdist(rows).square() for rows in (image, text)]
    spread = [(-2 * squares).exp().mean().log() for squares in apart]
    assert float(found["uniformity"]) == pytest.approx(float(sum(spread) / 2), rel=1e-5)


def test_what_a_batch_does_not_tell_is_left_out():
    assert measures_of(SupReMix(SupConLoss()), (LABELLED[0], torch.ones(12))) == {}
