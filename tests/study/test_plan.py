"""Names and criteria written out become recipes with a grid; what cannot be is refused in one line."""

from __future__ import annotations

import copy

import pytest
import torch

from mixcontrast import ClipLoss, CyClipLoss, GeodesicMixup, HardNegativeLoss, MixTerm, MoCHi, SigLipLoss, SynCo
from mixcontrast.study.criteria import AUTO, GRID, Sizes, arms_of, grid_of, kind_of
from mixcontrast.study.plan import Plan, key_of, put
from mixcontrast.training.criteria import LOSSES, MIXERS, NAMED, criterion_of, written_criterion
from mixcontrast.training.fitting import LABELS, TOWERS, VALUES, VIEWS, called_with
from tests.fitting import of
from tests.study.helpers import recipe, towers

SIZES = Sizes(num_classes=7, embedding_dim=8, features=16, queue=None)


def built(written):
    """A criterion of a recipe's mapping, by hand."""
    from mixcontrast.study.plan import class_of

    if not (isinstance(written, dict) and "class_path" in written):
        return written
    arguments = {name: built(value) for name, value in written["init_args"].items()}
    loss = [arguments.pop("loss")] if "loss" in arguments else []
    sizes = [arguments.pop(name) for name in ("num_classes", "embedding_dim") if name in arguments]
    terms = {name: MixTerm(**value) if isinstance(value, dict) else value for name, value in arguments.items()}
    return class_of(written["class_path"])(*loss, *sizes, **terms)


def of_kind(kind, **arguments):
    if kind == TOWERS:
        return towers()
    module = {LABELS: "MetricLearning", VIEWS: "SelfSupervised", VALUES: "Regression"}[kind]
    found = recipe()
    found["model"] = of(f"mixcontrast.training.{module}", encoder=of("tests.fitting.Plain"),
                        optimizer=of("torch.optim.AdamW", lr=1e-2), **arguments)  # fmt: skip
    return found


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mixer", [None, *MIXERS])
def test_a_name_is_the_same_criterion_written_and_made(loss, mixer):
    name = loss if mixer is None else f"{loss} + {mixer}"
    try:
        made = criterion_of(loss, mixer, 7, 8)
    except TypeError:  # Metrix around a loss of hard targets
        with pytest.raises(TypeError):
            built(written_criterion(name, 7, 8))
        return
    assert repr(built(written_criterion(name, 7, 8))) == repr(made)


@pytest.mark.parametrize("kind", NAMED)
def test_every_name_of_auto_is_an_arm_with_a_grid(kind):
    grid = GRID | {"temperature": [0.1, 0.2], "weight": [1.0]} if kind == TOWERS else GRID
    arms = arms_of(list(AUTO[kind]), None, of_kind(kind), grid, kind, SIZES)
    assert [arm.name for arm in arms] == list(AUTO[kind])
    for arm in arms:
        assert arm.knobs[0].key == "model.init_args.optimizer.init_args.lr"
        if arm.name != "l1":
            found = called_with(built(arm.recipe["model"]["init_args"]["criterion"]))
            assert found == (LABELS if (kind, arm.name) == (VALUES, "supcon") else kind)  # of bins
        at = arm.at(arm.points()[-1])
        assert at["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3


OFF = {"m2": None, "v": None, "l": None, "vl": None}
FEW = {"num_hardest": 64, "num_pair_mixes": 64, "num_anchor_mixes": 16}
SIX = {"num_hardest": 64, "num_interpolated": 16, "num_extrapolated": 16, "num_pairs": 16, "num_noised": 4,
       "num_gradient": 4, "num_sign": 4}  # fmt: skip


def alone(name: str, term: MixTerm, loss=ClipLoss):
    return GeodesicMixup(loss(), **(OFF | {name: term}))


@pytest.mark.parametrize("name, made", [
    ("clip", ClipLoss()),
    ("siglip", SigLipLoss()),
    ("clip + m2", alone("m2", MixTerm(0.01, temperature=0.07))),
    ("clip + v", alone("v", MixTerm(0.05))),
    ("clip + l", alone("l", MixTerm(0.05))),
    ("siglip + vl", alone("vl", MixTerm(0.1), SigLipLoss)),
    ("clip + m3", GeodesicMixup(ClipLoss())),
    ("clip + mochi", MoCHi(ClipLoss(), **FEW)),
    ("siglip + mochi", MoCHi(SigLipLoss(), **FEW)),
    ("clip-same-modality + mochi",
     MoCHi(ClipLoss(same_modality=True, same_modality_temperature=0.15), **FEW, same_modality=True)),
    ("clip-same-modality + synco",
     SynCo(ClipLoss(same_modality=True, same_modality_temperature=0.15), **SIX, same_modality=True)),
    ("clip + synco", SynCo(ClipLoss(), **SIX)),
    ("clip + hard-negative", HardNegativeLoss(ClipLoss(), tau_plus=0.0)),
    ("clip + hard-negative + cyclip + m3", GeodesicMixup(CyClipLoss(HardNegativeLoss(ClipLoss(), tau_plus=0.0)))),
])  # fmt: skip
def test_a_name_of_two_towers_is_the_criterion(name, made):
    """Equal in what is kept of numbers, part by part, and in the loss under one draw."""
    found = built(written_criterion(name, 0, 0, TOWERS))
    generator = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 80, 8, generator=generator), dim=-1)
    values = []
    for criterion in (found, made):
        torch.manual_seed(0)
        values.append(float(criterion(image, text, torch.tensor(10.0), torch.tensor(-10.0))))
    assert values[0] == values[1] and repr(found) == repr(made)


