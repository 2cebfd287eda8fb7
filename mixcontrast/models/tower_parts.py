"""Parts of open_clip's models: towers, projections, what is locked, and adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixcontrast.models.lora import add_lora, without_lora

HEADS = ("visual.proj", "visual.head", "visual.attnpool", "text_projection", "text.text_projection", "text.proj")


def parts_of(model: nn.Module, which: str) -> list[nn.Module | nn.Parameter]:
    """The modules and the model's own parameters of a tower; a plain CLIP's text tower is in several."""
    if which == "image":
        return [model.visual]
    own = [value for name, value in model.named_parameters(recurse=False) if not name.startswith("logit_")]
    return [*(part for name, part in model.named_children() if name != "visual"), *own]


def heads_of(model: nn.Module) -> list[nn.Parameter]:
    """The projections of both towers."""
    names = tuple(f"{head}." for head in HEADS)
    return [value for name, value in model.named_parameters() if name in HEADS or name.startswith(names)]


def adapt(
    model: nn.Module,
    image: list[nn.Module | nn.Parameter],
    text: list[nn.Module | nn.Parameter],
    *,
    lock_image: bool,
    lock_text: bool,
    lora_rank: int | None,
    lora_alpha: float,
    lora_dropout: float,
) -> list[nn.Module]:
    """Locks towers, and puts adapters into those that are not locked.

    Args:
        model: of open_clip, changed in place.
        image: what is locked or adapted of the image tower; with adapters, what is not in it is trained as it is.
        text: likewise of the text tower.
        lock_image: no gradient, and eval mode.
        lock_text: likewise.
        lora_rank: None: no adapters.
        lora_alpha: as `add_lora`'s.
        lora_dropout: as `add_lora`'s.

    Returns:
        The modules that must be kept in eval mode.

    Raises:
        ValueError: as `add_lora`; or both towers are locked.
    """
    locked = [*(image if lock_image else []), *(text if lock_text else [])]
    if lora_rank is not None:
        if lock_image and lock_text:
            raise ValueError("LoRA adapts a tower that is not locked. Got lock_image and lock_text; leave one out.")
        adapted = [*([] if lock_image else image), *([] if lock_text else text)]
        inside = {id(p) for part in adapted for p in (part.parameters() if isinstance(part, nn.Module) else [part])}
        others = [p for p in model.parameters() if id(p) not in inside]
        towers = [part for part in adapted if isinstance(part, nn.Module)]
        add_lora(model, towers, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
        for parameter in others:
            parameter.requires_grad_(True)
    for part in locked:
        part.requires_grad_(False)
    modules = [part for part in locked if isinstance(part, nn.Module)]
    for part in modules:
        part.eval()
    return modules


def merged(state_of: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model as open_clip names it, with LoRA adapters added into the weights that they adapt."""
    if not any(".base_layer." in key for key in state_of.state_dict()):
        return state_of.state_dict()
    with torch.no_grad():
        return without_lora(state_of).state_dict()
