"""The queue of keys: order, wrap-around, resuming, and what a training step sees."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mixcontrast import InfoNCE, KeyQueue, Pairs

DIM = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def held(queue: KeyQueue) -> torch.Tensor:
    """The keys, oldest first."""
    keys = queue.keys
    return keys if queue.fill < queue.size else keys.roll(-queue.pointer, dims=0)


def test_a_new_queue_is_empty():
    queue = KeyQueue(4, DIM, labels=True)
    assert (queue.pointer, queue.fill, tuple(queue.keys.shape), tuple(queue.labels.shape)) == (0, 0, (0, DIM), (0,))
    assert KeyQueue(4, DIM).labels is None


def test_keys_are_kept_in_order_and_as_unit_vectors():
    queue, keys = KeyQueue(5, DIM), 7 * torch.randn(3, DIM)
    queue.enqueue(keys)
    torch.testing.assert_close(queue.keys, normalize(keys))
    assert (queue.pointer, queue.fill) == (3, 3)


def test_what_passes_the_end_goes_on_at_the_start():
    queue, keys = KeyQueue(5, DIM), normalize(torch.randn(6, DIM))
    queue.enqueue(keys[:3])
    queue.enqueue(keys[3:])
    assert (queue.pointer, queue.fill) == (1, 5)
    torch.testing.assert_close(queue.keys, keys[[5, 1, 2, 3, 4]])


def test_a_batch_that_ends_at_the_end():
    queue, keys = KeyQueue(4, DIM), normalize(torch.randn(4, DIM))
    queue.enqueue(keys)
    assert (queue.pointer, queue.fill) == (0, 4)
    torch.testing.assert_close(queue.keys, keys)


def test_of_a_batch_larger_than_the_queue_the_last_keys_stay():
    queue, keys = KeyQueue(4, DIM, labels=True), normalize(torch.randn(13, DIM))
    queue.enqueue(keys[:2], torch.arange(2))
    queue.enqueue(keys[2:], torch.arange(2, 13))
    assert queue.fill == 4
    torch.testing.assert_close(held(queue), keys[-4:])
    assert queue.labels.roll(-queue.pointer).tolist() == [9, 10, 11, 12]


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 7), batches=sizes, waits=st.lists(st.booleans(), min_size=12, max_size=12))
def test_equals_a_plain_list(size, batches, waits):
    """Whether the keys come by `enqueue` or by a training step, which writes them later."""
    queue, plain = KeyQueue(size, DIM, labels=True), []
    number = 0
    for batch, wait in zip(batches, waits, strict=False):
        keys, labels = normalize(torch.randn(batch, DIM)), torch.arange(number, number + batch)
        number += batch
        if wait and (batch > 1 or queue.fill):
            try:
                queue.pairs(torch.randn(batch, DIM), keys, labels, enqueue=True)
            except ValueError:  # no query keeps a negative
                queue.enqueue(keys, labels)
        else:
            queue.enqueue(keys, labels)
        plain = (plain + list(zip(keys, labels.tolist(), strict=True)))[-size:]
        assert queue.fill == len(plain)
        assert 0 <= queue.pointer < size
        torch.testing.assert_close(held(queue), torch.stack([key for key, _ in plain]))
        order = queue.labels.roll(-queue.pointer) if queue.fill == size else queue.labels
        assert order.tolist() == [label for _, label in plain]


def test_moco_over_several_steps_equals_a_plain_loop():
    """Values and gradients; the batch of 4 does not divide the queue of 10."""
    criterion, plain = InfoNCE(temperature=0.2, queue=KeyQueue(10, DIM).double()), []
    for step in range(6):
        query = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
        key = torch.randn(4, DIM, dtype=torch.float64)
        ours = criterion(query, key)
        keys = normalize(key)
        rows = []
        for i, (q, k) in enumerate(zip(normalize(query), keys, strict=True)):
            negatives = plain if plain else [other for j, other in enumerate(keys) if j != i]
            logits = torch.stack([q @ k, *[q @ n for n in negatives]]) / 0.2
            rows.append(logits.logsumexp(0) - logits[0])
        theirs = torch.stack(rows).mean()
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(
            torch.autograd.grad(ours, query), torch.autograd.grad(theirs, query), rtol=1e-9, atol=1e-12
        )
        plain = (plain + list(keys))[-10:]
        assert criterion.queue.fill == len(plain) == min(4 * (step + 1), 10)


def test_gradient_reaches_the_query_only():
    criterion = InfoNCE(queue=KeyQueue(6, DIM))
    criterion.queue.enqueue(torch.randn(6, DIM))
    query, key = torch.randn(4, DIM, requires_grad=True), torch.randn(4, DIM, requires_grad=True)
    criterion(query, key).backward()
    assert query.grad.abs().sum() > 0
    assert key.grad is None
    assert not criterion.queue.keys.requires_grad


def test_backward_after_the_keys_were_read_or_enqueued():
    """What a table reads stays as it was at its step, whatever is written since."""
    def step(after):
        torch.manual_seed(1)
        queue = KeyQueue(6, DIM)
        queue.enqueue(torch.randn(6, DIM))
        criterion = InfoNCE(queue=queue)
        query = torch.randn(4, DIM, requires_grad=True)
        loss = criterion(query, torch.randn(4, DIM))
        after(queue)
        loss.backward()
        return query.grad

    usual = step(lambda queue: None)
    for after in (
        lambda queue: queue.keys,
        lambda queue: queue.state_dict(),
        lambda queue: queue.enqueue(torch.randn(3, DIM)),
    ):
        torch.testing.assert_close(step(after), usual)


def test_two_steps_before_one_backward():
    """A symmetric loss, or accumulated gradients."""
    torch.manual_seed(2)
    a, b = torch.randn(4, DIM, requires_grad=True), torch.randn(4, DIM, requires_grad=True)
    keys = torch.randn(6, DIM)

    def gradients(together):
        queue = KeyQueue(6, DIM)
        queue.enqueue(keys)
        criterion = InfoNCE(queue=queue)
        first = criterion(a, b)
        if together:
            return torch.autograd.grad(first + criterion(b, a), [a, b])
        of_a = torch.autograd.grad(first, a)
        return *of_a, *torch.autograd.grad(criterion(b, a), b)

    torch.testing.assert_close(gradients(True), gradients(False))


def test_a_key_changed_after_the_step_does_not_change_the_queue():
    """The keys wait for the backward pass; a momentum encoder may reuse their memory meanwhile."""
    queue = KeyQueue(6, DIM)
    key = torch.randn(4, DIM)
    expected = normalize(key)
    queue.pairs(torch.randn(4, DIM), key, enqueue=True)
    key.zero_()
    torch.testing.assert_close(queue.keys, expected)


def test_the_steps_own_keys_are_not_its_negatives():
    queue = KeyQueue(6, DIM)
    queue.enqueue(torch.randn(2, DIM))
    pairs = queue.pairs(torch.randn(4, DIM), torch.randn(4, DIM), enqueue=True)
    assert pairs.shape == (4, 3)
    assert (queue.pointer, queue.fill) == (0, 6)


def test_evaluation_does_not_enqueue():
    criterion = InfoNCE(queue=KeyQueue(6, DIM)).eval()
    loss = criterion(torch.randn(4, DIM), torch.randn(4, DIM))
    assert loss.isfinite() and criterion.queue.fill == 0
    criterion.train()
    criterion(torch.randn(4, DIM), torch.randn(4, DIM))
    assert criterion.queue.fill == 4


def test_bad_input_is_not_enqueued():
    queue = KeyQueue(6, DIM)
    key = torch.randn(4, DIM)
    key[2] = torch.nan
    with pytest.raises(ValueError, match="^`key` must be finite"):
        queue.pairs(torch.randn(4, DIM), key, enqueue=True)
    assert queue.fill == 0


# ---- resuming


@pytest.mark.parametrize("waiting", [False, True])
def test_a_resumed_run_goes_on_exactly(waiting):
    def step(queue):
        keys, labels = torch.randn(4, DIM), torch.randint(3, (4,))
        loss = InfoNCE(queue=queue)(torch.randn(4, DIM), keys, labels)
        if not waiting:
            assert queue.keys is not None
        return loss

    queue = KeyQueue(10, DIM, labels=True)
    for _ in range(4):
        step(queue)
    file = io.BytesIO()
    torch.save(InfoNCE(queue=queue).state_dict(), file)
    file.seek(0)
    resumed = KeyQueue(10, DIM, labels=True)
    step(resumed)  # what it held, or what waited, is gone after loading
    InfoNCE(queue=resumed).load_state_dict(torch.load(file, weights_only=True))
    assert (resumed.pointer, resumed.fill) == (queue.pointer, queue.fill) == (6, 10)
    assert torch.equal(resumed.keys, queue.keys) and torch.equal(resumed.labels, queue.labels)
    torch.manual_seed(5)
    go_on = [step(queue) for _ in range(3)]
    torch.manual_seed(5)
    assert torch.equal(torch.stack([step(resumed) for _ in range(3)]), torch.stack(go_on))
    assert torch.equal(resumed.keys, queue.keys) and torch.equal(resumed.labels, queue.labels)


def test_a_partly_filled_queue_resumes():
    queue, resumed = KeyQueue(10, DIM), KeyQueue(10, DIM)
    queue.enqueue(torch.randn(3, DIM))
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()))
    assert (resumed.pointer, resumed.fill) == (3, 3)
    assert torch.equal(resumed.keys, queue.keys)


def test_a_copy_is_a_queue_of_its_own():
    queue = KeyQueue(6, DIM)
    queue.pairs(torch.randn(4, DIM, requires_grad=True), torch.randn(4, DIM), enqueue=True)
    other = copy.deepcopy(queue)
    other.enqueue(torch.randn(4, DIM))
    assert (queue.fill, other.fill) == (4, 6)


# ---- several labels a key


def test_several_labels_a_key_go_round_and_resume():
    queue, keys = KeyQueue(5, DIM, labels=2), normalize(torch.randn(8, DIM))
    labels = torch.arange(16).view(8, 2)
    assert tuple(queue.labels.shape) == (0, 2) and queue.num_labels == 2 and "labels=2" in repr(queue)
    queue.enqueue(keys[:3], labels[:3])
    queue.enqueue_after(keys[3:], labels[3:])
    assert queue.labels.roll(-queue.pointer, dims=0).tolist() == labels[3:].tolist()
    resumed = KeyQueue(5, DIM, labels=2)
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()))
    assert torch.equal(resumed.labels, queue.labels) and resumed.pointer == queue.pointer
    weight = resumed.negatives(torch.eye(DIM)[:2], torch.tensor([[6, 9], [0, 1]])).weight.cells(None)
    assert weight.tolist() == [[6 != a and 9 != b for a, b in queue.labels.tolist()], [True] * 5]
    assert not weight[0].all()


def test_a_state_of_one_label_goes_into_a_queue_of_two():
    old, new = KeyQueue(4, DIM, labels=True), KeyQueue(4, DIM, labels=2)
    old.enqueue(torch.randn(3, DIM), torch.tensor([4, 7, 4]))
    state = old.state_dict()
    assert tuple(state["label_buffer"].shape) == (4,)
    KeyQueue(4, DIM, labels=True).load_state_dict(state)
    new.load_state_dict(state)
    assert new.labels[:, 0].tolist() == [4, 7, 4] and (new.fill, new.pointer) == (3, 3)
    assert len(new.labels[:, 1].unique()) == 3 and bool((new.labels[:, 1] < -(2**62)).all())
    assert tuple(state["label_buffer"].shape) == (4,)


def test_labels_are_kept_from_the_first_key_on():
    queue = KeyQueue(4, DIM)
    queue.keep_labels(2)
    queue.enqueue(torch.randn(2, DIM), torch.ones(2, 2).long())
    queue.keep_labels(2)
    assert queue.num_labels == 2
    with pytest.raises(ValueError, match=r"^The labels of keys .* 2 keys with 2 labels; .*KeyQueue\(4, 3, labels=1\)"):
        queue.keep_labels(1)


# ---- the class oracle, and a queue that is still empty


def test_the_class_oracle_leaves_out_keys_of_the_querys_own_class():
    queue = KeyQueue(4, DIM, labels=True)
    queue.enqueue(torch.randn(4, DIM), torch.tensor([0, 1, 2, 1]))
    pairs = queue.pairs(torch.randn(3, DIM), torch.randn(3, DIM), torch.tensor([1, 5, 0]), enqueue=False)
    assert pairs.weight.tolist() == [[1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert pairs.target.tolist() == [[0, 0, 0, 0, 1]] * 3


def test_an_empty_queue_takes_the_other_keys_of_the_batch():
    query, key = torch.randn(3, DIM), torch.randn(3, DIM)
    pairs = KeyQueue(4, DIM).pairs(query, key, enqueue=True)
    torch.testing.assert_close(pairs.similarity[:, :3], normalize(query) @ normalize(key).T)
    torch.testing.assert_close(pairs.similarity[:, 3], (normalize(query) * normalize(key)).sum(1))
    assert pairs.weight.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]]
    labelled = KeyQueue(4, DIM, labels=True).pairs(query, key, torch.tensor([1, 2, 1]), enqueue=True)
    assert labelled.weight.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1]]


def test_an_oracle_that_leaves_no_negative_is_refused():
    """Its loss would be a silent zero."""
    queue = KeyQueue(4, DIM, labels=True)
    for _ in range(2):  # empty, then filled
        with pytest.raises(ValueError, match="^The class oracle leaves no negative. Got 3 queries") as e:
            queue.pairs(torch.randn(3, DIM), torch.randn(3, DIM), torch.tensor([1, 1, 1]), enqueue=True)
        assert "\n" not in str(e.value)
        queue.enqueue(torch.randn(4, DIM), torch.tensor([1, 1, 1, 1]))


def test_half_and_double_queries():
    queue = KeyQueue(4, DIM)
    queue.enqueue(torch.randn(4, DIM).half())
    assert queue.keys.dtype == torch.float32
    assert InfoNCE(queue=queue)(torch.randn(2, DIM).bfloat16(), torch.randn(2, DIM).half()).dtype == torch.float32
    assert InfoNCE(queue=queue)(torch.randn(2, DIM).double(), torch.randn(2, DIM)).dtype == torch.float64


# ---- bad input

e4 = torch.eye(4)[:2]


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda: KeyQueue(0, 4), ValueError, "A queue needs a size and a dim of at least 1. Got size 0, dim 4."),
        (lambda: KeyQueue(4, 0), ValueError, "A queue needs a size and a dim of at least 1. Got size 4, dim 0."),
        (
            lambda: KeyQueue(4, 3).enqueue(e4),
            ValueError,
            r"`keys` must be as wide as the queue. Got keys \(2, 4\), queue \(4, 3\); make the queue with "
            r"KeyQueue\(4, 4\).",
        ),
        (
            lambda: KeyQueue(4, 3).pairs(e4, e4, enqueue=False),
            ValueError,
            r"`query` must be as wide as the queue. Got query \(2, 4\), queue \(4, 3\)",
        ),
        (
            lambda: KeyQueue(4, 4).enqueue(e4, torch.arange(2)),
            ValueError,
            r"A queue keeps labels for all keys or for none. Got labels, and a queue without them; make it with "
            r"KeyQueue\(4, 4, labels=True\).",
        ),
        (
            lambda: KeyQueue(4, 4, labels=True).enqueue(e4),
            ValueError,
            "A queue keeps labels for all keys or for none. Got no labels, and a queue with them; .*labels=False",
        ),
        (
            lambda: KeyQueue(4, 4, labels=True).enqueue(e4, torch.arange(3)),
            ValueError,
            r"`embeddings` and `labels` must have the same length. Got embeddings \(2, 4\), labels \(3,\); ",
        ),
        (
            lambda: KeyQueue(4, 4, labels=2).enqueue(e4, torch.ones(2, 3).long()),
            ValueError,
            r"A queue is given as many labels a key as it keeps. Got labels \(2, 3\), and a queue of 2 a key; make it "
            r"with KeyQueue\(4, 4, labels=3\).",
        ),
        (
            lambda: KeyQueue(4, 4, labels=2).enqueue(e4, torch.ones(3, 2).long()),
            ValueError,
            r"`embeddings` and `labels` must have the same length. Got embeddings \(2, 4\), labels \(3,\); ",
        ),
        (
            lambda: KeyQueue(4, 4, labels=2).pairs(e4, e4, torch.ones(2, 2).long(), enqueue=True),
            ValueError,
            r"The class oracle reads one label a key. Got a queue that keeps 2; .*labels=True",
        ),
        (lambda: KeyQueue(4, 4, labels=-1), ValueError, "`labels` is how many are kept with each key. Got -1; "),
        (lambda: KeyQueue(4, 4, labels=True).enqueue(e4, [0, 1]), TypeError, "`labels` must be a tensor. Got list"),
        (lambda: KeyQueue(4, 4).enqueue(0 * e4), ValueError, "`keys` must not be zero: "),
        (lambda: KeyQueue(4, 4).enqueue(e4 * torch.nan), ValueError, "`keys` must be finite. "),
        (lambda: KeyQueue(4, 4).enqueue(torch.arange(4)), ValueError, "`keys` must have shape "),
        (
            lambda: KeyQueue(4, 4).pairs(e4, e4[:1], enqueue=True),
            ValueError,
            r"`query` and `key` must have the same shape. Got query \(2, 4\), key \(1, 4\); ",
        ),
        (
            lambda: KeyQueue(4, 4).pairs(e4[:1], e4[:1], enqueue=True),
            ValueError,
            r"A queue that is still empty needs at least two queries, else there are no negatives. "
            r"Got query \(1, 4\); ",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, torch.eye(3)),
            ValueError,
            r"The queue's keys must be as wide as the query. Got query \(2, 4\), queue \(3, 3\); make the queue with "
            r"KeyQueue\(size, 4\).",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, torch.eye(4), labels=torch.arange(2)),
            ValueError,
            "The class oracle needs the labels of the queries and of the queue. Got only the queries's; ",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, torch.eye(4), queue_labels=torch.arange(4)),
            ValueError,
            "The class oracle needs the labels of the queries and of the queue. Got only the queue's; ",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, torch.eye(4), labels=torch.arange(2), queue_labels=torch.arange(1)),
            ValueError,
            r"`queue` and `queue_labels` must have the same length. Got queue \(4, 4\), queue_labels \(1,\); ",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, e4[:0], labels=torch.arange(3), queue_labels=torch.arange(0)),
            ValueError,
            r"`embeddings` and `labels` must have the same length. Got embeddings \(2, 4\), labels \(3,\); ",
        ),
        (
            lambda: Pairs.from_queue(e4, e4, torch.eye(4), labels=torch.rand(2), queue_labels=torch.arange(4)),
            TypeError,
            "`labels` of a class loss must be integers. ",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, error, line):
    with pytest.raises(error, match="^" + line) as e:
        call()
    assert "\n" not in str(e.value)
