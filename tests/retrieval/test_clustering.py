"""Clusters against classes."""

import numpy as np
import pytest

from mixcontrast.retrieval import StoredEmbeddings, assign_clusters, clustering_agreement

RNG = np.random.default_rng(0)
LABELS = np.arange(200) // 20
CENTRES = np.eye(12)[LABELS]


def test_clean_classes_are_found_and_noise_is_chance():
    clean = clustering_agreement(CENTRES + 0.05 * RNG.standard_normal(CENTRES.shape), LABELS)
    noise = clustering_agreement(RNG.standard_normal((200, 12)), LABELS)
    assert clean["ami"] > 0.85 and clean["nmi"] >= clean["ami"]
    assert abs(noise["ami"]) < 0.1 and noise["nmi"] > noise["ami"] + 0.05


def test_lengths_do_not_matter_under_cosine_and_the_seed_repeats():
    table = CENTRES + 0.05 * RNG.standard_normal(CENTRES.shape)
    scaled = table * RNG.uniform(0.1, 10, (200, 1))
    assert clustering_agreement(table, LABELS)["ami"] == pytest.approx(clustering_agreement(scaled, LABELS)["ami"])
    assert np.array_equal(assign_clusters(table, 7, seed=3), assign_clusters(table, 7, seed=3))


def test_stored_embeddings_and_named_classes(tmp_path):
    np.save(tmp_path / "a.npy", CENTRES.astype(np.float32))
    named = [f"c{label}" for label in LABELS]
    assert clustering_agreement(StoredEmbeddings(tmp_path / "a.npy"), named) == clustering_agreement(CENTRES, LABELS)


def test_bad_input_gets_its_line():
    with pytest.raises(ValueError, match="num_clusters"):
        assign_clusters(CENTRES, 201)
    with pytest.raises(ValueError, match="one value a row"):
        clustering_agreement(CENTRES, LABELS[:-1])
    with pytest.raises(TypeError, match="must be integers"):
        clustering_agreement(CENTRES, LABELS.astype(float))