def test_of_two_towers_the_models_temperature_and_the_weight_of_all_terms_are_tuned():
    names = ["clip", "clip + m2", "clip + m3", "clip + cyclip"]
    grid = {"learning_rate": [1e-3], "temperature": [0.05, 0.2], "weight": [1.0, 4.0]}
    plain, m2, m3, cyclip = arms_of(names, None, towers(), grid, TOWERS, SIZES)
    assert plain.points() == cyclip.points() == [{"learning_rate": 1e-3, "temperature": t} for t in (0.05, 0.2)]
    for arm in (m2, m3):
        assert len(arm.points()) == 4 and arm.against == ("clip",)
        model = arm.at(arm.points()[-1])["model"]["init_args"]
        assert model["temperature"] == 0.2
        terms = built(model["criterion"]).terms
        expected = {"m2": 0.04} if arm is m2 else {"m2": 0.04, "v": 0.2, "l": 0.2, "vl": 0.4}
        assert {name: term.weight for name, term in terms.items()} == pytest.approx(expected)
        assert terms["m2"].temperature == 0.07  # its own stays
    own = arms_of(["clip", "clip-same-modality", "clip-same-modality + mochi"], None, towers(), {}, TOWERS, SIZES)
    assert own[2].against == ("clip", "clip-same-modality")


def test_the_grid_of_two_towers_is_around_the_rate_of_the_recipe():
    found = grid_of(towers(), TOWERS)
    assert found["learning_rate"] == pytest.approx([1e-2 / 3, 1e-2, 3e-2], rel=0.02) and len(found["temperature"]) > 1
    silent = towers()
    del silent["model"]["init_args"]["optimizer"]
    assert "learning_rate" not in grid_of(silent, TOWERS)
    assert grid_of(recipe(), LABELS) == GRID


def test_a_sigmoid_loss_of_two_towers_gets_the_bias_that_it_needs():
    written = {"name": "mine", "criterion": of("mixcontrast.MoCHi", loss=of("mixcontrast.SigLipLoss"))}
    biases = []
    for plain in (towers(), towers()):
        if biases:
            plain["model"]["init_args"]["encoder"]["init_args"]["logit_bias"] = -5.0
        arms = arms_of(["clip", "siglip + m3", written], None, plain, {}, TOWERS, SIZES)
        biases.append([arm.recipe["model"]["init_args"]["encoder"]["init_args"].get("logit_bias") for arm in arms])
    assert biases == [[None, -10.0, -10.0], [-5.0, -5.0, -5.0]]


