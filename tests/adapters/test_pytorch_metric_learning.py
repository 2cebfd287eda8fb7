"""Against the real library: the same values and gradients, with its miners, memory, trainers and samplers."""

from __future__ import annotations

import copy
import pickle

import pytest
import pytorch_metric_learning.losses as pml
import torch
from pytorch_metric_learning import miners, samplers, trainers
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.reducers import (
    AvgNonZeroReducer,
    ClassWeightedReducer,
    MeanReducer,
    SumReducer,
    ThresholdReducer,
)
from pytorch_metric_learning.regularizers import LpRegularizer

from mixcontrast import (
    BinomialDevianceLoss,
    ClipLoss,
    ContrastiveLoss,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    LiftedStructureLoss,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    NCALoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RankNContrastLoss,
    SupConLoss,
    SupReMix,
    TripletLoss,
)
from mixcontrast.adapters.pytorch_metric_learning import as_pml, from_pml

LABELS = torch.tensor([0] * 2 + [1] * 3 + [2] * 4 + [3] * 5 + [4] * 2)  # unbalanced; nobody is alone
ALONE = torch.tensor([0] * 2 + [1] * 3 + [2] * 4 + [3] * 5 + [8, 9])  # the last two are
WIDTH = 6


def cosine():
    return CosineSimilarity()


def squared():
    return LpDistance(p=2, power=2)


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    return torch.randn(len(LABELS), WIDTH, dtype=torch.float64, requires_grad=True)


def assert_same(ours, theirs, leaves, **tolerance):
    torch.testing.assert_close(ours, theirs, **tolerance)
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


# ---- from_pml

# Each with what becomes of rows without a positive there: "out" as in ours, "in" where theirs counts them.
THEIRS = [
    ("out", pml.ContrastiveLoss()),
    ("out", pml.ContrastiveLoss(pos_margin=0.2, neg_margin=1.3, reducer=MeanReducer())),
    ("out", pml.ContrastiveLoss(pos_margin=0.9, neg_margin=0.3, distance=cosine())),
    ("out", pml.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=cosine(), reducer=MeanReducer())),
    ("out", pml.TripletMarginLoss()),
    ("out", pml.TripletMarginLoss(margin=0.3, reducer=MeanReducer())),
    ("out", pml.TripletMarginLoss(margin=0.2, distance=cosine())),
    ("out", pml.TripletMarginLoss(margin=0.2, distance=cosine(), reducer=MeanReducer())),
    ("out", pml.TripletMarginLoss(margin=0.2, reducer=ThresholdReducer(low=0))),
    ("in", pml.MultiSimilarityLoss()),
    ("in", pml.MultiSimilarityLoss(alpha=18, beta=75, base=0.77, reducer=AvgNonZeroReducer())),
    ("in", pml.MultiSimilarityLoss(distance=DotProductSimilarity())),
    ("out", pml.SupConLoss()),
    ("in", pml.SupConLoss(temperature=0.5, reducer=MeanReducer())),
    ("out", pml.SupConLoss(temperature=0.5, distance=squared())),
    ("out", pml.NTXentLoss()),
    ("out", pml.NTXentLoss(temperature=0.5, reducer=AvgNonZeroReducer())),
    ("out", pml.NTXentLoss(temperature=0.5, distance=squared())),
    ("in", pml.GeneralizedLiftedStructureLoss()),
    ("in", pml.GeneralizedLiftedStructureLoss(neg_margin=0.8, pos_margin=0.3, distance=cosine())),
    ("out", pml.NCALoss()),
    ("out", pml.NCALoss(softmax_scale=3, reducer=AvgNonZeroReducer())),
    ("out", pml.NCALoss(softmax_scale=3, distance=cosine())),
]


def named(loss):
    if not isinstance(loss, torch.nn.Module):
        return None
    return f"{type(loss).__name__}-{type(loss.distance).__name__}-{type(loss.reducer).__name__}"


