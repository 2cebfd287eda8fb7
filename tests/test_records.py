"""Frozen dataclasses with some fields changed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mixcontrast.records import changed


@dataclass(frozen=True)
class Point:
    x: float
    y: tuple
    name: str = "p"


def test_only_the_fields_that_are_given_change() -> None:
    y = (1, 2)
    point = Point(0.5, y)
    other = changed(point, x=2.0, name="q")
    assert other == Point(2.0, y, "q") and other.y is y and point == Point(0.5, y)
    assert changed(point) == point and type(other) is Point


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="Point has the fields x, y, name. Got z"):
        changed(Point(0.5, ()), z=1)
