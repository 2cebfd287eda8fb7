"""Losses of mixcontrast in open_clip's own training loop, in place of its ClipLoss and SigLipLoss."""

from __future__ import annotations

from argparse import Namespace

import torch.distributed as dist
from torch import Tensor, nn

from mixcontrast.distributed import Gathered
from mixcontrast.losses.base import Loss
from mixcontrast.losses.clip import SigLipLoss
from mixcontrast.losses.cyclip import CyClipLoss
from mixcontrast.mixers.base import Mixer, innermost


class OpenClipLoss(nn.Module):
    """A loss of two towers, with or without mixers, that open_clip's trainer takes for its own.

    On several ranks it is the loss of the whole batch: after DistributedDataParallel's mean, gradients are those of
    open_clip with `gather_with_grad`, `local_loss` or not, and of its SigLipLoss. Every rank's value is that of the
    whole batch too, which is the mean over ranks of the values of open_clip's local loss and SigLipLoss.

    Args:
        criterion: ClipLoss or SigLipLoss, or mixers or losses around them.
        local_loss: as open_clip's; changes nothing here.
        gather_with_grad: as open_clip's. Without it, open_clip's gradient is the whole batch's divided by the number of
            ranks; here it is the whole batch's, always.
        cache_labels: as open_clip's; there is nothing to cache here.
        rank: of this process.
        world_size: of all; 1: no gathering.
        use_horovod: refused.
        dist_impl: as open_clip's SigLipLoss's; changes nothing here.

    Called by place or name: `(image_features (A, D), text_features (A, D), logit_scale, logit_bias=None,
    output_dict=False, labels=None)`; `labels` as ClipLoss's, which open_clip's loop does not give.

    Raises:
        TypeError: not a loss of two towers.
        ValueError: horovod; `local_loss` without `gather_with_grad`, whose gradient is not the loss's; at a call, a
            process group of another size or rank.

    >>> import torch
    >>> from mixcontrast import ClipLoss, GeodesicMixup
    >>> criterion = OpenClipLoss(GeodesicMixup(ClipLoss()), rank=0, world_size=1)
    >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
    >>> out = dict(image_features=image, text_features=text, logit_scale=torch.tensor(10.0))
    >>> list(criterion(**out, output_dict=True))
    ['contrastive_loss']
    """

    def __init__(
        self,
        criterion: Loss | Mixer,
        *,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(criterion, Loss | Mixer) or not innermost(criterion).towers:
            raise TypeError(
                "open_clip's trainer calls a loss with the features of two towers. "
                f"Got {type(criterion).__name__}; use ClipLoss or SigLipLoss of mixcontrast, or mixers around them."
            )
        if use_horovod:
            raise ValueError(
                "Ranks are gathered by torch.distributed. Got use_horovod=True; start open_clip by torchrun."
            )
        if local_loss and not gather_with_grad and world_size > 1:
            raise ValueError(
                "A local loss without gathered gradients loses what other ranks' rows say of this rank's features. "
                "Got local_loss=True, gather_with_grad=False; add --gather-with-grad."
            )
        self.rank, self.world_size = rank, world_size
        self.criterion = criterion

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        self._check_ranks()
        if any(buffer.device != image_features.device for buffer in self.criterion.buffers()):
            self.criterion.to(image_features.device)  # open_clip moves its model, and its losses have nothing to move
        called = Gathered(self.criterion) if self.world_size > 1 else self.criterion
        return called(image_features, text_features, logit_scale, logit_bias, output_dict, labels)

    def _check_ranks(self) -> None:
        if self.world_size == 1:
            return
        ready = dist.is_available() and dist.is_initialized()
        found = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        if found != (self.rank, self.world_size):
            raise ValueError(
                "`rank` and `world_size` must be those of torch.distributed. "
                f"Got rank {self.rank} of {self.world_size}, and a process group with rank {found[0]} of {found[1]}; "
                "start with torchrun, and pass args.rank and args.world_size."
            )


def create_loss(criterion: Loss | Mixer, args: Namespace) -> OpenClipLoss:
    """What open_clip's `create_loss(args)` makes, with a criterion of ours.

    In open_clip's trainer, without a change to it (it needs webdataset and pandas)::

        import open_clip_train.main as trainer
        trainer.create_loss = lambda args: create_loss(GeodesicMixup(ClipLoss()), args)
        trainer.main(sys.argv[1:])

    Args:
        criterion: as OpenClipLoss's.
        args: open_clip's parsed arguments.

    Raises:
        ValueError: `--distill` or a CoCa model, whose losses have further parts; a SigLIP loss without `--siglip`, or
            the reverse.
    """
    if args.distill or "coca" in args.model.lower():
        raise ValueError(
            "Distillation and CoCa have further losses beside the contrastive one. "
            f"Got distill={args.distill}, model {args.model}; use open_clip's own loss there."
        )
    loss = OpenClipLoss(
        criterion,
        local_loss=args.local_loss,
        gather_with_grad=args.gather_with_grad,
        cache_labels=True,
        rank=args.rank,
        world_size=args.world_size,
        use_horovod=args.horovod,
        dist_impl=args.loss_dist_impl,
    )
    bottom = innermost(criterion)
    bottom = bottom.loss if isinstance(bottom, CyClipLoss) else bottom
    if args.siglip != isinstance(bottom, SigLipLoss):
        raise ValueError(
            "SigLIP's loss goes with open_clip's --siglip, which gives the model a bias, and CLIP's without. "
            f"Got siglip={args.siglip} and {type(bottom).__name__}; change one of them."
        )
    return loss
