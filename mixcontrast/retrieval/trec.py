"""TREC's run and qrels files, so that trec_eval, ir-measures, ranx and BEIR read ours and we theirs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.retrieval.checks import as_array
from mixcontrast.retrieval.search import Neighbours


def read_qrels(path: str | Path, query_ids: Any, gallery_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Relevance of a qrels file, as `evaluate_pairs` takes it.

    Lines are `query 0 document grade`, or BEIR's tab-separated `query-id corpus-id score` with its header.

    Args:
        path: the file.
        query_ids: (Q,) the id of each query row, as text.
        gallery_ids: (G,) the id of each gallery row, as text.

    Returns:
        `pairs` (P, 2) rows and `grades` (P,); negative grades (not relevant, in TREC) become 0, and lines of queries
        that have no row are left out.

    Raises:
        ValueError: a line that is neither form; a document that has no row; no query that has one; ids that are
            not one a row.
    """
    rows_of_query, rows_of_document = _rows("query_ids", query_ids), _rows("gallery_ids", gallery_ids)
    pairs, grades = [], []
    for number, query, document, grade in _judgements(path):
        if query not in rows_of_query:
            continue
        if document not in rows_of_document:
            raise ValueError(
                f"Every judged document needs a row in the gallery. Got {document!r} in line {number} of {path}; "
                "embed it, or drop its lines."
            )
        pairs.append((rows_of_query[query], rows_of_document[document]))
        grades.append(grade)
    if not pairs:
        raise ValueError(
            f"Qrels must name queries by their ids. Got {path} with none of the {len(rows_of_query)} ids, the first "
            f"{next(iter(rows_of_query))!r}; give the ids that stand in it."
        )
    return np.array(pairs, np.int64), np.array(grades)


def read_judgements(path: str | Path) -> dict[str, dict[str, float]]:
    """Grades of a qrels file of either form: query id to document id to grade, as ranx and pytrec_eval take it.

    Negative grades become 0.

    Raises:
        ValueError: a line that is neither form, a pair with two grades.
    """
    found: dict[str, dict[str, float]] = {}
    for number, query, document, grade in _judgements(path):
        if found.setdefault(query, {}).setdefault(document, grade) != grade:
            raise ValueError(
                f"A pair has one grade. Got {document!r} for {query!r} with another in line {number} of {path}; "
                "keep one."
            )
    return found


def write_qrels(
    path: str | Path, pairs: Any, query_ids: Any, gallery_ids: Any, grades: Any = None, *, beir: bool = False
) -> None:
    """Writes relevance as `query 0 document grade`, whole or not at all.

    Args:
        path: the file.
        pairs: (P, 2) rows of queries and of the gallery.
        query_ids: (Q,) the id of each query row.
        gallery_ids: (G,) the id of each gallery row.
        grades: (P,) whole numbers; None: 1.
        beir: write BEIR's tab-separated form with its header instead (`qrels/test.tsv` of its folders).

    Raises:
        ValueError: ids with spaces, grades that are not whole, which TREC's tools would cut.
    """
    pairs = as_array(pairs)
    grades = np.ones(len(pairs), np.int64) if grades is None else as_array(grades)
    mine, theirs = _texts("query_ids", query_ids), _texts("gallery_ids", gallery_ids)
    if not (grades == np.floor(grades)).all():
        raise ValueError("TREC's grades are whole numbers. Got fractions; multiply them all by one number.")
    between, lines = ("\t", ["query-id\tcorpus-id\tscore"]) if beir else (" 0 ", [])
    after = "\t" if beir else " "
    lines += [f"{mine[q]}{between}{theirs[g]}{after}{int(grade)}" for (q, g), grade in zip(pairs, grades, strict=True)]
    _write(Path(path), lines)


def write_run(path: str | Path, found: Neighbours, query_ids: Any, gallery_ids: Any, name: str = "mixcontrast") -> None:
    """Writes rankings as `query Q0 document rank score name`, whole or not at all; ranks count from 1.

    Args:
        path: the file.
        found: of `search`.
        query_ids: (Q,) the id of each query row.
        gallery_ids: (G,) the id of each gallery row.
        name: of the run.
    """
    mine, theirs = _texts("query_ids", query_ids), _texts("gallery_ids", gallery_ids)
    lines = []
    for row, query in enumerate(mine):
        columns = np.flatnonzero(found.valid[row])
        for rank, column in enumerate(columns, 1):
            score = found.similarity[row, column]
            lines.append(f"{query} Q0 {theirs[found.indices[row, column]]} {rank} {score:.9g} {name}")
    _write(Path(path), lines)


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Scores of a run file: query id to document id to score, as ir-measures and ranx take it.

    Raises:
        ValueError: a line that is not `query Q0 document rank score name`, a document twice.
    """
    found: dict[str, dict[str, float]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        try:
            query, _, document, _, text, _ = cells
            score = float(text)
            if not math.isfinite(score):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"A line of a run is `query Q0 document rank score name`. Got line {number} of {path}: {line!r}; "
                "mend the file."
            ) from None
        of_query = found.setdefault(query, {})
        if document in of_query:
            raise ValueError(
                f"A run lists a document once a query. Got {document!r} for {query!r} again in line {number} of "
                f"{path}; keep one."
            )
        of_query[document] = score
    return found


def _judgements(path: str | Path) -> Iterator[tuple[int, str, str, float]]:
    """Line number, query, document and grade, at least 0, of each line."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split()
        if not cells or (number == 1 and cells[0] == "query-id"):
            continue
        if len(cells) == 3:
            cells = [cells[0], "0", *cells[1:]]
        try:
            query, _, document, grade = cells
            yield number, query, document, max(float(grade), 0.0)
        except ValueError:
            raise ValueError(
                f"A line of qrels is `query 0 document grade`. Got line {number} of {path}: {line!r}; mend the file."
            ) from None


def _texts(name: str, ids: Any) -> list[str]:
    texts = [str(value) for value in as_array(ids).tolist()]
    bad = next((text for text in texts if not text or len(text.split()) != 1), None)
    if bad is not None:
        raise ValueError(f"TREC files have spaces between fields, so `{name}` must have none. Got {bad!r}; rename it.")
    return texts


def _rows(name: str, ids: Any) -> dict[str, int]:
    texts = _texts(name, ids)
    rows = {text: row for row, text in enumerate(texts)}
    if len(rows) != len(texts):
        raise ValueError(
            f"`{name}` must name each row once. Got {len(texts)} rows, {len(rows)} names; identical ids would be "
            "dropped in silence elsewhere: make them unique."
        )
    return rows


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
