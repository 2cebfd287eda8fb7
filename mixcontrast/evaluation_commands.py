"""The commands `mixcontrast evaluate` and `mixcontrast compare`: embeddings in files, judged and paired."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixcontrast.files import write_whole
from mixcontrast.retrieval import (
    CLIP,
    DML,
    TREC,
    Evaluation,
    Similarity,
    compare,
    comparison_markdown,
    evaluate,
    evaluate_pairs,
    read_qrels,
)

PRESETS = {"dml": DML, "clip": CLIP, "trec": TREC}


def evaluate_command(
    queries: Path,
    labels: str | None = None,
    gallery: Path | None = None,
    gallery_labels: str | None = None,
    qrels: Path | None = None,
    query_ids: str | None = None,
    gallery_ids: str | None = None,
    exclude: str | None = None,
    gallery_exclude: str | None = None,
    by: str | None = None,
    ks: list[int] | None = None,
    preset: Literal["dml", "clip", "trec"] | None = None,
    similarity: Similarity = "cosine",
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected",
    out: Path | None = None,
) -> None:
    """Judges embeddings at retrieval and prints a table of means with 95% intervals.

    Embeddings are .npy or .safetensors files (rows by dimensions). Labels, ids and the like are .npy files, text files
    with one a line, or columns of a CSV file with a header, written file.csv:column.

    Args:
        queries: embeddings of the queries; without a gallery they are searched among themselves.
        labels: classes of the queries; a gallery item of the query's class is relevant.
        gallery: embeddings to search.
        gallery_labels: their classes.
        qrels: instead of labels, a TREC qrels file that says which ids are relevant to which, and how much.
        query_ids: names of the query rows, for qrels; with labels, gallery rows of the query's id are left out.
        gallery_ids: names of the gallery rows.
        exclude: of each query, what a gallery row must not share with it to count (the camera, the vendor).
        gallery_exclude: the same of the gallery; without a gallery it is that of the queries.
        by: of each query, a group for which results are also told apart.
        ks: cut-offs; by default those of the preset.
        preset: names and metrics of a field: dml, clip or trec; all of our own where it is left out.
        similarity: cosine, inner product or l2.
        ties: expected over the orders of equal items, or the best or worst of them.
        out: a folder for results.json, results.md, results.csv and queries.csv (a row a query, which compare reads).
    """
    if (labels is None) == (qrels is None):
        raise ValueError("Say what is relevant by --labels or by --qrels. Got both or neither; give one of them.")
    named = None if preset is None else PRESETS[preset]
    settings: dict[str, Any] = {
        "ks": ks or (named.ks if named else (1, 2, 4, 8)),
        "similarity": similarity,
        "ties": ties,
        "ranks": preset == "clip",
    }
    if exclude is not None:
        settings["exclude"] = [(read_column(exclude), read_column(gallery_exclude or exclude))]
    if by is not None:
        settings["attributes"] = {by.rsplit(":", 1)[-1] if ".csv:" in by else Path(by).stem: read_column(by)}
    of_queries = read_embeddings(queries)
    of_gallery = None if gallery is None else read_embeddings(gallery)
    if qrels is not None:
        if query_ids is None or gallery is None or gallery_ids is None:
            raise ValueError("--qrels name ids. Got not all of --query_ids, --gallery and --gallery_ids; give all.")
        pairs, grades = read_qrels(qrels, read_column(query_ids).astype(str), read_column(gallery_ids).astype(str))
        found = evaluate_pairs(of_queries, of_gallery, pairs, grades, **settings)
    else:
        if (query_ids is None) != (gallery_ids is None) or (query_ids is not None and gallery is None):
            raise ValueError(
                "--query_ids and --gallery_ids leave out a query's own gallery rows. Got one of them, or no --gallery; "
                "give both with a gallery, none without: a query never finds itself."
            )
        if of_gallery is not None:
            settings["gallery_labels"] = None if gallery_labels is None else _codes(gallery_labels, labels)[0]
            if query_ids is not None:
                settings["exclude"] = [
                    *settings.get("exclude", []), (read_column(query_ids), read_column(gallery_ids))
                ]  # fmt: skip
        mine = _codes(labels, gallery_labels)[0]
        found = evaluate(of_queries, mine, of_gallery, **settings)
    shown = found if named is None else found.named(named)
    print(shown.to_markdown())
    print(_note(found))
    if out is not None:
        shown.save(out)
        write_whole(out / "results.md", lambda file: file.write_text(f"{shown.to_markdown()}\n\n{_note(found)}\n"))
        write_whole(out / "results.csv", lambda file: file.write_text(shown.to_csv()))


def compare_command(first: Path, second: Path, out: Path | None = None, num_changed: int = 10) -> None:
    """Compares two evaluations of the same queries, query by query: difference, interval, p-value, won and lost.

    Args:
        first: a folder written by evaluate --out: the baseline.
        second: another.
        out: a Markdown file for the table.
        num_changed: how many of the queries that changed most are listed, of the first metric.
    """
    found = compare(Evaluation.load(first), Evaluation.load(second), num_changed=num_changed)
    page = [comparison_markdown(found)]
    top = next(iter(found.values()))
    if len(top.changed):
        changed = ", ".join(f"{q} ({c:+.3f})" for q, c in zip(top.changed, top.changes, strict=True))
        page.append(f"Queries whose {top.metric} changed most, by row: {changed}.")
    print("\n\n".join(page))
    if out is not None:
        write_whole(out, lambda file: file.write_text("\n\n".join(page) + "\n"))


def read_embeddings(path: Path) -> np.ndarray:
    """(N, D) of a .npy file, or of a .safetensors file with one tensor or one named "embeddings".

    Raises:
        ValueError: the file is not there, not whole, or of another kind.
    """
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
            if len(tensors) != 1 and "embeddings" not in tensors:
                raise ValueError(f"it holds {', '.join(sorted(tensors))}; name one of them embeddings")
            return tensors.get("embeddings", next(iter(tensors.values()))).float().numpy()
    except Exception as error:  # each reader has its own kinds
        raise ValueError(f"{path} cannot be read as embeddings: {_line(error)}. Is it whole?") from None
    raise ValueError(f"Embeddings are .npy or .safetensors files. Got {path}; save them as one of these.")


def read_column(where: str) -> np.ndarray:
    """(N,) values: a .npy file, lines of a text file, or `file.csv:column`; integers where all are, else texts.

    Raises:
        ValueError: the file or the column is not there.
    """
    try:
        if where.endswith(".npy"):
            return np.load(where, allow_pickle=False)
        if ".csv:" in where:
            name, column = where.rsplit(":", 1)
            with open(name, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if not rows or column not in rows[0]:
                raise ValueError(f"no column {column!r}; there are {', '.join(rows[0]) if rows else 'no rows'}")
            values = [row[column] for row in rows]
        else:
            values = Path(where).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where} cannot be read: {_line(error)}; give a .npy, a text file, or file.csv:column."
        ) from None
    try:
        return np.array([int(value) for value in values], np.int64)
    except ValueError:
        return np.array(values)


def _codes(where: str, other: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Integers of two columns, texts numbered alike in both."""
    mine = read_column(where)
    theirs = mine[:0] if other is None else read_column(other)
    if np.issubdtype(mine.dtype, np.integer) and np.issubdtype(theirs.dtype, np.integer):
        return mine, theirs
    inverse = np.unique(np.concatenate([mine.astype(str), theirs.astype(str)]), return_inverse=True)[1]
    return inverse[: len(mine)], inverse[len(mine) :]


def _note(found: Evaluation) -> str:
    settings = found.settings
    note = (
        f"{len(found.queries):,} queries, {settings['num_gallery']:,} gallery rows of {settings['dim']} dimensions, "
        f"{settings['similarity']}, exact search."
    )
    if found.num_without_positive:
        note += f" {found.num_without_positive:,} queries have nothing to find and are left out."
    if found.num_tied:
        note += f" Ties matter for {found.num_tied:,} queries ({settings['ties']})."
    return note


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
