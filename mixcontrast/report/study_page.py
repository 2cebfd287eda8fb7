"""The answer of a study as a self-contained page and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixcontrast.files import write_whole
from mixcontrast.report.figures import environment
from mixcontrast.report.study_pictures import pictures_of
from mixcontrast.study.answer import duration, in_words, summary

CELLS = ("mean", "low", "high")
CHOICE = (
    "What is chosen is taken as given: intervals leave out that another run of the grid might have chosen otherwise. "
    "Where it lies at the edge of the grid, a wider one may find better."
)


def write_page(path: Path, answer: dict[str, Any], ran: dict[str, Any], title: str = "Does mixing help?") -> Path:
    """Writes the page, and its pictures as PNG and SVG into `pictures/` beside it.

    Args:
        path: an .html file, written whole.
        answer: of `answer_of`.
        ran: on what it ran.
        title: of the page.
    """
    pictures = pictures_of(answer, path.parent / "pictures")
    page = environment().get_template("study.html.jinja").render(
        title=title, answer=answer, summary=summary(answer), pictures=pictures, results=results_rows(answer),
        why=why_rows(answer), kinds=kind_rows(answer), tuned=tuned_rows(answer), others=other_rows(answer),
        costs=cost_rows(answer), took=duration(answer["time"]), choice=CHOICE,
        ran={name: value for name, value in ran.items() if value is not None},
    )  # fmt: skip
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def shown_metrics(answer: dict[str, Any]) -> list[str]:
    """The metric that is asked about, then the others."""
    metric = answer["question"]["metric"]
    others = next(iter(answer["criteria"].values()))["metrics"]
    return [metric, *(name for name in others if name != metric)]


def results_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a criterion: the metric that is asked about, and its difference to the baseline."""
    metric = answer["question"]["metric"]
    to_baseline = {d["criterion"]: d for d in answer["differences"] if d["against"] == answer["question"]["baseline"]}
    return [
        {"name": name, "metric": interval_text(each["metrics"][metric]), "difference": to_baseline.get(name)}
        for name, each in answer["criteria"].items()
    ]


