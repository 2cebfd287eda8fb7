"""Two towers of images and texts, trained on pairs: CLIP, SigLIP, and their mixed relatives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mixcontrast.cells import pairs_that_match
from mixcontrast.data.pair_data import PairData
from mixcontrast.distributed import Gathered
from mixcontrast.files import write_whole
from mixcontrast.losses import Loss, SigLipLoss
from mixcontrast.mixers import Mixer
from mixcontrast.mixers.base import innermost
from mixcontrast.models.fitted import made
from mixcontrast.models.towers import Towers
from mixcontrast.queue import KeyQueue
from mixcontrast.retrieval import Evaluation
from mixcontrast.similarity import unit
from mixcontrast.training.chunks import check_chunk_size, in_chunks
from mixcontrast.training.fitting import FITS, TOWERS, FitModule, at_a_log_step
from mixcontrast.training.optimization import OptimizerCallable, adamw, optimizer_of, with_schedule
from mixcontrast.training.pair_retrieval import PairRetrievalCallback, judge_pairs
from mixcontrast.training.sharding import is_sharded, whole_state


class ImageText(FitModule):
    """Gives the features of both towers to a criterion with open_clip's call.

    Under several processes the criterion reads the batch of all. After the run the folder holds `start.pt` and
    `model.pt`, the weights before and after it, which open_clip loads where the towers are a model of its.

    Args:
        encoder: the towers: mixcontrast.models.OpenClip, PackagedTowers or FeatureTowers.
        criterion: ClipLoss, SigLipLoss, or mixers or losses around them. Its queues keep each key's group and caption,
            whatever `labels` they were made with, so that no key that belongs to an anchor is a negative of it.
        optimizer: a class of torch.optim and its arguments; gains, biases and the scale do not decay.
        temperature: where the model's temperature begins; None: where the model has it.
        learn_temperature: it is trained; else it stays.
        max_logit_scale: the learned 1 / temperature is kept at most this.
        warmup_epochs: the learning rate rises linearly over so many epochs.
        cosine: it then falls to zero by a cosine, else it stays.
        head_only_steps: for so many steps at first only the towers' projections and the scale are trained.
        chunk_size: so many examples pass through a tower at once, of a rank's batch; their activations are made
            again in the backward pass, so that those of one chunk live, and the gradients are those of the whole
            batch (GradCache: a second forward pass). Batch norm in training normalises each chunk by itself, which
            is warned of. None: the whole batch at once.

    Batches are `((images, texts), labels (B, 2) int64)`, as PairData gives them.

    Raises:
        TypeError: a criterion that is not of two towers, SigLipLoss with a model without a bias.
        ValueError: numbers out of range (`chunk_size` below 1); a head that cannot be trained, as it is locked.

    Source: Radford et al., ICML 2021, arXiv 2103.00020; SigLIP: Zhai et al., ICCV 2023, arXiv 2303.15343.
    """

    entrances = ("encode_image", "encode_text")

    def __init__(
        self,
        encoder: Towers,
        criterion: Loss | Mixer,
        *,
        optimizer: OptimizerCallable = adamw,
        temperature: float | None = None,
        learn_temperature: bool = True,
        max_logit_scale: float = 100.0,
        warmup_epochs: float = 0.0,
        cosine: bool = True,
        head_only_steps: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        _check(encoder, criterion)
        check_chunk_size(chunk_size)
        if temperature is not None and not temperature > 0 or not max_logit_scale > 0:
            raise ValueError(
                "`temperature` and `max_logit_scale` must be positive. "
                f"Got {temperature} and {max_logit_scale}; CLIP's are 0.07 and 100."
            )
        if temperature is not None and 1 / temperature > max_logit_scale * (1 + 1e-6):
            raise ValueError(
                "`temperature` must be at least 1 / max_logit_scale. "
                f"Got {temperature} and {max_logit_scale}; raise one."
            )
        if head_only_steps and not any(parameter.requires_grad for parameter in encoder.heads()):
            raise ValueError(
                f"`head_only_steps` trains the projections alone. Got {head_only_steps} and towers whose projections "
                "are locked or adapted by LoRA; set head_only_steps: 0."
            )
        self.encoder, self.criterion = encoder, criterion
        self._of_all_ranks = (Gathered(criterion),)  # no part of this module: names in a checkpoint stay
        self.optimizer, self.warmup_epochs, self.cosine = optimizer, warmup_epochs, cosine
        self.max_logit_scale, self.head_only_steps = max_logit_scale, head_only_steps
        self.chunk_size = chunk_size
        for part in criterion.modules():
            if isinstance(part, KeyQueue):
                part.keep_labels(2)
        if temperature is not None:
            nn.init.constant_(encoder.logit_scale, math.log(1 / temperature))
        encoder.logit_scale.requires_grad_(learn_temperature)

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) unit features of images."""
        return self.encoder.encode_image(images)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], index: int) -> Tensor:
        (images, texts), labels = batch
        image, text, scale, bias = self._features(images, texts)
        scale = scale.reshape(())  # some models have it in one dimension
        bias = None if bias is None else bias.reshape(())
        loss = self._of_all_ranks[0](image, text, scale, bias, False, labels)
        self.log("loss", loss, prog_bar=True)
        if at_a_log_step(self.trainer):
            self.log_dict(_similarities(image.detach(), text.detach(), labels), prog_bar=True)
            self.log("logit_scale", scale.detach())
        return loss

    def _features(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        towers = self.encoder
        if self.chunk_size is None:
            return towers(images, texts)
        image = in_chunks(towers.encode_image, images, self.chunk_size, towers)
        text = in_chunks(towers.encode_text, texts, self.chunk_size, towers)
        return image, text, towers.logit_scale.exp(), towers.logit_bias

    def on_after_backward(self) -> None:
        if self.trainer.global_step < self.head_only_steps:
            kept = {id(p) for p in (*self.encoder.heads(), self.encoder.logit_scale, self.encoder.logit_bias)}
            for parameter in self.encoder.parameters():
                if id(parameter) not in kept:
                    parameter.grad = None  # dropped, not never made: DistributedDataParallel waits for each

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.encoder.logit_scale.clamp_(max=math.log(self.max_logit_scale))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of([self.encoder], self.criterion.parameters(), self.optimizer, 1.0)
        return with_schedule(self, optimizer, warmup_epochs=self.warmup_epochs, cosine=self.cosine)

    def prepare(self, data: lightning.LightningDataModule) -> None:
        if not isinstance(data, PairData):
            raise TypeError(
                f"ImageText trains on images with captions. Got {type(data).__name__}; take mixcontrast.data.PairData."
            )
        data.use(self.encoder)

    def begun(self, folder: Path, config: dict[str, Any]) -> None:
        _write(folder / "start.pt", self.encoder, config)

    def ended(self, folder: Path, config: dict[str, Any]) -> None:
        towers = self.encoder
        if is_sharded(self.trainer):
            state = whole_state(towers)
            if not self.trainer.is_global_zero:
                return
            towers = made(config["model"]["init_args"]["encoder"])
            towers.load_state_dict(state)
        _write(folder / "model.pt", towers, config)

    def monitor(self, data: PairData) -> tuple[str, str]:
        return "val/R@1", "max"

    def judges(self, data: PairData, every_n_epochs: int) -> list[lightning.Callback]:
        return [PairRetrievalCallback(data, every_n_epochs)]

    def judge_test(self, data: PairData) -> Evaluation:
        return judge_pairs(self, self.encoder, data)


def _write(path: Path, towers: Towers, config: dict[str, Any]) -> None:
    saved = {"state_dict": towers.weights(), "towers": config["model"]["init_args"]["encoder"]}
    write_whole(path, lambda temporary: torch.save(saved, temporary))


@torch.no_grad()
def _similarities(image: Tensor, text: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mean cosine of images with the texts that belong to them, and with the others."""
    table = unit(image) @ unit(text).T
    alike = pairs_that_match(labels, image)
    return {"positives": table[alike].mean(), "negatives": table[~alike].mean()}


def _check(encoder: Towers, criterion: Loss | Mixer) -> None:
    if not isinstance(criterion, Loss | Mixer) or not innermost(criterion).towers:
        raise TypeError(
            f"ImageText calls its criterion with the features of two towers. Got {type(criterion).__name__}; use "
            f"{FITS[TOWERS]}."
        )
    if any(isinstance(part, SigLipLoss) for part in criterion.modules()) and encoder.logit_bias is None:
        raise TypeError(
            "SigLipLoss needs a model with a bias. Got one without; give the encoder logit_bias: -10, as in the paper."
        )
