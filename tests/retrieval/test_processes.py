"""Two and three real processes find what one does, to the last bit."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mixcontrast.retrieval import StoredEmbeddings, evaluate, evaluate_pairs, search, shared_search
from tests.retrieval.folders import write_folder

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 60, 900)
TABLE = (2 * RNG.standard_normal((60, 12))[LABELS] + RNG.standard_normal((900, 12))).astype(np.float32)
TABLE[600:700] = TABLE[:100]  # ties over the parts that processes search
VENDORS = RNG.integers(0, 4, 900)


def found(folder):
    stored = StoredEmbeddings(folder)
    pairs = np.argwhere(LABELS[:40, None] == LABELS)
    every = {
        "stored": evaluate(stored, LABELS, ks=(1, 5), ranks=True, memory_limit=200_000),
        "in memory": evaluate(TABLE, LABELS, ks=(1, 5), ranks=True, exclude=[(VENDORS, VENDORS)]),
        "pairs": evaluate_pairs(TABLE[:40], stored, pairs, ks=(1, 5), ranks=True, similarity="l2"),
        "index": evaluate(stored, LABELS, ks=(1, 5), index="IVF8,Flat"),
    }
    values = {f"{name} {metric}": v for name, result in every.items() for metric, v in result.values.items()}
    listed = search(TABLE[:50], stored, 7, similarity="inner product", memory_limit=100_000)
    return values | {"indices": listed.indices, "similarity": listed.similarity}


def worker(rank, world, file, folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    if rank == 0:  # as in training, where one process alone judges: it must not wait for the others
        alone = search(TABLE[:50], TABLE, 7).indices
        assert (alone[:, 0] == np.arange(50)).all()
    with shared_search():
        np.savez(f"{out}.{rank}.npz", **found(folder))
    bad = TABLE.copy()
    bad[700] = np.nan  # in the last process's part alone
    np.save(f"{out}.{rank}.npy", bad)
    try:
        with shared_search():
            search(TABLE[:5], StoredEmbeddings(f"{out}.{rank}.npy"), 3)
        message = ""
    except ValueError as error:
        message = str(error)
    with open(f"{out}.{rank}.txt", "w") as file:
        file.write(message)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_are_one(world, tmp_path):
    folder = write_folder(tmp_path / "embedded", TABLE, part_rows=250)
    expected = found(folder)
    out = str(tmp_path / "found")
    mp.spawn(worker, (world, str(tmp_path / "store"), folder, out), nprocs=world)
    for rank in range(world):
        with np.load(f"{out}.{rank}.npz") as got:
            assert set(got) == set(expected)
            for name, values in expected.items():
                if not name.startswith("index"):  # k-means of an index is not the same on other threads
                    assert np.array_equal(got[name], values), name
        assert "first in row 700" in (tmp_path / f"found.{rank}.txt").read_text()