@pytest.mark.parametrize(("alone", "theirs"), THEIRS, ids=named)
def test_equal_value_and_gradient(embeddings, alone, theirs):
    ours = from_pml(theirs)
    assert_same(ours(embeddings, LABELS), theirs(embeddings, LABELS), [embeddings])
    if alone == "out":
        assert_same(ours(embeddings, ALONE), theirs(embeddings, ALONE), [embeddings])
    else:  # documented: ours leaves the row out
        assert not torch.allclose(ours(embeddings, ALONE), theirs(embeddings, ALONE))


@pytest.mark.parametrize(
    "theirs",
    [
        pml.ProxyAnchorLoss(7, WIDTH, margin=0.2, alpha=16),
        pml.ProxyNCALoss(7, WIDTH, softmax_scale=3),
        pml.ProxyNCALoss(7, WIDTH, softmax_scale=3, distance=cosine()),
        pml.NormalizedSoftmaxLoss(7, WIDTH, temperature=0.1),
    ],
    ids=named,
)
def test_proxies_are_the_same_parameters(embeddings, theirs):
    theirs = theirs.double()
    ours = from_pml(theirs)
    assert_same(ours(embeddings, LABELS), theirs(embeddings, LABELS), [embeddings])
    (mine,) = torch.autograd.grad(ours(embeddings, LABELS), ours.parameters())
    (other,) = torch.autograd.grad(theirs(embeddings, LABELS), theirs.parameters())
    if isinstance(theirs, pml.NormalizedSoftmaxLoss):
        other = other.T
    else:
        assert ours.proxies is theirs.proxies
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("inner", [pml.NTXentLoss(0.2), pml.SupConLoss(0.2), pml.NTXentLoss(0.2, distance=squared())])
def test_two_views(embeddings, inner):
    theirs = pml.SelfSupervisedLoss(inner)
    view1, view2 = embeddings[:8], embeddings[8:]
    assert_same(from_pml(theirs)(view1, view2), theirs(view1, view2), [embeddings])


SETTINGS = "has an equal here, but not with every setting. Got "
REFUSED = [
    (pml.CircleLoss(), "knows no equal of this loss. Got pytorch_metric_learning.losses.circle_loss.CircleLoss; there"),
    (pml.SignalToNoiseRatioContrastiveLoss(), "knows no equal .*SignalToNoiseRatioContrastiveLoss"),
    (pml.ArcFaceLoss(5, WIDTH), "knows no equal .*ArcFaceLoss"),
    (torch.nn.CrossEntropyLoss(), "knows no equal .*CrossEntropyLoss"),
    (pml.CrossBatchMemory(pml.ContrastiveLoss(), WIDTH), "knows no equal .*CrossBatchMemory"),
    (MultiSimilarityLoss(), "knows no equal .*mixcontrast.losses.pair_sums.MultiSimilarityLoss"),
    (pml.MultiSimilarityLoss(distance=LpDistance()), SETTINGS + "LpDistance.*use CosineSimilarity"),
    (pml.MultiSimilarityLoss(distance=DotProductSimilarity(normalize_embeddings=False)), "normalize_embeddings=False"),
    (pml.ContrastiveLoss(distance=LpDistance(p=1)), SETTINGS + r"LpDistance\(normalize_embeddings=True, p=1, power=1"),
    (pml.ContrastiveLoss(distance=squared()), SETTINGS + ".*power=2"),
    (pml.ContrastiveLoss(distance=LpDistance(normalize_embeddings=False)), "normalize_embeddings=False"),
    (pml.ContrastiveLoss(distance=SNRDistance()), SETTINGS + "SNRDistance"),
    (pml.ContrastiveLoss(reducer=SumReducer()), SETTINGS + "a SumReducer; use a MeanReducer or AvgNonZeroReducer"),
    (pml.ContrastiveLoss(reducer=ThresholdReducer(low=0.1)), SETTINGS + "a ThresholdReducer"),
    (pml.SupConLoss(reducer=ClassWeightedReducer(torch.ones(9))), SETTINGS + "a ClassWeightedReducer"),
    (pml.SupConLoss(distance=LpDistance()), SETTINGS + "LpDistance"),
    (pml.NCALoss(distance=LpDistance()), SETTINGS + "LpDistance"),
    (pml.TripletMarginLoss(swap=True), "TripletMarginLoss " + SETTINGS + "swap=True; set swap=False"),
    (pml.TripletMarginLoss(smooth_loss=True), "smooth_loss=True"),
    (pml.TripletMarginLoss(triplets_per_anchor=5), "triplets_per_anchor=5; set triplets_per_anchor='all'"),
    (pml.GeneralizedLiftedStructureLoss(reducer=AvgNonZeroReducer()), "an AvgNonZeroReducer, which leaves anchors"),
    (pml.ProxyAnchorLoss(5, WIDTH, reducer=MeanReducer()), "a MeanReducer; use its own DivisorReducer"),
    (pml.ProxyAnchorLoss(5, WIDTH, weight_regularizer=LpRegularizer()), "a weight_regularizer"),
    (pml.NTXentLoss(embedding_regularizer=LpRegularizer()), "an embedding_regularizer"),
    (pml.SelfSupervisedLoss(pml.NTXentLoss(), symmetric=False), "symmetric=False"),
    (pml.SelfSupervisedLoss(pml.TripletMarginLoss()), "a TripletMarginLoss; call"),
]


