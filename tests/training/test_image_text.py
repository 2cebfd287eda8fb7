"""Two towers trained by `mixcontrast fit`: each loss, open_clip's files, what is learned, locked, clamped, refused."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F

from mixcontrast import ClipLoss, GeodesicMixup, KeyQueue, MultiSimilarityLoss, SigLipLoss
from mixcontrast.cli import main
from mixcontrast.data import CaptionTable, ClassData, PairData
from mixcontrast.models import FeatureTowers, OpenClip
from mixcontrast.retrieval import Evaluation
from mixcontrast.training import ImageText
from tests.fitting import QUEUES, TOWERS, WIDTH, CaptionedVectors, Killed, Vectors, of, recipe
from tests.judge import drawings
from tests.models import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

CLIP, SIGLIP = of("mixcontrast.ClipLoss"), of("mixcontrast.SigLipLoss")
OWN = dict(same_modality=True, same_modality_temperature=0.15)
FEW = dict(num_hardest=3, num_pair_mixes=4, num_anchor_mixes=2)
SIX = dict(num_hardest=3, num_interpolated=2, num_extrapolated=2, num_pairs=2, num_noised=2, num_gradient=2, num_sign=2)
LOSSES: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip with queues": of("mixcontrast.ClipLoss", **QUEUES, **OWN),
    "siglip": SIGLIP,
    "m3": of("mixcontrast.GeodesicMixup", loss=CLIP),
    "siglip m3": of("mixcontrast.GeodesicMixup", loss=SIGLIP),
    "mochi": of("mixcontrast.MoCHi", loss=CLIP, **FEW),
    "mochi of one modality": of("mixcontrast.MoCHi", loss=of("mixcontrast.ClipLoss", **QUEUES, **OWN),
                                same_modality=True, **FEW),
    "siglip mochi": of("mixcontrast.MoCHi", loss=of("mixcontrast.SigLipLoss", **QUEUES), **FEW),
    "synco": of("mixcontrast.SynCo", loss=of("mixcontrast.ClipLoss", **QUEUES), **SIX),
    "hcl": of("mixcontrast.HardNegativeLoss", loss=CLIP),
    "cyclip": of("mixcontrast.CyClipLoss", loss=CLIP),
    "stack": of("mixcontrast.GeodesicMixup", loss=of("mixcontrast.MoCHi", loss=of("mixcontrast.CyClipLoss", loss=CLIP),
                                                     **FEW)),
}  # fmt: skip


def fit(*arguments: object) -> None:
    main(["fit", *map(str, arguments)])


QUICK = ("clip", "siglip m3", "mochi of one modality", "synco", "stack")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES])
def test_each_loss_learns_which_belong_together(name: str, tmp_path: Path) -> None:
    siglip = "siglip" in name
    towers = of(TOWERS["class_path"], **TOWERS["init_args"], logit_bias=-10.0 if siglip else None)
    model = of("mixcontrast.training.ImageText", encoder=towers, criterion=LOSSES[name], cosine=False,
               optimizer=of("torch.optim.AdamW", lr=0.03, weight_decay=0.0))  # fmt: skip
    fit("--config", recipe("image text", tmp_path, model=model), "--out", tmp_path / "run", "--trainer.max_epochs=10",
        "--judge_every=5", "--save_every=0")  # fmt: skip
    found = Evaluation.load(tmp_path / "run")
    assert set(found.attributes["retrieval"]) == {
        f"{direction}, {part}"
        for direction in ("image to text", "text to image")
        for part in ("in-domain", "held-out")
    }
    assert len(found.queries) == 3 * 8 * (1 + 2)  # of a domain 8 classes, an image and two captions of each
    assert found.mean("R@5") > 0.8, found.to_markdown()  # by chance 5 of 8
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["positives"]) < float(rows[-2]["positives"]) and rows[0]["modality gap"]
    judged = [row for row in rows if row["val/R@1"]]
    assert len(judged) == 2
    for row in judged:
        both = [float(row[f"val/{way} R@1"]) for way in ("image to text", "text to image")]
        assert float(row["val/R@1"]) == pytest.approx(sum(both) / 2)
        assert float(row["val/image to text R@1 low"]) <= both[0] <= float(row["val/image to text R@1 high"])


# ---- open_clip's models and files


def weights(run: Path) -> tuple[dict, dict]:
    """Before and after."""
    return tuple(torch.load(run / f"{name}.pt", weights_only=True)["state_dict"] for name in ("start", "model"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve squares of four colours, two captions each."""
    return drawings.write_csv(tmp_path / "pairs.csv", drawings.draw(tmp_path))


