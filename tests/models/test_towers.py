"""Two-tower models: open_clip's interface and files, what is locked or adapted, what is refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mixcontrast.models.towers import FeatureTowers, OpenClip, PackagedTowers
from tests.models import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

IMAGE = Image.new("RGB", (20, 30), "red")
TEXTS = ["a red rectangle", "a cat"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tiny.clip(tmp_path)


def with_lora(config: Path, **options) -> OpenClip:
    """Adapters that are not zero."""
    towers = OpenClip("tiny_clip", config=config, lora_rank=2, **options)
    for name, parameter in towers.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return towers.eval()


def features(towers) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([towers.transform(IMAGE)])
    with torch.no_grad():
        return towers.encode_image(images), towers.encode_text(towers.tokenize(TEXTS))


def test_open_clip_gives_what_open_clip_gives(config: Path) -> None:
    towers = OpenClip("tiny_clip", config=config).eval()
    images, tokens = towers.transform(IMAGE)[None], open_clip.get_tokenizer("tiny_clip")(TEXTS)
    torch.testing.assert_close(towers.tokenize(TEXTS), tokens)
    with torch.no_grad():
        wanted = towers.model(images, tokens)[:2]
        image, text, scale, bias = towers(images, tokens)
    torch.testing.assert_close((image, text), wanted)
    assert bias is None and scale == pytest.approx(1 / 0.07)
    with torch.no_grad():
        torch.testing.assert_close(F.normalize(towers.encode_image(images, normalize=False), dim=-1), image)


@pytest.mark.parametrize("custom_text", [False, True], ids=["plain", "custom text"])
def test_a_file_of_weights_goes_back_and_forth(tmp_path: Path, custom_text: bool) -> None:
    config = tiny.clip(tmp_path, custom_text=custom_text)
    towers = OpenClip("tiny_clip", config=config).eval()
    torch.save({"state_dict": towers.weights()}, tmp_path / "ours.pt")
    theirs, _, _ = open_clip.create_model_and_transforms("tiny_clip", pretrained=str(tmp_path / "ours.pt"))
    for name, value in towers.model.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value)
    ddp = {f"module.{name}": value + 1 for name, value in theirs.state_dict().items()}  # as open_clip's trainer writes
    torch.save({"epoch": 3, "state_dict": ddp, "optimizer": {}}, tmp_path / "epoch_3.pt")
    opened = OpenClip("tiny_clip", str(tmp_path / "epoch_3.pt"), config=config)
    torch.testing.assert_close(opened.model.logit_scale.detach(), towers.model.logit_scale.detach() + 1)
    fitted = {f"encoder.{name}": value for name, value in opened.state_dict().items()}
    fitted["criterion.step"] = torch.ones(1)
    torch.save({"state_dict": fitted}, tmp_path / "best.ckpt")
    again = OpenClip("tiny_clip", str(tmp_path / "best.ckpt"), config=config)
    for name, value in opened.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value)


def test_lora_merged_is_the_model_with_adapters(config: Path, tmp_path: Path) -> None:
    towers = with_lora(config)
    torch.save({"state_dict": towers.weights()}, tmp_path / "merged.pt")
    plain = OpenClip("tiny_clip", str(tmp_path / "merged.pt"), config=config).eval()
    for found, wanted in zip(features(plain), features(towers), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(plain)
    before.load_state_dict({n: v for n, v in OpenClip("tiny_clip", config=config).state_dict().items()})
    assert not torch.allclose(features(before)[0], features(plain)[0], atol=1e-3)


def trained_names(towers) -> set[str]:
    return {name.removeprefix("model.") for name, p in towers.named_parameters() if p.requires_grad}


def test_what_is_locked_gets_no_gradient(config: Path) -> None:
    every = trained_names(OpenClip("tiny_clip", config=config))
    visual = {name for name in every if name.startswith("visual.")}
    assert visual and trained_names(OpenClip("tiny_clip", config=config, lock_image=True)) == every - visual
    rest = trained_names(OpenClip("tiny_clip", config=config, lock_text=True))
    assert rest == visual | {"logit_scale"}
    lora = trained_names(with_lora(config, lock_image=True))
    assert all("lora_" in name and "visual" not in name for name in lora - {"logit_scale"}) and len(lora) > 4
    locked = OpenClip("tiny_clip", config=config, lock_image=True).train()
    assert not locked.model.visual.training and locked.model.transformer.training


def test_a_siglip_bias(config: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": OpenClip("tiny_clip", config=config).weights()}, tmp_path / "clip.pt")
    towers = OpenClip("tiny_clip", str(tmp_path / "clip.pt"), config=config, logit_bias=-10)
    assert towers.logit_bias.item() == -10 and towers.logit_bias.requires_grad


def test_heads_are_the_projections(config: Path, tmp_path: Path) -> None:
    plain = OpenClip("tiny_clip", config=config)
    assert {id(p) for p in plain.heads()} == {id(plain.model.visual.proj), id(plain.model.text_projection)}
    custom = OpenClip("tiny_custom", config=tiny.clip(tmp_path, "tiny_custom", custom_text=True))
    assert {id(p) for p in custom.heads()} == {id(custom.model.visual.proj), id(custom.model.text.text_projection)}


def refusals(config: Path, folder: Path) -> dict:
    other = tiny.clip(folder, "tiny_wide", width=32)
    torch.save({"state_dict": OpenClip("tiny_clip", config=config).weights()}, folder / "tiny.pt")
    torch.save({"state_dict": with_lora(config).state_dict()}, folder / "lora.pt")
    (folder / "broken.pt").write_text("no weights")
    (folder / "notes.txt").write_text("{}")
    made = dict(config=config)
    return {
        "name": (lambda: OpenClip("ViT-B-33"), "no model 'ViT-B-33'", "ViT-B-32"),
        "tag": (lambda: OpenClip("ViT-B-32", "opnai"), "no weights 'opnai'", "Did you mean openai"),
        "no file": (lambda: OpenClip("tiny_clip", "gone.pt", **made), "no weights 'gone.pt'", "nor is that a file"),
        "width": (lambda: OpenClip("tiny_wide", str(folder / "tiny.pt"), config=other), "(12, 16) for (12, 32)",
                  "name the model"),
        "kind": (lambda: OpenClip("RN50", str(folder / "tiny.pt")), "does not fit RN50. It lacks", "name the model"),
        "features": (lambda: FeatureTowers(pretrained=folder / "tiny.pt"), "does not fit FeatureTowers", "name the"),
        "broken": (lambda: OpenClip("tiny_clip", str(folder / "broken.pt"), **made), "broken.pt", "cannot be read"),
        "adapters": (lambda: OpenClip("tiny_clip", str(folder / "lora.pt"), **made), "LoRA adapters", "model.pt"),
        "config": (lambda: OpenClip("tiny_clip", config=folder / "notes.txt"), "notes.txt, which is none", "JSON"),
        "no config": (lambda: OpenClip("tiny_clip", config=folder / "x.json"), "which is not there", "JSON"),
        "local": (lambda: OpenClip(f"local-dir:{folder}"), "open_clip_config.json", "There is no"),
        "rank": (lambda: OpenClip("tiny_clip", lora_rank=0, **made), "lora_rank=0", "at least 1"),
        "both": (lambda: OpenClip("tiny_clip", lora_rank=2, lock_image=True, lock_text=True, **made),
                 "lock_image and lock_text", "leave one out"),
        "small": (lambda: PackagedTowers(image_size=16), "Got 16", "at least 32"),
    }  # fmt: skip


def test_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    for name, (call, seen, remedy) in refusals(config, tmp_path).items():
        with pytest.raises(ValueError) as raised:
            call()
        message = str(raised.value)
        assert "\n" not in message and seen in message and remedy in message, (name, message)


def test_packaged_towers() -> None:
    towers = PackagedTowers(embedding_dim=8, lock_image=True, lora_rank=2).eval()
    image, text = features(towers)
    assert image.shape == (1, 8) and text.shape == (2, 8)
    names = trained_names(towers)
    assert {"visual.head.proj.weight", "text.proj.weight", "logit_scale"} < names
    assert all("lora_" in name for name in names - {"visual.head.proj.weight", "text.proj.weight", "logit_scale"})
    # the networks are those of the packages
    from mixcontrast.models.encoders import EfficientNetLite0, SentenceTransformersEncoder
    from mixcontrast.models.frozen import text_folder

    network = EfficientNetLite0(None, 64)
    resized = IMAGE.resize((64, 64), Image.Resampling.BICUBIC)
    with torch.no_grad():
        wanted = network.embed(network.prepare(resized)[None], "cpu")
        found = towers.model.visual.trunk(towers.transform(resized)[None])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        towers.model.text.proj = torch.nn.Identity()
        minilm = SentenceTransformersEncoder(str(text_folder())).embed(TEXTS, "cpu")
        torch.testing.assert_close(F.normalize(towers.encode_text(towers.tokenize(TEXTS)), dim=1), minilm,
                                   rtol=1e-3, atol=1e-3)  # fmt: skip


def test_feature_towers_take_features_images_and_texts(tmp_path: Path) -> None:
    towers = FeatureTowers(embedding_dim=8, hidden=4, logit_bias=-10.0)
    image, text = features(towers)
    assert image.shape == (1, 8) and text.shape == (2, 8)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(1))
    torch.save({"state_dict": towers.weights()}, tmp_path / "model.pt")
    again = FeatureTowers(embedding_dim=8, hidden=4, logit_bias=0.0, pretrained=tmp_path / "model.pt")
    torch.testing.assert_close(features(again), (image, text))
    assert {name for name in towers.state_dict() if "head" not in name} == {"logit_bias", "logit_scale"}