@pytest.mark.parametrize(("theirs", "message"), REFUSED, ids=lambda x: type(x).__name__ if x != str(x) else "")
def test_what_has_no_equal_is_refused_by_name(theirs, message):
    with pytest.raises(TypeError, match=message) as error:
        from_pml(theirs)
    assert "\n" not in str(error.value)


def test_no_loss_of_theirs_is_forgotten():
    """A loss that a later version brings is refused, not guessed at: the table goes by exact type."""

    class Later(pml.ContrastiveLoss):
        pass

    with pytest.raises(TypeError, match="knows no equal .*Later"):
        from_pml(Later())


# ---- as_pml: index tuples

EQUAL_WITH_MINERS = [
    (pml.ContrastiveLoss(reducer=MeanReducer()), miners.PairMarginMiner(pos_margin=0.4, neg_margin=1.2)),
    (pml.ContrastiveLoss(), miners.TripletMarginMiner(margin=0.3)),  # pairs that occur in several triplets
    (pml.ContrastiveLoss(reducer=MeanReducer()), miners.BatchHardMiner()),
    (pml.MultiSimilarityLoss(), miners.MultiSimilarityMiner(epsilon=0.1)),
    (pml.MultiSimilarityLoss(), miners.TripletMarginMiner(margin=0.3, type_of_triplets="hard")),
    (pml.NTXentLoss(), miners.TripletMarginMiner(margin=0.3)),
    (pml.NTXentLoss(), miners.BatchEasyHardMiner()),
    (pml.SupConLoss(), miners.MultiSimilarityMiner(epsilon=0.1)),
    (pml.GeneralizedLiftedStructureLoss(), miners.BatchHardMiner()),
    (pml.TripletMarginLoss(margin=0.2), miners.BatchHardMiner()),
    (pml.TripletMarginLoss(margin=0.2, distance=cosine(), reducer=MeanReducer()), miners.BatchEasyHardMiner()),
]


@pytest.mark.parametrize(("theirs", "miner"), EQUAL_WITH_MINERS, ids=lambda x: type(x).__name__)
def test_equal_after_a_miner(embeddings, theirs, miner):
    chosen = miner(embeddings, LABELS)
    assert 0 < len(chosen[0])
    ours = as_pml(from_pml(theirs))
    assert_same(ours(embeddings, LABELS, chosen), theirs(embeddings, LABELS, chosen), [embeddings])
    assert not torch.allclose(ours(embeddings, LABELS, chosen), ours(embeddings, LABELS))


def test_index_tuples_need_no_labels(embeddings):
    chosen = miners.BatchHardMiner()(embeddings, LABELS)
    theirs = pml.ContrastiveLoss()
    ours = as_pml(from_pml(theirs))
    torch.testing.assert_close(ours(embeddings, indices_tuple=chosen), theirs(embeddings, None, chosen))
    with pytest.raises(ValueError, match="labels and indices_tuple cannot both be None"):
        as_pml(ContrastiveLoss())(embeddings, ref_emb=embeddings.clone())


