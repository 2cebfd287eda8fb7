"""One suite over every mixer."""

from __future__ import annotations

import pytest
import torch

from .cases import CASES, INTERPOLATIONS, Case, leaves

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATIONS)
each_detach = pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])


def gradients(value, of):
    return torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)


@each_case
@each_interpolation
@each_detach
def test_equals_mixing_embeddings(case: Case, interpolation: str, detach: bool) -> None:
    mixer, inputs = case.make(INTERPOLATIONS[interpolation], detach), case.inputs()
    tables = case.tables(mixer, inputs)
    draw = mixer.draw(tables[0], torch.Generator().manual_seed(11))
    value, expected = case.value(mixer, tables, draw), case.reference(mixer, inputs, draw)
    # where a mixture's parents are one vector, slerp is its own limit to a millionth
    tolerance = dict(rtol=3e-6, atol=3e-6) if interpolation == "geodesic" else dict(rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(value, expected, **tolerance)
    of = leaves(inputs, mixer)
    for got, wanted in zip(gradients(value, of), gradients(expected, of), strict=True):
        torch.testing.assert_close(got, wanted, **tolerance)
