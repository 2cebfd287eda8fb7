"""The command `mixcontrast ensemble`: weights between a zero-shot and a fine-tuned model (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

import torch

from mixcontrast.files import write_whole
from mixcontrast.judge.alphas import read_alphas, read_weights
from mixcontrast.judge.weights import check_alike, integer_names, interpolate


def ensemble_command(
    zeroshot: Path,
    finetuned: Path,
    alpha: str | list[float] = "0,0.1,...,1",
    out: Path = Path("runs/ensemble"),
) -> None:
    """Writes weights between two checkpoints, (1 - alpha) times the first plus alpha times the second (WiSE-FT).

    Wortsman et al., CVPR 2022, arXiv 2109.01903: between a zero-shot and a fine-tuned model lie some that keep what the
    one knows of other domains and have most of what the other has learned. Each is a plain state dict that open_clip
    loads: open_clip.create_model(NAME, pretrained="ensemble-0.5.pt").

    Args:
        zeroshot: weights before fine-tuning: of open_clip, or model.pt or a checkpoint of mixcontrast fit.
        finetuned: weights of the same architecture behind it.
        alpha: in [0, 1], joined by commas; dots fill steps in.
        out: the folder for ensemble-ALPHA.pt.
    """
    alphas = read_alphas(alpha)
    first, second = read_weights(zeroshot), read_weights(finetuned)
    check_alike(first, second, (str(zeroshot), str(finetuned)))
    for value in alphas:
        state = interpolate(first, second, value)
        write_whole(out / f"ensemble-{value:g}.pt", lambda file, state=state: torch.save(state, file))
    whole = integer_names(second)
    note = f" {len(whole)} integer tensors ({whole[0]}) are those of {finetuned}." if whole else ""
    shown = ", ".join(f"{value:g}" for value in alphas)
    print(f"{len(alphas)} files ensemble-ALPHA.pt are in {out}/, alpha {shown}.{note}")
