"""Options that several commands have in common: fields of a dataclass, each under its own name on the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser


class CommandParser(ArgumentParser):
    """jsonargparse's parser, where a command's parameter `files: Files`, a dataclass, is the options `--pairs` and so
    on, not `--files.pairs`. Their help is the dataclass's docstring. Commands go through `gathered`."""

    def add_function_arguments(
        self, function: Callable[..., None], *args: Any, skip: set[str | int] | None = None, **options: Any
    ) -> list[str]:
        groups = _dataclasses_of(function)
        added = super().add_function_arguments(function, *args, skip={*(skip or ()), *groups}, **options)
        for group in groups.values():
            added += self.add_class_arguments(group, as_group=False)
        return added


def gathered(command: Callable[..., None]) -> Callable[..., None]:
    """The command, called with the fields of its dataclasses one by one."""
    groups = _dataclasses_of(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: of(**{field.name: given.pop(field.name) for field in fields(of)}) for name, of in groups.items()}
        command(**given, **made)

    return run


def _dataclasses_of(command: Callable[..., None]) -> dict[str, type]:
    return {name: hint for name, hint in get_type_hints(command).items() if is_dataclass(hint)}
