"""The command `mixcontrast judge`: a model of two towers at retrieval, zero-shot classification and calibration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcontrast.commands.evaluate import check_report
from mixcontrast.environment import environment
from mixcontrast.files import write_json, write_whole
from mixcontrast.judge.collection import Collection
from mixcontrast.judge.judgement import Judgement
from mixcontrast.judge.reading import Files, as_names, read_collection
from mixcontrast.judge.running import Running
from mixcontrast.judge.subject import Subject, judged, open_subject
from mixcontrast.judge.tables import Beside


def judge_command(
    what: str,
    files: Files,
    running: Running,
    weights: str | None = None,
    model_config: Path | None = None,
    out: Path = Path("runs/judge"),
    report: Path | None = None,
) -> None:
    """Judges a model of two towers: retrieval both ways, zero-shot classification, calibration, geometry.

    R@1, 5 and 10 from images to texts and back, with several captions an image and several images a caption; top-1 and
    top-5 by prompt templates and by class descriptions, with the calibration error; alignment, uniformity and the
    modality gap. All with 95% intervals, and of several weights beside each other, with paired differences from the
    first. Of domains that were held out of training apart, so that what fine-tuning forgets is seen.

    Args:
        what: the folder of a run of mixcontrast fit, judged before and after on its own test part; or
            open_clip:NAME/TAG_OR_FILE, open_clip:NAME with --weights, or open_clip:local-dir:FOLDER.
        files: what it is judged on.
        running: how the towers are run.
        weights: files of weights of this model, joined by commas (zeroshot.pt,finetuned.pt), judged beside each other.
        model_config: a JSON file of a model that open_clip does not have.
        out: a folder for results.json, results.md, and for each weights and task a folder that compare reads.
        report: an HTML page to look at: tables, intervals, reliability, domains, the modality gap.
    """
    if report is not None:
        check_report(report, "mixcontrast.report.judgement_page")
    subject, collection = opened(what, [Path(name) for name in as_names(weights)], files, model_config)
    found = list(judged(subject, collection, running))
    beside = Beside(found, collection)
    page = f"# {what}, judged\n\n{note_of(collection, found)}\n\n{beside.to_markdown()}\n"
    print(page)
    save_queries(out, found)
    settings = {
        "model": what, "weights": {name: file and str(file) for name, file in subject.weights.items()},
        **facts_of(collection), "precision": running.precision, "batch_size": running.batch_size,
    }  # fmt: skip
    facts = {"settings": settings, "environment": environment(running.device)}
    write_json(out / "results.json", {**beside.to_dict(), **facts})
    write_whole(out / "results.md", lambda file: file.write_text(page, encoding="utf-8"))
    print(f"All is in {out}/")
    if report is not None:
        from mixcontrast.report.judgement_page import write_judgement

        write_judgement(
            report, beside, title=f"{what}, judged", note=note_of(collection, found), settings=settings
        )
        print(f"The page is {report}")


def opened(
    what: str, weights: Sequence[Path], files: Files, model_config: Path | None = None
) -> tuple[Subject, Collection]:
    """The model, and what it is judged on; files are read before a model that is opened from elsewhere.

    Raises:
        ValueError: as `open_subject` and `read_collection`; nothing to test on.
    """
    is_run = Path(what).is_dir()
    collection = None if is_run else read_collection(files)
    subject = open_subject(what, weights, model_config)
    collection = subject.collection(files) if is_run else collection
    if collection is None:
        where = f"the column {files.split_column}" if files.split_column else f"the data of {what}"
        raise ValueError(f"Judging needs test rows. Got none in {where}; have a test part.")
    return subject, collection


def facts_of(collection: Collection) -> dict[str, Any]:
    """What was judged on, for the record."""
    domains = [] if collection.domains is None else np.unique(collection.domains).tolist()
    return {
        "num_images": len(collection.images),
        "num_captions": len(collection.texts),
        "num_pairs": 0 if collection.pairs is None else len(collection.pairs),
        "num_classes": len(collection.class_names),
        "texts_of_classes": {name: len(classifier.texts) for name, classifier in collection.classifiers.items()},
        "domains": domains,
        "held_out": list(collection.held_out),
    }


def note_of(collection: Collection, found: Sequence[Judgement]) -> str:
    """How it was judged, in a few lines."""
    facts = facts_of(collection)
    parts = [f"{facts['num_images']:,} images"]
    if facts["num_pairs"]:
        parts.append(f"{facts['num_captions']:,} captions, {facts['num_pairs']:,} pairs")
    if facts["num_classes"]:
        texts = ", ".join(f"{count:,} by {name}" for name, count in facts["texts_of_classes"].items())
        parts.append(f"{facts['num_classes']:,} classes (texts: {texts})")
    if facts["domains"]:
        held_out = f", held out: {', '.join(facts['held_out'])}" if facts["held_out"] else ""
        parts.append(f"{len(facts['domains'])} domains{held_out}")
    lines = ["; ".join(parts) + "."]
    if found[0].retrieval:
        groups = len(np.unique(next(iter(found[0].retrieval.values())).groups))
        within = ", within its own domain" if facts["domains"] else ""
        lines.append(
            f"A query finds any of its captions, or images{within}; MedR is the median rank of the first. [95% "
            f"intervals] are by bootstrap over {groups:,} groups of images and captions that hang together."
        )
    if found[0].zero_shot:
        lines.append(
            "Those of zero-shot classification are over classes. ECE: the expected calibration error in 15 bins, of "
            "the softmax at the model's own logit scale."
        )
    if len(found) > 1:
        lines.append("Differences are query by query.")
    return " ".join(lines)


def save_queries(out: Path, found: Sequence[Judgement]) -> None:
    """A folder for each weights and task, which `mixcontrast compare` reads."""
    for judgement in found:
        for what, evaluation in judgement.evaluations().items():
            evaluation.save(out / as_file(judgement.name) / as_file(what))


def as_file(name: str) -> str:
    """A name as one of a file or folder.

    >>> as_file("zero-shot, templates"), as_file("runs/a/model")
    ('zero_shot_templates', 'runs_a_model')
    """
    return re.sub(r"[^\w.]+", "_", name).strip("_")