def test_mixers_mix_only_what_was_chosen(embeddings):
    chosen = tuple(torch.tensor(x) for x in ([0, 0, 2], [1, 1, 3], [4, 5, 6]))
    for criterion in (Metrix(MultiSimilarityLoss()), MoCHi(SupConLoss(), num_hardest=3, num_pair_mixes=4)):
        (grad,) = torch.autograd.grad(as_pml(criterion)(embeddings, LABELS, chosen), embeddings)
        assert (grad.abs().sum(dim=1) > 0).nonzero().flatten().tolist() == list(range(7))


@pytest.mark.parametrize("criterion", [ProxyAnchorLoss(5, WIDTH), ProxyNCALoss(5, WIDTH)], ids=str)
def test_proxies_leave_out_what_was_not_chosen(embeddings, criterion):
    ours = as_pml(criterion.double())
    chosen = tuple(torch.tensor(x) for x in ([0, 2, 5], [1, 3, 6], [2, 5, 0]))
    (grad,) = torch.autograd.grad(ours(embeddings, LABELS, chosen), embeddings)
    assert (grad.abs().sum(dim=1) > 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 6]
    with pytest.raises(TypeError, match="A proxy loss compares examples with proxies. Got reference embeddings"):
        ours(embeddings, LABELS, None, embeddings.clone(), LABELS.clone())


def test_a_batch_of_which_nothing_was_chosen_warns_and_has_a_gradient(embeddings):
    nothing = tuple(torch.zeros(0, dtype=torch.long) for _ in range(4))
    only_negatives = (*nothing[:2], torch.tensor([0, 1]), torch.tensor([5, 6]))
    for criterion in (MultiSimilarityLoss(), Metrix(SupConLoss()), ContrastiveLoss()):
        for chosen in (nothing, nothing[:3], only_negatives):
            with pytest.warns(RuntimeWarning, match="chose no pair that .* can read; this batch adds nothing"):
                loss = as_pml(criterion)(embeddings, LABELS, chosen)
            assert loss == 0 and torch.autograd.grad(loss, embeddings)[0].eq(0).all()
    over_all = as_pml(ContrastiveLoss(negative_margin=-1, per_anchor=False))
    assert over_all(embeddings, LABELS, only_negatives) > 0  # whose negatives push alone


def test_a_pair_of_both_kinds_is_refused(embeddings):
    with pytest.raises(ValueError, match="Got both in the index tuple, first for anchor 3 and column 4; look at"):
        as_pml(SupConLoss())(embeddings, LABELS, tuple(torch.tensor([x]) for x in (3, 4, 3, 4)))


# ---- as_pml: references, memory, wrappers


@pytest.mark.parametrize(("_", "theirs"), THEIRS, ids=named)
def test_equal_against_references(embeddings, _, theirs):
    torch.manual_seed(1)
    others, labels = torch.randn(11, WIDTH, dtype=torch.float64, requires_grad=True), torch.arange(11) % 5
    ours = as_pml(from_pml(theirs))
    mine, other = (loss(embeddings, LABELS, None, others, labels) for loss in (ours, theirs))
    assert_same(mine, other, [embeddings, others])


MEMORY = [
    pml.ContrastiveLoss(),
    pml.MultiSimilarityLoss(),
    pml.NTXentLoss(),
    pml.SupConLoss(),
    pml.TripletMarginLoss(),
    pml.GeneralizedLiftedStructureLoss(),
]


@pytest.mark.parametrize("miner", [None, miners.BatchHardMiner()], ids=["all", "mined"])
@pytest.mark.parametrize("theirs", MEMORY, ids=named)
def test_cross_batch_memory(theirs, miner):
    torch.manual_seed(0)
    ours = pml.CrossBatchMemory(as_pml(from_pml(theirs)), WIDTH, memory_size=50, miner=miner)
    theirs = pml.CrossBatchMemory(theirs, WIDTH, memory_size=50, miner=miner)
    for _ in range(6):  # 6 * 16 keys, so that it is filled and wraps
        embeddings = torch.randn(len(LABELS), WIDTH, requires_grad=True)
        assert_same(ours(embeddings, LABELS), theirs(embeddings, LABELS), [embeddings], rtol=1e-4, atol=1e-6)