@pytest.mark.parametrize("kind, criteria, grid, message", [
    (LABELS, ["supcon", "clip + m3"], {}, "MetricLearning needs a criterion of its own. Got 'clip + m3', which is of "
                                          "ImageText; take one of binomial-deviance, "),
    (TOWERS, ["clip", "supcon"], {}, "Got 'supcon', which is of MetricLearning and Regression; take one of clip, "),
    (TOWERS, ["clip", "infonce"], {}, "Got 'infonce', which is of SelfSupervised"),
    (TOWERS, ["clip", "clip + cyclops"], {}, "There is no criterion 'clip + cyclops'. Did you mean cyclip?"),
    (TOWERS, ["clip", "siglop"], {}, "There is no criterion 'siglop'. Did you mean siglip?"),
    (TOWERS, ["clip", {"name": "a", "criterion": of("mixcontrast.Metrix", loss=of("mixcontrast.SupConLoss"))}], {},
     "ImageText calls its criterion with (image_features, text_features). Got SupConLoss for a, which compares "
     "examples of one kind; use ClipLoss(), "),
    (LABELS, ["supcon", {"name": "a", "criterion": of("mixcontrast.GeodesicMixup", loss=of("mixcontrast.ClipLoss"))}],
     {}, "MetricLearning calls its criterion with (embeddings, labels). Got ClipLoss for a, which compares an image "
         "and a text tower; use SupConLoss(), "),
    (TOWERS, ["clip", "siglip"], {"logit_scale": [10, 50]},
     "Got a grid of logit_scale; write temperature: [0.1, 0.02]."),
    (TOWERS, ["clip", {"name": "clip + mochi", "grid": {"weight": [1]}}], {}, "Got weight, which clip + mochi has not"),
])  # fmt: skip
def test_two_towers_and_labels_are_told_apart(kind, criteria, grid, message):
    with pytest.raises(ValueError) as raised:
        arms_of(criteria, None, of_kind(kind), grid, kind, SIZES)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_mixed_criterion_is_compared_with_its_own_loss_too():
    names = ["multi-similarity", "supcon", "supcon + mochi", "nca + metrix"]
    arms = {arm.name: arm for arm in arms_of(names, None, recipe(), GRID, LABELS, SIZES)}
    assert arms["supcon + mochi"].against == ("multi-similarity", "supcon")
    assert arms["nca + metrix"].against == ("multi-similarity",) and arms["multi-similarity"].against == ()
    assert arms["supcon"].against == ("multi-similarity",)


def test_the_baseline_comes_first_and_the_innermost_temperature_is_tuned():
    arms = arms_of(["supcon + metrix", "nca"], "nca", recipe(), {"temperature": [0.1, 0.2]}, LABELS, SIZES)
    assert [arm.name for arm in arms] == ["nca", "supcon + metrix"]
    keys = [arm.knobs[0].key for arm in arms]
    assert keys == ["model.init_args.criterion.init_args.temperature",
                    "model.init_args.criterion.init_args.loss.init_args.temperature"]  # fmt: skip
    loss = arms[1].at({"temperature": 0.2})["model"]["init_args"]["criterion"]["init_args"]["loss"]
    assert loss["init_args"]["temperature"] == 0.2
    assert arms[1].recipe["model"]["init_args"]["criterion"]["init_args"]["loss"]["init_args"]["temperature"] == 0.1
    assert arms[0].points() == [{"temperature": 0.1}, {"temperature": 0.2}]


def test_a_criterion_has_a_grid_of_its_own_beside_the_common_one():
    entries = ["supcon", {"name": "supcon + metrix", "grid": {"weight": [0.2, 0.4, 1]}},
               {"name": "supcon + mochi", "grid": {"num_pair_mixes": [8, 32], "temperature": [0.5]}}]  # fmt: skip
    plain, metrix, mochi = arms_of(entries, None, recipe(), {"temperature": [0.1, 0.2]}, LABELS, SIZES)
    assert plain.points() == [{"temperature": 0.1}, {"temperature": 0.2}]
    assert metrix.points() == [
        {"temperature": t, "weight": w} for t in (0.1, 0.2) for w in (0.2, 0.4, 1)
    ]  # fmt: skip
    made = built(metrix.at({"temperature": 0.2, "weight": 1})["model"]["init_args"]["criterion"])
    assert (made.weight, made.loss.temperature) == (1, 0.2)
    assert metrix.against == ("supcon",)  # its own loss, by its name
    assert mochi.points() == [{"temperature": 0.5, "num_pair_mixes": n} for n in (8, 32)]
    made = built(mochi.at(mochi.points()[0])["model"]["init_args"]["criterion"])
    assert made.num_pair_mixes == 8 and isinstance(made.num_pair_mixes, int)


def test_a_momentum_encoder_gives_its_criteria_a_queue():
    sizes = Sizes(0, 8, 16, queue=64)
    arms = arms_of(["infonce", "infonce + mochi", "debiased"], None, of_kind(VIEWS, momentum=0.9), {}, VIEWS, sizes)
    for arm in arms:
        criterion = arm.recipe["model"]["init_args"]["criterion"]
        if arm.name == "debiased":
            criterion = criterion["init_args"]["loss"]
        assert criterion["init_args"]["queue"] == of("mixcontrast.KeyQueue", size=64, dim=8)
        assert "queue" not in criterion["init_args"].get("loss", {}).get("init_args", {})