def open_clip_recipe(folder: Path, pictures: Path, criterion: dict = CLIP, **towers: Any) -> Path:
    """A tiny open_clip model, trained on squares; hands are domains, the colour the group."""
    config = folder / "tiny_clip.json"
    if not config.exists():
        tiny.clip(folder)
    model = of(
        "mixcontrast.training.ImageText", criterion=criterion,
        encoder=of("mixcontrast.models.OpenClip", name="tiny_clip", config=str(config), **towers),
        optimizer=of("torch.optim.AdamW", lr=1e-2, weight_decay=0.1),
    )  # fmt: skip
    table = of("mixcontrast.data.CaptionTable", csv=str(pictures), group_column="colour", domain_column="hand")
    data = of("mixcontrast.data.PairData", pairs=table, batch_size=4, held_out=["cy"], test_share=0.25,
              validation_share=0.25)  # fmt: skip
    return recipe("image text", folder, model=model, data=data)


def test_open_clip_loads_what_was_trained_and_training_begins_with_its_own(tmp_path: Path, pictures: Path) -> None:
    open_clip.add_model_config(tiny.clip(tmp_path))
    theirs = open_clip.create_model("tiny_clip")
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    file = open_clip_recipe(tmp_path, pictures, pretrained=str(tmp_path / "epoch_1.pt"))
    fit("--config", file, "--out", tmp_path / "run", "--data.validation_share=0", "--data.test_share=0.5")
    begun = open_clip.create_model("tiny_clip", pretrained=str(tmp_path / "run" / "start.pt"))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(begun.state_dict()[name], value)
    trained, _, transform = open_clip.create_model_and_transforms(
        "tiny_clip", pretrained=str(tmp_path / "run" / "model.pt")
    )
    assert not torch.equal(trained.visual.proj, theirs.visual.proj)
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert saved["towers"]["init_args"]["name"] == "tiny_clip"
    # judged by open_clip's own model, transform and tokenizer, image to text in the domain that was held out
    found, table = Evaluation.load(tmp_path / "run"), CaptionTable(pictures)
    mine = found.attributes["retrieval"] == "image to text, held-out"
    images = [table.image(table.image_names.index(name)) for name in found.names[mine]]
    colours = [Path(name).stem for name in found.names[mine]]
    texts = [text for colour in colours for text in (f"a {colour} square", f"something {colour}")]
    with torch.no_grad():
        image = trained.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        text = trained.encode_text(open_clip.get_tokenizer("tiny_clip")(texts), normalize=True)
    nearest = (image @ text.T).argmax(dim=1).tolist()
    assert len(colours) == 2 and found.values["R@1"][mine].tolist() == [
        float(colour in texts[place]) for colour, place in zip(colours, nearest, strict=True)
    ]


def test_lora_trains_adapters_and_writes_merged_weights(tmp_path: Path, pictures: Path) -> None:
    fit("--config", open_clip_recipe(tmp_path, pictures, lora_rank=2, lock_image=True), "--out", tmp_path / "run")
    start, end = weights(tmp_path / "run")
    assert start.keys() == end.keys() == OpenClip("tiny_clip").model.state_dict().keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed and all("transformer.resblocks" in n or n == "logit_scale" for n in changed)
    assert not any(name.startswith("visual") for name in changed)


