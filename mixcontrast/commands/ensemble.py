"""The command `mixcontrast ensemble`: weights between a zero-shot and a fine-tuned model (WiSE-FT)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mixcontrast.commands.evaluate import check_report
from mixcontrast.environment import environment
from mixcontrast.files import write_json, write_whole
from mixcontrast.judge.alphas import read_alphas, read_weights
from mixcontrast.judge.collection import Collection
from mixcontrast.judge.reading import Files
from mixcontrast.judge.running import Running
from mixcontrast.judge.weights import check_alike, integer_names, interpolate

if TYPE_CHECKING:
    from mixcontrast.judge.subject import Subject


def ensemble_command(
    zeroshot: Path,
    finetuned: Path,
    files: Files,
    running: Running,
    alpha: str | list[float] = "0,0.1,...,1",
    out: Path = Path("runs/ensemble"),
    judge: str | None = None,
    model_config: Path | None = None,
    report: Path | None = None,
) -> None:
    """Writes weights between two checkpoints, (1 - alpha) times the first plus alpha times the second (WiSE-FT).

    Wortsman et al., CVPR 2022, arXiv 2109.01903: between a zero-shot and a fine-tuned model lie some that keep what the
    one knows of other domains and have most of what the other has learned. Each is a plain state dict that open_clip
    loads: open_clip.create_model(NAME, pretrained="ensemble-0.5.pt"). With --judge each is judged, and curve.png,
    curve.svg and results.json tell what it reaches, in-domain and on domains held out; the best alpha is that of the
    validation rows, never of the test rows.

    Args:
        zeroshot: weights before fine-tuning: of open_clip, or model.pt or a checkpoint of mixcontrast fit.
        finetuned: weights of the same architecture behind it.
        files: what is judged on.
        running: how the towers are run.
        alpha: in [0, 1], joined by commas; dots fill steps in.
        out: the folder for ensemble-ALPHA.pt.
        judge: the model that the weights are of, as mixcontrast judge takes it: the folder of a run, which has its own
            data, or open_clip:NAME with --pairs or --classes.
        model_config: a JSON file of a model that open_clip does not have.
        report: with --judge an HTML page to look at: the curve, and both ends and the chosen alpha beside each other.
    """
    alphas = read_alphas(alpha)
    if judge is None:
        if files.pairs is not None or files.classes is not None or report is not None:
            raise ValueError(
                "--pairs, --classes and --report are of --judge. Got no --judge; name the model by it, a run or "
                "open_clip:NAME."
            )
    else:
        try:
            from mixcontrast.commands.judge import opened
            from mixcontrast.report import curves  # noqa: F401
        except ImportError as error:
            raise ModuleNotFoundError(
                f"--judge needs more packages: {error}; pip install 'mixcontrast[clip,report]'"
            ) from None
        if report is not None:
            check_report(report, "mixcontrast.report.judgement_page")
        subject, test = opened(judge, [zeroshot, finetuned], files, model_config)
        validation = subject.collection(files, "val")
    first, second = read_weights(zeroshot), read_weights(finetuned)
    check_alike(first, second, (str(zeroshot), str(finetuned)))
    written = {value: out / f"ensemble-{value:g}.pt" for value in alphas}
    for value, path in written.items():
        state = interpolate(first, second, value)
        write_whole(path, lambda file, state=state: torch.save(state, file))
    whole = integer_names(second)
    note = f" {len(whole)} integer tensors ({whole[0]}) are those of {finetuned}." if whole else ""
    shown = ", ".join(f"{value:g}" for value in alphas)
    print(f"{len(alphas)} files ensemble-ALPHA.pt are in {out}/, alpha {shown}.{note}")
    if judge is None:
        return
    subject = replace(subject, weights={f"alpha {value:g}": path for value, path in written.items()})
    judge_ensemble(subject, alphas, test, validation, running, out, (str(zeroshot), str(finetuned)), report)


def judge_ensemble(
    subject: Subject,
    alphas: list[float],
    test: Collection,
    validation: Collection | None,
    running: Running,
    out: Path,
    ends: tuple[str, str],
    report: Path | None = None,
) -> None:
    """Judges each alpha, prints and writes tables and the curve.

    Args:
        subject: its weights are of the alphas, in their order.
        alphas: rising.
        test: what each is judged on.
        validation: what alpha is chosen by; None: none is chosen.
        running: how the towers are run.
        out: the folder.
        ends: what was interpolated, for the record.
        report: a page of the curve, and of the ends and the chosen alpha; None: none.
    """
    from mixcontrast.commands.judge import facts_of, note_of, save_queries
    from mixcontrast.judge.curve import choose, curve_as_dict, lines_of
    from mixcontrast.judge.subject import judged
    from mixcontrast.judge.tables import Beside
    from mixcontrast.report.curves import alpha_figure
    from mixcontrast.report.figures import PAGE, save
    from mixcontrast.report.judgement_page import write_judgement

    choice, against_last = None, ""
    if validation is not None:
        choice = choose(alphas, list(judged(subject, validation, running)))
    found = list(judged(subject, test, running))
    beside = Beside(found, test)
    told = "No alpha is chosen: there is no validation part."
    if choice is not None:
        values = ", ".join(f"{alpha:g} {value:.3f}" for alpha, value in zip(alphas, choice.values, strict=True))
        told = (
            f"alpha {choice.alpha:g} is best on the validation part, by the {choice.by} ({values}). The test rows had "
            "no say in it."
        )
        if alphas[-1] > choice.alpha:
            last = Beside([found[-1], found[alphas.index(choice.alpha)]], test)
            against_last = "\n\n" + last.differences_markdown()
    page = (
        f"# {ends[0]} to {ends[1]}\n\n{note_of(test, found)}\n\n{told}{against_last}\n\n{beside.to_markdown()}\n"
    )
    print(page)
    save_queries(out, found)
    lines = lines_of(beside)
    save(alpha_figure(alphas, lines, choice), out / "curve")
    settings = {"model": subject.name, "zeroshot": ends[0], "finetuned": ends[1], **facts_of(test)}
    write_json(
        out / "results.json",
        {**curve_as_dict(alphas, lines, choice), **beside.to_dict(), "settings": settings,
         "environment": environment(running.device)},
    )  # fmt: skip
    write_whole(out / "results.md", lambda file: file.write_text(page, encoding="utf-8"))
    print(f"curve.png, curve.svg, results.json and results.md are in {out}/")
    if report is not None:
        shown = {0, len(found) - 1} | ({alphas.index(choice.alpha)} if choice else set())
        write_judgement(
            report, beside.only([found[place].name for place in shown]), title=f"{ends[0]} to {ends[1]}",
            note=f"{note_of(test, found)} {told}", settings=settings, first=alpha_figure(alphas, lines, choice, PAGE),
        )  # fmt: skip
        print(f"The page is {report}")
