"""What is said of mixtures is so: they are built here, one by one, and compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixcontrast import (
    ClipLoss,
    DeepMetrix,
    GeodesicMixup,
    InfoNCE,
    KeyQueue,
    Metrix,
    MoCHi,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SupConLoss,
    SupReMix,
    SynCo,
)
from mixcontrast.explanation import explain
from tests.mixers.cases import CASES, DIM, INTERPOLATIONS, TABLE_CASES, embeddings, filled

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def assert_mixtures_are_what_they_are_said_to_be(found) -> None:
    for kind in found.kinds:
        assert kind.similarity.shape == kind.target.shape == kind.weight.shape
        for row in range(len(kind.anchors)):
            built = kind.vectors(row) @ kind.anchors[row]
            counts = kind.weight[row] > 0
            torch.testing.assert_close(kind.similarity[row][counts], built[counts], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["linear", "geodesic", "unnormalised"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_mixture_is_the_combination_of_its_parents(case, interpolation):
    mixer = case.make(INTERPOLATIONS[interpolation], False)
    found = explain(mixer, *case.call(case.inputs()), generator=generator())
    assert found.kinds and any(bool((kind.weight > 0).any()) for kind in found.kinds)
    assert_mixtures_are_what_they_are_said_to_be(found)


@pytest.mark.parametrize("case", TABLE_CASES, ids=lambda case: case.name)
def test_the_loss_is_the_criterions_own_of_the_same_draw(case):
    mixer = case.make(INTERPOLATIONS["linear"], False)
    inputs = case.call(case.inputs())
    (pairs,) = case.tables(mixer, case.inputs())
    expected = mixer.loss_of(pairs, mixer.draw(pairs, generator()))
    assert explain(mixer, *inputs, generator=generator()).loss == pytest.approx(expected.item())


def test_shares_of_loss_and_gradient_are_those_of_a_softmax():
    criterion = MoCHi(InfoNCE(temperature=0.2), queue=filled(30), num_hardest=6, num_pair_mixes=5, num_anchor_mixes=3)
    query, key = embeddings(7, 1).float().detach(), embeddings(7, 2).float().detach()
    found = explain(criterion, query, key, generator=generator())
    q, k = (nn.functional.normalize(x, dim=1) for x in (query, key))
    positive, real = (q * k).sum(1, keepdim=True) / 0.2, q @ criterion.queue.keys.T.float() / 0.2
    mixed = torch.cat([kind.similarity for kind in found.kinds], dim=1) / 0.2
    loss = (torch.cat([positive, real, mixed], 1).logsumexp(1) - positive[:, 0]).mean()
    without = (torch.cat([positive, real], 1).logsumexp(1) - positive[:, 0]).mean()
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.of_loss == pytest.approx(1 - float(without / loss), abs=1e-5)
    p = torch.cat([positive, real, mixed], 1).softmax(1)  # of cell j the gradient is p_j - [j is the positive]
    whole = (1 - p[:, 0]).sum() + p[:, 1:].sum()
    assert found.of_gradient == pytest.approx(float(p[:, 31:].sum() / whole), abs=1e-5)
    each = torch.cat(found.gradients, dim=1)
    torch.testing.assert_close(each, p[:, 31:] / whole, rtol=1e-4, atol=1e-7)


def test_of_a_second_table_the_shares_are_those_of_its_weight():
    criterion = Metrix(MultiSimilarityLoss(), weight=0.7)
    z = torch.randn(8, 5, generator=generator())
    found = explain(criterion, z, LABELS, generator=generator())
    (pairs,) = criterion.tables(z, LABELS)
    draw = criterion.draw(pairs, generator())
    mixed = 0.7 * criterion.loss.reduce(criterion.mix(pairs, draw))
    assert found.of_loss == pytest.approx(mixed.item() / found.loss)
    assert sum(float(part.sum()) for part in found.gradients) == pytest.approx(found.of_gradient)


def test_all_that_a_stack_makes_is_found():
    criterion = Metrix(MoCHi(MultiSimilarityLoss(), num_hardest=4, num_pair_mixes=3, num_anchor_mixes=2))
    found = explain(criterion, torch.randn(8, 5, generator=generator()), LABELS, generator=generator())
    assert [kind.kind for kind in found.kinds] == [
        "positive with negative", "two hard negatives", "anchor with hard negative"
    ]  # fmt: skip
    assert_mixtures_are_what_they_are_said_to_be(found)
    assert found.criterion == "Metrix(MoCHi(MultiSimilarityLoss))"
    assert sum(float(part.sum()) for part in found.gradients) == pytest.approx(found.of_gradient)


def test_both_towers_are_explained_from_images_to_texts():
    image, text = (nn.functional.normalize(embeddings(6, seed).detach(), dim=1) for seed in (1, 2))
    found = explain(GeodesicMixup(ClipLoss()), image, text, torch.tensor(20.0), generator=generator())
    assert [kind.kind for kind in found.kinds] == ["m2-Mix", "V-Mix", "L-Mix", "VL-Mix"]
    assert 0 < found.of_gradient < 1


def hub_towers(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts crowd around one direction, and one image lies there too: each text's hardest negative is that image."""
    image, text = (torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    text = text + 3 * torch.eye(6)[0]
    image[0] = torch.eye(6)[0]
    return nn.functional.normalize(image, dim=1), nn.functional.normalize(text, dim=1)


@pytest.mark.parametrize("queued", [False, True])
def test_mixtures_are_compared_with_the_hardest_negative_of_their_own_anchors(queued):
    image, text = hub_towers()
    queues, negatives = {}, {"image": text, "text": image}
    if queued:
        queues = {"image_queue": filled_with(-text), "text_queue": filled_with(image)}
        negatives = {"image": torch.cat([text, image]), "text": torch.cat([image, -text])}
    found = explain(GeodesicMixup(ClipLoss(**queues)), image, text, torch.tensor(20.0), generator=generator())
    hardest = {}
    for name, anchors in (("image", image), ("text", text)):
        table = anchors @ negatives[name].T
        hardest[name] = [max(float(table[i, j]) for j in range(table.shape[1]) if j != i) for i in range(len(anchors))]
    anchors_of = {"m2-Mix": "image", "L-Mix": "image", "V-Mix": "text"}
    shares = {}
    for kind in found.kinds:
        if kind.kind == "VL-Mix":
            assert found.hardest_negative(kind) is None and found.harder(kind) is None
            continue
        mine = hardest[anchors_of[kind.kind]]
        assert found.hardest_negative(kind).tolist() == pytest.approx(mine, abs=1e-6)
        rows, columns = torch.nonzero(kind.weight > 0, as_tuple=True)
        above = sum(float(kind.similarity[r, c]) > mine[r] for r, c in zip(rows, columns, strict=True))
        shares[kind.kind] = above / len(rows)
        assert found.harder(kind) == pytest.approx(shares[kind.kind], abs=0.02)
    if not queued:  # by the images' rows it would be another
        (kind,) = (kind for kind in found.kinds if kind.kind == "V-Mix")
        wrong = (kind.similarity > torch.tensor(hardest["image"])[:, None])[kind.weight > 0].float().mean()
        assert abs(float(wrong) - shares["V-Mix"]) > 0.1


def filled_with(keys: torch.Tensor) -> KeyQueue:
    queue = KeyQueue(len(keys), keys.shape[1])
    queue.enqueue(keys)
    return queue


@pytest.mark.parametrize("read", [False, True])
def test_false_negatives_of_pairs_share_an_image_or_a_caption(read):
    labels = torch.tensor([[0, 5], [0, 6], [1, 5], [2, 7], [3, 8], [4, 9]])
    image, text = (nn.functional.normalize(embeddings(6, seed).detach(), dim=1) for seed in (1, 2))
    inputs = (image, text, torch.tensor(20.0), None, False, *((labels,) if read else ()))
    found = explain(GeodesicMixup(ClipLoss()), *inputs, classes=labels, generator=generator())
    for kind in found.kinds:
        share = found.false_negatives(kind)
        if kind.kind == "VL-Mix":  # its anchors are mixtures
            assert share is None
            continue
        cells = torch.nonzero((kind.target == 0) & (kind.weight > 0)).tolist()
        of_anchor = []
        for row, column in cells:
            parents = [labels[part.rows[row, column]].tolist() for part in kind.parents]
            mine = labels[row].tolist()
            of_anchor.append([one[0] == mine[0] or one[1] == mine[1] for one in parents])
        assert share.count == len(cells)
        assert share.any == pytest.approx(sum(any(each) for each in of_anchor) / len(cells))
        assert share.all == pytest.approx(sum(all(each) for each in of_anchor) / len(cells))
        assert (share.any == 0) == read
    assert explain(GeodesicMixup(ClipLoss()), *inputs[:3]).false_negatives(found.kinds[0]) is not None


@pytest.mark.parametrize("loss", [MultiSimilarityLoss, lambda: ProxyNCALoss(4, DIM), lambda: ProxyAnchorLoss(4, DIM)])
@pytest.mark.parametrize("layer", ["1", None])
def test_mixtures_at_a_layer_are_what_the_rest_of_the_network_makes(loss, layer):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, DIM))
    criterion = DeepMetrix(loss(), layer=layer, num_mixtures=6)
    inputs = torch.randn(8, 5)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.eval()
    found = explain(criterion, encoder, inputs, LABELS, generator=generator())
    (kind,) = found.kinds
    at_layer = inputs if layer is None else encoder[1](encoder[0](inputs))
    rest = encoder if layer is None else encoder[2:]
    one, other = (at_layer[part.rows[0]] for part in kind.parents)
    lam = kind.lam[0][:, None]
    expected = nn.functional.normalize(rest(lam * one + (1 - lam) * other), dim=1)
    torch.testing.assert_close(kind.embedded, expected, rtol=1e-4, atol=1e-6)
    assert_mixtures_are_what_they_are_said_to_be(found)
    encoder.train()
    explain(criterion, encoder, inputs, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_false_negatives_are_counted_by_the_classes_that_training_did_not_read():
    classes = torch.tensor([0, 0, 0, 1, 1, 2])
    view1, view2 = torch.randn(2, 6, DIM, generator=generator()).unbind(0)
    criterion = MoCHi(InfoNCE(), num_hardest=10, num_pair_mixes=40, num_anchor_mixes=0)
    found = explain(criterion, view1, view2, classes=classes, generator=generator())
    (kind,) = found.kinds
    both = classes.repeat(2)
    one = both[kind.parents[0].rows] == both[:, None]
    other = both[kind.parents[1].rows] == both[:, None]
    share = found.false_negatives(kind)
    assert (share.any, share.all) == pytest.approx(
        ((one | other).float().mean().item(), (one & other).float().mean().item())
    )
    assert share.all > 0
    assert explain(criterion, view1, view2).false_negatives(kind) is not None  # the kind knows its classes
    (unknown,) = explain(criterion, view1, view2).kinds
    assert found.false_negatives(unknown) is None


def test_nothing_is_changed_by_looking():
    queue = KeyQueue(12, DIM)
    queue.enqueue(torch.randn(8, DIM))
    criterion = SynCo(InfoNCE(), queue=queue, num_hardest=4, num_interpolated=2, num_extrapolated=0, num_pairs=2,
                      num_noised=2, num_gradient=1, num_sign=1)  # fmt: skip
    criterion.train()
    fill, step = queue.fill, criterion.step
    explain(criterion, torch.randn(4, DIM), torch.randn(4, DIM))
    assert (queue.fill, criterion.step, criterion.training) == (fill, step, True)


def test_values_have_no_false_negatives():
    criterion = SupReMix(SupConLoss())
    found = explain(criterion, torch.randn(6, DIM), torch.tensor([1.0, 2, 3, 4, 4, 6]))
    assert [kind.kind for kind in found.kinds] == ["Mix-neg", "Mix-pos"]
    assert all(found.false_negatives(kind) is None for kind in found.kinds)


def test_what_is_no_criterion_is_refused_in_one_line():
    with pytest.raises(TypeError, match="`criterion` must be a loss or mixer of mixcontrast. Got Linear"):
        explain(nn.Linear(2, 2), torch.randn(2, 2))
