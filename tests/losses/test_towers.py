"""Several positives a pair, queues of both towers, and columns of the anchors' own tower."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mixcontrast import (
    ClipLoss,
    CyClipLoss,
    Gathered,
    GeodesicMixup,
    HardNegativeLoss,
    InfoNCE,
    KeyQueue,
    MixTerm,
    MoCHi,
    MultiSimilarityLoss,
    Pairs,
    SigLipLoss,
    SupConLoss,
    SynCo,
)

SIZE, WIDTH = 6, 5
GROUPS = torch.tensor([4, 4, 0, 1, 1, 1])
CAPTIONS = torch.tensor([[0, 5], [0, 6], [1, 5], [2, 7], [3, 8], [4, 9]])  # image, caption
MATCHES = torch.tensor([[1, 1, 1, 0, 0, 0],  # image 0 has captions 5 and 6, and text 2 is caption 5
                        [1, 1, 1, 0, 0, 0],
                        [1, 0, 1, 0, 0, 0],  # image 1 has caption 5 alone
                        [0, 0, 0, 1, 0, 0],
                        [0, 0, 0, 0, 1, 0],
                        [0, 0, 0, 0, 0, 1]]).bool()  # fmt: skip
HELD = torch.tensor([[0, 9], [7, 5], [7, 6], [3, 11], [8, 12], [9, 9]])  # of an earlier batch, kept in the queues
TEXTS_OF = {0: {5, 6, 9}, 1: {5}, 2: {7}, 3: {8, 11}, 4: {9}}  # of each image of CAPTIONS, by a pair of either
FEW = dict(num_hardest=9, num_pair_mixes=300, num_anchor_mixes=300)
SIX = dict(num_hardest=9, num_interpolated=60, num_extrapolated=60, num_pairs=60, num_noised=60, num_gradient=60,
           num_sign=60)  # fmt: skip


def towers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(2, SIZE, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return tuple(F.normalize(features, dim=-1).requires_grad_().unbind())


def queues(size: int = 14, labels: int = 0) -> dict:
    return {f"{tower}_queue": KeyQueue(size, WIDTH, labels=labels).double() for tower in ("image", "text")}


# ---- several positives


@pytest.mark.parametrize(("labels", "matches"), [(GROUPS, GROUPS[:, None] == GROUPS), (CAPTIONS, MATCHES)])
def test_labels_are_soft_targets_of_cross_entropy(labels, matches):
    image, text = towers()
    logits = 7 * image @ text.T
    wanted = sum(F.cross_entropy(x, t / t.sum(1, keepdim=True)) for x, t in ((logits, matches), (logits.T, matches.T)))
    torch.testing.assert_close(ClipLoss()(image, text, 7.0, labels=labels), wanted / 2)
    signs = torch.where(matches, 1.0, -1.0)
    wanted = -F.logsigmoid(signs * (logits - 3)).sum() / SIZE
    torch.testing.assert_close(SigLipLoss()(image, text, 7.0, -3.0, labels=labels), wanted)


def test_labels_all_different_change_nothing():
    image, text = towers()
    for make in (ClipLoss, SigLipLoss):
        for criterion in (make(), make(same_modality=True)):
            plain = criterion(image, text, 7.0, -3.0)
            torch.testing.assert_close(criterion(image, text, 7.0, -3.0, False, torch.arange(SIZE)), plain)
            named = criterion(image, text, 7.0, -3.0, labels=torch.arange(SIZE).repeat(2, 1).T, output_dict=True)
            torch.testing.assert_close(named["contrastive_loss"], plain)


@pytest.mark.parametrize("labels", [GROUPS, CAPTIONS], ids=["groups", "captions"])
@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_geodesic_mixup_mixes_several_positives(loss, labels):
    """V at share 1 is the loss itself, and so is L; at share 0 it is that of the batch in reverse."""
    image, text = towers()
    terms = dict(m2=None, vl=None, v=MixTerm(1.0), l=MixTerm(1.0))
    criterion = GeodesicMixup(loss(), **terms)
    tables = criterion.tables(image, text, 7.0, -3.0, False, labels)
    plain = loss()(image, text, 7.0, -3.0, labels=labels)
    draw = criterion.draw(tables[0])
    for lam in (0.0, 1.0):
        share = torch.tensor(lam, dtype=torch.float64)
        given = type(draw)(None, share, share, None)
        torch.testing.assert_close(criterion.loss_of_towers(tables, given), 3 * plain, rtol=1e-4, atol=1e-4)


def test_geodesic_mixup_draws_no_positive_into_m2():
    image, text = towers()
    criterion = GeodesicMixup(ClipLoss(), m2=MixTerm(1.0), v=None, l=None, vl=None)
    tables = criterion.tables(image, text, 7.0, None, False, CAPTIONS)
    for pairs, matches in zip(tables, (MATCHES, MATCHES.T), strict=True):
        negatives, own = criterion.mix(pairs, criterion.draw(pairs))["m2"].blocks
        assert torch.equal(negatives.weight, ~matches) and negatives.target == 0.0
        assert own.similarity.shape == (SIZE, 1)


def test_geodesic_mixup_of_all_different_labels_is_the_plain_one():
    image, text = towers()
    for loss in (ClipLoss(), SigLipLoss()):
        values = []
        for labels in (None, torch.arange(SIZE)):
            torch.manual_seed(0)
            values.append(GeodesicMixup(loss)(image, text, 7.0, -3.0, labels=labels))
        torch.testing.assert_close(*values)


def apart(anchors: str, columns: str, labels: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """(A, K): which keys of a tower's queue no pair joins to an anchor of this or the other tower."""
    if labels.ndim == 1:
        return torch.tensor([[a != b for b in held.tolist()] for a in labels.tolist()])
    if anchors == columns:
        return torch.tensor([[a[0] != b[0] and a[1] != b[1] for b in held.tolist()] for a in labels.tolist()])
    known = {*map(tuple, labels.tolist()), *map(tuple, held.tolist())}
    pairs = [[(a[0], b[1]) if anchors == "image" else (b[0], a[1]) for b in held.tolist()] for a in labels.tolist()]
    return torch.tensor([[pair not in known for pair in row] for row in pairs])