def test_values_get_bins_for_a_class_loss_and_a_direct_baseline():
    arms = {a.name: a for a in arms_of(list(AUTO[VALUES]), None, of_kind(VALUES, projector=of("x")), {}, VALUES, SIZES)}
    assert arms["supcon"].recipe["model"]["init_args"]["bins"] == 10
    assert "bins" not in arms["supcon + supremix"].recipe["model"]["init_args"]
    direct = arms["l1"].recipe["model"]
    assert direct["class_path"].endswith("DirectRegression") and direct["init_args"]["embedding_dim"] == 16
    assert "projector" not in direct["init_args"]


def test_a_plan_comes_back_from_its_file_and_another_is_refused(tmp_path):
    arms = arms_of(["supcon", "nca"], None, recipe(), GRID, LABELS, SIZES)
    plan = Plan(arms, "Recall@1", "val/Recall@1", "max", 3)
    plan.write(tmp_path)
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    changed = recipe()
    put(changed, "trainer.max_epochs", 9)
    other = Plan(arms_of(["supcon", "nca"], None, changed, GRID, LABELS, SIZES), "Recall@1", "val/Recall@1", "max", 3)
    with pytest.raises(ValueError, match="its criteria.supcon.recipe.trainer.max_epochs is 3. Got 9") as raised:
        other.write(tmp_path)
    assert "\n" not in str(raised.value)


def test_keys_are_found_where_they_are():
    found = recipe()
    found["model"]["init_args"]["criterion"] = written_criterion("supcon + metrix", 7, 8)
    assert key_of(found, "weight") == "model.init_args.criterion.init_args.weight"
    assert key_of(found, "learning_rate") == key_of(found, "lr") == "model.init_args.optimizer.init_args.lr"
    assert key_of(found, "margin") is None


@pytest.mark.parametrize(
    "criteria, more, message",
    [
        (["supcon"], {}, "compares two or more criteria, each once. Got supcon."),
        (["supcon", "supcon"], {}, "each once. Got supcon, supcon."),
        (["supcon", "supkon"], {}, "There is no criterion 'supkon'. Did you mean supcon?"),
        (["supcon", "supcon + metricks"], {}, "There is no criterion 'supcon + metricks'. Did you mean metrix?"),
        (["supcon", "nca"], {"baseline": "triplet"}, "the baseline names must be among the criteria. Got triplet"),
        (["supcon", {"name": "a", "criterion": of("mixcontrast.NCALoss"), "against": "b"}], {}, "What a names must be"),
        (["supcon", {"name": "a", "lr": 3}], {}, "Got name, lr."),
        (["supcon", {"name": "a", "criterion": of("mixcontrast.NCALos")}], {}, "NCALos, which there is not"),
        (["supcon", "nca"], {"grid": {"margin": [1.0]}}, "Got margin, which none has."),
        (["supcon", {"name": "nca", "grid": {"weight": [0.2]}}], {}, "Got weight, which nca has not; leave it out."),
        (["supcon", {"name": "nca", "grid": {"temperature": 0.2}}], {}, "Got 0.2 for temperature of nca; write such"),
        (["supcon", {"name": "nca", "grid": {"temperature": ["hot"]}}], {}, "list of numbers for each name. Got ['hot"),
        (["supcon", {"name": "supcon!", "criterion": of("mixcontrast.NCALoss")}], {}, "must differ in letters"),
    ],
)
def test_what_cannot_be_compared_is_refused(criteria, more, message):
    arguments = {"baseline": None, "grid": {}} | more
    with pytest.raises(ValueError) as raised:
        arms_of(criteria, arguments["baseline"], recipe(), arguments["grid"], LABELS, SIZES)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_recipe_without_a_module_or_with_a_criterion_is_refused():
    with pytest.raises(ValueError, match="A study's recipe needs a model.class_path.*Got none."):
        kind_of({})
    with pytest.raises(ValueError, match="Got mixcontrast.training.DirectRegression."):
        kind_of({"model": of("mixcontrast.training.DirectRegression")})
    full = copy.deepcopy(recipe())
    full["model"]["init_args"]["criterion"] = of("mixcontrast.NCALoss")
    with pytest.raises(ValueError, match="move it to `criteria`"):
        kind_of(full)
