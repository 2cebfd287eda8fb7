"""Retrieval from images to texts and back, several texts an image and several images a text, domain by domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixcontrast.retrieval import CLIP, Evaluation, evaluate_pairs


def connected(pairs: Any, num_images: int, num_texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts that hang together by pairs, numbered: what a bootstrap draws whole.

    Args:
        pairs: (P, 2) integers: row of an image, row of a text of it.
        num_images: N.
        num_texts: M.

    Returns:
        (N,) and (M,) int64 numbers of the connected parts.

    >>> connected([[0, 0], [1, 0], [2, 1]], 3, 2)
    (array([0, 0, 1]), array([0, 1]))
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.asarray(pairs)
    size = num_images + num_texts
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], num_images + pairs[:, 1])), shape=(size, size))
    number = connected_components(graph, directed=False)[1].astype(np.int64)
    return number[:num_images], number[num_images:]


def cross_modal_retrieval(
    image_features: Any,
    text_features: Any,
    pairs: Any,
    *,
    ks: Sequence[int] = (1, 5, 10),
    domains: Any = None,
    attributes: dict[str, Any] | None = None,
    image_names: Any = None,
    text_names: Any = None,
) -> tuple[Evaluation, Evaluation]:
    """Image-to-text and text-to-image retrieval: R@k, a hit among the first k, and MedR, the median first rank.

    Images and texts are paired many to many: an image finds any of its texts, a text any of its images. With domains
    each is searched on its own: a query finds only texts, or images, that are paired within its own domain, so that
    domains of one size are equally hard, however many others are judged beside them. A text is then a query in each
    domain that has images of it.

    Args:
        image_features: (N, D) floats.
        text_features: (M, D) floats.
        pairs: (P, 2) integers: row of an image, row of a text of it.
        ks: each at least 1.
        domains: (N,) texts, where each image is from; None: one domain.
        attributes: domain's name to a text, as {"part": {"Twtr": "held-out"}}: of the queries, beside the domain.
        image_names: (N,) texts; None: their numbers.
        text_names: (M,) texts.

    Returns:
        Both evaluations, a value a query; intervals are over images and texts that hang together (`connected`).
        `queries` of images are their rows, of texts `domain number * M + row`.

    Raises:
        ValueError: shapes that do not fit, pairs outside the tables, a domain without a pair.

    Source: Karpathy, Fei-Fei, CVPR 2015, arXiv 1412.2306, there with five texts an image and one image a text.

    >>> to_text, to_image = cross_modal_retrieval(np.eye(2), np.eye(2), [[0, 0], [1, 1]], ks=(1,))
    >>> to_text.mean("R@1"), to_image.mean("R@1")
    (1.0, 1.0)
    """
    pairs = np.asarray(pairs)
    num_images, num_texts = len(image_features), len(text_features)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        raise ValueError(f"`pairs` must be (pairs, 2) integers: image row, text row. Got {pairs.shape}.")
    if not ((pairs >= 0) & (pairs < [num_images, num_texts])).all():
        raise ValueError(
            f"`pairs` must name rows of both tables. Got up to {pairs.max(axis=0).tolist()} for {num_images} images "
            f"and {num_texts} texts; count from 0."
        )
    of_images, of_texts = connected(pairs, num_images, num_texts)
    where = np.zeros(num_images, np.int64)
    known = np.array([""])
    if domains is not None:
        domains = np.asarray(domains, dtype=str)
        if domains.shape != (num_images,):
            raise ValueError(f"`domains` must be one an image. Got {domains.shape} for {num_images} images.")
        known, where = np.unique(domains, return_inverse=True)
    found: list[tuple[Evaluation, Evaluation]] = []
    for number, domain in enumerate(known.tolist()):
        here = pairs[where[pairs[:, 0]] == number]
        if not len(here):
            raise ValueError(f"A domain is judged on its pairs. Got none for {domain!r}; leave its images out.")
        images, texts = np.unique(here[:, 0]), np.unique(here[:, 1])
        rows = np.stack([np.searchsorted(images, here[:, 0]), np.searchsorted(texts, here[:, 1])], axis=1)
        mine, theirs = image_features[images], text_features[texts]
        known_of = {}
        if domains is not None:
            known_of = {name: of_domain[domain] for name, of_domain in (attributes or {}).items()}
            known_of["domain"] = domain
        both = (
            evaluate_pairs(mine, theirs, rows, ks=ks, groups=of_images[images], ranks=True),
            evaluate_pairs(theirs, mine, rows[:, ::-1], ks=ks, groups=of_texts[texts], ranks=True),
        )
        in_domain = f" ({domain})" if domains is not None else ""
        found.append(
            tuple(
                replace(
                    part.named(CLIP),
                    queries=queries,
                    attributes={name: np.full(len(queries), value) for name, value in known_of.items()},
                    names=None if names is None else np.array([f"{names[row]}{suffix}" for row in of_rows]),
                )
                for part, queries, of_rows, names, suffix in (
                    (both[0], images, images, image_names, ""),
                    (both[1], number * num_texts + texts, texts, text_names, in_domain),
                )
            )
        )
    return tuple(_joined(parts, known.tolist()) for parts in zip(*found, strict=True))


def _joined(parts: Sequence[Evaluation], domains: list[str]) -> Evaluation:
    """The queries of all domains as one evaluation."""
    first = parts[0]
    settings = dict(first.settings)
    if len(parts) > 1:
        settings["num_gallery"] = sum(part.settings["num_gallery"] for part in parts)
        settings["galleries"] = {
            domain: part.settings["num_gallery"] for domain, part in zip(domains, parts, strict=True)
        }
    return replace(
        first,
        values={name: np.concatenate([part.values[name] for part in parts]) for name in first.values},
        queries=np.concatenate([part.queries for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        num_without_positive=sum(part.num_without_positive for part in parts),
        num_tied=sum(part.num_tied for part in parts),
        attributes={name: np.concatenate([part.attributes[name] for part in parts]) for name in first.attributes},
        names=None if first.names is None else np.concatenate([part.names for part in parts]),
        settings=settings,
    )
