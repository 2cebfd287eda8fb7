"""Networks to train: frozen parts stay frozen, weights are read, bad choices get one line."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixcontrast import InfoNCE, SupConLoss
from mixcontrast.models import MLP, EfficientNetLite0Network, FeatureHead, ProjectionHead, TimmNetwork
from mixcontrast.models.features import efficientnet_lite0
from mixcontrast.training import MetricLearning, SelfSupervised
from mixcontrast.training.optimization import check_head, drop_gradients_but_of_head, optimizer_of

NAME = "test_resnet.r160_in1k"
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def statistics(network: nn.Module) -> list[torch.Tensor]:
    return [part.running_mean.clone() for part in network.modules() if isinstance(part, _BatchNorm)]


def test_a_timm_network_under_a_linear_layer():
    network = TimmNetwork(NAME, 8, pool="avgmax", in_chans=1)
    assert network(IMAGES[:, :1]).shape == (4, 8) and network.head.in_features == network.num_features
    assert TimmNetwork(NAME)(IMAGES).shape == (4, network.num_features)


@pytest.mark.parametrize("embedding_dim", [None, 8])
def test_a_network_begins_from_a_checkpoint_of_ours(embedding_dim, tmp_path):
    module = SelfSupervised(TimmNetwork(NAME, embedding_dim), InfoNCE(), projector=nn.Linear(8, 4), momentum=0.9)
    torch.save({"state_dict": module.state_dict(), "config": {}}, tmp_path / "best.ckpt")
    torch.save({"state_dict": MetricLearning(timm.create_model(NAME), SupConLoss()).state_dict()}, tmp_path / "bare.pt")
    network = TimmNetwork(NAME, 6, weights=tmp_path / "best.ckpt")
    for name, tensor in module.encoder.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], tensor), name
    assert network.head.weight.shape == (6, network.num_features)
    TimmNetwork(NAME, weights=tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="does not fit timm's test_vit. It lacks"):
        TimmNetwork("test_vit", weights=tmp_path / "best.ckpt")


def test_frozen_batch_norm_stays_through_train():
    network = TimmNetwork(NAME, 8, frozen_batch_norm=True).train()
    before = statistics(network)
    network(IMAGES).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))
    norms = [part for part in network.backbone.modules() if isinstance(part, _BatchNorm)]
    assert norms and not any(p.requires_grad for part in norms for p in part.parameters())
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    plain = TimmNetwork(NAME, 8).train()
    before = statistics(plain)
    plain(IMAGES)
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(plain), strict=True))


def test_a_frozen_network_trains_its_layer_alone():
    network = TimmNetwork(NAME, 8, frozen=True).train()
    before = statistics(network)
    network(IMAGES).sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


def test_weights_of_a_file_with_or_without_classifier(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(NAME, pretrained=False)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.pt")
    network = TimmNetwork(NAME, weights=tmp_path / "whole.pt").eval()
    whole.reset_classifier(0)
    torch.testing.assert_close(network(IMAGES), whole.eval()(IMAGES))


def test_efficientnet_lite0_begins_as_the_package_has_it():
    network = EfficientNetLite0Network().eval()
    torch.testing.assert_close(network(IMAGES), efficientnet_lite0()(IMAGES))
    assert all(p.requires_grad for p in network.parameters()) and network.train().backbone.training
    assert EfficientNetLite0Network(8, frozen_batch_norm=True).eval()(IMAGES).shape == (4, 8)


def test_heads():
    rows = torch.randn(5, 7)
    assert FeatureHead(7, 3)(rows).shape == MLP(7, 3, num_layers=3, dropout=0.1)(rows).shape == (5, 3)
    assert ProjectionHead(7, 3, batch_norm=True)(rows).shape == (5, 3)
    assert [type(part).__name__ for part in MLP(7, 3, num_layers=1)] == ["Linear", "ReLU", "Linear"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TimmNetwork("resnet5"), "timm has no network 'resnet5'. Did you mean .*resnet50"),
        (lambda: TimmNetwork(NAME, image_size=32), "could not build it"),
        (lambda: MLP(3, 2, num_layers=0), "at least 1. Got 0"),
        (lambda: check_head(nn.Linear(2, 2), 1), "needs an encoder whose part `head` has weights. Got Linear"),
        (lambda: check_head(TimmNetwork(NAME), 1), "give it an embedding_dim"),
        (lambda: check_head(TimmNetwork(NAME, 4), -1), "at least 0. Got -1"),
    ],
)
def test_bad_choices_get_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match="could not fetch its weights .* give weights: FILE") as raised:
        TimmNetwork(NAME, pretrained=True)
    assert "\n" not in str(raised.value)


def test_groups_of_parameters_and_the_head_alone():
    network = TimmNetwork(NAME, 8)
    proxies = nn.Parameter(torch.randn(3, 8))
    optimizer = optimizer_of(
        [network], [proxies], lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5), 100.0
    )
    decays, others, of_proxies = optimizer.param_groups
    assert {p.ndim for p in decays["params"]} <= {2, 4} and {p.ndim for p in others["params"]} == {1}
    assert (decays["weight_decay"], others["weight_decay"], of_proxies["weight_decay"]) == (0.5, 0.0, 0.5)
    assert (decays["lr"], others["lr"], of_proxies["lr"]) == (0.1, 0.1, 10.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    network(IMAGES).square().sum().backward()
    drop_gradients_but_of_head(network)
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight", "head.bias"}
