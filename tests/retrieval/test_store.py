"""Embeddings on disk: every kind is read by slices, and what is not whole gets its line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from mixcontrast.retrieval import StoredEmbeddings, evaluate, search
from tests.retrieval.folders import arrow_table, write_every_kind, write_folder

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((60, 5)).astype(np.float32)


def test_every_kind_is_read_by_slices(tmp_path):
    for path in write_every_kind(tmp_path, TABLE):
        stored = StoredEmbeddings(path)
        assert (stored.shape, stored.dtype, len(stored)) == ((60, 5), "float32", 60), path
        for start, stop in ((0, 60), (0, 1), (59, 60), (3, 41), (16, 18)):
            rows = stored.read(start, stop)
            assert rows.dtype == np.float32 and np.array_equal(rows, TABLE[start:stop]), (path, start, stop)


def test_narrower_and_wider_floats(tmp_path):
    for dtype in (np.float16, np.float64):
        np.save(tmp_path / "a.npy", TABLE.astype(dtype))
        pa.parquet.write_table(arrow_table(TABLE.astype(dtype)), tmp_path / "a.parquet")
        for name in ("a.npy", "a.parquet"):
            stored = StoredEmbeddings(tmp_path / name)
            assert stored.dtype == np.dtype(dtype).name
            assert np.array_equal(stored.read(2, 50), TABLE.astype(dtype).astype(np.float32)[2:50])
    save_file({"x": torch.from_numpy(TABLE).bfloat16()}, tmp_path / "a.safetensors")
    stored = StoredEmbeddings(tmp_path / "a.safetensors")
    assert stored.dtype == "bfloat16"
    assert np.array_equal(stored.read(2, 50), torch.from_numpy(TABLE).bfloat16().float().numpy()[2:50])


def test_columns_and_settings(tmp_path):
    labels, words = np.arange(60) // 3, [f"word {n}" for n in range(60)]
    path = write_folder(tmp_path / "a", TABLE, settings={"batch_size": 64}, label=labels, text=words)
    stored = StoredEmbeddings(path)
    assert stored.columns == ("id", "label", "text") and stored.settings == {"batch_size": 64}
    assert np.array_equal(stored.column("label"), labels) and stored.column("text").tolist() == words
    assert stored.column("id")[:2].tolist() == ["r0", "r1"]
    with pytest.raises(ValueError, match="no column 'vendor'. There are id, label, text"):
        stored.column("vendor")


def test_the_fingerprint_is_of_the_files(tmp_path):
    path = write_folder(tmp_path / "a", TABLE)
    before = StoredEmbeddings(path).fingerprint()
    assert StoredEmbeddings(path).fingerprint() == before
    pa.parquet.write_table(arrow_table(TABLE[17:34] + 1, id=[f"r{n}" for n in range(17, 34)]),
                           path / "part-00001.parquet")  # fmt: skip
    assert StoredEmbeddings(path).fingerprint() != before


def cut(path, size=None):
    content = path.read_bytes()
    path.write_bytes(content[: size or len(content) // 2])


def another_part(folder, rows, dim=5):
    part = arrow_table(np.ones((rows, dim), np.float32), id=[f"x{n}" for n in range(rows)])
    pa.parquet.write_table(part, folder / "part-00001.parquet")


def edit_manifest(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "manifest.json").unlink(), "unfinished: it has parts and no manifest.json; run the same mixc"),
        (lambda f: cut(f / "manifest.json"), "manifest.json is not a manifest of embeddings"),
        (lambda f: edit_manifest(f, version=9), "version 1. Got 'mixcontrast embeddings', 9"),
        (lambda f: edit_manifest(f, num_rows=61), "must be all the rows. Got 60 in 4 parts for 61"),
        (lambda f: cut(f / "part-00001.parquet"), "part-00001.parquet cannot be read as embeddings"),
        (lambda f: (f / "part-00002.parquet").unlink(), "part-00002.parquet cannot be read as embeddings"),
        (lambda f: another_part(f, 16), r"part-00001.parquet of \(16, 5\) for \(17, 5\)"),
        (lambda f: another_part(f, 17, 4), r"part-00001.parquet of \(17, 4\) for \(17, 5\)"),
    ],
    ids=["no-manifest", "half-manifest", "version", "rows", "half-part", "no-part", "part-rows", "part-width"],
)
def test_damage_gets_its_line(tmp_path, damage, message):
    folder = write_folder(tmp_path / "a", TABLE)
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        StoredEmbeddings(folder)
    assert "\n" not in str(raised.value)


def test_an_id_twice_is_named_with_its_parts(tmp_path):
    ids = [f"r{n}" for n in range(60)]
    ids[40] = "r3"
    folder = write_folder(tmp_path / "a", TABLE, id=ids)
    with pytest.raises(ValueError, match=r"'r3' in row 3 \(part-00000.parquet\) and row 40 \(part-00002.parquet\)"):
        StoredEmbeddings(folder)


def test_a_file_cut_after_it_was_opened(tmp_path):
    np.save(tmp_path / "a.npy", TABLE)
    stored = StoredEmbeddings(tmp_path / "a.npy")
    cut(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="Rows 0 to 60 of .*a.npy cannot be read"):
        stored.read(0, 60)


@pytest.mark.parametrize("value, message", [(np.nan, "first in row 47"), (0.0, "first row 47")])
def test_a_bad_row_is_named_by_its_number_in_the_whole(tmp_path, value, message):
    table = TABLE.copy()
    table[47] = value
    folder = write_folder(tmp_path / "a", table)
    with pytest.raises(ValueError, match=message) as raised:
        search(TABLE, StoredEmbeddings(folder), 3, memory_limit=2000)
    assert "gallery" in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        evaluate(StoredEmbeddings(folder), np.arange(60) // 3, memory_limit=2000)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"", "Embeddings are .npy, .safetensors, .parquet, .arrow or .feather files, or a folder"),
        ("none.npy", None, "none.npy cannot be read as embeddings: .*No such file"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read as embeddings"),
        ("a.arrow", b"ARROW1", "a.arrow cannot be read as embeddings"),
        ("a.safetensors", b"12", "a.safetensors cannot be read as embeddings"),
    ],
)
def test_bad_files_get_their_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        StoredEmbeddings(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_what_is_no_table_of_floats_gets_its_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "widths").mkdir()
    np.save(tmp_path / "widths" / "a.npy", TABLE)
    np.save(tmp_path / "widths" / "b.npy", TABLE[:, :3])
    np.save(tmp_path / "integers.npy", np.arange(6).reshape(2, 3))
    np.save(tmp_path / "flat.npy", TABLE[0])
    save_file({"x": torch.zeros(2, 2), "y": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    pa.parquet.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "name.parquet")
    pa.parquet.write_table(pa.table({"embedding": [1.0]}), tmp_path / "number.parquet")
    pa.parquet.write_table(pa.table({"embedding": [[1.0, 2.0], [1.0], [3.0]]}), tmp_path / "ragged.parquet")
    pa.parquet.write_table(pa.table({"embedding": [[1.0], None, [3.0]]}), tmp_path / "null.parquet")
    for name, message in {
        "empty": "with neither", "widths": "one width. Got a.npy 5, b.npy 3", "integers.npy": "int64 and not floats",
        "flat.npy": "not \\(rows, dimensions\\)", "two.safetensors": "holds x, y; name one of them embeddings",
        "name.parquet": "no column embedding; there are vector", "number.parquet": "holds double and not lists",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            StoredEmbeddings(tmp_path / name)
        assert "\n" not in str(raised.value)
    for name, message in {"ragged.parquet": "several widths", "null.parquet": "lacks 1 embeddings"}.items():
        with pytest.raises(ValueError, match=message):
            StoredEmbeddings(tmp_path / name).read(0, 3)