def test_a_key_belongs_to_an_anchor_by_a_pair_of_batch_or_queue():
    """By hand: image 0 has captions 5 and 6 in the batch and 9 in the queue, so that of six keys two are left to it."""
    of_hand = [[key not in TEXTS_OF[image] for key in HELD[:, 1].tolist()] for image in CAPTIONS[:, 0].tolist()]
    assert apart("image", "text", CAPTIONS, HELD).tolist() == of_hand
    loss = ClipLoss(**queues(labels=2))
    loss(*towers(3), 7.0, labels=HELD)
    assert torch.equal(loss.text_queue.labels, HELD)
    plan, back = loss.eval().plans(*towers(), 7.0, labels=CAPTIONS)
    assert plan.columns[1].weight.cells(None).tolist() == of_hand
    assert plan.columns[1].weight.cells(torch.tensor([5, 2])).tolist() == [of_hand[5], of_hand[2]]
    assert torch.equal(back.columns[1].weight.cells(None), apart("text", "image", CAPTIONS, HELD))
    assert torch.equal(back.columns[1].weight.transpose().cells(None), apart("text", "image", CAPTIONS, HELD).T)


@pytest.mark.parametrize("labels", [GROUPS, CAPTIONS], ids=["groups", "captions"])
@pytest.mark.parametrize("make", [ClipLoss, SigLipLoss])
def test_keys_that_belong_to_an_anchor_are_left_out(make, labels):
    """Values and gradients over steps in which the queues wrap around, against tables written out."""
    loss, steps = make(same_modality=True, same_modality_temperature=0.2, **queues(labels=labels.ndim)), []
    for step in range(4):
        drawn = torch.randint(4, labels.shape, generator=torch.Generator().manual_seed(step)) + 4 * (step == 2)
        mine = labels if step == 3 else drawn if labels.ndim == 1 else drawn + torch.tensor([0, 5])
        features = dict(zip(("image", "text"), towers(step), strict=True))
        held = {name: torch.cat([x[:0], *(of[name] for of, _ in steps)]).detach()[-14:] for name, x in features.items()}
        of_held = torch.cat([mine[:0], *(numbers for _, numbers in steps)])[-14:]
        wanted = 0
        for own, other in (("image", "text"), ("text", "image")):
            cross = 7 * features[own] @ torch.cat([features[other], held[other]]).T - 3
            within = 5 * features[own] @ torch.cat([features[own], held[own]]).T - 3
            match = ~apart(own, other, mine, mine)
            kept = [torch.ones(SIZE, SIZE).bool(), apart(own, other, mine, of_held), apart(own, own, mine, mine),
                    apart(own, own, mine, of_held)]  # fmt: skip
            kept = torch.cat([table.bool() for table in kept], 1)
            logits = torch.cat([cross, within], 1)
            target = F.pad(match.double(), (0, logits.shape[1] - SIZE))
            if make is ClipLoss:
                logits = logits.masked_fill(~kept, -1e9)
                wanted = wanted + F.cross_entropy(logits, target / target.sum(1, keepdim=True)) / 2
            else:
                each = -F.logsigmoid((2 * target - 1) * logits)
                wanted = wanted + each[kept].sum() / SIZE / 2
        found = loss(*features.values(), 7.0, -3.0, labels=mine)
        torch.testing.assert_close(found, wanted)
        both = list(features.values())
        for got, want in zip(torch.autograd.grad(found, both), torch.autograd.grad(wanted, both), strict=True):
            torch.testing.assert_close(got, want)
        steps.append((features, mine))
    assert loss.image_queue.fill == 14


