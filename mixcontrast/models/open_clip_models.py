"""open_clip's models by name: refused in one line where there is none, and files of weights for them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from mixcontrast.models.weights import read_state_dict
from mixcontrast.wording import nearest

OURS = "encoder.model."  # what a checkpoint of `mixcontrast fit` puts before the names of weights


def open_clip_package() -> ModuleType:
    """open_clip, imported.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import open_clip
    except ImportError as error:
        raise ImportError(
            "open_clip's models need open_clip_torch. It is not installed; pip install 'mixcontrast[clip]'"
        ) from error
    return open_clip


@contextmanager
def quietly() -> Iterator[None]:
    """Without what open_clip and transformers say of weights that are random, or loaded after."""
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_local(name: str) -> bool:
    """Whether a name is of a folder with an `open_clip_config.json`, or of one on the hub, and not of open_clip's."""
    return name.startswith(("local-dir:", "hf-hub:"))


def check_open_clip_name(name: str) -> None:
    """One line with the nearest names where open_clip has no such model.

    Raises:
        ValueError: it has none, or the folder of `local-dir:` is not one of a model.
    """
    if name.startswith("local-dir:"):
        file = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        if not file.is_file():
            raise ValueError(f"A folder of an open_clip model holds open_clip_config.json. There is no {file}.")
    elif not is_local(name):
        names = open_clip_package().list_models()
        if name not in names:
            raise ValueError(f"open_clip has no model {name!r}.{nearest(name, names)}")


def check_open_clip_tag(name: str, pretrained: str) -> None:
    """One line with the tags of a model where its weights are neither of a tag nor a file.

    Raises:
        ValueError: so it is.
    """
    tags = open_clip_package().list_pretrained_tags_by_model(name)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"open_clip's {name} has no weights {pretrained!r}, nor is that a file. Tags are "
            f"{', '.join(tags) or 'none'}.{nearest(pretrained, tags)}"
        )


def load_open_clip_weights(model: nn.Module, path: Path, name: str) -> None:
    """Loads a file of weights: of open_clip and whatever it reads, or a checkpoint of `mixcontrast fit`.

    Position embeddings of another image size or context length are interpolated, as open_clip does.

    Args:
        model: an open_clip model, changed in place.
        path: the file.
        name: of the model, for the message.

    Raises:
        ValueError: it is not there or cannot be read, holds adapters, or is of another architecture.
    """
    open_clip = open_clip_package()
    state: dict[str, Tensor] = {}
    if path.suffix not in (".npz", ".npy"):
        state = read_state_dict(path)
        if any(".base_layer." in key for key in state):
            raise ValueError(f"{path} holds LoRA adapters beside its weights. Take model.pt of the same run.")
        if any(key.startswith(OURS) for key in state):
            load_exactly(model, path, name, OURS)
            return
    try:
        open_clip.load_checkpoint(model, str(path))
    except Exception as error:  # each kind of other architecture fails in a way of its own
        raise ValueError(_misfit(model, state, path, name, error)) from None


def load_exactly(model: nn.Module, path: Path, name: str, ours: str) -> None:
    """Loads weights of the very names that a model has, or a checkpoint of `mixcontrast fit`.

    Args:
        model: changed in place.
        path: the file.
        name: of the model, for the message.
        ours: what a checkpoint of `mixcontrast fit` puts before the names.

    Raises:
        ValueError: it is not there or cannot be read, or is of another model.
    """
    state = read_state_dict(path)
    if any(key.startswith(ours) for key in state):
        state = {key.removeprefix(ours): value for key, value in state.items() if key.startswith(ours)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(_misfit(model, state, path, name, error)) from None


def _misfit(model: nn.Module, state: dict[str, Tensor], path: Path, name: str, error: Exception) -> str:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    others = [key for key in state if key not in wanted]
    shapes = [key for key in wanted if key in state and wanted[key].shape != state[key].shape]
    if not missing and not others and not shapes:
        return f"{path} does not fit {name}: {' '.join(str(error).split())[:200]}."
    seen = "".join(
        f", {key} is {tuple(state[key].shape)} for {tuple(wanted[key].shape)}" for key in shapes[:1]
    )
    return (
        f"{path} does not fit {name}. It lacks {len(missing)} tensors of it "
        f"({', '.join(missing[:2]) or 'none'}), has {len(others)} others ({', '.join(others[:2]) or 'none'}) and "
        f"{len(shapes)} of other shapes{seen}; name the model that they are of."
    )
