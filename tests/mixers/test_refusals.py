"""What does not fit is refused in one line: the rule, what was seen, the remedy."""

from __future__ import annotations

import pytest
import torch

from mixcontrast import (
    ClipLoss,
    ContrastiveLoss,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Metrix,
    MixTerm,
    MoCHi,
    MultiSimilarityLoss,
    Pairs,
    ProxyNCALoss,
    RankNContrastLoss,
    SigLipLoss,
    SupConLoss,
    SupReMix,
    TripletLoss,
)
from mixcontrast.mixing import sample_beta

torch.manual_seed(0)
X, Y, V = torch.randn(8, 4), torch.arange(8) // 2, torch.arange(8.0)
U = torch.nn.functional.normalize(X, dim=1)
FEW = dict(num_hardest=2, num_pair_mixes=3, num_anchor_mixes=3)


def pml():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = pytest.importorskip("pytorch_metric_learning.losses")
    return losses.MultiSimilarityLoss()


def queued(queue: KeyQueue | None = None) -> MoCHi:
    return MoCHi(InfoNCE(), queue=KeyQueue(6, 4) if queue is None else queue, **FEW)


REFUSED = {
    # what a mixer wraps
    "metrix-triplet": (lambda: Metrix(TripletLoss()), TypeError, "TripletLoss", "MoCHi"),
    "metrix-mochi-triplet": (lambda: Metrix(MoCHi(TripletLoss())), TypeError, "TripletLoss", "MoCHi"),
    "geodesic-triplet": (lambda: GeodesicMixup(TripletLoss()), TypeError, "TripletLoss", "Use"),
    "mochi-rnc": (lambda: MoCHi(RankNContrastLoss()), TypeError, "RankNContrastLoss", "Use"),
    "metrix-rnc": (lambda: Metrix(RankNContrastLoss()), TypeError, "RankNContrastLoss", "Use"),
    "supremix-rnc": (lambda: SupReMix(RankNContrastLoss()), TypeError, "RankNContrastLoss", "SupReMix(SupConLoss())"),
    "geodesic-class-loss": (lambda: GeodesicMixup(SupConLoss()), TypeError, "SupConLoss", "ClipLoss or SigLipLoss"),
    "geodesic-stack": (lambda: GeodesicMixup(MoCHi(InfoNCE())), TypeError, "InfoNCE", "ClipLoss or SigLipLoss"),
    "supremix-proxies": (lambda: SupReMix(ProxyNCALoss(3, 4)), TypeError, "ProxyNCALoss", "use SupConLoss"),
    "supremix-towers": (lambda: SupReMix(ClipLoss()), TypeError, "ClipLoss", "use SupConLoss"),
    "geodesic-rnc": (lambda: GeodesicMixup(RankNContrastLoss()), TypeError, "RankNContrastLoss", "Use"),
    "mochi-pml": (lambda: MoCHi(pml()), TypeError, "pytorch_metric_learning.losses", "mixcontrast"),
    "metrix-pml": (lambda: Metrix(pml()), TypeError, "pytorch_metric_learning.losses", "mixcontrast"),
    "supremix-pml": (lambda: SupReMix(pml()), TypeError, "pytorch_metric_learning.losses", "mixcontrast"),
    "geodesic-pml": (lambda: GeodesicMixup(pml()), TypeError, "pytorch_metric_learning.losses", "mixcontrast"),
    "metrix-class": (lambda: Metrix(SupConLoss), TypeError, "ABCMeta", "use"),
    # what it is called with
    "supremix-integers": (lambda: SupReMix(SupConLoss())(X, Y), TypeError, "torch.int64", "values.float()"),
    "metrix-floats": (lambda: Metrix(MultiSimilarityLoss())(X, V), TypeError, "torch.float32", "SupReMix"),
    "mochi-floats": (lambda: MoCHi(SupConLoss())(X, V), TypeError, "torch.float32", "SupReMix"),
    "metrix-one-class": (lambda: Metrix(SupConLoss())(X, Y * 0), ValueError, "all 0", "sample"),
    "metrix-no-positives": (lambda: Metrix(SupConLoss())(X, V.long()), ValueError, "all different", "m-per-class"),
    "metrix-between": (lambda: Metrix(SupConLoss()).reduce(_between(0.25, 0.75)), ValueError,
                       "both a positive (target above 0) and a negative (target 0). Got none among 8 anchors and 8 "
                       "columns, targets 0.25 to 0.75", "give unlike pairs the target 0"),
    "metrix-some-between": (lambda: Metrix(SupConLoss(), num_mixtures=3).reduce(_between(0.25, 1)), ValueError,
                            "targets 0.25 to 1", "give unlike pairs the target 0"),
    "metrix-anchor-between": (lambda: Metrix(ContrastiveLoss(), positive_negative=False, anchor_negative=True).reduce(
        _between(0.25, 0.75)), ValueError, "Metrix needs an anchor with a negative (target 0)", "the target 0"),
    "metrix-all-unlike": (lambda: Metrix(SupConLoss()).reduce(_between(0, 0)), ValueError, "SupConLoss needs at least "
                          "one anchor with a positive. Got none among 8", "two examples a class"),
    "metrix-queue": (lambda: Metrix(InfoNCE(queue=KeyQueue(6, 4)))(X, X) and Metrix(
        InfoNCE(queue=_full()))(X, X), ValueError, "target 0.0", "MoCHi"),
    "supremix-poses": (lambda: SupReMix(SupConLoss())(X, torch.rand(8, 2)), ValueError, "(8, 2)", "positives=False"),
    "supremix-constant": (lambda: SupReMix(SupConLoss())(X, V * 0), ValueError, "all 0.0", "sample"),
    "supremix-class-table": (lambda: SupReMix(SupConLoss()).draw(SupConLoss().tables(X, Y)[0]), TypeError,
                             "a table without", "Pairs.from_values"),
    "supremix-nan": (lambda: SupReMix(SupConLoss())(X, V.log() * 0), ValueError, "NaN or infinity in 1 of 8", "drop"),
    "geodesic-not-square": (lambda: GeodesicMixup(ClipLoss()).draw(queued(_full()).tables(X, X)[0]), ValueError,
                            "8 anchors and 6 candidates", "gather"),
    "geodesic-lengths": (lambda: GeodesicMixup(ClipLoss())(U, 2 * U, 10.0), ValueError, "2", "normalize"),
    "geodesic-image-lengths": (lambda: GeodesicMixup(SigLipLoss())(0.5 * U, U, 10.0, 0.0), ValueError, "0.5",
                               "normalize"),
    "clip-scale": (lambda: GeodesicMixup(ClipLoss())(U, U, None), TypeError, "none", "logit_scale"),
    # queues
    "two-queues": (lambda: MoCHi(InfoNCE(queue=KeyQueue(6, 4)), queue=KeyQueue(6, 4)), TypeError, "one for InfoNCE",
                   "MoCHi alone"),
    "two-queues-in-a-stack": (lambda: MoCHi(queued(), queue=KeyQueue(6, 4)), TypeError, "MoCHi and one for MoCHi",
                              "alone"),
    "queue-width": (lambda: queued(KeyQueue(6, 5))(X, X), ValueError, "(6, 5)", "KeyQueue(6, 4)"),
    "queue-key-width": (lambda: queued()(X, X[:, :3]), ValueError, "(8, 3)", "row i"),
    "queue-without-labels": (lambda: queued()(X, X, Y), ValueError, "a queue without", "labels=True"),
    "queue-with-labels": (lambda: queued(KeyQueue(6, 4, labels=True))(X, X), ValueError, "a queue with",
                          "labels=False"),
    # numbers
    "mochi-hardest": (lambda: MoCHi(SupConLoss(), num_hardest=0), ValueError, "num_hardest=0", "1024"),
    "mochi-no-mixes": (lambda: MoCHi(SupConLoss(), num_pair_mixes=0, num_anchor_mixes=0), ValueError,
                       "num_pair_mixes=0", "1024"),
    "mochi-negative": (lambda: MoCHi(SupConLoss(), num_pair_mixes=-1), ValueError, "num_pair_mixes=-1", "1024"),
    "mochi-warmup": (lambda: MoCHi(SupConLoss(), warmup_steps=-1), ValueError, "-1", "first step"),
    "metrix-weight": (lambda: Metrix(SupConLoss(), weight=0), ValueError, "Got 0", "0.4"),
    "metrix-alpha": (lambda: Metrix(SupConLoss(), alpha=-1.0), ValueError, "-1.0", "2"),
    "metrix-nan": (lambda: Metrix(SupConLoss(), alpha=float("nan")), ValueError, "nan", "2"),
    "metrix-no-kind": (lambda: Metrix(SupConLoss(), positive_negative=False, negative_negative=True), ValueError,
                       "neither", "set one"),
    "metrix-num": (lambda: Metrix(SupConLoss(), num_mixtures=0), ValueError, "Got 0", "None for all"),
    "metrix-max": (lambda: Metrix(SupConLoss(), max_positives=0), ValueError, "max_positives=0", "leave one of them"),
    "metrix-max-num": (lambda: Metrix(SupConLoss(), max_positives=3, num_mixtures=9), ValueError, "num_mixtures=9",
                       "leave one of them"),
    "supremix-window": (lambda: SupReMix(SupConLoss(), window=0.0), ValueError, "window=0.0", "5"),
    "supremix-beta": (lambda: SupReMix(SupConLoss(), beta=-8), ValueError, "beta=-8", "8"),
    "supremix-alpha": (lambda: SupReMix(SupConLoss(), alpha=float("nan")), ValueError, "alpha=nan", "2"),
    "supremix-cap": (lambda: SupReMix(SupConLoss(), max_positive_mixes=0), ValueError, "Got 0", "positives=False"),
    "supremix-power": (lambda: SupReMix(SupConLoss(), magnify_power=3), ValueError, "Got 3", "1, 2 or None"),
    "geodesic-none": (lambda: GeodesicMixup(ClipLoss(), m2=None, v=None, l=None, vl=None), ValueError, "Got none",
                      "leave out None"),
    "geodesic-weight": (lambda: GeodesicMixup(ClipLoss(), v=MixTerm(0.0)), ValueError, "v=MixTerm(weight=0.0",
                        "positive"),
    "geodesic-whole-weight": (lambda: GeodesicMixup(ClipLoss(), weight=0.0), ValueError, "weight=0.0", "positive"),
    "geodesic-beta": (lambda: GeodesicMixup(ClipLoss(), l=MixTerm(1.0, beta=0)), ValueError, "l=MixTerm", "positive"),
    "geodesic-temperature": (lambda: GeodesicMixup(ClipLoss(), m2=MixTerm(1.0, temperature=-1)), ValueError,
                             "temperature=-1", "positive"),
    "geodesic-detach": (lambda: GeodesicMixup(ClipLoss(), detach=True), ValueError, "VL-Mix", "vl=None"),
    "beta": (lambda: sample_beta(1.0, 0.0, (), like=X), ValueError, "beta 0.0", "1, 1"),
}  # fmt: skip


