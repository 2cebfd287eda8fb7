"""Low-rank adapters of the linear and attention layers of a tower, by peft."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn


def add_lora(model: nn.Module, towers: Sequence[nn.Module], *, rank: int, alpha: float, dropout: float) -> None:
    """Adds adapters to each linear and attention layer of some towers; all else of the model gets no gradient.

    Args:
        model: changed in place; its layers keep their names, with `base_layer` behind.
        towers: parts of it.
        rank: of an adapter, at least 1.
        alpha: the adapter counts `alpha / rank`.
        dropout: of an adapter's inputs, in [0, 1).

    Raises:
        ImportError: peft is not installed.
        ValueError: rank or dropout out of range, or towers without such a layer.

    Source: Hu et al., ICLR 2022, arXiv 2106.09685.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"LoRA needs a rank of at least 1 and a dropout in [0, 1). Got lora_rank={rank}, lora_dropout={dropout}; "
            "8 and 0 are usual."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft. It is not installed; pip install 'mixcontrast[lora]'") from error
    mine = {id(part) for tower in towers for part in tower.modules()}
    attention = [name for name, part in model.named_modules() if isinstance(part, nn.MultiheadAttention)]
    names = [
        name
        for name, part in model.named_modules()
        if id(part) in mine
        and (name in attention or (isinstance(part, nn.Linear) and name.rpartition(".")[0] not in attention))
    ]
    if not names:
        raise ValueError(
            "LoRA adapts linear and attention layers. Got towers without any; leave lora_rank out, or take towers of "
            "transformers."
        )
    # an attention layer calls its out_proj's weight, never its forward: the layer is adapted as a whole
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names), model
    )


def without_lora(model: nn.Module) -> nn.Module:
    """A copy whose adapters are added into the weights that they adapt, with the layers and names of before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    adapted = {name: part for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    for name, part in adapted.items():
        if any(name.startswith(f"{other}.") for other in adapted):  # a part of one that is unwrapped as a whole
            continue
        parent, _, leaf = name.rpartition(".")
        if isinstance(part.get_base_layer(), nn.MultiheadAttention):
            whole = part.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            part.merge()
            whole = part.get_base_layer()
        setattr(model.get_submodule(parent), leaf, whole)
    return model