@pytest.mark.parametrize("labels", [GROUPS, CAPTIONS], ids=["groups", "captions"])
@pytest.mark.parametrize("of_own", [False, True], ids=["other-tower", "own-tower"])
@pytest.mark.parametrize("make", [lambda *a, **k: MoCHi(*a, **FEW, **k), lambda *a, **k: SynCo(*a, **SIX, **k)],
                         ids=["mochi", "synco"])  # fmt: skip
def test_no_positive_or_near_duplicate_is_ever_mixed(labels, of_own, make):
    """In the batch and in the queues, by image group and by caption."""
    held = GROUPS if labels.ndim == 1 else HELD
    loss = ClipLoss(same_modality=of_own, **queues(labels=labels.ndim))
    loss(*towers(3), 7.0, None, False, held)
    mixer = make(loss, same_modality=of_own).eval()
    image, text = towers()
    for pairs, own in zip(mixer.tables(image, text, 7.0, None, False, labels), ("image", "text"), strict=True):
        draw = mixer.draw(pairs)
        drawn = torch.cat([x for x in vars(draw).values() if isinstance(x, torch.Tensor) and x.dtype == torch.long], 1)
        other = own if of_own else {"image": "text", "text": "image"}[own]
        allowed = torch.cat([apart(own, other, labels, labels), apart(own, other, labels, held)], 1)
        for row, may in zip(drawn, allowed, strict=True):
            assert bool(may[row].all())
        assert len(drawn[0].unique()) == min(9, int(allowed[0].sum()))  # and all of the hardest are


# ---- queues