def _full() -> KeyQueue:
    queue = KeyQueue(6, 4)
    queue.enqueue(torch.randn(6, 4))
    return queue


def _between(low: float, high: float) -> Pairs:
    """A table with targets of a low and a high number, by turns; what the diagonal has is not read."""
    target = torch.tensor([low, high]).repeat(8, 4).fill_diagonal_(0)
    return Pairs.from_targets(X, target)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    call, error, seen, remedy = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 320
    assert seen in message and remedy in message, message


def test_what_fits_is_taken() -> None:
    Metrix(MoCHi(Metrix(SupConLoss()), **FEW))(X, Y)
    MoCHi(TripletLoss(), **FEW)(X, Y)
    SupReMix(SupConLoss(), positives=False)(X, torch.rand(4, 2).repeat(2, 1))
    SupReMix(SupConLoss())(X, torch.rand(4, 1).repeat(2, 1))
    GeodesicMixup(ClipLoss())(U.bfloat16(), U.bfloat16().roll(1, 0), 10.0)
    assert set(GeodesicMixup(ClipLoss())(U, U.flip(0), 10.0, output_dict=True)) == {"contrastive_loss"}
    GeodesicMixup(SigLipLoss())(image_features=U, text_features=U, logit_scale=10.0, logit_bias=-10.0)
