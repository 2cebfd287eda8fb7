"""`mixcontrast judge` and `ensemble` on a run of `mixcontrast fit`, before and after, on its own test part."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mixcontrast.cli import main
from mixcontrast.judge.cross_modal import cross_modal_retrieval
from tests.fitting import CaptionedVectors, recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of small heads on vectors of 40 classes in three domains, one held out."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", "--config", str(recipe("image text", folder)), "--out", str(folder / "run"),
          "--trainer.max_epochs=8", "--judge_every=4", "--save_every=0"])  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def judged(run, tmp_path_factory):
    """The folder of its judgement."""
    folder = tmp_path_factory.mktemp("judged")
    main(["judge", str(run), "--out", str(folder), "--report", str(folder / "page.html")])
    return folder


def by_hand(run, name: str, domain: str) -> tuple[float, float, float]:
    """Image-to-text and text-to-image R@1 of a domain, and top-1 by the mean of a class's captions."""
    state = torch.load(run / f"{name}.pt", weights_only=True)["state_dict"]
    data = CaptionedVectors()
    tested = {text.rpartition(" of ")[2] for text in json.loads((run / "texts.json").read_text())}
    rows = [r for r, g in enumerate(data.groups) if data.domains[r] == domain and str(g) in tested]
    texts = [t for t, caption in enumerate(data.captions) if caption.rpartition(" of ")[2] in tested]
    image, text = (
        F.normalize(table @ state[f"{side}_head.weight"].T + state[f"{side}_head.bias"], dim=1).numpy()
        for table, side in ((data.image_rows[rows], "image"), (data.text_rows[texts], "text"))
    )
    pairs = [(i, t) for i, r in enumerate(rows) for t, c in enumerate(texts) if (r, c) in set(map(tuple, data.pairs))]
    both = cross_modal_retrieval(image, text, np.array(pairs))
    means = text.reshape(len(rows), 2, -1).sum(axis=1)
    top = ((image @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1) == range(len(rows))).mean()
    return both[0].mean("R@1"), both[1].mean("R@1"), top


def test_before_and_after(run, judged) -> None:
    shown = (judged / "results.md").read_text()
    found = json.loads((judged / "results.json").read_text())
    names = (judged / "before" / "text_to_image" / "queries.csv").read_text()
    captions = [text for text in CaptionedVectors().captions if f"{text} (west)" in names]
    (run / "texts.json").write_text(json.dumps(captions))
    assert found["settings"]["held_out"] == ["west"] and "3 domains, held out: west" in shown
    for name, file in (("before", "start"), ("after", "model")):
        told = found["weights"][name]
        wanted = by_hand(run, file, "west")
        for what, value in zip(("image to text", "text to image", "zero-shot, descriptions"), wanted, strict=True):
            metric = "top-1" if "zero" in what else "R@1"
            assert told[what]["held-out"]["metrics"][metric]["mean"] == pytest.approx(value)
    saved = json.loads((run / "results.json").read_text())["by"]["retrieval"]  # fit's own judge
    for what in ("image to text", "text to image"):
        for part in ("in-domain", "held-out"):
            mine = found["weights"]["after"][what][part]["metrics"]["R@1"]["mean"]
            assert mine == pytest.approx(saved[f"{what}, {part}"]["metrics"]["R@1"]["mean"])
    assert "minus before" in found and (judged / "page.html").exists()


def test_an_ensemble_of_a_run(run, judged, tmp_path, capsys) -> None:
    main(["ensemble", str(run / "start.pt"), str(run / "model.pt"), "--alpha", "0,1", "--judge", str(run),
          "--out", str(tmp_path / "x")])  # fmt: skip
    assert "is best on the validation part" in capsys.readouterr().out
    found = json.loads((tmp_path / "x" / "results.json").read_text())
    alone = json.loads((judged / "results.json").read_text())["weights"]
    assert found["weights"]["alpha 0"] == alone["before"] and found["weights"]["alpha 1"] == alone["after"]
    assert found["chosen"]["alpha"] == 1  # the start is at chance


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{run}/.."], "A run is a folder with config.yaml"),
        (["{run}", "--domain_column", "d"], "A run is judged on its own data, as its recipe says. Got --domain_column"),
        (["{run}", "--model_config", "x.json"], "A run has its own model"),
        (["{other}"], "other is a run of mixcontrast.training.MetricLearning"),
        (["{half}"], "half lacks model.pt; let it end"),
    ],
)
def test_bad_input_gets_one_line(run, tmp_path, arguments, message) -> None:
    for name, kind in (("other", "MetricLearning"), ("half", "ImageText")):
        (tmp_path / name).mkdir()
        text = (run / "config.yaml").read_text().replace("training.ImageText", f"training.{kind}")
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "half" / "start.pt").write_bytes((run / "start.pt").read_bytes())
    named = {"run": run, "other": tmp_path / "other", "half": tmp_path / "half"}
    with pytest.raises(SystemExit) as raised:
        main(["judge", *(text.format(**named) for text in arguments), "--out", str(tmp_path / "x")])
    assert message in str(raised.value) and "\n" not in str(raised.value)
