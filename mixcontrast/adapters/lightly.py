"""Our loss, queue and mixers in lightly's SimCLR and MoCo.

Before, SimCLR and MoCo::

    criterion = NTXentLoss(temperature=0.5)
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

After, with the same call::

    criterion = MoCHi(from_lightly(NTXentLoss(temperature=0.5)), num_hardest=64, num_pair_mixes=64, num_anchor_mixes=16)
    criterion = MoCHi(InfoNCE(temperature=0.1), queue=KeyQueue(4096, 128), num_hardest=256, num_pair_mixes=256)

    loss = criterion(query, key)

Our queue is in the state dict, where their bank is lost at a restart.
"""

from __future__ import annotations

from torch import Tensor, nn

from mixcontrast.distributed import Gathered
from mixcontrast.losses.softmax import InfoNCE
from mixcontrast.queue import KeyQueue

try:
    from lightly.loss import NTXentLoss
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"This adapter needs lightly: {error}; pip install 'mixcontrast[lightly]'") from None


def from_lightly(loss: NTXentLoss) -> InfoNCE | Gathered:
    """Our equal of lightly's NTXentLoss: the same temperature, the same keys in the queue, the same value and gradient.

    With a memory bank, an InfoNCE with a KeyQueue that holds the bank's keys, and writes where the bank would. It joins
    the keys of each call in training mode (theirs: of each call whose query has a gradient), goes on at the start when
    a batch passes the end (theirs drops what passes), and needs no batch that divides the size. With
    `gather_distributed=True`, `Gathered(InfoNCE(...))`, whose loss is the mean over ranks of theirs, on every rank. For
    a mixer with a queue, pass `queue=ours.queue` to MoCHi.

    A KeyQueue made by hand starts empty, where theirs starts with random keys.

    Args:
        loss: `lightly.loss.NTXentLoss`.

    Raises:
        TypeError: another loss, for which there is no equal.
        ValueError: a temperature that is not positive.

    >>> from_lightly(NTXentLoss(temperature=0.2, memory_bank_size=(16, 4))).queue
    KeyQueue(size=16, dim=4, labels=False)
    """
    if type(loss) is not NTXentLoss:
        raise TypeError(
            f"from_lightly knows the equal of NTXentLoss alone. Got {type(loss).__module__}.{type(loss).__name__}; "
            "choose one of mixcontrast's losses."
        )
    queue = None
    if loss.memory_bank.size[0] > 0:
        queue = _queue_of(loss.memory_bank.bank, int(loss.memory_bank.bank_ptr))
    ours = InfoNCE(temperature=loss.temperature, queue=queue)
    return Gathered(ours) if loss.gather_distributed else ours


class MemoryBank(nn.Module):
    """A KeyQueue under the call of lightly's MemoryBankModule, for losses that hold one: `bank(output, update=True)`.

    Args:
        queue: without labels. Keys are divided by their length, where theirs are kept as they are.
        feature_dim_first: whether the negatives come as (D, K), as theirs by default.

    Raises:
        TypeError: `queue` is not a KeyQueue without labels.

    >>> import torch
    >>> bank = MemoryBank(KeyQueue(8, 4))
    >>> _ = bank(torch.randn(3, 4), update=True)
    >>> output, negatives = bank(torch.randn(3, 4))
    >>> tuple(negatives.shape)
    (4, 3)
    """

    def __init__(self, queue: KeyQueue, *, feature_dim_first: bool = True) -> None:
        super().__init__()
        if not isinstance(queue, KeyQueue) or queue.label_buffer is not None:
            raise TypeError(
                f"MemoryBank holds a KeyQueue without labels. Got {queue}; make it with KeyQueue(size, dim)."
            )
        self.queue, self.feature_dim_first = queue, feature_dim_first

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor]:
        """The output as it is, and the keys that were there before it; with `update` it joins them.

        Args:
            output: (B, D).
            labels: not read, as in theirs.
            update: whether `output` joins the queue.

        Returns:
            (B, D), and (D, fill) or (fill, D): an empty queue gives no keys, where theirs gives random ones.
        """
        keys = self.queue.keys.clone()
        if update:
            self.queue.enqueue(output.detach())
        return output, keys.mT if self.feature_dim_first else keys


def _queue_of(bank: Tensor, pointer: int) -> KeyQueue:
    """A full queue of a bank's keys in their places, whose next place is the bank's."""
    queue = KeyQueue(*bank.shape).to(bank.device)
    oldest_first = bank.roll(-pointer, dims=0)
    if pointer:  # so that the first key lands at the pointer
        queue.enqueue(bank[:pointer])
    queue.enqueue(oldest_first)
    return queue