@pytest.mark.slow
def test_bf16_trains_and_goes_on(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second epoch, with mixing at random and queues, it ends with the weights of a run that was not."""
    queues = {f"{tower}_queue": of("mixcontrast.KeyQueue", size=10, dim=tiny.WIDTH) for tower in ("image", "text")}
    criterion = of("mixcontrast.GeodesicMixup", loss=of("mixcontrast.ClipLoss", **queues))
    common = ["--config", open_clip_recipe(tmp_path, pictures, criterion=criterion), "--trainer.precision=bf16-mixed",
              "--trainer.max_epochs=2", "--data.validation_share=0", "--data.test_share=0.5"]  # fmt: skip
    fit(*common, "--out", tmp_path / "whole")
    steps = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["global_step"]
    monkeypatch.setenv("KILL_AT", f"raise:{steps}")
    with pytest.raises(Killed):
        fit(*common, "--out", tmp_path / "killed")
    monkeypatch.delenv("KILL_AT")
    kept = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert 0 < kept["global_step"] < steps and not (tmp_path / "killed" / "model.pt").exists()
    assert kept["state_dict"]["criterion.loss.text_queue.label_buffer"].shape == (10, 2)
    fit(*common, "--out", tmp_path / "killed")
    (_, whole), (_, resumed) = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in whole.values())
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


# ---- the module


def towers(**given: Any) -> FeatureTowers:
    torch.manual_seed(0)
    return FeatureTowers(8, image_features=WIDTH, text_features=WIDTH, **given)


def test_the_scale_is_set_clamped_or_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageText(towers(), ClipLoss(), temperature=0.5, max_logit_scale=10)
    assert module.encoder.logit_scale.item() == pytest.approx(math.log(2))
    monkeypatch.setattr(lightning.LightningModule, "optimizer_step", lambda *a, **k: None)
    for before, after in ((4.0, 4.0), (20.0, 10.0)):
        module.encoder.logit_scale.data.fill_(math.log(before))
        module.optimizer_step(0, 0, None)
        assert module.encoder.logit_scale.exp().item() == pytest.approx(after)
    monkeypatch.undo()
    common = ["--config", recipe("image text", tmp_path), "--model.temperature=0.1", "--trainer.max_steps=3"]
    for name, more in {"learned": [], "fixed": ["--model.learn_temperature=false"]}.items():
        fit(*common, "--out", tmp_path / name, *more)
        state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        assert (state["encoder.logit_scale"].item() == pytest.approx(math.log(10), abs=1e-6)) == (name == "fixed")


def test_a_step_is_the_loss_of_the_features_with_their_labels() -> None:
    module = ImageText(towers(), ClipLoss())
    data = PairData(CaptionedVectors(), batch_size=8, held_out=["west"])
    data.use(module.encoder)
    (images, texts), labels = next(iter(data.train_dataloader()))
    module.log, module.log_dict, module._trainer = lambda *a, **k: None, lambda *a, **k: None, None
    image, text = (F.normalize(f, dim=-1) for f in (module.encoder.image_head(images), module.encoder.text_head(texts)))
    logits = image @ text.T / 0.07
    target = torch.tensor([[a[0] == b[0] for b in labels.tolist()] for a in labels.tolist()]).double()
    target = torch.stack([row / row.sum() for row in target])
    assert bool((target.diagonal() < 1).any())  # two images of a class are in this batch
    ways = (logits.double(), target), (logits.T.double(), target.T)
    wanted = sum(-(share * table.log_softmax(1)).sum(1).mean() for table, share in ways)
    _, _, scale, bias = module.encoder(images, texts)
    found = module._of_all_ranks[0](image, text, scale, bias, False, labels)
    torch.testing.assert_close(found.double(), wanted / 2, rtol=1e-5, atol=1e-6)


def test_gains_biases_and_the_scale_do_not_decay(tmp_path: Path, pictures: Path) -> None:
    tiny.clip(tmp_path)
    module = ImageText(OpenClip("tiny_clip", config=tmp_path / "tiny_clip.json"), ClipLoss(), cosine=False)
    groups = module.configure_optimizers()["optimizer"].param_groups
    names = {id(p): n for n, p in module.encoder.model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any("ln_" in n or n.endswith("bias") or n == "logit_scale" for n in decayed)
    assert {"visual.proj", "text_projection", "token_embedding.weight", "visual.conv1.weight"} < decayed
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_head_only_steps_leave_the_towers_as_they_were(tmp_path: Path, pictures: Path) -> None:
    file = open_clip_recipe(tmp_path, pictures)
    fit("--config", file, "--out", tmp_path / "run", "--trainer.max_steps=1", "--model.head_only_steps=2")
    start, end = weights(tmp_path / "run")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"visual.proj", "text_projection", "logit_scale"}


REFUSED = {
    "loss": (lambda: ImageText(towers(), MultiSimilarityLoss()), TypeError, "MultiSimilarityLoss", "ClipLoss()"),
    "no bias": (lambda: ImageText(towers(), GeodesicMixup(SigLipLoss())), TypeError, "without", "logit_bias: -10"),
    "temperature": (lambda: ImageText(towers(), ClipLoss(), temperature=-1.0), ValueError, "Got -1.0", "0.07"),
    "too cold": (lambda: ImageText(towers(), ClipLoss(), temperature=0.001), ValueError, "Got 0.001", "raise one"),
    "data": (lambda: ImageText(towers(), ClipLoss()).prepare(ClassData(Vectors(), classes_per_batch=2)), TypeError,
             "ClassData", "PairData"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    call, error, seen, remedy = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and seen in message and remedy in message, message


def test_locked_heads_cannot_be_trained_alone(tmp_path: Path) -> None:
    config = tiny.clip(tmp_path)
    locked = OpenClip("tiny_clip", config=config, lora_rank=2)
    with pytest.raises(ValueError, match="locked or adapted by LoRA; set head_only_steps: 0"):
        ImageText(locked, ClipLoss(), head_only_steps=3)


@pytest.mark.parametrize("labels", [False, True, 2])
def test_queues_of_any_labels_keep_out_what_belongs_to_an_anchor(labels: bool | int) -> None:
    """Images of one caption in two groups, as a table without groups gives them."""
    loss = ClipLoss(text_queue=KeyQueue(6, 8, labels=labels), image_queue=KeyQueue(6, 8, labels=labels))
    module = ImageText(towers(), loss)
    images, texts = torch.randn(2, 3, WIDTH)
    numbers = torch.tensor([[0, 5], [1, 5], [2, 6]])  # images 0 and 1 have one caption, and groups of their own
    image, text, scale, _ = module.encoder(images, texts)
    match = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    for step in range(2):
        found = module._of_all_ranks[0](image, text, scale.reshape(()), None, False, numbers)
        wanted = 0
        for logits in (scale * image @ text.T, scale * text @ image.T):
            # the queue holds the batch of before, of which an anchor's negatives are those of this batch
            every = torch.cat([logits, logits.masked_fill(match.bool(), -1e9)], 1) if step else logits
            share = F.pad(match / match.sum(1, keepdim=True), (0, every.shape[1] - 3))
            wanted = wanted + F.cross_entropy(every, share) / 2
        torch.testing.assert_close(found, wanted)
    assert loss.text_queue.labels.tolist() == 2 * numbers.tolist()


def test_a_checkpoint_whose_queues_kept_groups_goes_on() -> None:
    old = ClipLoss(text_queue=KeyQueue(6, 8, labels=True))
    old(*F.normalize(torch.randn(2, 3, 8), dim=-1), 7.0, labels=torch.tensor([3, 4, 4]))
    module = ImageText(towers(), ClipLoss(text_queue=KeyQueue(6, 8, labels=True)))
    module.criterion.load_state_dict(old.state_dict())
    assert module.criterion.text_queue.labels[:, 0].tolist() == [3, 4, 4]


def test_the_command_refuses_in_one_line(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    file = open_clip_recipe(tmp_path, pictures)
    name = json.dumps(str(tmp_path / "gone.csv"))
    for arguments, seen in (  # no run is begun
        (["--model.encoder.name=ViT-B-33"], "Did you mean ViT-B-32"),
        (["--model.encoder.pretrained=gone.pt"], "no weights 'gone.pt'"),
        ([f"--data.pairs.csv={name}"], "gone.csv"),
        (["--data.pairs.caption_column=captoin"], "caption"),
        (["--data.held_out=[dan]"], "'dan'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            fit("--config", file, "--out", tmp_path / "run", *arguments)
        told = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and told.count("\n") == 0 and seen in told and "Union" not in told, told


