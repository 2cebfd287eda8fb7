"""`mixcontrast fit`: what a user can mend is said in one line, with what is near."""

from __future__ import annotations

import pytest

from mixcontrast import HardNegativeLoss, InfoNCE, KeyQueue, MultiSimilarityLoss, SupConLoss, SupReMix, SynCo, Tiled
from mixcontrast.training import MetricLearning, Regression, SelfSupervised
from tests.commands.test_fit import pytestmark as quiet
from tests.commands.test_fit import refused
from tests.fitting import Plain, recipe

pytestmark = quiet


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--trainer.max_epoch=3"], "There is no --trainer.max_epoch. Did you mean trainer.max_epochs?"),
        (["--modle.x=3"], "There is no --modle.x. Did you mean model?"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs must be a whole number. Got many."),
        (["--seed=x"], "seed must be a whole number. Got x."),
        (["--model.criterion.wieght=3"], "model.criterion: mixcontrast.Metrix has no wieght. Did you mean weight?"),
        (["--model.criterion.loss.num_clases=3"], "ProxyAnchorLoss has no num_clases. Did you mean num_classes?"),
        (["--model.criterion.weight=abc"], "model.criterion.weight must be a number. Got abc."),
        (["--model.optimizer.lrr=3"], "model.optimizer: torch.optim.AdamW has no lrr. Did you mean lr?"),
        (["--model.criterion=mixcontrast.Metrixx"], "there is no mixcontrast.Metrixx. Did you mean Metrix"),
        (["--model.criterion=mixcontrst.Metrix"], "there is no module mixcontrst. Did you mean mixcontrast?"),
        (["--model.criterion.loss=mixcontrast.KeyQueue"], "must be a Loss or Mixer. Got mixcontrast.KeyQueue"),
        (["--model.encoder=mixcontrast.models.FeatureHed"], "models.FeatureHed. Did you mean FeatureHead"),
        (["--model=mixcontrast.training.MetricLerning"], "Did you mean MetricLearning?"),
        (["--data=mixcontrast.data.ClassDat"], "there is no mixcontrast.data.ClassDat. Did you mean ClassData"),
        (["--data.clases_per_batch=3"], "data.ClassData has no clases_per_batch. Did you mean classes_per_batch?"),
        (["--data.examples=mixcontrast.data.ImageFolder", "--data.examples.root=photso/all"],
         "A folder of images must be at photso/all. It is not there; . holds photos. Name one that is."),
        (["--data.examples=mixcontrast.data.ImageFolder", "--data.examples.root=photso",  # said before weights are
          "--model.encoder=mixcontrast.models.TimmNetwork", "--model.encoder.name=resnet5"], "holds photos"),
        (["--model.encoder=mixcontrast.models.TimmNetwork", "--model.encoder.name=test_resnet",
          "--model.encoder.weights=photos/best.ckpt"], "It is not there; photos holds bset.ckpt. Name one that is."),
        (["--model.encoder=mixcontrast.models.TimmNetwork", "--model.encoder.name=resnet5"],
         "timm has no network 'resnet5'. Did you mean"),
        (["--model.encoder=mixcontrast.models.FeatureHead"], "mixcontrast.models.FeatureHead needs num_features"),
        (["--model.criterion=mixcontrast.InfoNCE"],
         "calls its criterion with (embeddings, labels). Got InfoNCE, which is called with (query, key)"),
        (["--model.criterion=torch.nn.CrossEntropyLoss"],
         "must be a Loss or Mixer or Tiled or DeepMetrix. Got torch.nn.CrossEntropyLoss, which is none."),
        (["--model.criterion.loss=mixcontrast.TripletLoss"], "TripletLoss reads only targets of 0 and 1"),
        (["--model.criterion.loss.num_classes=9"], "Got 9 proxies for 8 classes; set num_classes: 8."),
        (["--model.head_only_epochs=1", "--model.encoder=tests.fitting.Plain"], "an encoder whose part `head`"),
        (["--model.warmup_epochs=7"], "A warm-up must be shorter than the run"),
        (["--data.classes_per_batch=9"], "A batch of 9 classes needs as many. Got 8"),
        (["--data.test_share=0"], "test part"),
        (["--trainer.precision=bf15"], "trainer.precision cannot be bf15. Did you mean bf16?"),
        (["--trainer.strategy=dpd"], "invalid strategy name"),
        (["--judge_every=0"], "at least 1. Got 0"),
        (["--test_every=-1"], "`test_every` must be at least 0. Got -1"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    file = recipe("metric learning", tmp_path / "recipes")
    (tmp_path / "here" / "photos").mkdir(parents=True)
    (tmp_path / "here" / "photos" / "bset.ckpt").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert message in refused(capsys, "--config", file, "--out", tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "A recipe must be at"),
        ("a: [1,\n b", "cannot be read"),
        ("trainr: {max_epochs: 3}", "There is no key trainr. Did you mean trainer?"),
        ("trainer: {max_epoch: 3}", "trainer has no max_epoch. Did you mean max_epochs?"),
        ("seed: 3", "A recipe needs data and model."),
        ("", "cannot be read"),
    ],
)
def test_a_recipe_that_is_none_is_one_line(text, message, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text)
    else:
        (tmp_path / "recipes.yaml").touch()
        message = f"{message} {file}. It is not there; {tmp_path} holds recipes.yaml. Name one by --config."
    assert message in refused(capsys, "--config", file, "--out", tmp_path / "run")


def test_modules_refuse_what_does_not_fit():
    queue = InfoNCE(queue=KeyQueue(8, 8))
    for make, message in [
        (lambda: SelfSupervised(Plain(), queue), "Got a queue and no momentum"),
        (lambda: SelfSupervised(Plain(), HardNegativeLoss(queue)), "Got a queue and no momentum"),
        (lambda: SelfSupervised(Plain(), SynCo(InfoNCE(), queue=KeyQueue(8, 8))), "Got a queue and no momentum"),
        (lambda: SelfSupervised(Plain(), Tiled(queue)), "Got a queue and no momentum"),
        (lambda: SelfSupervised(Plain(), Tiled(SupConLoss())), r"\(query, key\). Got Tiled\(SupConLoss\)"),
        (lambda: MetricLearning(Plain(), SynCo(SupConLoss(), queue=KeyQueue(8, 8))), r"Got SynCo\(SupConLoss\)"),
        (lambda: SelfSupervised(Plain(), queue, momentum=1.0), r"`momentum` must lie in \[0, 1\)"),
        (lambda: SelfSupervised(Plain(), MultiSimilarityLoss()), r"\(query, key\). Got MultiSimilarityLoss"),
        (lambda: Regression(Plain(), SupConLoss()), "A class loss needs bins"),
        (lambda: Regression(Plain(), SupReMix(SupConLoss()), bins=4), "no other loss has them"),
        (lambda: Regression(Plain(), InfoNCE()), "called with .query, key."),
    ]:
        with pytest.raises((ValueError, TypeError), match=message) as raised:
            make()
        assert "\n" not in str(raised.value)
