"""`mixcontrast ensemble` on tiny open_clip models that differ."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from mixcontrast.cli import main
from mixcontrast.judge.alphas import read_alphas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 6, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
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
        (["zeroshot.pt", "none.pt"], "none.pt cannot be read as weights"),
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
