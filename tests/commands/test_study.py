"""`mixcontrast study` from end to end on small data: known answers, kills, and processes that share a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mixcontrast.cli import main
from mixcontrast.data import PairData
from mixcontrast.retrieval import Evaluation
from mixcontrast.study.cost import measure
from mixcontrast.study.criteria import Sizes, arms_of, kind_of
from tests.fitting import TOWERS, Killed, of
from tests.study.helpers import HiddenPairs, config, recipe, towers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*to determine which device is supported"),
]

ROOT = Path(__file__).parents[2]
SMALL = {
    "criteria": ["supcon", "supcon + mochi"], "seeds": 2, "reduction_factor": 2,
    "grid": {"learning_rate": [1e-2, 1e-5]},
}  # fmt: skip


def study(file: Path, out: Path, *arguments: str) -> dict:
    main(["study", "--config", str(file), "--out", str(out), *arguments])
    return answered(out)


def answered(out: Path) -> dict:
    """The answer, without the time it took."""
    answer = json.loads((out / "answer.json").read_text())
    took = answer.pop("time")
    assert 0 < took["wall seconds"] <= took["busy seconds"] and took["at once"] >= 1
    return answer


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nothing disturbed: its folder and its answer."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", study(config(folder / "study.yaml", **SMALL), folder / "out")


def test_what_a_study_leaves(whole, capsys):
    out, answer = whole
    assert set(answer["criteria"]) == {"supcon", "supcon + mochi"} and not answer["failed"]
    (found,) = answer["differences"]
    assert found["against"] == "supcon" and len(found["each seed"]) == 2
    for each in answer["criteria"].values():
        assert each["tuned"] == {"learning_rate": 1e-2}
        assert [trial["point"]["learning_rate"] for trial in each["tuning"]] == [1e-2, 1e-5]
        assert [trial["state"] for trial in each["tuning"]] == ["finished", "stopped"]
        assert {"uniformity", "alignment", "utilization", "similarities"} <= set(each["why"])
    kinds = answer["criteria"]["supcon + mochi"]["why"]["kinds"]
    assert [kind["kind"] for kind in kinds] == ["two hard negatives", "anchor with hard negative"]
    assert all(kind["false negatives"]["mean"] == 0 for kind in kinds)  # classes are read
    assert answer["criteria"]["supcon"]["why"]["kinds"] == []
    tuned = yaml.safe_load((out / "recipes" / "supcon_mochi.yaml").read_text())
    assert tuned["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-2
    assert not list((out / "tuning").rglob("results.json"))  # the test part is not read while tuning
    assert (out / "study.html").stat().st_size > 10_000 and (out / "pictures" / "hardness.svg").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    main(["study", "--config", str(out.parent / "study.yaml"), "--out", str(out)])  # again: nothing is run
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert not re.search(r"^\d+ of \d+  ", capsys.readouterr().out, re.M)


def test_one_killed_in_the_middle_goes_on_to_the_same_answer(whole, tmp_path, monkeypatch):
    file = config(tmp_path / "study.yaml", **SMALL)
    for where in ("supcon_mochi/learning_rate=0.01:5", "supcon-seed1:10"):
        monkeypatch.setenv("KILL_RUN", where)
        with pytest.raises(Killed):
            study(file, tmp_path / "out")
    monkeypatch.delenv("KILL_RUN")
    assert study(file, tmp_path / "out") == whole[1]
    log = (tmp_path / "out" / "logs" / "supcon-seed1.log").read_text()
    assert "begins" in log and "goes on after step" in log


def test_more_seeds_are_added_to_a_study(whole, tmp_path):
    out, answer = whole
    more = study(out.parent / "study.yaml", out, "--seeds", "3")
    for name in answer["criteria"]:
        mine, before = (found["criteria"][name]["each seed"]["Recall@1"] for found in (more, answer))
        assert mine[:2] == before and len(mine) == 3
    assert study(out.parent / "study.yaml", out) == answer


@pytest.mark.slow
def test_two_processes_share_the_work_and_one_of_them_may_be_killed(whole, tmp_path):
    file, out = config(tmp_path / "study.yaml", **SMALL), tmp_path / "out"
    command = [sys.executable, "-W", "ignore", "-m", "mixcontrast.cli", "study", "--config", file, "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first, second, third = (
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    )
    third.stdout.readline()
    third.kill()
    told = [process.communicate(timeout=300)[0] for process in (first, second)]
    third.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert answered(out) == whole[1]
    did = [line.split("  ")[1] for text in told for line in text.splitlines() if " of 6  " in line]
    assert len(did) == len(set(did))  # nothing twice


@pytest.mark.slow
def test_processes_of_one_command_give_the_same_answer(whole, tmp_path):
    file = config(tmp_path / "study.yaml", **SMALL)
    command = [sys.executable, "-m", "mixcontrast.cli", "study", "--config", file, "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run([*command, "--processes", "2"], env=environment, cwd=ROOT, check=True, timeout=300)
    assert answered(tmp_path / "out") == whole[1]


@pytest.mark.parametrize("shuffled, verdict", [
    (False, "helps"), pytest.param(True, "cannot be told", marks=pytest.mark.slow)
])  # fmt: skip
def test_a_planted_gain_is_found_and_shuffled_labels_help_nothing(shuffled, verdict, tmp_path):
    answer = study(config(tmp_path / "study.yaml", recipe=recipe(shuffled=shuffled)), tmp_path / "out")
    (found,) = answer["differences"]
    assert (found["criterion"], found["verdict"]) == ("useful", verdict)


def by_hand(checkpoint: Path, shuffled: bool) -> tuple[float, float, float]:
    """Of the test part, how far images are from their captions, and the middles of both; and the temperature."""
    pairs = HiddenPairs(shuffled=shuffled)
    part = PairData(pairs, batch_size=16).test
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    sides = []
    for side, table, rows in (("image", pairs.tables[0], part.images), ("text", pairs.tables[1], part.captions)):
        weight, bias = (next(v for k, v in state.items() if f"{side}_head" in k and v.ndim == n) for n in (2, 1))
        embedded = (table[rows] @ weight.T + bias).double().numpy()
        sides.append(embedded / np.linalg.norm(embedded, axis=1, keepdims=True))
    image, text = sides
    apart = [((image[i] - text[t]) ** 2).sum() for i, t in part.pairs]
    gap = np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))
    return float(np.mean(apart)), float(gap), float(np.exp(-state["encoder.logit_scale"].item()))


@pytest.mark.slow
@pytest.mark.parametrize("shuffled, verdict", [(False, "helps"), (True, "cannot be told")])
def test_a_planted_gain_of_two_towers_is_found_and_shuffled_captions_help_nothing(shuffled, verdict, tmp_path):
    criteria = [
        {"name": name, "criterion": of("mixcontrast.GeodesicMixup", loss=of("mixcontrast.ClipLoss")),
         "grid": {"learning_rate": [rate]}}
        for name, rate in (("useless", 1e-7), ("useful", 1e-2))
    ]  # fmt: skip
    plain = towers(shuffled=shuffled) | {"judge_every": 3}
    out = tmp_path / "out"
    answer = study(config(tmp_path / "study.yaml", criteria=criteria, recipe=plain), out)
    (found,) = answer["differences"]
    assert (found["criterion"], found["verdict"]) == ("useful", verdict)
    assert not list((out / "tuning").rglob("results.json"))  # the test part is not read while tuning
    assert answer["question"]["metric"] == "R@1" and answer["question"]["queries"] == 96
    for name, each in answer["criteria"].items():
        both = [each["metrics"][f"{way} R@1"]["mean"] for way in ("image to text", "text to image")]
        assert each["metrics"]["R@1"]["mean"] == pytest.approx(sum(both) / 2)
        runs = [Evaluation.load(out / "runs" / f"{name}-seed{seed}") for seed in range(3)]
        to_text = [run.values["R@1"][run.attributes["retrieval"] == "image to text"].mean() for run in runs]
        assert both[0] == pytest.approx(np.mean(to_text))
        why = each["why"]
        assert {"uniformity", "alignment", "utilization", "modality gap", "temperature", "means"} <= set(why)
        assert [kind["kind"] for kind in why["kinds"]] == ["m2-Mix", "V-Mix", "L-Mix", "VL-Mix"]
        if name == "useless":
            assert why["temperature"]["mean"] == pytest.approx(0.1, abs=1e-4)  # where the recipe has it
    alignment, gap, temperature = by_hand(out / "runs" / "useful-seed1" / "best.ckpt", shuffled)
    reasons = json.loads((out / "runs" / "useful-seed1" / "reasons.json").read_text())
    found = [reasons[name] for name in ("alignment", "modality gap", "temperature")]
    assert found == pytest.approx([alignment, gap, temperature], rel=1e-4)
    if not shuffled:  # what training does to pairs that belong together
        assert answer["criteria"]["useful"]["why"]["alignment"]["mean"] < (
            answer["criteria"]["useless"]["why"]["alignment"]["mean"] - 0.3
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["views", "momentum", "values", "towers"])
def test_other_tasks_have_their_own_list(name, tmp_path):
    encoder, optimizer = of("tests.fitting.Network"), of("torch.optim.AdamW", lr=1e-2)
    noise = of("mixcontrast.data.VectorNoise")
    vectors = of("tests.fitting.Vectors", num_classes=5, per_class=24)
    views = of("mixcontrast.data.ViewsData", examples=vectors, batch_size=16, augment=noise)
    values = of("mixcontrast.data.ValuesData", examples=of("tests.fitting.Measured"), batch_size=16, augment=noise)
    module, data, more = {
        "views": ("SelfSupervised", views, {}),
        "momentum": ("SelfSupervised", views, {"momentum": 0.9}),
        "values": ("Regression", values, {}),
        "towers": ("ImageText", towers()["data"], {"encoder": TOWERS, "temperature": 0.2}),
    }[name]
    more = {"encoder": encoder, "optimizer": optimizer} | more
    plain = recipe() | {"model": of(f"mixcontrast.training.{module}", **more), "data": data}
    plain["trainer"] = plain["trainer"] | {"max_epochs": 2}
    file = config(tmp_path / "study.yaml", criteria="auto", recipe=plain, grid={}, seeds=2, queue_size=32)
    answer = study(file, tmp_path / "out")
    assert not answer["failed"]
    if name == "towers":
        assert answer["question"]["baseline"] == "clip" and len(answer["criteria"]) == 7
    elif name == "values":
        assert answer["question"] | {"metric": "MAE", "better": "lower", "baseline": "l1"} == answer["question"]
        assert {"MAE", "R2"} == set(answer["criteria"]["l1"]["metrics"])
        assert "similarities" not in answer["criteria"]["l1"]["why"]
    else:
        assert answer["question"]["metric"] == "linear probe"
        (pairs, _) = answer["criteria"]["infonce + mochi"]["why"]["kinds"]
        if name == "views":  # a fifth of what is drawn among five classes is of the anchor's own
            assert 0.15 < pairs["false negatives"]["mean"] < 0.8


def test_a_step_is_timed(whole):
    found = measure(str(whole[0] / "recipes" / "supcon_mochi.yaml"))
    assert 0 < found["seconds a step"] < 1 and found["device"] == "cpu"
    assert found["peak memory"] is None or found["peak memory"] >= 0


@pytest.mark.parametrize("changes, arguments, message", [
    ({"criteria": ["supcon", "supkon"]}, (), "There is no criterion 'supkon'. Did you mean supcon?"),
    ({"criteria": ["supcon", "clip"]}, (), "Got 'clip', which is of ImageText; take one of"),
    ({"criteria": ["clip", "clip + m3", "supcon"], "recipe": towers()}, (),
     "which is of MetricLearning and Regression"),
    ({"criteria": ["clip", "siglip"], "recipe": towers()}, ("--metric=image to text R@2",),
     "Got image to text R@2; there are R@1, R@5, R@10, image to text R@1, "),
    ({"criteria": "all"}, (), "`criteria` must be a list, or auto. Got all."),
    ({"recipe": {}}, (), "A study needs a recipe."),
    ({"seeds": 0}, (), "--seeds must be at least 1. Got 0."),
    ({}, ("--processes=0",), "--processes must be at least 1. Got 0."),
    ({}, ("--metric=MAE",), "`metric` must be better as what is tuned for is, val/Recall@1. Got MAE."),
    ({}, ("--sedes=3",), "There is no --sedes. Did you mean seeds?"),
    ({"recipe": recipe() | {"model": of("mixcontrast.training.MetricLearning", encoder=of("tests.fitting.Plane"))}}, (),
     "there is no tests.fitting.Plane. Did you mean Plain"),
    ({"recipe": recipe(num_classes=9)}, (),
     "mixcontrast: A batch of 6 classes needs as many. Got 4; take fewer classes a batch.\n"),
    ({"recipe": recipe() | {"data": of("mixcontrast.data.ClassData", examples=of("tests.study.helpers.Hidden"),
                                       classes_per_batch=6, validation_share=0.0)}}, (),
     "Got no validation part; set a validation_share."),
])  # fmt: skip
def test_refusals_are_one_line(changes, arguments, message, tmp_path, capsys):
    file = config(tmp_path / "study.yaml", **changes)
    with pytest.raises(SystemExit) as raised:
        study(file, tmp_path / "out", *arguments)
    seen = capsys.readouterr().err
    assert raised.value.code == 2 and seen.count("\n") == 1 and message in seen
    assert not (tmp_path / "out" / "runs").exists()


def test_another_study_in_the_same_folder_is_refused(whole, tmp_path, capsys):
    file = config(tmp_path / "study.yaml", **SMALL | {"reduction_factor": 3})
    with pytest.raises(SystemExit):
        study(file, whole[0])
    seen = capsys.readouterr().err
    assert seen.count("\n") == 1 and "holds another study: its reduction_factor is 2. Got 3" in seen


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("study_*.yaml")), ids=lambda file: file.stem)
def test_a_study_of_ours_can_be_read_and_says_what_it_gave(file):
    command, gave = file.read_text(encoding="utf-8").splitlines()[:2]
    assert command.startswith(f"# mixcontrast study --config configs/{file.name}")
    assert gave.startswith("# ") and "..." not in gave
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = kind_of(plain["recipe"])
    arms = arms_of(plain["criteria"], None, plain["recipe"], plain["grid"], kind, Sizes(577, 512, 512, None))
    assert len(arms) >= 6
