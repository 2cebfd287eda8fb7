"""What a set of weights reaches on a collection, and two of them compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixcontrast.analysis import alignment, modality_gap, uniformity
from mixcontrast.judge.collection import ALL, Collection
from mixcontrast.judge.cross_modal import cross_modal_retrieval
from mixcontrast.judge.zero_shot import ZeroShot, calibration_difference, classify, mean_embeddings
from mixcontrast.retrieval import Evaluation, Interval, paired_difference
from mixcontrast.retrieval.results import MEDIANS

TO_TEXT, TO_IMAGE = "image to text", "text to image"
SAMPLE = 400  # pairs of which embeddings are kept, for a picture


@dataclass(frozen=True)
class Judgement:
    """What one set of weights reaches.

    Attributes:
        name: of the weights.
        retrieval: "image to text" and "text to image" to R@k and MedR a query; empty without captions.
        zero_shot: name of a classifier to what it reaches.
        geometry: part to alignment, uniformity of images and of texts, and modality gap; empty without captions.
        logit_scale: what multiplies cosines.
        sample: (n, D) unit embeddings of images, and of a text of each, drawn at random; None without captions.
    """

    name: str
    retrieval: dict[str, Evaluation]
    zero_shot: dict[str, ZeroShot]
    geometry: dict[str, dict[str, float]]
    logit_scale: float
    sample: tuple[np.ndarray, np.ndarray] | None = None

    def evaluations(self) -> dict[str, Evaluation]:
        """All that has a value a query, by name."""
        return self.retrieval | {f"zero-shot, {name}": found.evaluation for name, found in self.zero_shot.items()}


def judge_features(
    name: str, collection: Collection, image_features: Tensor, text_features: Tensor, logit_scale: float
) -> Judgement:
    """Retrieval both ways, zero-shot classification, geometry.

    Args:
        name: of the weights.
        collection: what is judged.
        image_features: (N, D) of its images.
        text_features: (T, D) of its `all_texts()`.
        logit_scale: > 0, what multiplies cosines.

    Raises:
        ValueError: tables of other lengths; as the functions that it calls.
    """
    if (len(image_features), len(text_features)) != (len(collection.images), len(collection.all_texts())):
        raise ValueError(
            "Features must be one an image and one a text. "
            f"Got {len(image_features)} and {len(text_features)} for {len(collection.images)} images and "
            f"{len(collection.all_texts())} texts."
        )
    retrieval: dict[str, Evaluation] = {}
    geometry: dict[str, dict[str, float]] = {}
    sample = None
    captions = text_features[: len(collection.texts)]
    if collection.pairs is not None:
        parts = None
        if collection.held_out:
            parts = {"part": {domain: collection.part_of(domain) for domain in np.unique(collection.domains).tolist()}}
        both = cross_modal_retrieval(
            image_features, captions, collection.pairs, domains=collection.domains, attributes=parts,
            image_names=collection.image_names, text_names=collection.texts,
        )  # fmt: skip
        retrieval = dict(zip((TO_TEXT, TO_IMAGE), both, strict=True))
        for part in collection.parts:
            pairs = collection.pairs[collection.in_part(part)[collection.pairs[:, 0]]]
            geometry[part] = _geometry(image_features, captions, pairs)
        drawn = np.random.default_rng(0).permutation(len(collection.pairs))[:SAMPLE]
        rows = torch.from_numpy(collection.pairs[np.sort(drawn)])
        sample = tuple(
            torch.nn.functional.normalize(table[column].float(), dim=1).cpu().numpy()
            for table, column in ((image_features, rows[:, 0]), (captions, rows[:, 1]))
        )
    zero_shot = {}
    start = len(collection.texts)
    for kind, classifier in collection.classifiers.items():
        of_classes = text_features[start : start + len(classifier.texts)]
        start += len(classifier.texts)
        kept = np.flatnonzero(collection.labels >= 0)
        attributes = {}
        if collection.held_out:
            of_images = [collection.part_of(domain) for domain in collection.domains[kept].tolist()]
            attributes["part"] = np.array(of_images)
        if collection.domains is not None:
            attributes["domain"] = collection.domains[kept]
        zero_shot[kind] = classify(
            image_features[torch.from_numpy(kept)],
            mean_embeddings(of_classes, classifier.classes, len(collection.class_names)),
            collection.labels[kept], logit_scale=logit_scale, attributes=attributes,
            names=np.array(collection.image_names)[kept],
        )  # fmt: skip
    return Judgement(name, retrieval, zero_shot, geometry, logit_scale, sample)


def of_part(found: Evaluation, part: str) -> np.ndarray:
    """(Q,) bool, the queries of a part."""
    if part == ALL or "part" not in found.attributes:
        return np.ones(len(found.queries), bool)
    return found.attributes["part"] == part


def intervals(found: Judgement, parts: tuple[str, ...]) -> dict[str, dict[str, dict[str, Interval]]]:
    """What is judged, to the part, to the metric, to its mean with its interval; a part without queries is left out."""
    told: dict[str, dict[str, dict[str, Interval]]] = {}
    for what, evaluation in found.evaluations().items():
        told[what] = {}
        for part in parts:
            kept = of_part(evaluation, part)
            if kept.any():
                of_queries = evaluation.of_queries(kept)
                told[what][part] = {metric: of_queries.interval(metric) for metric in of_queries.values}
    for kind, classified in found.zero_shot.items():
        for part, metrics in told[f"zero-shot, {kind}"].items():
            metrics["ECE"] = classified.of_queries(of_part(classified.evaluation, part)).calibration_error()
    return told


def differences(
    first: Judgement, second: Judgement, parts: tuple[str, ...]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """The same of `second - first`, query by query: two weights on the same collection.

    Raises:
        ValueError: they were judged on other queries.
    """
    told: dict[str, dict[str, dict[str, Interval]]] = {}
    for what, one in first.evaluations().items():
        other = second.evaluations()[what]
        if not np.array_equal(one.queries, other.queries):
            raise ValueError(
                "Two weights are compared on the same queries. "
                f"Got {len(one.queries)} and {len(other.queries)} of {what}; judge both on one collection."
            )
        told[what] = {}
        for part in parts:
            kept = of_part(one, part)
            if kept.any():
                told[what][part] = {
                    metric: _difference(one.of_queries(kept), other.of_queries(kept), metric) for metric in one.values
                }
    for kind, one in first.zero_shot.items():
        for part, metrics in told[f"zero-shot, {kind}"].items():
            kept = of_part(one.evaluation, part)
            metrics["ECE"] = calibration_difference(one.of_queries(kept), second.zero_shot[kind].of_queries(kept))
    return told


def _difference(first: Evaluation, second: Evaluation, metric: str) -> Interval:
    one, two, groups = first.values[metric], second.values[metric], first.groups
    middle = metric in MEDIANS
    if len(one) < 2:
        return Interval(float(two[0] - one[0]), float("nan"), float("nan"))
    if groups is not None and len(np.unique(groups)) < 2:
        groups = None
    return paired_difference(two, one, groups=groups, median=middle)


def _geometry(images: Tensor, texts: Tensor, pairs: np.ndarray) -> dict[str, float]:
    """Of the images and texts of some pairs, each once; alignment over the pairs."""
    if not len(pairs):
        return {}
    mine, theirs = images.float(), texts.float()
    one, other = mine[torch.from_numpy(np.unique(pairs[:, 0]))], theirs[torch.from_numpy(np.unique(pairs[:, 1]))]
    found = {
        "alignment": alignment(mine[torch.from_numpy(pairs[:, 0])], theirs[torch.from_numpy(pairs[:, 1])])
    }
    for name, rows in (("uniformity, images", one), ("uniformity, texts", other)):
        if len(rows) > 1:
            found[name] = uniformity(rows)
    found["modality gap"] = modality_gap(one, other)
    return {name: float(value) for name, value in found.items()}
