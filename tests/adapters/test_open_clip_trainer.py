"""open_clip's own command line with the line that README has, and `mixcontrast fit` on from its checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixcontrast.cli import main
from tests.fitting import of, recipe
from tests.judge import drawings
from tests.models import tiny

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "pages" / "moving" / "open_clip.md"
LINE = "trainer.create_loss = lambda args: create_loss(GeodesicMixup(ClipLoss()), args)"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def script() -> str:
    """The guide's, whole."""
    (found,) = re.findall(r"```python\n(import sys\n.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    return found


def trained(folder: Path, name: str, code: str) -> dict[str, torch.Tensor]:
    """A tiny model's weights after an epoch of open_clip's main on twelve squares, two captions each."""
    file = folder / f"{name}.py"
    file.write_text(f"import open_clip\nopen_clip.add_model_config({str(folder / 'tiny_clip.json')!r})\n{code}")
    asked = [
        "--model", "tiny_clip", "--train-data", "pairs.csv", "--csv-separator", ",", "--csv-img-key", "image",
        "--csv-caption-key", "caption", "--batch-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu",
        "--precision", "fp32", "--lr", "1e-3", "--warmup", "1", "--logs", "logs", "--name", name,
    ]  # fmt: skip
    command = [sys.executable, "-W", "ignore", str(file), *asked]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Contrastive_loss: " in done.stderr + done.stdout
    saved = torch.load(folder / "logs" / name / "checkpoints" / "epoch_1.pt", weights_only=True)
    return saved["state_dict"]


def test_readme_and_guide_have_the_line() -> None:
    assert LINE in script() and LINE in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_its_main_trains_with_the_line_and_fit_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config = tiny.clip(tmp_path)
    pictures = drawings.write_csv(tmp_path / "pairs.csv", drawings.draw(tmp_path))
    own = trained(tmp_path, "own", "import sys\nimport open_clip_train.main as trainer\ntrainer.main(sys.argv[1:])\n")
    plain = trained(tmp_path, "plain", script().replace("GeodesicMixup(ClipLoss())", "ClipLoss()"))
    mixed = trained(tmp_path, "mixed", script())
    for name in ("visual.proj", "text_projection", "logit_scale"):  # Adam makes noise of gradients that are zero
        torch.testing.assert_close(plain[name], own[name], rtol=1e-4, atol=2e-5)
    assert all(bool(value.isfinite().all()) for value in mixed.values())
    assert not torch.allclose(mixed["visual.proj"], own["visual.proj"], rtol=1e-3, atol=1e-4)
    checkpoint = tmp_path / "logs" / "mixed" / "checkpoints" / "epoch_1.pt"
    model = of(
        "mixcontrast.training.ImageText", criterion=of("mixcontrast.ClipLoss"),
        encoder=of("mixcontrast.models.OpenClip", name="tiny_clip", config=str(config), pretrained=str(checkpoint)),
        optimizer=of("torch.optim.AdamW", lr=1e-2),
    )  # fmt: skip
    table = of("mixcontrast.data.CaptionTable", csv=str(pictures), group_column="colour")
    data = of("mixcontrast.data.PairData", pairs=table, batch_size=4, test_share=0.25, validation_share=0.25)
    file = recipe("image text", tmp_path, model=model, data=data)
    main(["fit", "--config", str(file), "--out", str(tmp_path / "run"), "--trainer.max_epochs=1"])
    start, end = (
        torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True)["state_dict"] for name in ("start", "model")
    )
    assert start.keys() == mixed.keys()
    for name, value in mixed.items():
        torch.testing.assert_close(start[name], value, rtol=0, atol=0)
    assert not torch.equal(end["visual.proj"], start["visual.proj"])