def test_cross_batch_memory_holds_mixers():
    torch.manual_seed(0)
    for criterion in (
        Metrix(MultiSimilarityLoss()),
        MoCHi(BinomialDevianceLoss(), num_hardest=8, num_pair_mixes=8, num_anchor_mixes=2),
        MoCHi(TripletLoss(), num_hardest=8, num_pair_mixes=8, num_anchor_mixes=2),
        Metrix(LiftedStructureLoss()),
        HardNegativeLoss(SupConLoss()),
        Metrix(NCALoss()),
    ):
        memory = pml.CrossBatchMemory(as_pml(criterion), WIDTH, memory_size=40)
        for _ in range(3):
            embeddings = torch.randn(len(LABELS), WIDTH, requires_grad=True)
            loss = memory(embeddings, LABELS)
            assert torch.autograd.grad(loss, embeddings)[0].abs().sum() > 0


def test_other_wrappers(embeddings):
    ours = as_pml(from_pml(pml.NTXentLoss()))
    views = embeddings[:8], embeddings[8:]
    torch.testing.assert_close(pml.SelfSupervisedLoss(ours)(*views), pml.SelfSupervisedLoss(pml.NTXentLoss())(*views))
    both = pml.MultipleLosses([ours, as_pml(ContrastiveLoss())], weights=[0.5, 2])
    expected = 0.5 * ours(embeddings, LABELS) + 2 * ContrastiveLoss()(embeddings, LABELS)
    torch.testing.assert_close(both(embeddings, LABELS), expected)


def test_copies_pickles_and_state_dicts(embeddings):
    ours = as_pml(Metrix(ProxyAnchorLoss(5, WIDTH))).double()
    assert list(ours.state_dict()) == ["criterion.loss.proxies"]
    assert [p.shape for p in ours.parameters()] == [(5, WIDTH)]
    for loss in (as_pml(SupConLoss()), as_pml(TripletLoss())):
        for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            torch.testing.assert_close(again(embeddings, LABELS), loss(embeddings, LABELS))


@pytest.mark.parametrize(
        "criterion",
    [
        InfoNCE(),
        HardNegativeLoss(InfoNCE()),
        HardNegativeLoss(ClipLoss()),
        ClipLoss(),
        MoCHi(SupConLoss(), queue=KeyQueue(9, 4)),
        pml.NTXentLoss(),
        3,
    ],
    ids=str,
)
def test_criteria_without_labels_are_refused(criterion):
    with pytest.raises(TypeError, match="^as_pml takes a ") as error:
        as_pml(criterion)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("criterion", [SupReMix(SupConLoss(), window=2.0), RankNContrastLoss()], ids=str)
def test_real_values_without_a_miner(embeddings, criterion):
    values = LABELS.double()
    torch.manual_seed(1)
    loss = as_pml(criterion)(embeddings, values)
    torch.manual_seed(1)
    torch.testing.assert_close(loss, criterion(embeddings, values))
    with pytest.raises(TypeError, match="A criterion of real values reads the whole batch"):
        as_pml(criterion)(embeddings, values, miners.BatchHardMiner()(embeddings, LABELS))


# ---- in their trainer


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # theirs, for its progress bar
def test_trainer_with_miner_and_sampler():
    torch.manual_seed(0)
    centres = 2 * torch.randn(8, 10)
    labels = torch.arange(8).repeat_interleave(16)
    data = torch.utils.data.TensorDataset(centres[labels] + torch.randn(128, 10), labels)
    trunk = torch.nn.Linear(10, 4)
    criterion = as_pml(Metrix(from_pml(pml.MultiSimilarityLoss())))
    miner = miners.MultiSimilarityMiner()

    def now():
        with torch.no_grad():
            embeddings = trunk(data.tensors[0])
            return criterion(embeddings, labels, miner(embeddings, labels)).item()

    before = now()
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=0.02)},
        batch_size=32,
        loss_funcs={"metric_loss": criterion},
        mining_funcs={"tuple_miner": miner},
        dataset=data,
        sampler=samplers.MPerClassSampler(labels, m=4, length_before_new_iter=128),
        data_device="cpu",
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=6)
    assert now() < 0.7 * before
