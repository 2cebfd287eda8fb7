"""Frozen features as data: what mixcontrast embed writes, and an .npy with a table beside it."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from mixcontrast.cli import main
from mixcontrast.data import ClassData, StoredFeatures, ValuesData
from mixcontrast.retrieval import Evaluation
from mixcontrast.retrieval.shards import ShardWriter
from tests.fitting import RECIPES, of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

CLASSES = [f"class {number // 6}" for number in range(60)]
ROWS = (np.eye(10)[np.arange(60) // 6] + 0.1 * np.random.default_rng(0).normal(size=(60, 10))).astype(np.float32)


@pytest.fixture
def embedded(tmp_path):
    """A folder as `mixcontrast embed` writes it, in three parts."""
    writer = ShardWriter(tmp_path / "embedded", {}, num_rows=60, rows_per_shard=25)
    for part in writer.missing():
        rows = list(writer.rows(part))
        columns = {"id": [str(row) for row in rows], "label": [CLASSES[row] for row in rows]}
        writer.write(part, ROWS[rows], columns | {"age": [f"{row}.5" for row in rows]})
    writer.finish({})
    return tmp_path / "embedded"


def test_a_head_is_trained_on_what_was_embedded(embedded, tmp_path):
    examples = StoredFeatures(embedded, label_column="label")
    assert examples.labels.tolist() == [number // 6 for number in range(60)] and examples.names[3] == "class 3"
    np.testing.assert_array_equal(np.stack([examples[row].numpy() for row in range(60)]), ROWS)
    config = {
        "trainer": {**RECIPES["moco"]["trainer"], "max_epochs": 1},
        "model": of(
            "mixcontrast.training.MetricLearning", criterion=of("mixcontrast.SupConLoss"),
            encoder=of("mixcontrast.models.FeatureHead", num_features=10, embedding_dim=4, hidden=8),
        ),
        "data": of(
            "mixcontrast.data.ClassData", classes_per_batch=2, per_class=3,
            examples={"class_path": "mixcontrast.data.StoredFeatures",
                      "init_args": {"path": str(embedded), "label_column": "label"}},
        ),
    }  # fmt: skip
    (tmp_path / "stored.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "stored.yaml"), "--out", str(tmp_path / "run")])
    assert "Recall@1" in Evaluation.load(tmp_path / "run").values


def test_values_and_parts_of_a_table_beside_an_npy(embedded, tmp_path):
    assert StoredFeatures(embedded, value_columns=["age"]).labels[:2].tolist() == [0.5, 1.5]
    np.save(tmp_path / "rows.npy", ROWS)
    lines = ["kind,age,part", *(f"{CLASSES[n]},{n},{'test' if n % 5 == 0 else 'train'}" for n in range(60))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    beside = dict(table=tmp_path / "rows.csv", split_column="part")
    aged = StoredFeatures(tmp_path / "rows.npy", value_columns=["age"], **beside)
    data = ValuesData(aged, validation_share=0.0, batch_size=8)
    assert data.test_examples.labels.tolist() == list(range(0, 60, 5)) and data.num_features == 10
    data = ClassData(StoredFeatures(tmp_path / "rows.npy", label_column="kind", **beside), classes_per_batch=2)
    assert len(data.test_examples) == 12 and data.num_classes == 10
    assert set(StoredFeatures(tmp_path / "rows.npy").labels) == {-1}


def test_what_can_be_mended_is_one_line(embedded, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "broken.npy", np.where(np.arange(60)[:, None] == 7, np.nan, ROWS))
    (tmp_path / "short.csv").write_text("kind\na\nb\n")
    for path, arguments, message in (
        ("embeded", dict(), "It is not there; .* holds embedded"),
        ("embedded", dict(label_column="labels"), "near it: label, .... Got 'labels'"),
        ("embedded", dict(value_columns=["label"]), "must be a number. Got 'class 0'"),
        ("embedded", dict(label_column="label", value_columns=["age"]), "a class or values"),
        ("rows.npy", dict(label_column="kind"), "holds no columns beside the embeddings. Got kind; name a CSV"),
        ("rows.npy", dict(label_column="kind", table=tmp_path / "short.csv"), "Got 2 for 60"),
        ("broken.npy", dict(), "Got NaN or infinity in row 7"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            StoredFeatures(tmp_path / path, **arguments)
        assert "\n" not in str(raised.value)
