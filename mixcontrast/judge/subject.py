"""What is judged, opened by its written name: a run, or a model of open_clip; with the weights that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mixcontrast.judge.collection import Collection
from mixcontrast.judge.embedding import Embedder
from mixcontrast.judge.judgement import Judgement
from mixcontrast.judge.reading import Files, read_collection
from mixcontrast.judge.running import Running
from mixcontrast.models.open_clip_models import check_open_clip_name, is_local, open_clip_package
from mixcontrast.models.towers import OpenClip, Towers

if TYPE_CHECKING:
    from mixcontrast.judge.run import Run


@dataclass(frozen=True)
class Subject:
    """A model and the weights that are judged beside each other.

    Attributes:
        name: of the model, as it was written.
        towers: the model.
        weights: name to a file; None: those that the towers have.
        run: where the model is that of a run; else None.
    """

    name: str
    towers: Towers
    weights: dict[str, Path | None]
    run: Run | None = None

    def collection(self, files: Files, split: str = "test") -> Collection | None:
        """What is judged: of the files where they name pairs or classes, else of the run's own data.

        Args:
            files: what the command names.
            split: "test" or "val"; the latter of files only where a column tells the parts.
        """
        if self.run is None or files.pairs is not None or files.classes is not None:
            return read_collection(files, split) if split == "test" or files.split_column is not None else None
        named = {"domain_column": files.domain_column, "split_column": files.split_column,
                 "label_column": files.label_column, "held_out": ",".join(files.held_out)}  # fmt: skip
        given = [f"--{name}" for name, value in named.items() if value]
        if given:
            raise ValueError(
                f"A run is judged on its own data, as its recipe says. Got {', '.join(given)}; give --pairs too, or "
                "leave it out."
            )
        return self.run.collection(split, files.templates, files.descriptions)


def open_subject(what: str, weights: Sequence[Path] = (), model_config: Path | None = None) -> Subject:
    """Opens a run, or a model of open_clip.

    Args:
        what: the folder of a run of `mixcontrast fit`, `open_clip:NAME`, `open_clip:NAME/TAG_OR_FILE` or
            `open_clip:local-dir:FOLDER`.
        weights: files, judged beside each other, behind those of the tag; of a run instead of its own two.
        model_config: a JSON file of a model that open_clip does not have.

    Raises:
        ValueError: a name that is none of these or that open_clip does not have; neither a tag nor weights.
    """
    kind, _, rest = what.partition(":")
    if Path(what).is_dir():
        if model_config is not None:
            raise ValueError(f"A run has its own model. Got --model_config with {what}; leave it out.")
        run = _run(Path(what))
        return Subject(what, run.towers, named(weights) or dict(run.weights), run)
    if kind != "open_clip" or not rest:
        raise ValueError(
            "What is judged is the folder of a run, or open_clip:NAME/TAG_OR_FILE, or open_clip:NAME with --weights. "
            f"Got {what!r}{'' if ':' in what else ', where no folder is'}; open_clip:ViT-B-32/openai."
        )
    local = is_local(rest)
    name, _, pretrained = (rest, "", "") if local else rest.partition("/")
    if not local and not pretrained and not weights:
        if model_config is None:
            check_open_clip_name(name)
        tags = open_clip_package().list_pretrained_tags_by_model(name)
        raise ValueError(
            f"open_clip's {name} needs weights to be judged. Got none; write open_clip:{name}/TAG_OR_FILE or give "
            f"--weights. Tags are {', '.join(tags) or 'none'}."
        )
    towers = OpenClip(name, pretrained or None, config=model_config)
    own = {Path(pretrained).stem if pretrained else rest: None} if local or pretrained else {}
    return Subject(what, towers, own | named(weights))


def _run(folder: Path) -> Run:
    try:
        from mixcontrast.judge.run import Run
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Judging a run needs more packages: {error}; pip install 'mixcontrast[fit]'"
        ) from None
    return Run(folder)


def named(files: Sequence[Path]) -> dict[str, Path | None]:
    """Files by their names, with their folders where a name is there twice.

    Raises:
        ValueError: a file twice, or one that is not there.
    """
    if len(set(files)) < len(files):
        raise ValueError(f"Weights are judged once. Got {', '.join(map(str, files))}; leave the second out.")
    for file in files:
        if not file.is_file():
            raise ValueError(f"Weights are files. There is no {file}; name those that are there.")
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [file.with_suffix("").as_posix() for file in files]
    return dict(zip(stems, files, strict=True))


def judged(subject: Subject, collection: Collection, running: Running) -> Iterator[Judgement]:
    """Loads each of the weights in turn and judges it; a bar tells how far it is."""
    towers = subject.towers.to(running.device)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        embedder = Embedder(
            towers, collection, batch_size=running.batch_size, num_workers=running.num_workers, device=running.device,
            precision=running.precision, transform=None if subject.run is None else subject.run.data.transform,
            advance=lambda count: bar.advance(task, count),
        )  # fmt: skip
        for name, file in subject.weights.items():
            if file is not None:
                towers.load(file)
            bar.reset(task, description=name, total=len(embedder))
            yield embedder.judge(name)
    towers.to(torch.device("cpu"))
