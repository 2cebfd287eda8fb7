"""`mixcontrast judge` on tiny open_clip models and drawn squares, against the model called by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixcontrast.cli import main
from mixcontrast.models.open_clip_models import open_clip_package
from mixcontrast.retrieval import Evaluation
from tests.judge.drawings import draw, write_csv
from tests.models import tiny

open_clip = open_clip_package()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Squares, captions, and two weights of a tiny model that open_clip then has."""
    folder = tmp_path_factory.mktemp("judge")
    rows = draw(folder)
    write_csv(folder / "pairs.csv", rows)
    write_csv(folder / "empty.csv", [{**rows[0], "caption": ""}, *rows[1:]])
    write_csv(folder / "missing.csv", [{**rows[0], "image": "ann/rde.png"}, *rows[1:]])
    (folder / "templates.txt").write_text("a {} square\na photo of {}\n")
    (folder / "said.json").write_text(json.dumps({row["colour"]: ["a colour", row["colour"]] for row in rows}))
    open_clip.add_model_config(tiny.clip(folder, "tiny_judged"))
    for seed, name in enumerate(("zeroshot", "finetuned")):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("tiny_judged").state_dict(), folder / f"{name}.pt")
    open_clip.add_model_config(tiny.clip(folder, "tiny_wider", width=24))
    torch.save(open_clip.create_model("tiny_wider").state_dict(), folder / "other.pt")
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


DOMAINS = ["--label_column", "colour", "--domain_column", "hand", "--held_out", "cy"]


