"""jsonargparse's errors as one line: which key, what was seen, what is near."""

from __future__ import annotations

import importlib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities.seed import isolate_rng

from mixcontrast.data.found import existing
from mixcontrast.wording import nearest

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_OF_CALLABLE = re.compile(r"expects a function or a callable class.*Namespace\(class_path='(?P<path>[^']+)'")
_UNKNOWN = re.compile(r"[Oo]ption '(?P<name>[^']+)' is not accepted")
_IN_GROUP = re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'")
_ARGUMENT = re.compile(r"unrecognized arguments: (?P<names>.+)")
_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_MODULE = re.compile(r"No module named '(?P<name>[^']+)'")
_REQUIRED = re.compile(r"the following arguments are required: (?P<names>.+)")
_TYPE = re.compile(r"Expected a <class '(?P<type>[^']+)'>(\. Got value: (?P<value>.*))?")
_SUBCLASS = re.compile(r"Import path (?:\S+ )?does not correspond to a subclass of (\w+)")
_FILE = re.compile(r"File does not exist: '(?P<file>[^']+)'")
_GIVEN = re.compile(r"Given value: (?P<value>.*)")
_LEAVES = (_UNKNOWN, _IN_GROUP, _ARGUMENT, _ATTRIBUTE, _MODULE, _REQUIRED, _FILE)


class BadConfig(ValueError):
    """What a recipe or an argument says is not so; one line."""


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """The parsed arguments.

    Raises:
        BadConfig: in one line, what is wrong with them.
    """
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise BadConfig(one_line(str(error), [action.dest for action in parser._actions])) from None


def build(parser: ArgumentParser, config: Namespace) -> Namespace:
    """What a config describes, built: the data first, so that a folder that is not there is said before any weights are
    fetched; random numbers that they draw are not missing from the model's.

    Raises:
        BadConfig: in one line, what a class refused, without jsonargparse's words around it.
    """
    try:
        with isolate_rng():
            data = parser.instantiate(Namespace(data=config.data)).data
        ready = parser.instantiate(Namespace(**{name: part for name, part in vars(config).items() if name != "data"}))
        ready.data = data
        return ready
    except ValueError as error:
        text = str(error)
        if not text.startswith("Does not validate against"):
            raise
        told = [re.split(r"\s+(?:Subtypes|Given value type): ", part)[0] for part in re.split(r"\n\s*- ", text)[1:]]
        of_types = ("Does not validate", "Expected a <class ", "Import path ")
        reasons = [reason for reason in told if not reason.startswith(of_types)]
        raise BadConfig(" ".join((reasons or [text])[0].split())) from None


def one_line(text: str, top: list[str]) -> str:
    """jsonargparse's message as a line.

    Args:
        text: the message, an indented tree.
        top: the keys that the parser has.
    """
    above: list[tuple[int, str, str]] = []  # indentation, and a key or the path of a class, that a line stands under
    types: list[str] = []
    wanted: dict[tuple[str, ...], list[str]] = {}
    given: dict[tuple[str, ...], str] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip(" -"))
        while above and line.strip() and indent <= above[-1][0]:
            above.pop()
        if found := _KEY.search(line):
            above.append((indent, "key", found["key"]))
        if found := _CLASS.search(line) or _OF_CALLABLE.search(line):
            above.append((indent, "class", found["path"]))
        keys = [name for _, kind, name in above if kind == "key"]
        path = next((name for _, kind, name in reversed(above) if kind == "class"), "")
        for leaf in _LEAVES:
            if found := leaf.search(line):
                return _of_leaf(leaf, found.groupdict(), keys, path, top)
        if (found := _TYPE.search(line)) and found["type"] != "NoneType":
            value = found["value"] or _given(lines[number:])
            types.append(f"{_at(keys)} must be {_article(found['type'])}. Got {value}.")
        elif found := _SUBCLASS.search(line):
            wanted.setdefault(tuple(keys), []).append(found[1])
            given.setdefault(tuple(keys), _given(lines[number:]))
    keys, options = _KEY.findall(text), re.search(r"Subtypes: (.*Literal.*)", text)
    if keys and options:
        names = list(dict.fromkeys(re.findall(r"'([^']+)'", options[1])))
        return f"{_at(keys)} cannot be {_given(lines)}.{nearest(_given(lines), names, 1) or _there_are(names)}"
    if types:
        return types[0]
    if wanted:
        deepest = max(wanted, key=len)
        return f"{_at(deepest)} must be a {' or '.join(wanted[deepest])}. Got {given[deepest]}, which is none."
    return f"The recipe cannot be read: {' '.join(text.split())[:300]}"


def _of_leaf(leaf: re.Pattern, found: dict[str, str], keys: list[str], path: str, top: list[str]) -> str:
    if leaf is _UNKNOWN:
        if not path:
            name = found["name"].partition(".")[0]
            return f"There is no key {name}.{nearest(name, _first(top), 1) or _there_are(_first(top))}"
        names = _arguments(path)
        return f"{_at(keys)}: {path} has no {found['name']}.{nearest(found['name'], names, 1) or _there_are(names)}"
    if leaf is _IN_GROUP:
        names = [key.removeprefix(f"{found['group']}.") for key in top if key.startswith(f"{found['group']}.")]
        return f"{found['group']} has no {found['name']}.{nearest(found['name'], names, 1) or _there_are(names)}"
    if leaf is _ARGUMENT:
        name = found["names"].split()[0].lstrip("-").partition("=")[0]
        group = name.partition(".")[0]
        return f"There is no --{name}.{nearest(name, top, 1) or nearest(group, _first(top), 1)}"
    if leaf is _ATTRIBUTE:
        near = nearest(found["name"], _names_of(found["module"]))
        return f"{_at(keys)}: there is no {found['module']}.{found['name']}.{near}"
    if leaf is _MODULE:
        near = nearest(found["name"].partition(".")[0], ("mixcontrast", "torch", "lightning", "timm"), 1)
        return f"{_at(keys)}: there is no module {found['name']}.{near}"
    if leaf is _REQUIRED:
        if not path:
            return f"A recipe needs {found['names'].replace(', ', ' and ')}. Give one by --config FILE."
        return f"{_at(keys)}: {path} needs {found['names'].replace(', ', ' and ')}. Set it in its init_args."
    try:
        existing(Path(found["file"]), "A recipe", "Name one by --config.")
    except ValueError as error:
        return str(error)
    return f"{found['file']} must be a file that can be read. Name a recipe by --config."


def _at(keys: Sequence[str]) -> str:
    return ".".join(keys) or "The recipe"


def _given(lines: list[str]) -> str:
    for line in lines:
        if found := _GIVEN.search(line):
            return found["value"][:80]
    return "something else"


def _article(name: str) -> str:
    written = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    return written.get(name, f"a {name.rpartition('.')[2]}")


def _first(top: list[str]) -> list[str]:
    """The keys of the outermost level."""
    names = dict.fromkeys(key.partition(".")[0] for key in top)
    return [name for name in names if name not in ("help", "print_config")]


def _there_are(names: list[str]) -> str:
    return f" There are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."


def _arguments(path: str) -> list[str]:
    """What a class is made with."""
    module, _, name = path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
        return [parameter for parameter in inspect.signature(found).parameters if parameter != "self"]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _names_of(module: str) -> list[str]:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return []
    public = vars(found).get("__all__") or [name for name in dir(found) if name[:1].isupper()]
    return [name for name in public if not name.startswith("_")]
