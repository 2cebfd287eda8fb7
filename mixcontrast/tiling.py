"""A big batch: its table read in tiles of rows, with the memory of one tile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixcontrast.losses.base import Batch, Loss, Part, divisor_of, value_of
from mixcontrast.mixers.base import Groups, Mixer, innermost
from mixcontrast.pairs import Pairs
from mixcontrast.plans import Plan, cut_loose
from mixcontrast.records import changed


class Tiled(nn.Module):
    """A loss or mixer that reads its table in tiles of rows: the same value and gradients, the memory of one tile.

    Each tile's similarities, mixtures and gradients are made and gone before the next one's, in the forward pass; what
    stays are the gradients of the inputs and of the criterion's parameters, which the backward pass hands on. So
    nothing of A x C numbers is ever alive, and the inputs get no second derivative.

    A mixer draws its mixtures tile by tile, of the same distribution, from a seed that is drawn once a call; numbers
    that it draws once a batch stay one a batch. A queue takes the batch's keys once, a warm-up counts one step.

    Args:
        criterion: a loss or mixer of ours, queue and proxies included.
        rows: how many anchors a tile holds, at least 1. GeodesicMixup takes them by twos, a pair and its reverse;
            Metrix of all mixtures takes classes together where they fit, since a tile that holds an anchor's positives
            needs no product for them.

    Called as the criterion is, by place or by name. Raises as it does.

    Raises:
        TypeError: not a loss or mixer of ours.
        ValueError: `rows` below 1.

    Cost: a tile's similarities are a product and their gradient two; the table of a batch against itself takes one
    fewer when whole, and two towers, which are two tables here, three. ClipLoss, and V-, L- and VL-Mix around it, have
    a pass of their own on a CPU, in the forward and in the backward pass, with one more product than when whole.
    Losses that average over pairs of the batch, not within an anchor, of which only similarities tell how many there
    are, and Metrix around ProxyAnchorLoss, make each tile twice.

    >>> from mixcontrast import Metrix, SupConLoss
    >>> criterion = Tiled(Metrix(SupConLoss()), rows=4)
    >>> embeddings = torch.randn(8, 4, requires_grad=True)
    >>> criterion(embeddings, labels=torch.arange(8) // 2).backward()
    """

    def __init__(self, criterion: Loss | Mixer, rows: int = 1024) -> None:
        super().__init__()
        check_criterion("Tiled", criterion)
        if rows < 1:
            raise ValueError(f"`rows` must be at least 1. Got {rows}; 1024 is the default.")
        self.criterion, self.rows = criterion, rows

    def forward(self, *inputs: Tensor | float | None, **named: Any) -> Tensor | dict[str, Tensor]:
        called = arguments(self.criterion, inputs, named)
        seeds = Seeds(self.criterion, called, Alone())
        loss = self.criterion.in_tiles(called, self.rows, seeds.batch)
        if loss is None:
            loss = loss_by_rows(self.criterion, called, Alone(), lambda size: self.rows, seeds)
        return innermost(self.criterion).answer(loss, *called)

    def extra_repr(self) -> str:
        return f"rows={self.rows}"


def check_criterion(wrapper: str, criterion: Any) -> None:
    """One line where a wrapper is given what is no loss or mixer of ours.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(criterion, Loss | Mixer):
        raise TypeError(
            f"{wrapper} wraps a mixcontrast loss or mixer. Got {type(criterion).__name__}; "
            "use the one of the same name in mixcontrast."
        )


def arguments(criterion: Loss | Mixer, inputs: tuple, named: dict[str, Any]) -> tuple:
    """What a criterion is called with, in the order of its places.

    Raises:
        TypeError: a name that it does not have, or one too many or too few.
    """
    try:
        bound = inspect.signature(criterion.forward).bind(*inputs, **named)
    except TypeError as error:
        raise TypeError(
            f"{type(criterion).__name__} is called with {inspect.signature(innermost(criterion).plans)}. "
            f"Got {len(inputs)} by place and {sorted(named)} by name: {error}."
        ) from None
    bound.apply_defaults()
    return innermost(criterion).in_place(*bound.args, **bound.kwargs)


class Alone:
    """One process, which computes all tiles itself."""

    rank, world = 0, 1

    def whole(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of all ranks."""
        return list(tensors)

    def own(self, grad: Tensor) -> Tensor:
        """Of a gradient of the inputs of all ranks, what this rank's inputs get."""
        return grad

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Adds up, in place, what each rank has."""

    def seed(self, device: torch.device) -> int:
        """A seed that all ranks share."""
        return int(torch.randint(2**62, (1,)))


class Seeds:
    """The random states of one batch: that of what is drawn once for all, and those of its tiles.

    Args:
        criterion: a mixer has them; a loss draws nothing.
        inputs: of the call.
        ranks: who share them.

    Attributes:
        batch: what all tiles have in common.
    """

    def __init__(self, criterion: Loss | Mixer, inputs: tuple, ranks: Alone) -> None:
        self._device = next(x.device for x in inputs if isinstance(x, Tensor))
        self._generator = None
        if isinstance(criterion, Mixer):
            self._generator = torch.Generator().manual_seed(ranks.seed(self._device))
        self._once = self.next()
        self.batch = Batch(self._drawn_once)

    def next(self) -> int:
        """The seed of the next tile."""
        return 0 if self._generator is None else int(torch.randint(2**62, (), generator=self._generator))

    @contextmanager
    def at(self, seed: int):
        """The random state that a seed gives; that of before comes back."""
        if self._generator is None:
            yield
            return
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _drawn_once(self, make: Callable[[], Any]) -> Any:
        self._once += 1
        with self.at(self._once):
            return make()


def loss_by_rows(
    criterion: Loss | Mixer, inputs: tuple, ranks: Alone, rows_of: Callable[[int], int], seeds: Seeds
) -> Tensor:
    """The loss of a criterion, its table made some rows at a time.

    Args:
        inputs: what the criterion is called with, in the order of its places.
        ranks: who computes which tiles.
        rows_of: how many rows a tile holds, of how many rows there are.
        seeds: of this call.
    """
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    parameters = [p for p in criterion.parameters() if p.requires_grad]
    with_gradient = torch.is_grad_enabled()

    def run() -> tuple[Tensor, list[Tensor | None]]:
        called = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        gathered = [place for place, x in enumerate(called) if isinstance(x, Tensor) and x.ndim]
        for place, tensor in zip(gathered, ranks.whole([called[place] for place in gathered]), strict=True):
            called[place] = tensor
        features = [called[place] for place in places]
        for place, feature in zip(places, features, strict=True):
            feature.requires_grad_(with_gradient and inputs[place].requires_grad)
        walk = _Walk(criterion, tuple(called), ranks, rows_of, seeds)
        if not with_gradient or not (parameters or any(x.requires_grad for x in features)):
            return walk.value(), [None] * (len(places) + len(parameters))
        value, of_features, of_parameters = walk.value_and_gradients(features, parameters)
        owned = [g if g is None or not g.ndim else ranks.own(g) for g in of_features]
        return value, owned + of_parameters

    return _ByRows.apply(run, *(inputs[place] for place in places), *parameters)


class _ByRows(torch.autograd.Function):
    """A value whose gradients were computed with it."""

    @staticmethod
    def forward(ctx, run, *tensors: Tensor) -> Tensor:
        value, grads = run()
        ctx.known = [grad is not None for grad in grads]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = list(ctx.saved_tensors)
        return None, *(kept.pop(0) * grad if known else None for known in ctx.known)


class _Walk:
    """One batch, tile after tile."""

    def __init__(
        self, criterion: Loss | Mixer, inputs: tuple, ranks: Alone, rows_of: Callable[[int], int], seeds: Seeds
    ) -> None:
        self.criterion, self.ranks, self.seeds = criterion, ranks, seeds
        with torch.enable_grad():
            plans = criterion.read(criterion.plans(*inputs))
        self.plans, self.roots, self.leaves = cut_loose(plans)
        size = len(self.plans[0].anchors)
        device = self.plans[0].anchors.device
        groups = criterion.together(self.plans) if isinstance(criterion, Mixer) else None
        tiles = _tiles(size, groups, rows_of(size), device)
        share = [number * ranks.world // len(tiles) == ranks.rank for number in range(len(tiles))]
        self.device = device
        tiles = [(tile, seeds.next()) for tile in tiles]
        self.tiles = [tile for tile, mine in zip(tiles, share, strict=True) if mine]
        self.idle = not self.tiles
        if self.idle:  # a tile of another rank's, that counts nothing
            self.tiles = tiles[:1]

    def parts(self, plans: Sequence[Plan], rows: Tensor, seed: int) -> list[Part]:
        """Those of one tile."""
        with self.seeds.at(seed):
            return self.criterion.parts_of([Pairs.of(plan, rows) for plan in plans], self.seeds.batch)

    def value(self) -> Tensor:
        """The loss, without gradient."""
        with torch.no_grad():
            return value_of(self._sum([self.parts(self.plans, *tile) for tile in self.tiles]))

    def value_and_gradients(
        self, features: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """The loss, and the gradients of inputs (None for those that require none) and of parameters."""
        divisors = self._divisors()
        leaves = [*self.leaves, *parameters]
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        value = self.plans[0].anchors.new_zeros(())
        for rows, seed in self.tiles:
            with torch.enable_grad():
                parts = self.parts(self.plans, rows, seed)
                terms = [part.weight * (part.total / by) for part, by in zip(parts, divisors, strict=True)]
                loss = sum(terms) * (not self.idle)
            value += loss.detach()
            del parts, terms
            for total, grad in zip(totals, self._gradients(loss, leaves), strict=True):
                if grad is not None:
                    total.add_(grad)
            del loss, grad
        self.ranks.sum([value, *totals])
        return value, *self._handed_on(features, parameters, totals)

    def _handed_on(
        self, features: Sequence[Tensor], parameters: Sequence[Tensor], totals: list[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """From the gradients of what the plans hold, and of parameters, to those of the inputs and of parameters."""
        wanted = [x for x in (*features, *parameters) if x.requires_grad]
        found: dict[int, Tensor] = {}
        for x, grad in zip((*self.roots, *parameters), totals, strict=True):
            found[id(x)] = found[id(x)] + grad if id(x) in found else grad
        made = [root for root in self.roots if root.grad_fn is not None]
        if made and wanted:
            handed = self._gradients(made, wanted, [found[id(root)] for root in made])
            for x, grad in zip(wanted, handed, strict=True):
                if grad is not None:
                    found[id(x)] = found[id(x)] + grad if id(x) in found else grad
        return [found.get(id(x)) for x in features], [found[id(x)] for x in parameters]

    def _gradients(self, value, of: Sequence[Tensor], grads=None) -> tuple[Tensor | None, ...]:
        with torch.autocast(self.device.type, enabled=False):
            return torch.autograd.grad(value, of, grads, allow_unused=True)

    @torch.no_grad()
    def _divisors(self) -> list[Tensor | float]:
        """What each part's total is divided by, of all tiles: from targets and weights, or else from the losses."""
        name, nothing = type(innermost(self.criterion)).__name__, self.plans[0].anchors.new_zeros(())
        counted = []
        for tile in self.tiles:
            tables = [Pairs.of(plan, tile[0], blank=True) for plan in self.plans]
            found = self.criterion.counts_of(tables)
            if found is None:  # only the losses tell; then of every tile
                counted.append(self.parts(self.plans, *tile))
            else:
                shape = tables[0].shape
                counted.append([Part(nothing, count, kept, name=name, shape=shape) for count, kept in found])
        return [divisor_of(part) for part in self._sum(counted)]

    def _sum(self, tiles: list[list[Part]]) -> list[Part]:
        """The parts of all tiles, of all ranks, added up."""
        flat = [[x for part in parts for x in (part.total, part.count, part.kept)] for parts in tiles]
        wide = dict(dtype=torch.float64, device=self.device)
        table = [[x.to(**wide) if isinstance(x, Tensor) else torch.full((), x, **wide) for x in row] for row in flat]
        numbers = torch.stack([torch.stack(row) for row in table]).sum(dim=0) * (not self.idle)
        self.ranks.sum([numbers])
        plan = self.plans[0]
        added = numbers.to(plan.anchors.dtype).view(-1, 3).unbind(0)
        return [
            changed(part, total=total, count=count, kept=kept, shape=(len(plan.anchors), part.shape[1]))
            for part, (total, count, kept) in zip(tiles[0], added, strict=True)
        ]


def _tiles(size: int, groups: Groups | None, rows: int, device: torch.device) -> list[Tensor]:
    """The rows of each tile, in rising order."""
    if groups is None:
        return list(torch.arange(size, device=device).split(rows))
    lengths, filled = [], 0
    for group in groups.sizes:
        if filled + group > rows and filled:
            lengths.append(filled)
            filled = 0
        filled += group
        while filled > rows and not groups.must:
            lengths.append(rows)
            filled -= rows
    lengths.append(filled)
    return [tile.sort().values for tile in groups.order.split([n for n in lengths if n])]
