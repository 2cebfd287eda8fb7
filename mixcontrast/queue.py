"""A first-in, first-out queue of keys, for contrastive losses with more negatives than the batch holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixcontrast.cells import Match
from mixcontrast.checks import check_embeddings, check_labels
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Columns, Plan
from mixcontrast.similarity import unit


class KeyQueue(nn.Module):
    """The last `size` keys, as unit vectors, with optional class labels.

    Keys, labels, pointer and fill are all in the state dict, so a resumed run goes on with the queue it had. Only
    filled places are read. A batch need not divide the size: what passes the end is written from the start on; of a
    batch larger than the queue the last `size` keys stay.

    To compile a step that enqueues, set `torch._dynamo.config.allow_unspec_int_on_nn_module = True`: pointer and fill
    are then numbers of the graph, where otherwise each of their values is a graph of its own. A CUDA graph keeps the
    pointer it was captured with: capture in evaluation mode, with a full queue, and `enqueue` between replays.

    Args:
        size: how many keys it holds (K); MoCo's 65536, or 16384.
        dim: the width of a key (D).
        labels: how many labels are kept with each key; True is 1, a class. Keys of a pair of towers have 2: the image's
            number and the caption's.

    A state dict of 1 label goes into a queue of more, whose others match nothing.

    Raises:
        ValueError: `size` or `dim` below 1, `labels` below 0.

    Source: He et al., CVPR 2020, arXiv 1911.05722. Differs: it starts empty, where MoCo starts with random vectors.

    >>> queue = KeyQueue(4, 2)
    >>> queue.enqueue(torch.eye(2).repeat(3, 1)[:3])
    >>> queue.fill, queue.pointer, tuple(queue.keys.shape)
    (3, 3, (3, 2))
    """

    def __init__(self, size: int, dim: int, *, labels: bool | int = False) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"A queue needs a size and a dim of at least 1. Got size {size}, dim {dim}.")
        if labels < 0:
            raise ValueError(f"`labels` is how many are kept with each key. Got {labels}; 0 is none.")
        self.size, self.dim = size, dim
        self._pointer, self._fill = 0, 0
        self._waiting: tuple[Tensor, Tensor | None] | None = None
        self._num_tables, self._open_tables = 0, set()  # tables that read the buffer and await their backward pass
        self.register_buffer("key_buffer", torch.zeros(size, dim))
        self.register_buffer("label_buffer", None)
        self.keep_labels(int(labels))

    @property
    def num_labels(self) -> int:
        """How many labels are kept with each key."""
        if self.label_buffer is None:
            return 0
        return 1 if self.label_buffer.ndim == 1 else self.label_buffer.shape[1]

    def keep_labels(self, num_labels: int) -> None:
        """Keeps so many labels with each key from now on.

        Raises:
            ValueError: keys are held, whose labels are not known.
        """
        if num_labels == self.num_labels:
            return
        if self.fill:
            raise ValueError(
                f"The labels of keys are kept from the first one on. Got a queue that holds {self.fill} keys with "
                f"{self.num_labels} labels; make it with KeyQueue({self.size}, {self.dim}, labels={num_labels})."
            )
        shape = (self.size,) if num_labels == 1 else (self.size, num_labels)
        device = self.key_buffer.device
        self.label_buffer = torch.zeros(shape, dtype=torch.long, device=device) if num_labels else None

    @property
    def pointer(self) -> int:
        """The place of the next key."""
        return (self._pointer + min(self._num_waiting, self.size)) % self.size

    @property
    def fill(self) -> int:
        """How many keys are held."""
        return min(self._fill + self._num_waiting, self.size)

    @property
    def _num_waiting(self) -> int:
        return 0 if self._waiting is None else len(self._waiting[0])

    @property
    def keys(self) -> Tensor:
        """(fill, D) the keys held, a view."""
        self._take_in()
        return self.key_buffer[: self._fill]

    @property
    def labels(self) -> Tensor | None:
        """(fill,) their labels, or (fill, G) where G are kept, a view; None where none are."""
        self._take_in()
        return None if self.label_buffer is None else self.label_buffer[: self._fill]

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor | None = None) -> None:
        """Writes keys over the oldest ones.

        Args:
            keys: (B, D) floats of any length; they are divided by their Euclidean length.
            labels: (B,) integers, where the queue keeps labels, or (B, G) where it keeps G.

        Raises:
            ValueError: keys of another width, NaN or zero keys on a CPU, labels missing or given in vain.
        """
        check_embeddings("keys", keys)
        self._check_width("keys", keys)
        self._check_labels(labels, keys)
        self._take_in()
        self._write(keys, labels)

    def _take_in(self) -> None:
        """Writes the keys that waited for the backward pass of their step, which reads the keys before them."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._write(*waiting)

    @torch.no_grad()
    def _write(self, keys: Tensor, labels: Tensor | None) -> None:
        if self._open_tables:  # two steps before one backward pass: the first keeps the buffer it read
            self.key_buffer = self.key_buffer.clone()
            self._open_tables.clear()
        keys = unit(keys)[-self.size :].to(self.key_buffer.dtype)
        first = min(len(keys), self.size - self._pointer)  # up to the end of the buffer, then from its start
        self.key_buffer[self._pointer : self._pointer + first] = keys[:first]
        self.key_buffer[: len(keys) - first] = keys[first:]
        if labels is not None:
            labels = labels[-self.size :]
            self.label_buffer[self._pointer : self._pointer + first] = labels[:first]
            self.label_buffer[: len(labels) - first] = labels[first:]
        self._pointer = (self._pointer + len(keys)) % self.size
        self._fill = min(self._fill + len(keys), self.size)

    def pairs(self, query: Tensor, key: Tensor, labels: Tensor | None = None, *, enqueue: bool) -> Pairs:
        """The table of queries against their keys and the queue as it stands; the keys join it afterwards."""
        return Pairs.of(self.plan(query, key, labels, enqueue=enqueue))

    def plan(self, query: Tensor, key: Tensor, labels: Tensor | None = None, *, enqueue: bool) -> Plan:
        """The plan of the table of queries against their keys and the queue as it stands; the keys join it afterwards.

        They are written when the queue is next read or saved, not now: the backward pass of this table reads the keys
        of this step, and a copy of them would cost as much as the loss. Where that pass has not run by then (a
        symmetric loss, accumulated steps), the queue goes on in a copy.

        Args:
            query: (A, D) floats.
            key: (A, D) floats, detached.
            labels: (A,) integers, where the queue keeps labels: keys of the query's own class are left out.
            enqueue: whether the keys join the queue.

        Raises:
            ValueError: as `Pairs.from_queue` and `enqueue`; a queue of several labels a key.
        """
        check_embeddings("query", query)
        self._check_width("query", query)
        self._check_labels(labels, query)
        if self.num_labels > 1:
            raise ValueError(
                f"The class oracle reads one label a key. Got a queue that keeps {self.num_labels}; make it with "
                f"KeyQueue({self.size}, {self.dim}, labels=True)."
            )
        keys, queue_labels = self.keys, self.labels
        if enqueue and torch.compiler.is_compiling():
            keys = keys.clone()  # a compiled graph has no backward pass to wait for
        plan = Plan.from_queue(
            query, key, keys, labels=labels, queue_labels=queue_labels, watch=self._await_backward
        )
        if enqueue:
            self._waiting = (key.detach().clone(), None if labels is None else labels.clone())
        return plan

    def negatives(self, anchors: Tensor, labels: Tensor | None = None) -> Columns:
        """The keys held, as columns of a table of which the anchors' positives are elsewhere.

        Args:
            anchors: (A, D) floats, unit vectors.
            labels: (A,) integers, where the queue keeps labels: keys of the anchor's own label are left out. Or (A, G)
                where it keeps G: keys that have any in common with the anchor's.

        Returns:
            Columns of target 0; none while the queue is empty.
        """
        self._check_width("anchors", anchors)
        self._check_labels(labels, anchors)
        keys = self.keys.to(anchors.dtype)
        if torch.compiler.is_compiling():
            keys = keys.clone()  # a compiled graph has no backward pass to wait for
        weight = 1.0 if labels is None else Match(labels, self.labels, equal=False)
        return Columns(keys, 0.0, weight, watch=self._await_backward)

    @torch.no_grad()
    def enqueue_after(self, keys: Tensor, labels: Tensor | None = None) -> None:
        """As `enqueue`, but written when the queue is next read: tables made before still read the keys they had."""
        self._check_width("keys", keys)
        self._check_labels(labels, keys)
        self._take_in()
        self._waiting = (keys.detach().clone(), None if labels is None else labels.clone())

    def _await_backward(self, similarity: Tensor) -> None:
        if not similarity.requires_grad or torch.compiler.is_compiling():
            return
        self._num_tables += 1
        number = self._num_tables
        self._open_tables.add(number)
        similarity.grad_fn.register_hook(lambda *_: self._open_tables.discard(number))  # after it has read the keys

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        self._take_in()  # before the buffers are read: what waited may go into a new one
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *more) -> None:
        name = f"{prefix}label_buffer"
        held = state_dict.get(name)
        if self.num_labels > 1 and isinstance(held, Tensor) and held.shape == (self.size,):
            unknown = torch.iinfo(torch.long).min + torch.arange(self.size, device=held.device)  # no two alike
            others = unknown[:, None].expand(-1, self.num_labels - 1)
            state_dict[name] = torch.cat([held[:, None], others], dim=1)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def get_extra_state(self) -> Tensor:
        """Pointer and fill, for the state dict, whose buffers hold the keys that waited."""
        return torch.tensor([self.pointer, self.fill])

    def set_extra_state(self, state: Tensor) -> None:
        """Pointer and fill, from a state dict."""
        self._waiting = None
        self._pointer, self._fill = (int(number) for number in state)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, labels={_as_written(self.num_labels)}"

    def _check_width(self, name: str, embeddings: Tensor) -> None:
        if embeddings.shape[1] != self.dim:
            raise ValueError(
                f"`{name}` must be as wide as the queue. Got {name} {tuple(embeddings.shape)}, queue "
                f"({self.size}, {self.dim}); make the queue with KeyQueue({self.size}, {embeddings.shape[1]})."
            )
        if embeddings.device != self.key_buffer.device:
            raise ValueError(
                f"`{name}` must be on the device of the queue. Got {name} on {embeddings.device}, the queue on "
                f"{self.key_buffer.device}; move the criterion: criterion.to({str(embeddings.device)!r})."
            )

    def _check_labels(self, labels: Tensor | None, embeddings: Tensor) -> None:
        if (labels is None) != (self.label_buffer is None):
            raise ValueError(
                "A queue keeps labels for all keys or for none. Got "
                + ("labels, and a queue without" if labels is not None else "no labels, and a queue with")
                + f" them; {self._make_it(labels)}"
            )
        if labels is None:
            return
        if self.num_labels == 1 and not (isinstance(labels, Tensor) and labels.ndim == 2):
            check_labels(labels, embeddings)
            return
        if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] != self.num_labels:
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"A queue is given as many labels a key as it keeps. Got labels {got}, and a queue of "
                f"{self.num_labels} a key; {self._make_it(labels)}"
            )
        check_labels(labels[:, 0], embeddings)

    def _make_it(self, labels: Tensor | None) -> str:
        """The remedy: a queue for these labels."""
        given = 0 if labels is None else labels.shape[1] if isinstance(labels, Tensor) and labels.ndim == 2 else 1
        return f"make it with KeyQueue({self.size}, {self.dim}, labels={_as_written(given)})."


def _as_written(num_labels: int) -> bool | int:
    """The argument `labels` of a queue that keeps so many."""
    return num_labels if num_labels > 1 else bool(num_labels)
