"""open_clip models small enough to train in a test, from JSON files."""

from __future__ import annotations

import json
from pathlib import Path

WIDTH = 16


def clip(folder: Path, name: str = "tiny_clip", *, width: int = WIDTH, custom_text: bool = False) -> Path:
    """The file of a vision and a text transformer of one layer each, with open_clip's own tokenizer."""
    config = dict(
        embed_dim=width,
        vision_cfg=dict(layers=1, width=width, head_width=8, patch_size=8, image_size=16),
        text_cfg=dict(context_length=12, vocab_size=49408, width=width, heads=2, layers=1),
        custom_text=custom_text,
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path
