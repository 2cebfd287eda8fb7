"""Encoders whose parameters are shards, one a process (torch's fully_shard): put in pieces, loaded, clipped, read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

BLOCKS = (nn.Sequential, nn.ModuleList)
SMALLEST_BLOCK = 1 / 200  # of the parameters of a network: less is not worth a message of its own
HOW = "trainer.strategy: {class_path: mixcontrast.training.Shards}"


class Shards(ModelParallelStrategy):
    """Each process holds a share of the parameters of encoder and projector, of their gradients and optimizer states.

    It is Lightning's ModelParallelStrategy of all processes of the trainer, without tensor parallelism, whose
    checkpoints are one whole file, as those of `ddp` and one device are. Our training modules shard themselves under
    it; the criterion is whole.

    Args:
        process_group_backend: nccl, gloo; None: what suits the device.
        timeout: of a collective; None: torch's own.
    """

    def __init__(self, *, process_group_backend: str | None = None, timeout: timedelta | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend,
            timeout=timeout,
        )  # fmt: skip

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All of it on the first process, nothing on others."""
        found = whole_state(self.lightning_module)
        return found if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """All of it on the first process, nothing on others."""
        found = tree_map_only(Tensor, lambda tensor: whole(tensor).cpu(), optimizer.state_dict())
        return found if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole(self.lightning_module, checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Of each whole state this process's share.

        Raises:
            ValueError: the parameters were in other groups, as those of another strategy may be.
        """
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            here, there = (
                [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved["param_groups"])
            )
            if here != there:
                raise ValueError(
                    "A run goes on with the parameter groups that it began with; beside shards lone numbers are apart. "
                    f"Got groups of {there} parameters in the checkpoint, and {here}; go on with the strategy that "
                    "wrote it, or load its weights alone."
                )
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = {
                number: parameter
                for old, now in zip(saved["param_groups"], optimizer.param_groups, strict=True)
                for number, parameter in zip(old["params"], now["params"], strict=True)
            }
            state = {
                number: {name: share_of(value, parameters[number]) for name, value in of_one.items()}
                for number, of_one in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def is_sharded(trainer: lightning.Trainer) -> bool:
    """Whether each process holds a share of the encoders' parameters, so that all must take part in whatever is
    computed with them."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def shard(network: nn.Module, mesh: Any, methods: Sequence[str] = ()) -> None:
    """Leaves each process its share of a network's parameters, which are gathered block by block when they are used.

    A block is a part in a Sequential or ModuleList that has a two-hundredth of the network's parameters or more; the
    innermost such parts first. What is in none is gathered together with the network. Parameters of one
    number (a logit_scale) stay whole, and their gradients are averaged.

    Args:
        network: on one device, changed in place.
        mesh: of one dimension.
        methods: that are called as forward is.

    Raises:
        ValueError: adapters (LoRA) of nn.MultiheadAttention, which put other weights into it in each pass.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(network, FSDPModule):  # of a fit before this one
        return
    for name, part in network.named_modules():
        if name.rpartition(".")[2] == "base_layer" and isinstance(part, nn.MultiheadAttention):
            raise ValueError(
                "Adapters of nn.MultiheadAttention replace its weights in each pass, which must be whole for it. "
                f"Got {name}; take trainer.strategy: ddp, or leave lora_rank out."
            )
    numbers = {p for p in network.parameters() if p.numel() == 1}
    for number in numbers:
        if number.requires_grad:
            number.register_post_accumulate_grad_hook(lambda p: _average(p.grad, mesh))
    least = SMALLEST_BLOCK * sum(p.numel() for p in network.parameters())
    blocks = [
        part
        for _, holder in network.named_modules()
        if isinstance(holder, BLOCKS)
        for part in holder.children()
        if not isinstance(part, BLOCKS) and sum(p.numel() for p in part.parameters()) >= max(least, 2)
    ]
    for part in reversed(list(dict.fromkeys(blocks))):  # named_modules has what is outside first
        fully_shard(part, mesh=mesh, ignored_params=numbers)
    fully_shard(network, mesh=mesh, ignored_params=numbers)
    for method in methods:
        register_fsdp_forward_method(network, method)


def _average(grad: Tensor, mesh: Any) -> None:
    dist.all_reduce(grad, group=mesh.get_group())
    grad.div_(mesh.size())


@torch.no_grad()
def share_buffers(networks: Iterable[nn.Module]) -> None:
    """Gives all processes the buffers of the first (running statistics), as DistributedDataParallel does."""
    alike: dict[torch.dtype, list[Tensor]] = {}
    for network in networks:
        for buffer in network.buffers():
            alike.setdefault(buffer.dtype, []).append(buffer)
    for buffers in alike.values():
        joined = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(joined, src=0)
        for buffer, first in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(first.view_as(buffer))


def whole_state(module: nn.Module) -> dict[str, Any]:
    """A state dict of whole tensors on the CPU. Every process must ask."""
    return tree_map_only(Tensor, lambda tensor: whole(tensor).cpu(), dict(module.state_dict()))


def load_whole(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Loads a state dict of whole tensors, of each its share where the module has shards."""
    own = module.state_dict()
    module.load_state_dict({name: share_of(value, own.get(name)) for name, value in state.items()}, strict=strict)


def share_of(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where what it belongs to is a share of that shape; else the value."""
    if not is_share(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or what its shards make up; then every process must ask."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def is_share(tensor: Any) -> bool:
    """Whether a tensor is a share of one."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def as_shards(module: nn.Module) -> None:
    """Where `fully_shard` was applied, makes parameters this rank's shards; those without a backward pass stay whole.

    What is written to whole ones is lost when they are gathered anew.
    """
    if dist.is_available() and dist.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@torch.no_grad()
def clip_gradients(optimizer: Optimizer, value: float, algorithm: str | None) -> None:
    """Clips gradients of shards and of whole parameters together, which torch's own function cannot.

    Args:
        optimizer: whose parameters' gradients are clipped.
        value: of the 2-norm of all of them; or, where the algorithm is "value", of each number.
        algorithm: "norm", which None is too, or "value".
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    shares = [grad for grad in grads if is_share(grad)]
    mine, alone = [grad.to_local() for grad in shares], [grad for grad in grads if not is_share(grad)]
    if algorithm == "value":
        for grad in (*mine, *alone):
            grad.clamp_(-value, value)
        return
    square = _square(mine)
    if shares:
        dist.all_reduce(square, group=shares[0].device_mesh.get_group())
    norm = (square + _square(alone).to(square.device)).sqrt()
    factor = (value / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*mine, *alone):
        grad.mul_(factor.to(grad.device))


def _square(tensors: list[Tensor]) -> Tensor:
    """The squared 2-norm of all of them together."""
    if not tensors:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors]
    return torch.stack(norms).square().sum()


def strategy_of(options: Mapping[str, Any], strategy: Any) -> Any:
    """What a trainer is given for the strategy of a recipe: for Lightning's own of shards ours.

    Args:
        options: of the recipe's trainer, as plain dictionaries.
        strategy: the same option, a name or an object.

    Raises:
        ValueError: FSDP's first version; shards of checkpoints, or of layers; fp16, whose gradients are scaled.
    """
    if isinstance(strategy, FSDPStrategy) or (isinstance(strategy, str) and strategy.startswith("fsdp")):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ValueError(
            f"Parameters in shards must keep their shapes. Got the strategy {name}, which flattens them; write {HOW}."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return strategy
    if str(options.get("precision")) in ("16", "16-mixed"):
        raise ValueError(
            "The gradients of shards are not scaled. Got precision 16-mixed; take bf16-mixed, or strategy: ddp."
        )
    if isinstance(strategy, Shards):
        return strategy
    given = options["strategy"]["init_args"]
    seen = {name: given[name] for name in ("tensor_parallel_size", "save_distributed_checkpoint")}
    if seen != {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}:
        raise ValueError(
            "Layers are not split, and a checkpoint is one whole file. Got "
            f"{', '.join(f'{name}: {str(value).lower()}' for name, value in seen.items())}; write {HOW}, or set "
            "tensor_parallel_size: 1 and save_distributed_checkpoint: false."
        )
    return Shards(process_group_backend=given["process_group_backend"])


def check_processes(options: Mapping[str, Any], trainer: lightning.Trainer) -> None:
    """One line where shards are asked to be of another number of processes than there are.

    Raises:
        ValueError: so it is.
    """
    if is_sharded(trainer):
        asked = (options["strategy"].get("init_args") or {}).get("data_parallel_size", trainer.world_size)
        if asked != trainer.world_size:
            raise ValueError(
                f"Shards are of all processes. Got data_parallel_size: {asked} and {trainer.world_size} processes "
                f"(devices x num_nodes); set data_parallel_size: {trainer.world_size}, or write {HOW}."
            )
