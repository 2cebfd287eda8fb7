"""`mixcontrast ensemble` on tiny open_clip models that differ."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from mixcontrast.cli import main
from mixcontrast.judge.alphas import read_alphas
from tests.judge.drawings import draw, write_csv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The name of a model that open_clip then has."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return "tiny-clip"


@pytest.fixture
def folder(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("zeroshot", "finetuned")):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model(tiny).state_dict(), f"{name}.pt")
    return tmp_path


def test_ends_are_the_two_and_open_clip_loads_what_is_between(folder, tiny, capsys) -> None:
    main(["ensemble", "zeroshot.pt", "finetuned.pt", "--alpha", "0,0.25,1", "--out", "between"])
    assert "3 files ensemble-ALPHA.pt are in between/, alpha 0, 0.25, 1." in capsys.readouterr().out
    ends = [torch.load(f"{name}.pt") for name in ("zeroshot", "finetuned")]
    for value, wanted in zip((0, 1), ends, strict=True):
        found = torch.load(f"between/ensemble-{value}.pt")
        assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    model = open_clip.create_model(tiny, pretrained="between/ensemble-0.25.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * ends[0][name] + 0.25 * ends[1][name])
    assert {file.name for file in (folder / "between").iterdir()} == {f"ensemble-{a}.pt" for a in ("0", "0.25", "1")}


def test_checkpoints_of_open_clips_trainer_and_of_fit(folder, tiny) -> None:
    state = torch.load("finetuned.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, "theirs.pt")
    fitted = {f"encoder.model.{name}": value for name, value in state.items()} | {"criterion.step": torch.tensor(3)}
    torch.save({"state_dict": fitted, "config": {}}, "last.ckpt")
    for name in ("finetuned.pt", "theirs.pt", "last.ckpt"):
        main(["ensemble", "zeroshot.pt", name, "--alpha", "0.5", "--out", name.partition(".")[0]])
    found = [torch.load(f"{name}/ensemble-0.5.pt") for name in ("finetuned", "theirs", "last")]
    for other in found[1:]:
        assert list(other) == list(found[0]) and all(torch.equal(other[n], found[0][n]) for n in other)


def test_alphas() -> None:
    assert read_alphas("0,0.1,...,1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert read_alphas([0.5, 0]) == [0, 0.5] and read_alphas("0.5") == [0.5]
    assert read_alphas("0,0.2,...,0.9") == [0, 0.2, 0.4, 0.6, 0.8, 0.9]


def other_architecture() -> None:
    state = torch.load("finetuned.pt")
    torch.save({name: value for name, value in state.items() if "resblocks" not in name}, "other.pt")
    torch.save({**state, "visual.proj": torch.zeros(16, 9)}, "wide.pt")
    torch.save({**state, "visual.base_layer.weight": torch.zeros(2)}, "lora.pt")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["zeroshot.pt", "other.pt"], "other.pt lacks 24 tensors of the other (transformer.resblocks.0."),
        (["zeroshot.pt", "wide.pt"], "visual.proj (16, 8) and (16, 9)"),
        (["zeroshot.pt", "lora.pt"], "Take model.pt of the same run."),
        (["zeroshot.pt", "none.pt"], "A file of weights must be at none.pt. It is not there"),
        (["zeroshot.pt", "finetuned.pt", "--alpha", "0,2"], "--alpha are numbers in [0, 1]"),
        (["zeroshot.pt", "finetuned.pt", "--alpha", "...,1"], "--alpha are numbers in [0, 1]"),
        (["zeroshot.pt", "finetuned.pt", "--alpha", "a"], "--alpha are numbers in [0, 1]"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(folder, arguments, message) -> None:
    other_architecture()
    with pytest.raises(SystemExit) as raised:
        main(["ensemble", *arguments])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (folder / "runs").exists()


def test_each_alpha_is_judged_and_the_best_is_that_of_validation(folder, tiny, capsys) -> None:
    write_csv(folder / "pairs.csv", draw(folder))
    named = ["--pairs", "pairs.csv", "--label_column", "colour", "--domain_column", "hand", "--held_out", "cy"]
    main(["ensemble", "zeroshot.pt", "finetuned.pt", "--alpha", "0,0.5,1", "--judge", f"open_clip:{tiny}", *named,
          "--split_column", "part", "--out", "curve", "--report", "page.html"])  # fmt: skip
    shown = capsys.readouterr().out
    found = json.loads((folder / "curve" / "results.json").read_text())
    assert found["alphas"] == [0, 0.5, 1] and list(found["weights"]) == ["alpha 0", "alpha 0.5", "alpha 1"]
    assert len(found["curve"]) == 6  # three things, two parts
    for line in found["curve"]:
        for name, value in zip(found["weights"], line["values"], strict=True):
            told = found["weights"][name][line["what"]][line["part"]]["metrics"][line["metric"]]
            assert told == value
    scores = found["chosen"]["validation"]
    assert found["chosen"]["alpha"] == min(float(a) for a, v in scores.items() if v == max(scores.values()))
    assert f"alpha {found['chosen']['alpha']:g} is best on the validation part" in shown
    rows = {part: [{**row, "part": "test"} for row in draw(folder) if row["part"] == part] for part in ("val", "test")}
    write_csv(folder / "test.csv", rows["test"])  # an end, judged by itself
    named = ["--domain_column", "hand", "--held_out", "cy"]
    main(["judge", f"open_clip:{tiny}", "--weights", "finetuned.pt", "--pairs", "test.csv", *named, "--out", "end"])
    alone = json.loads((folder / "end" / "results.json").read_text())["weights"]["finetuned"]
    assert all(value == found["weights"]["alpha 1"][what] for what, value in alone.items()) and len(alone) == 4
    write_csv(folder / "val.csv", rows["val"])
    main(["judge", f"open_clip:{tiny}", "--weights", "zeroshot.pt", "--pairs", "val.csv", "--out", "val"])
    alone = json.loads((folder / "val" / "results.json").read_text())["weights"]["zeroshot"]
    ways = [alone[way]["all"]["metrics"]["R@1"]["mean"] for way in ("image to text", "text to image")]
    assert scores["0"] == pytest.approx(sum(ways) / 2)
    assert (folder / "curve" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    svg = (folder / "curve" / "curve.svg").read_text()
    assert "<svg" in svg
    page = (folder / "page.html").read_text()
    assert page.count("<svg") == 7 and "is best on the validation part" in page
    assert (folder / "curve" / "alpha_0.5" / "image_to_text" / "queries.csv").exists()


def test_without_validation_no_alpha_is_chosen(folder, tiny, capsys) -> None:
    write_csv(folder / "pairs.csv", draw(folder))
    main(["ensemble", "zeroshot.pt", "finetuned.pt", "--alpha", "0,1", "--judge", f"open_clip:{tiny}", "--pairs",
          "pairs.csv", "--out", "curve"])  # fmt: skip
    assert "No alpha is chosen: there is no validation part." in capsys.readouterr().out
    assert json.loads((folder / "curve" / "results.json").read_text())["chosen"] is None


def test_data_without_a_model_are_refused(folder) -> None:
    with pytest.raises(SystemExit, match="Got no --judge"):
        main(["ensemble", "zeroshot.pt", "finetuned.pt", "--pairs", "pairs.csv"])