def test_a_queue_joins_both_directions_and_takes_the_batch_afterwards():
    loss = ClipLoss(**queues())
    one, other = towers(1), towers(2)
    torch.testing.assert_close(loss(*one, 7.0), ClipLoss()(*one, 7.0))
    assert loss.image_queue.fill == loss.text_queue.fill == SIZE
    found = loss(*other, 7.0)
    to_text = 7 * other[0] @ torch.cat([other[1], one[1]]).T
    to_image = 7 * other[1] @ torch.cat([other[0], one[0]]).T
    own = torch.arange(SIZE)
    wanted = (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2
    torch.testing.assert_close(found, wanted)
    loss.eval()
    loss(*one, 7.0)
    assert loss.image_queue.fill == 2 * SIZE
    torch.testing.assert_close(loss.text_queue.keys, torch.cat([one[1], other[1]]))


def test_gradients_reach_the_batch_and_not_the_queue():
    loss = ClipLoss(same_modality=True, **queues())
    first, second = towers(1), towers(2)
    loss(*first, 7.0)
    grads = torch.autograd.grad(loss(*second, 7.0), [*second, *first], allow_unused=True)
    assert all(bool(g.abs().sum() > 0) for g in grads[:2]) and grads[2] is None and grads[3] is None


@pytest.mark.parametrize("delayed", [True, False], ids=["two steps before one backward", "step by step"])
def test_each_step_reads_the_queue_as_it_was(delayed):
    """float32, where tables read the queue's own buffer: what joins afterwards must not reach an open backward pass."""
    made = {name: KeyQueue(8, WIDTH) for name in ("image_queue", "text_queue")}
    loss, losses, leaves, copies = ClipLoss(same_modality=True, **made), [], [], []
    for step in range(4):
        image, text = (x.detach().float().requires_grad_() for x in towers(step))
        held = {name: copy.deepcopy(queue) for name, queue in made.items()}
        copies.append(torch.autograd.grad(ClipLoss(same_modality=True, **held)(image, text, 7.0), (image, text)))
        losses.append(loss(image, text, 7.0))
        leaves.append((image, text))
        if not delayed:
            losses[-1].backward()
    if delayed:
        sum(losses).backward()
    for leaf, wanted in zip(leaves, copies, strict=True):
        for x, grad in zip(leaf, wanted, strict=True):
            torch.testing.assert_close(x.grad, grad)


def test_a_resumed_run_has_its_queues():
    whole = MoCHi(SigLipLoss(**queues()), warmup_steps=1, **FEW)
    for step in range(3):
        whole(*towers(step), 7.0, -3.0)
    resumed = MoCHi(SigLipLoss(**queues()), warmup_steps=1, **FEW)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    values = []
    for mixer in (whole, resumed):
        torch.manual_seed(0)
        values.append(mixer(*towers(9), 7.0, -3.0))
    assert torch.equal(*values)


# ---- columns of the own tower


def test_own_tower_is_read_at_its_own_temperature():
    image, text = towers()
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    others = torch.eye(SIZE).bool()

    def wanted(by):
        total = 0
        for a, b in ((image, text), (text, image)):
            own = (by * a @ a.T).masked_fill(others, -torch.inf)
            total = total + F.cross_entropy(torch.cat([scale * a @ b.T, own], 1), torch.arange(SIZE)) / 2
        return total

    for temperature, by in ((0.07, 1 / 0.07), (None, scale)):
        loss = ClipLoss(same_modality=True, same_modality_temperature=temperature)
        ours, plain = loss(image, text, scale), wanted(by)
        torch.testing.assert_close(ours, plain)
        for got, other in zip(*(torch.autograd.grad(x, (image, text, scale)) for x in (ours, plain)), strict=True):
            torch.testing.assert_close(got, other)


def test_mixtures_of_the_own_tower_have_its_temperature():
    image, text = towers()
    mixer = MoCHi(ClipLoss(same_modality=True), same_modality=True, num_hardest=2, num_pair_mixes=3, num_anchor_mixes=1)
    pairs = mixer.tables(image, text, 7.0)[0]
    mixed = mixer.mix(pairs, mixer.draw(pairs)).blocks[-1]
    assert mixed.temperature == 0.07 and mixed.same_modality and mixed.similarity.shape == (SIZE, 4)


def test_mixers_stack_over_both_towers():
    loss = ClipLoss(same_modality=True, **queues(labels=1))
    stack = GeodesicMixup(SynCo(MoCHi(CyClipLoss(HardNegativeLoss(loss)), **FEW), same_modality=True, **SIX))
    for step in range(3):
        image, text = towers(step)
        value = stack(image, text, torch.tensor(7.0), labels=GROUPS)
        assert bool(torch.isfinite(value))
        assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(value, (image, text)))
    assert loss.text_queue.fill == 14


# ---- HCL and CyCLIP


def test_without_weights_or_bias_it_is_info_nce():
    one, other = torch.randn(2, 9, 4, dtype=torch.float64)
    plain = InfoNCE(temperature=0.2)
    torch.testing.assert_close(HardNegativeLoss(plain, beta=0, tau_plus=0)(one, other), plain(one, other))
    image, text = towers()
    torch.testing.assert_close(HardNegativeLoss(ClipLoss(), beta=0, tau_plus=0)(image, text, 7.0),
                               ClipLoss()(image, text, 7.0))  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_hundredth_of_a_temperature_in_float32(beta):
    one, other = torch.randn(2, 32, 8)
    loss = HardNegativeLoss(InfoNCE(temperature=0.01), beta=beta)
    exact = loss(one.double(), other.double())
    leaf = one.requires_grad_()
    value = loss(leaf, other)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(torch.autograd.grad(value, leaf)[0]).all())


