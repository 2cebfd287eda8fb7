"""A collection through two towers: its images and texts prepared once, embedded by each set of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mixcontrast.judge.collection import Collection
from mixcontrast.judge.judgement import Judgement, judge_features

KEPT = 1 << 30  # bytes of prepared images that are kept for the next weights


class TwoTowers(Protocol):
    """What is asked of a model: open_clip's own interface, with its tokenizer and its evaluation transform."""

    logit_scale: Tensor
    transform: Callable[[Image.Image], Tensor]

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor: ...

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor: ...

    def tokenize(self, texts: list[str]) -> Tensor: ...


class Embedder:
    """Embeds one collection by several weights of one model.

    Prepared images (decoded and transformed) are kept for the next weights where they fit into a gigabyte.

    Args:
        towers: the model, in whose weights is judged what is loaded when it is called.
        collection: what is embedded.
        batch_size: items at once.
        num_workers: processes that open images.
        device: where the towers run; they must be there.
        precision: of their arithmetic (autocast).
        transform: an image to what the image tower takes; None: the towers' own.
        advance: told how many images and texts are done, each batch.

    Raises:
        ValueError: an embedding that is not finite.
    """

    def __init__(
        self,
        towers: TwoTowers | nn.Module,
        collection: Collection,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str = "cpu",
        precision: str = "float32",
        transform: Callable[[Image.Image], Tensor] | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.towers, self.collection, self.advance = towers, collection, advance
        self.batch_size, self.num_workers = batch_size, num_workers
        self.device, self.precision = device, precision
        self.transform = towers.transform if transform is None else transform
        self.texts = list(dict.fromkeys(collection.all_texts()))  # each once; the captions first, as they are
        self._images: list[Tensor] | None = None
        self._tokens: list[Tensor] | None = None

    def __len__(self) -> int:
        """How many images and texts are embedded."""
        return len(self.collection.images) + len(self.texts)

    def judge(self, name: str) -> Judgement:
        """What the weights that the towers have reach."""
        images, texts = self()
        return judge_features(name, self.collection, images, texts, self.towers.logit_scale.exp().item())

    @torch.inference_mode()
    def __call__(self) -> tuple[Tensor, Tensor]:
        """(N, D) unit embeddings of the images and (T, D) of `all_texts()`, float32, on the CPU."""
        autocast = torch.autocast(
            self.device.partition(":")[0], getattr(torch, self.precision), enabled=self.precision != "float32"
        )
        training = self.towers.training
        self.towers.eval()
        try:
            with autocast:
                images = self._embedded("image", self._of_images(), self.towers.encode_image)
                texts = self._embedded("text", self._of_texts(), self.towers.encode_text)
        finally:
            self.towers.train(training)
        row = {text: number for number, text in enumerate(self.texts)}
        return images, texts[torch.tensor([row[text] for text in self.collection.all_texts()])]

    def _embedded(self, kind: str, batches: Iterator[Tensor], encode: Callable[..., Tensor]) -> Tensor:
        found = []
        for batch in batches:
            found.append(encode(batch.to(self.device), normalize=True).float().cpu())
            self.advance(len(batch))
        table = torch.cat(found)
        whole = torch.isfinite(table).all(dim=1)
        if not bool(whole.all()):
            row = int((~whole).nonzero()[0])
            names = self.collection.image_names if kind == "image" else self.texts
            raise ValueError(
                f"Embeddings must be finite. Got NaN or infinity for {int((~whole).sum())} of {len(table)} {kind}s, "
                f"first {names[row]!r}; take --precision float32, or look at the weights."
            )
        return table

    def _of_images(self) -> Iterator[Tensor]:
        if self._images is not None:
            yield from self._images
            return
        loader = DataLoader(
            _Prepared(self.collection.images, self.transform), self.batch_size, num_workers=self.num_workers
        )
        kept: list[Tensor] = []
        size = 0
        for batch in loader:
            size += batch.numel() * batch.element_size()
            if size <= KEPT:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if size <= KEPT:
            self._images = kept

    def _of_texts(self) -> Iterator[Tensor]:
        if self._tokens is None:
            texts, prepared = self.texts, self.collection.prepared_texts
            done = 0 if prepared is None else len(prepared)
            step = self.batch_size
            starts, others = range(0, done, step), range(done, len(texts), step)
            self._tokens = [torch.stack([prepared[row] for row in range(a, min(a + step, done))]) for a in starts]
            self._tokens += [self.towers.tokenize(texts[start : start + step]) for start in others]
        yield from self._tokens


class _Prepared(Dataset):
    def __init__(self, images: Sequence[Image.Image | Tensor], transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        image = self.images[row]
        return image if isinstance(image, Tensor) else self.transform(image)