def other_rows(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a criterion: the metrics that were not asked about."""
    metrics = shown_metrics(answer)[1:]
    rows = [
        [name, *(interval_text(each["metrics"][metric]) for metric in metrics)]
        for name, each in answer["criteria"].items()
    ]
    return ["criterion", *metrics], rows if metrics else []


def cost_rows(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a criterion whose step was measured."""
    rows = []
    for name, cost in answer["costs"].items():
        seconds, memory = cost.get("seconds a step"), cost.get("peak memory")
        if seconds is not None or memory is not None:
            rows.append(
                [name, "" if seconds is None else f"{1e3 * seconds:.1f}",
                 "" if memory is None else f"{memory / 2**20:.1f}"]
            )  # fmt: skip
    return ["criterion", "ms a step", "MB a step"], rows


def why_rows(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a criterion: means over seeds with their spread."""
    names = {
        "uniformity": "uniformity", "alignment": "alignment", "utilization": "utilization",
        "modality gap": "modality gap", "rank correlation": "rank correlation", "temperature": "temperature at the end",
        "share of the loss": "mixed share of the loss", "share of the gradient": "mixed share of the gradient",
    }  # fmt: skip
    found = {name: each["why"] for name, each in answer["criteria"].items()}
    kept = [key for key in names if any(key in why for why in found.values())]
    header = ["criterion", "positives", "negatives", "mixtures", *(names[key] for key in kept)]
    rows = []
    for name, why in found.items():
        means = why.get("means", {})
        mixed = bool(why.get("kinds"))
        cells = [spread_text(means.get(part)) for part in ("positives", "negatives", "mixtures")]
        cells += [spread_text(why.get(key)) if mixed or "share" not in key else "" for key in kept]
        rows.append([name, *cells])
    return header, rows


def kind_rows(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a kind of mixture of each criterion."""
    header = ["criterion", "mixtures", "an anchor", "similarity", "harder than its hardest negative",
              "false negatives", "share of the gradient"]  # fmt: skip
    rows = []
    for name, each in answer["criteria"].items():
        for kind in each["why"].get("kinds", []):
            shares = [kind.get(key) for key in ("harder than the hardest", "false negatives", "share of the gradient")]
            rows.append(
                [name, kind["kind"], f"{kind['an anchor']['mean']:.0f}" if "an anchor" in kind else "",
                 spread_text(kind.get("similarity")), *(share_text(share) for share in shares)]
            )  # fmt: skip
    return header, rows


def tuned_rows(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a criterion: what was chosen, what of it at an edge, what it reached, how many were stopped."""
    rows = []
    for name, each in answer["criteria"].items():
        trials = each["tuning"]
        stopped = sum(trial["state"] == "stopped" for trial in trials)
        failed = sum(trial["state"] == "failed" for trial in trials)
        tried = f"{len(trials)} points, {stopped} stopped early" + (f", {failed} failed" if failed else "")
        rows.append([name, in_words(each["tuned"]), in_words(each["at the edge"]), *_finalists(each), tried])
    return ["criterion", "chosen", "at the edge of the grid", "there, a seed each", "the next best", "tried"], rows


def _how_chosen(answer: dict[str, Any]) -> str:
    """How the points of the grids were compared."""
    finalists = [each["finalists"] for each in answer["criteria"].values()]
    seeds = max(len(each["values"]) for kept in finalists for each in kept)
    more = f" and the best {max(map(len, finalists))} by the mean of {seeds} seeds" if seeds > 1 else ""
    return f"Chosen on the validation part, by one run a point{more}, with no seed that is judged."


def _finalists(criterion: dict[str, Any]) -> list[str]:
    """What the chosen point reached with each seed that tuned it, and the mean of the next best one."""
    (chosen,) = (each for each in criterion["finalists"] if each["point"] == criterion["tuned"])
    others = [each for each in criterion["finalists"] if each is not chosen and None not in each["values"]]
    means = [(sum(each["values"]) / len(each["values"]), each) for each in others]
    mine = sum(value or 0 for value in chosen["values"]) / len(chosen["values"])
    near = min(means, key=lambda mean: abs(mean[0] - mine), default=None)
    values = ", ".join("failed" if value is None else f"{value:.3f}" for value in chosen["values"])
    return [values, "" if near is None else f"{near[0]:.4f} for {mine:.4f}: {in_words(near[1]['point'])}"]


def interval_text(found: dict[str, float], form: str = ".4f") -> str:
    """A mean with its interval."""
    mean, low, high = (format(found[end], form) for end in CELLS)
    return f"{mean} [{low}, {high}]"


def spread_text(found: dict[str, float] | None) -> str:
    """A mean over seeds and their standard deviation."""
    return "" if found is None else f"{found['mean']:.3f} ± {found['sd']:.3f}"


def share_text(found: dict[str, float] | None) -> str:
    """A share in percent, and its standard deviation over seeds."""
    return "" if found is None else f"{found['mean']:.1%} ± {found['sd']:.1%}"


def answer_markdown(answer: dict[str, Any]) -> str:
    """The answer as Markdown: a summary, a sentence a comparison, and the tables."""
    question = answer["question"]
    header = ["criterion", *shown_metrics(answer)]
    rows = [
        [name, *(interval_text(each["metrics"][metric]) for metric in header[1:])]
        for name, each in answer["criteria"].items()
    ]
    took = duration(answer["time"])
    parts = [
        summary(answer),
        "\n".join(f"- {each['sentence']}" for each in answer["differences"]),
        *(f"{name} could not be trained: {line}" for name, line in answer["failed"].items()),
        f"Means of {question['seeds']} paired seeds on {question['queries']:,} queries; [95% intervals] are over seeds "
        f"and {question['groups of queries']:,} groups of queries. {question['metric']} is better where it is "
        f"{question['better']}." + (f" It took {took}." if took else ""),
        table(header, rows),
        f"{_how_chosen(answer)} {CHOICE}",
        table(*tuned_rows(answer)),
        "Why, mean and standard deviation over seeds; similarities of a batch of training and embeddings of the test "
        "part, at the best checkpoint:",
        table(*why_rows(answer)),
    ]
    if kind_rows(answer)[1]:
        parts.append(table(*kind_rows(answer)))
    if cost_rows(answer)[1]:
        parts += ["What a step costs, forward, backward and the optimizer's:", table(*cost_rows(answer))]
    return "\n\n".join(parts) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