def test_the_floor_holds_where_the_positive_is_close():
    """With identical views and a large tau_plus what is left of the negatives is below N e^(-1/t)."""
    one = torch.randn(6, 4, dtype=torch.float64)
    value = HardNegativeLoss(InfoNCE(temperature=0.5), beta=0.0, tau_plus=0.9)(one, one)
    floor = 10 * torch.exp(torch.tensor(-2.0, dtype=torch.float64))
    top = torch.exp(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(value, (1 + floor / top).log())


def test_consistency_is_added_once_to_a_mixed_loss():
    image, text = towers()
    values = []
    for loss in (ClipLoss(), CyClipLoss(ClipLoss())):
        torch.manual_seed(0)
        values.append(MoCHi(loss, num_hardest=2, num_pair_mixes=3, num_anchor_mixes=2)(image, text, 7.0))
    part = CyClipLoss(ClipLoss()).consistency(Pairs.from_towers(image, text, 7.0))
    torch.testing.assert_close(values[1] - values[0], part.total / part.count)


def test_labels_pass_through_gathered_and_mixers():
    image, text = towers()
    wanted = ClipLoss()(image, text, 7.0, labels=GROUPS)
    for criterion in (MoCHi(ClipLoss(), warmup_steps=9, **FEW), HardNegativeLoss(ClipLoss(), beta=0, tau_plus=0),
                      SynCo(CyClipLoss(ClipLoss(), in_modal=0, cross_modal=1e-9), warmup_steps=9, **SIX)):  # fmt: skip
        by_place = criterion(image, text, 7.0, None, False, GROUPS)
        if not isinstance(criterion, HardNegativeLoss):  # which leaves other positives out of its denominator
            torch.testing.assert_close(by_place, wanted)
        for before in ((), (None,), (None, False)):
            torch.testing.assert_close(criterion(image, text, 7.0, *before, labels=GROUPS), by_place)
    one, classes = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    for criterion in (SupConLoss(), MoCHi(SupConLoss(), warmup_steps=9, **FEW)):
        assert torch.equal(criterion(one, labels=classes), SupConLoss()(one, classes))
    for criterion in (Gathered(ClipLoss()), MoCHi(ClipLoss(), warmup_steps=1, **FEW)):
        torch.testing.assert_close(criterion(image, text, 7.0, None, False, GROUPS), wanted)


# ---- bad input

IMAGE, TEXT = F.normalize(torch.randn(2, SIZE, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
ONE = KeyQueue(4, WIDTH)
REFUSED = {
    "float labels": (lambda: ClipLoss()(IMAGE, TEXT, 1.0, labels=GROUPS.float()), TypeError, "torch.float32 (6,)",
                     "number"),
    "list": (lambda: SigLipLoss()(IMAGE, TEXT, 1.0, labels=[1, 2]), TypeError, "Got list", "number"),
    "bools": (lambda: ClipLoss()(IMAGE, TEXT, 1.0, labels=GROUPS > 1), TypeError, "torch.bool", "number"),
    "too few": (lambda: ClipLoss()(IMAGE, TEXT, 1.0, labels=GROUPS[:4]), ValueError, "labels (4,)", "one a pair"),
    "three": (lambda: ClipLoss()(IMAGE, TEXT, 1.0, labels=torch.ones(6, 3).long()), ValueError, "(6, 3)", "(pairs, 2)"),
    "all one": (lambda: ClipLoss()(IMAGE, TEXT, 1.0, labels=GROUPS * 0), ValueError, "6 pairs", "several captions"),
    "geodesic all one": (lambda: GeodesicMixup(ClipLoss())(IMAGE, TEXT, 1.0, labels=GROUPS * 0), ValueError, "6 pairs",
                         "several captions"),
    "one queue": (lambda: ClipLoss(image_queue=ONE, text_queue=ONE), ValueError, "one KeyQueue", "make two"),
    "temperature": (lambda: SigLipLoss(same_modality_temperature=0.0), ValueError, "=0.0", "defaults"),
    "queue width": (lambda: _warm(ClipLoss(text_queue=KeyQueue(4, 3))), ValueError, "(6, 5)", "KeyQueue(4, 5)"),
    "queue wants labels": (lambda: _warm(ClipLoss(text_queue=KeyQueue(4, 5, labels=True))), ValueError,
                           "no labels, and a queue with", "labels=False"),
    "queue of captions": (lambda: ClipLoss(text_queue=KeyQueue(4, 5, labels=True))(IMAGE, TEXT, 1.0, labels=CAPTIONS),
                          ValueError, "(6, 2), and a queue of 1 a key", "KeyQueue(4, 5, labels=2)"),
    "queue of both": (lambda: ClipLoss(text_queue=KeyQueue(4, 5, labels=2))(IMAGE, TEXT, 1.0, labels=GROUPS),
                      ValueError, "(6,), and a queue of 2 a key", "KeyQueue(4, 5, labels=True)"),
    "queue without": (lambda: ClipLoss(text_queue=KeyQueue(4, 5))(IMAGE, TEXT, 1.0, labels=CAPTIONS),
                      ValueError, "labels, and a queue without", "KeyQueue(4, 5, labels=2)"),
    "mixer's queue": (lambda: MoCHi(ClipLoss(), queue=ONE), TypeError, "one for MoCHi", "text_queue"),
    "synco's queue": (lambda: SynCo(CyClipLoss(SigLipLoss()), queue=ONE), TypeError, "one for SynCo", "image_queue"),
    "two queues": (lambda: SynCo(MoCHi(InfoNCE(), queue=ONE), queue=KeyQueue(4, 5)), TypeError, "one for MoCHi",
                   "SynCo alone"),
    "no own tower": (lambda: MoCHi(ClipLoss(), same_modality=True)(IMAGE, TEXT, 1.0), ValueError, "a table without",
                     "ClipLoss(same_modality=True)"),
    "one tower": (lambda: SynCo(SupConLoss(), same_modality=True)(IMAGE, GROUPS), ValueError, "a table without",
                  "same_modality"),
    "synco numbers": (lambda: SynCo(SupConLoss(), num_pairs=-1), ValueError, "-1", "1024"),
    "synco none": (lambda: SynCo(SupConLoss(), num_hardest=0), ValueError, "num_hardest=0", "1024"),
    "synco noise": (lambda: SynCo(SupConLoss(), noise_scale=0.0), ValueError, "0.0, 0.01, 0.01", "leaves a kind out"),
    "synco warmup": (lambda: SynCo(SupConLoss(), warmup_steps=-1), ValueError, "-1", "first step"),
    "hcl siglip": (lambda: HardNegativeLoss(SigLipLoss()), TypeError, "SigLipLoss", "ClipLoss"),
    "hcl mixer": (lambda: HardNegativeLoss(MoCHi(InfoNCE())), TypeError, "MoCHi", "around this one"),
    "hcl beta": (lambda: HardNegativeLoss(InfoNCE(), beta=-1.0), ValueError, "beta=-1.0", "0.1"),
    "hcl tau": (lambda: HardNegativeLoss(InfoNCE(), tau_plus=1.0), ValueError, "tau_plus=1.0", "0.1"),
    "cyclip classes": (lambda: CyClipLoss(MultiSimilarityLoss()), TypeError, "MultiSimilarityLoss", "ClipLoss"),
    "cyclip views": (lambda: CyClipLoss(HardNegativeLoss(InfoNCE())), TypeError, "HardNegativeLoss", "ClipLoss"),
    "cyclip weights": (lambda: CyClipLoss(ClipLoss(), in_modal=0, cross_modal=0), ValueError, "in_modal=0", "0.25"),
    "geodesic views": (lambda: GeodesicMixup(HardNegativeLoss(InfoNCE())), TypeError, "HardNegativeLoss", "ClipLoss"),
}  # fmt: skip


def _warm(loss):
    loss(IMAGE, TEXT, 1.0)
    return loss(IMAGE, TEXT, 1.0)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    call, error, seen, remedy = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 320
    assert seen in message and remedy in message, message