def by_hand(name: str) -> dict[str, float]:
    """Image-to-text R@1 and top-1 of the held-out hand, by open_clip alone."""
    model, _, transform = open_clip.create_model_and_transforms("tiny_judged", pretrained=f"{name}.pt")
    model.eval()
    tokenizer = open_clip.get_tokenizer("tiny_judged")
    colours = ("blue", "green", "red", "white")
    with torch.no_grad():
        images = torch.stack([transform(Image.open(f"cy/{colour}.png").convert("RGB")) for colour in colours])
        images = model.encode_image(images, normalize=True)
        captions = [text for colour in colours for text in (f"a {colour} square", f"something {colour}")]
        texts = model.encode_text(tokenizer(captions), normalize=True)
        weights = open_clip.build_zero_shot_classifier(
            model, tokenizer, colours, ["a {} square", "a photo of {}"], num_classes_per_batch=None
        )
    nearest = (images @ texts.T).argmax(dim=1)
    return {
        "R@1": float((nearest // 2 == torch.arange(4)).float().mean()),
        "top-1": float(((images @ weights).argmax(dim=1) == torch.arange(4)).float().mean()),
        "scale": model.logit_scale.exp().item(),
    }


def test_two_weights_beside_each_other(folder, tmp_path, capsys) -> None:
    out = tmp_path / "judged"
    main(["judge", "open_clip:tiny_judged", "--weights", "zeroshot.pt,finetuned.pt", "--pairs", "pairs.csv", *DOMAINS,
          "--templates", "templates.txt", "--descriptions", "said.json", "--batch_size", "5", "--out", str(out),
          ])  # fmt: skip
    shown = capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    for name in ("zeroshot", "finetuned"):
        wanted, told = by_hand(name), found["weights"][name]
        assert told["image to text"]["held-out"]["metrics"]["R@1"]["mean"] == wanted["R@1"]
        assert told["zero-shot, templates"]["held-out"]["metrics"]["top-1"]["mean"] == wanted["top-1"]
        assert told["logit_scale"] == pytest.approx(wanted["scale"], rel=1e-6)
    assert found["settings"]["held_out"] == ["cy"] and found["settings"]["num_pairs"] == 24
    assert list(found["minus zeroshot"]) == ["finetuned"]
    assert "12 images; 8 captions, 24 pairs; 4 classes (texts: 8 by templates, 8 by descriptions); 3 domains" in shown
    assert (out / "results.md").read_text().strip() in shown and "## Zero-shot, descriptions" in shown
    saved = Evaluation.load(out / "finetuned" / "image_to_text")
    assert saved.per_group("part")["held-out"].mean("R@1") == by_hand("finetuned")["R@1"]
    main(["compare", str(out / "zeroshot" / "text_to_image"), str(out / "finetuned" / "text_to_image")])
    assert "| R@1 |" in capsys.readouterr().out
    assert {path.name for path in (out / "zeroshot").iterdir()} == {
        "image_to_text", "text_to_image", "zero_shot_templates", "zero_shot_descriptions"
    }  # fmt: skip


def test_a_file_behind_the_name_and_classes_in_a_folder(folder, tmp_path, capsys) -> None:
    main(["judge", "open_clip:tiny_judged/zeroshot.pt", "--classes", str(folder), "--out", str(tmp_path / "x")])
    found = json.loads((tmp_path / "x" / "results.json").read_text())
    told = found["weights"]["zeroshot"]["zero-shot, templates"]["all"]
    assert told["num_queries"] == 12 and sum(row["count"] for row in told["reliability"]) == 12
    assert found["settings"]["weights"] == {"zeroshot": None} and "minus" not in capsys.readouterr().out


def test_a_part_by_a_column(folder, tmp_path) -> None:
    main(["judge", "open_clip:tiny_judged", "--weights", "zeroshot.pt", "--pairs", "pairs.csv", "--split_column",
          "part", "--out", str(tmp_path / "x")])  # fmt: skip
    assert json.loads((tmp_path / "x" / "results.json").read_text())["settings"]["num_images"] == 10


def test_runs_in_half_precision(folder, tmp_path) -> None:
    main(["judge", "open_clip:tiny_judged", "--weights", "zeroshot.pt", "--pairs", "pairs.csv", "--precision",
          "bfloat16", "--out", str(tmp_path / "x")])  # fmt: skip
    gap = json.loads((tmp_path / "x" / "results.json").read_text())["weights"]["zeroshot"]["geometry"]["all"]
    assert all(np.isfinite(value) for value in gap.values())


NAMED = ["open_clip:tiny_judged", "--weights", "zeroshot.pt"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*NAMED, "--pairs", "missing.csv"], "missing.csv line 2 names ann/rde.png, which is not (1 of 24 rows"),
        ([*NAMED, "--pairs", "empty.csv"], "A caption must not be empty. empty.csv line 2 (ann/red.png)"),
        ([*NAMED], "Judging needs pairs or classes"),
        ([*NAMED, "--pairs", "none.csv"], "A CSV file must be at none.csv"),
        (["open_clip:ViT-B-23", "--weights", "zeroshot.pt", "--pairs", "pairs.csv"],
         "open_clip has no model 'ViT-B-23'. Did you mean ViT-B-32"),
        (["open_clip:ViT-B-23", "--pairs", "pairs.csv"], "Did you mean ViT-B-32"),
        (["open_clip:ViT-B-32/opneai", "--pairs", "pairs.csv"], "has no weights 'opneai'"),
        (["open_clip:tiny_judged", "--pairs", "pairs.csv"], "tiny_judged needs weights to be judged"),
        (["open_clip:tiny_judged", "--weights", "other.pt", "--pairs", "pairs.csv"],
         "other.pt does not fit tiny_judged. It lacks"),
        (["open_clip:tiny_judged", "--weights", "none.pt", "--pairs", "pairs.csv"], "There is no none.pt"),
        (["open_clip:tiny_judged", "--weights", "other.pt,other.pt", "--pairs", "pairs.csv"], "are judged once"),
        (["timm:resnet50", "--pairs", "pairs.csv"], "What is judged is"),
        ([*NAMED, "--pairs", "pairs.csv", "--batch_size", "0"], "--batch_size must be at least 1"),
        ([*NAMED, "--pairs", "pairs.csv", "--device", "tpu"], "--device must be one that is there"),
        ([*NAMED, "--pairs", "pairs.csv", "--domain_column", "hand", "--held_out", "c"], "A domain held out"),
    ],
)
def test_bad_input_gets_one_line(folder, tmp_path, arguments, message) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["judge", *arguments, "--out", str(tmp_path / "x")])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not Path(tmp_path / "x").exists()


def test_the_page(folder, tmp_path) -> None:
    """Self-contained, with every number of the tables, a picture of each kind, and names escaped."""
    main(["judge", "open_clip:tiny_judged", "--weights", "zeroshot.pt,finetuned.pt", "--pairs", "pairs.csv", *DOMAINS,
          "--out", str(tmp_path / "x"), "--report", str(tmp_path / "page.html")])  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    found = json.loads((tmp_path / "x" / "results.json").read_text())
    for name in ("zeroshot", "finetuned"):
        for way in ("image to text", "text to image", "zero-shot, templates"):
            for metric in found["weights"][name][way]["held-out"]["metrics"].values():
                assert f"{metric['mean']:.3f}" in page and f"{metric['low']:.3f} to {metric['high']:.3f}" in page
    assert page.count("<svg") == 6 and "<script" not in page
    assert not re.search(r'(src|<link[^>]*href|<a[^>]*href)="(?!data:|#)', page)  # all is in the file
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(set(ids)) == len(ids)
    assert "#0a0b" not in page and "var(--one)" in page and "var(--k2)" in page and "currentColor" in page
    for refused, message in ((tmp_path / "page.txt", "--report is an .html file"),):
        with pytest.raises(SystemExit, match=message):
            main(["judge", *NAMED, "--pairs", "pairs.csv", "--report", str(refused)])
