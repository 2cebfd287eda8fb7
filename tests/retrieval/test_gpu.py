"""On a GPU, through faiss where its build has one and through torch, the same values as on the CPU."""

import faiss
import numpy as np
import pytest
import torch

from mixcontrast.retrieval import evaluate, search
from mixcontrast.retrieval.torch_search import torch_knn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 300, 5000)
TABLE = (RNG.standard_normal((300, 32))[LABELS] + RNG.standard_normal((5000, 32))).astype(np.float32)
TABLE[4000:4200] = TABLE[:200]
needs_faiss = pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="this faiss has no GPU")


@pytest.mark.parametrize("similarity", ["cosine", "inner product", "l2"])
@pytest.mark.parametrize("limit", [None, 2_000_000])
def test_the_same_bits(similarity, limit):
    """By faiss or by torch, whichever this machine has."""
    expected = evaluate(TABLE, LABELS, similarity=similarity, ks=(1, 10))
    found = evaluate(TABLE, LABELS, similarity=similarity, ks=(1, 10), device="cuda", memory_limit=limit)
    for name, values in expected.values.items():
        assert np.array_equal(values, found.values[name]), name


@pytest.mark.parametrize("k", [10, 3000])
def test_more_places_than_faiss_has_on_a_gpu(k):
    expected, found = (search(TABLE[:20], TABLE, k, device=device) for device in ("cpu", "cuda:0"))
    assert np.array_equal(expected.indices, found.indices)


def test_torch_multiplies_in_full_precision():
    torch.set_float32_matmul_precision("high")
    try:
        scores, rows = torch_knn(TABLE[:50], TABLE, 5, "inner product", "cuda")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    own = (TABLE[:50, None].astype(np.float64) * TABLE[rows]).sum(-1)
    np.testing.assert_allclose(scores, own, rtol=1e-5)


@needs_faiss
def test_an_index_on_a_gpu():
    options = dict(index="IVF32,Flat", index_parameters="nprobe=32")
    expected, found = (search(TABLE[:200], TABLE, 10, device=device, **options) for device in ("cpu", "cuda"))
    assert found.recall.mean == 1 and (expected.indices == found.indices).mean() > 0.99
    with pytest.raises(ValueError, match="up to 2048 places on a GPU"):
        search(TABLE[:5], TABLE, 3000, device="cuda", **options)
