"""The commands `mixcontrast evaluate` and `mixcontrast compare`: embeddings in files, judged and paired."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixcontrast.commands.evaluation_inputs import as_codes, is_column, read_bytes, read_ks, read_of_rows
from mixcontrast.files import write_whole
from mixcontrast.retrieval import (
    CLIP,
    DML,
    TREC,
    Evaluation,
    Similarity,
    StoredEmbeddings,
    clustering_agreement,
    compare,
    comparison_markdown,
    evaluate,
    evaluate_pairs,
    evaluate_run,
    read_qrels,
    search,
    write_run,
)
from mixcontrast.retrieval.processes import own_device, place, shared_search

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
    ks: str | list[int] | None = None,
    preset: Literal["dml", "clip", "trec"] | None = None,
    similarity: Similarity = "cosine",
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected",
    memory_limit: str | None = None,
    index: str | None = None,
    index_parameters: str | None = None,
    device: str = "cpu",
    clusters: bool = False,
    out: Path | None = None,
    run: Path | None = None,
    report: Path | None = None,
    images: str | None = None,
    texts: str | None = None,
    gallery_images: str | None = None,
    gallery_texts: str | None = None,
) -> None:
    """Judges embeddings at retrieval and prints a table of means with 95% intervals.

    Embeddings are .npy, .safetensors, .parquet, .arrow or .feather files (rows by dimensions; in the last three a
    column embedding), folders written by mixcontrast embed, or folders of .npy files. Labels, ids and the like are .npy
    files, text files with one a line, columns of a CSV file with a header, written file.csv:column, or columns stored
    with the embeddings, by their name. Under torchrun each process searches a part of the gallery.

    Args:
        queries: embeddings of the queries; without a gallery they are searched among themselves.
        labels: classes of the queries; a gallery item of the query's class is relevant.
        gallery: embeddings to search.
        gallery_labels: their classes; by default the gallery's own column of the name that --labels gives.
        qrels: instead of labels, a TREC qrels file that says which ids are relevant to which, and how much.
        query_ids: names of the query rows, for qrels, by default their column id; with labels, gallery rows of the
            query's id are left out.
        gallery_ids: names of the gallery rows; for qrels by default their column id.
        exclude: of each query, what a gallery row must not share with it to count (the camera, the vendor).
        gallery_exclude: the same of the gallery; by default the gallery's own column of that name, else as --exclude.
        by: of each query, a group for which results are also told apart.
        ks: cut-offs, joined by commas (1,5,10); by default those of the preset.
        preset: names and metrics of a field: dml, clip or trec; all of our own where it is left out.
        similarity: cosine, inner product or l2.
        ties: expected over the orders of equal items, or the best or worst of them.
        memory_limit: what embeddings, candidates and their copies may take at once in a process, such as 1GB; not
            counted are labels, ids, results, an index and the program itself. By default 1GiB.
        index: a faiss factory string such as IVF1024,Flat for an approximate search.
        index_parameters: of its search, such as nprobe=16.
        device: where it is searched, such as cuda; an index needs a faiss that is built for it.
        clusters: with labels, also how well k-means clusters of the queries are their classes: NMI and AMI.
        out: a folder for results.json, results.md, results.csv and queries.csv (a row a query, which compare reads).
            The exact search keeps its finished blocks there until it is done: run the same command again after a kill.
        run: a TREC run file of the first places, as many as the largest k, for which it searches once more; rows are
            named by --query_ids and --gallery_ids, or their column id, or their numbers.
        report: an HTML page to look at: tables, curves, confusions, queries with what they find, a map.
        images: for the page, paths of the queries' images.
        texts: for the page, texts of the queries.
        gallery_images: paths of the gallery's images.
        gallery_texts: texts of the gallery.
    """
    if report is not None:
        check_report(report, "mixcontrast.report.page")
    if (labels is None) == (qrels is None):
        raise ValueError("Say what is relevant by --labels or by --qrels. Got both or neither; give one of them.")
    if clusters and labels is None:
        raise ValueError("--clusters compares clusters with classes. Got no --labels; give them, or leave it out.")
    named = None if preset is None else PRESETS[preset]
    settings: dict[str, Any] = {
        "ks": read_ks(ks) or (named.ks if named else (1, 2, 4, 8)),
        "similarity": similarity,
        "ties": ties,
        "ranks": preset == "clip",
        "memory_limit": None if memory_limit is None else read_bytes(memory_limit),
        "index": index,
        "index_parameters": index_parameters,
        "device": own_device(device),
        "resume": out,
    }
    with shared_search():
        of_queries = StoredEmbeddings(queries)
        of_gallery = None if gallery is None else StoredEmbeddings(gallery)
        searched = of_queries if of_gallery is None else of_gallery
        if exclude is not None:
            other = gallery_exclude or exclude
            settings["exclude"] = [
                (read_of_rows("exclude", exclude, of_queries), read_of_rows("gallery_exclude", other, searched))
            ]
        if by is not None:
            name = by.rsplit(":", 1)[-1] if ".csv:" in by else Path(by).stem
            settings["attributes"] = {name: read_of_rows("by", by, of_queries)}
        if qrels is not None:
            query_ids, gallery_ids = _named_ids(query_ids, of_queries), _named_ids(gallery_ids, of_gallery)
            if query_ids is None or gallery is None or gallery_ids is None:
                raise ValueError("--qrels name ids. Got not all of --query_ids, --gallery and --gallery_ids; give all.")
            mine = read_of_rows("query_ids", query_ids, of_queries).astype(str)
            theirs = read_of_rows("gallery_ids", gallery_ids, of_gallery).astype(str)
            pairs, grades = read_qrels(qrels, mine, theirs)
            relevance = {"pairs": pairs[grades > 0]}
            found = evaluate_pairs(of_queries, of_gallery, pairs, grades, **settings)
        else:
            if (query_ids is None) != (gallery_ids is None) or (query_ids is not None and gallery is None):
                raise ValueError(
                    "--query_ids and --gallery_ids leave out a query's own gallery rows. Got one of them, or no "
                    "--gallery; give both with a gallery, none without: a query never finds itself."
                )
            mine = read_of_rows("labels", labels, of_queries)
            theirs = mine
            if of_gallery is not None:
                if gallery_labels is None and is_column(labels, of_queries) and is_column(labels, of_gallery):
                    gallery_labels = labels
                if gallery_labels is not None:
                    theirs = read_of_rows("gallery_labels", gallery_labels, of_gallery)
                if query_ids is not None:
                    ids = read_of_rows("query_ids", query_ids, of_queries), read_of_rows(
                        "gallery_ids", gallery_ids, of_gallery
                    )
                    settings["exclude"] = [*settings.get("exclude", []), ids]
            named_by = mine, theirs
            mine, theirs = as_codes(mine, theirs)
            names = {}
            for codes, written in zip((mine, theirs), named_by, strict=True):
                names |= {int(code): str(name) for code, name in zip(codes, written, strict=True)}
            relevance = {"labels": mine, "gallery_labels": None if of_gallery is None else theirs, "names": names}
            if gallery_labels is not None:
                settings["gallery_labels"] = theirs
            found = evaluate(of_queries, mine, of_gallery, **settings)
        first = place()[0] == 0
        asked, listed = _named_ids(query_ids, of_queries), _named_ids(gallery_ids, searched)
        if asked is not None:
            found = replace(found, names=read_of_rows("query_ids", asked, of_queries).astype(str)[found.queries])
        if clusters and first:
            agreement = clustering_agreement(of_queries, relevance["labels"], normalize=similarity == "cosine")
            found = replace(found, clustering=agreement)
        if run is not None:
            numbers = {"query_ids": np.arange(len(searched)), "gallery_ids": np.arange(len(searched))}
            neighbours = search(
                of_queries, searched, max(settings["ks"]), similarity=similarity, exclude=settings.get("exclude", ()),
                memory_limit=settings["memory_limit"], index=index, index_parameters=index_parameters,
                device=settings["device"], **(numbers if of_gallery is None else {}),
            )  # fmt: skip
            if first:
                ids = [
                    np.arange(len(table)) if where is None else read_of_rows(option, where, table)
                    for option, where, table in (
                        ("query_ids", asked, of_queries), ("gallery_ids", listed, searched)
                    )
                ]  # fmt: skip
                write_run(run, neighbours, *ids)
    shown = found if named is None else found.named(named)
    if first:
        _write(found, shown, out)
    if first and report is not None:
        from mixcontrast.report.page import Rows, write_report

        rows = [
            None if table is None else Rows(*(
                None if where is None else read_of_rows(option, where, table, may_lack=True)
                for option, where in options
            ))
            for table, options in (
                (of_queries, (("images", images), ("texts", texts))),
                (of_gallery, (("gallery_images", gallery_images), ("gallery_texts", gallery_texts))),
            )
        ]  # fmt: skip
        write_report(
            report, shown, of_queries, gallery=of_gallery, similarity=similarity, of_queries=rows[0],
            of_gallery=rows[1], exclude=settings.get("exclude", ()), title=f"Retrieval of {queries.name}", **relevance,
        )  # fmt: skip
        print(f"The page is {report}")


def check_report(report: Path, page: str) -> None:
    """One line before anything is searched, rather than after.

    Args:
        report: the file.
        page: the module that writes it.

    Raises:
        ValueError: no .html file.
        ModuleNotFoundError: packages that pages need are not installed.
    """
    if report.suffix != ".html":
        raise ValueError(f"--report is an .html file. Got {report}; name it so.")
    try:
        importlib.import_module(page)
    except ImportError as error:
        raise ModuleNotFoundError(f"--report needs more packages: {error}; pip install 'mixcontrast[report]'") from None


def _named_ids(given: str | None, rows: StoredEmbeddings | None) -> str | None:
    """What names the rows: what is given, else their own column id."""
    return "id" if given is None and rows is not None and "id" in rows.columns else given


def _write(found: Evaluation, shown: Evaluation, out: Path | None) -> None:
    """Prints the result, and writes it into a folder."""
    page, note = shown.to_markdown(), _note(found)
    print(f"{page}\n{note}")
    if out is not None:
        shown.save(out)
        write_whole(out / "results.md", lambda file: file.write_text(f"{page}\n\n{note}\n", encoding="utf-8"))
        write_whole(out / "results.csv", lambda file: file.write_text(shown.to_csv(), encoding="utf-8"))


def evaluate_run_command(
    run: Path,
    qrels: Path,
    ks: str | list[int] | None = None,
    preset: Literal["dml", "clip", "trec"] | None = "trec",
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected",
    out: Path | None = None,
) -> None:
    """Judges a TREC run file of any program and prints a table of means with 95% intervals.

    Args:
        run: lines `query Q0 document rank score name`; the order is that of the scores.
        qrels: what is relevant, a TREC or BEIR file.
        ks: cut-offs, joined by commas (1,5,10); by default those of the preset.
        preset: names and metrics of a field.
        ties: expected over the orders of equal scores, or the best or worst of them.
        out: a folder for the results, which compare reads.
    """
    named = None if preset is None else PRESETS[preset]
    found = evaluate_run(run, qrels, ks=read_ks(ks) or (named.ks if named else TREC.ks), ties=ties)
    _write(found, found if named is None else found.named(named), out)


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
        told = top.changed if top.names is None else top.names
        changed = ", ".join(f"{q} ({c:+.3f})" for q, c in zip(told, top.changes, strict=True))
        by = "row" if top.names is None and top.changed.dtype.kind in "iu" else "name"
        page.append(f"Queries whose {top.metric} changed most, by {by}: {changed}.")
    print("\n\n".join(page))
    if out is not None:
        write_whole(out, lambda file: file.write_text("\n\n".join(page) + "\n"))


def _note(found: Evaluation) -> str:
    settings = found.settings
    if settings["search"] == "a run":
        note = f"{len(found.queries):,} queries with something to find."
        if settings["num_not_in_run"]:
            note += f" {settings['num_not_in_run']:,} of them are not in the run and count as 0."
        return note + _note_of_ties(found)
    note = (
        f"{len(found.queries):,} queries, {settings['num_gallery']:,} gallery rows of {settings['dim']} dimensions, "
        f"{settings['similarity']}, {settings['search']} search"
    )
    if settings["search"] == "approximate":
        index = dict(settings["index"])
        name, parameters = index.pop("factory"), index.pop("parameters")
        (recall,) = index.values()
        (k,) = (key.split("@")[1] for key in index)
        interval = "" if recall["low"] is None else f" [{recall['low']:.4f}, {recall['high']:.4f}]"
        note += (
            f" by {name}{' ' * bool(parameters)}{parameters}, which finds {recall['mean']:.4f}{interval} of the exact "
            f"{k} nearest; what it does not find is missed"
        )
    note += "."
    if max(settings["ks"]) > settings["num_gallery"]:
        note += f" k of {max(settings['ks'])} is over the gallery's size: places past its end are misses."
    if found.clustering:
        note += f" Clusters and classes: NMI {found.clustering['nmi']:.4f}, AMI {found.clustering['ami']:.4f}."
    return note + _note_of_ties(found)


def _note_of_ties(found: Evaluation) -> str:
    note = ""
    if found.num_without_positive:
        note += f" {found.num_without_positive:,} queries have nothing to find and are left out."
    if found.num_tied:
        note += f" Ties matter for {found.num_tied:,} queries ({found.settings['ties']})."
    return note
