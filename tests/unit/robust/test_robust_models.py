"""The networks, weight transfer, the attack's twin, and what a training step costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from condorctl.errors import UserError
from robust import data
from robust.config import load_preset
from robust.models import Embedding, Projector, ResNet, Twin, encoder_weights, transfer
from robust.options import Config
from robust.pretrain import Pretraining
from robust.supervised import Training
from robust.training import Stage


def tiny(normalise: bool = False) -> ResNet:
    return ResNet(1, [4, 8], [1, 1], 10, normalise)


def used(model: ResNet) -> ResNet:
    """`model` with BN statistics, γ and β that are not those of a fresh one, in eval mode."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for _ in range(3):
        model(torch.rand(16, model.conv1.in_channels, 8, 8))
    return model.eval()


def test_resnet18_has_its_well_known_size() -> None:
    """11,173,962 parameters and 0.555 GMAC at 32×32, as published for the CIFAR ResNet-18."""
    model = ResNet(3, [64, 128, 256, 512], [2, 2, 2, 2], 10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(0.555e9, rel=0.01)


def test_resnet20_has_nineteen_convolutions_and_a_classifier() -> None:
    """272,474 parameters: He et al.'s 0.27 M, and two shortcuts by convolution."""
    model = ResNet(3, [16, 32, 64], [3, 3, 3], 10)
    assert sum(p.numel() for p in model.parameters()) == 272_474
    main = [n for n, p in model.named_parameters() if p.dim() == 4 and "shortcut" not in n]
    assert len(main) == 19


def test_normalisation_lies_inside_the_network() -> None:
    torch.manual_seed(1)
    plain, inside = tiny().eval(), tiny(normalise=True).eval()
    inside.load_state_dict(plain.state_dict(), strict=False)
    inside.mean.fill_(0.3)
    inside.std.fill_(0.5)
    x = torch.rand(4, 1, 8, 8)
    assert torch.allclose(inside(x), plain((x - 0.3) / 0.5), atol=1e-6)
    assert {"mean", "std"} <= inside.state_dict().keys()


def test_extractor_copies_the_encoder_with_its_statistics_and_leaves_the_head() -> None:
    source, target = used(tiny()), tiny()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    transfer(target, {**source.state_dict(), "projector.0.bias": torch.ones(3)}, False, "c.pt")
    after, given = target.state_dict(), source.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == encoder_weights(source).keys()
    assert all(torch.equal(after[name], given[name]) for name in changed)
    assert "bn1.running_mean" in changed
    assert before.keys() - changed == {"linear.weight", "linear.bias"}


def test_complete_copies_everything() -> None:
    source, target = used(tiny()), tiny()
    transfer(target, source.state_dict(), True, "c.pt")
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


def test_transfer_refuses_what_does_not_match() -> None:
    with pytest.raises(UserError, match=r"c\.pt: holds no conv1\.weight"):
        transfer(tiny(), {"other": torch.zeros(1)}, False, "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: holds no linear\.weight"):
        transfer(tiny(), encoder_weights(tiny()), True, "c.pt")
    with pytest.raises(UserError, match="use the same model options"):
        transfer(tiny(), ResNet(1, [4, 16], [1, 1], 10).state_dict(), False, "c.pt")
    for deeper in (ResNet(1, [4, 8, 8], [1, 1, 1], 10), tiny(normalise=True)):
        with pytest.raises(
            UserError, match=r"c\.pt: holds .*, which .* use the same model options"
        ):
            transfer(tiny(), deeper.state_dict(), False, "c.pt")


@pytest.mark.parametrize("normalise", [False, True])
def test_a_twin_gives_the_logits_and_input_gradients_of_eval_mode(normalise: bool) -> None:
    model = used(tiny(normalise))
    if normalise:
        model.mean.fill_(0.4)
        model.std.fill_(0.2)
    twin = Twin(model)
    x = torch.rand(6, 1, 8, 8)
    results = []
    for network in (model, twin):
        leaf = x.clone().requires_grad_()
        logits = network(leaf)
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
        results.append((logits.detach(), gradient))
    (logits, gradient), (folded, folded_gradient) = results
    assert torch.allclose(logits, folded, atol=1e-5)
    assert torch.allclose(gradient, folded_gradient, rtol=1e-3, atol=1e-5)
    assert not any(p.requires_grad for p in twin.parameters())


def test_a_twin_follows_its_source_when_told_to() -> None:
    model = used(tiny())
    twin = Twin(model)
    x = torch.rand(6, 1, 8, 8)
    stale = twin(x)
    used(model.train())
    assert torch.equal(twin(x), stale)
    twin.refresh()
    assert torch.allclose(twin(x), model(x), atol=1e-5)
    assert not torch.allclose(twin(x), stale, atol=1e-3)


def test_a_half_precision_twin_gives_single_precision_logits() -> None:
    model = used(tiny())
    half = Twin(model, torch.bfloat16)
    x = torch.rand(6, 1, 8, 8)
    assert half.conv1.weight.dtype == torch.bfloat16
    assert half(x).dtype == torch.float32
    assert torch.allclose(half(x), model(x), rtol=0.1, atol=0.1)


class Multiplications(TorchDispatchMode):
    """Counts those of convolutions: forward, and each gradient that backward really computes."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.count += result[0, 0].numel() * len(result) * args[1].numel()
        elif func is torch.ops.aten.convolution_backward.default:
            gradient, _, weight = args[:3]
            one = gradient[0, 0].numel() * len(gradient) * weight.numel()
            self.count += one * sum(args[-1][:2])
        return result


def passes(stage: Stage, images: Tensor, labels: Tensor) -> float:
    """One step's multiplications over those of one forward pass of the same images."""
    with Multiplications() as one, torch.no_grad():
        stage.network.eval()(images)
    stage.begin(1)
    with Multiplications() as step:
        stage.loss(*stage.attack(images, labels)).backward()
    return step.count / one.count


def digits_with(preset: Config) -> tuple[data.Dataset, Tensor, Tensor]:
    dataset = data.load(preset.data, None)
    index = torch.arange(16)
    return dataset, dataset.train.images(index), dataset.train.labels[index]


@pytest.mark.parametrize(("trainer", "least"), [("trades", 27), ("pgd", 23), ("plain", 3)])
def test_a_supervised_step_costs_what_the_cost_model_allows(trainer: str, least: int) -> None:
    """2k + 7 passes for TRADES, 2k + 3 for PGD-AT; the stem needs no input gradient at the end."""
    smoke = load_preset("smoke")
    dataset, images, labels = digits_with(smoke)
    options = replace(smoke.train, trainer=trainer)
    network = ResNet(1, [8, 16], [1, 1], 10)
    counted = passes(Training(network, smoke, 0, dataset, options), images, labels)
    assert least - 0.5 < counted <= least


def test_a_pretraining_step_costs_what_the_cost_model_allows() -> None:
    """24 passes for 7 steps: 1 + 2·7 of the attack, 3·3 of three views in training."""
    smoke = load_preset("smoke")
    smoke = replace(smoke, pretrain=replace(smoke.pretrain, projector_hidden=4, projector_out=4))
    dataset, images, labels = digits_with(smoke)
    counted = passes(Pretraining(smoke, 0, dataset, torch.device("cpu")), images, labels)
    assert 23 < counted <= 24.1


def test_embeddings_leave_the_classifier_out() -> None:
    embed = Embedding(tiny(), Projector(8, 6, 5))
    out = embed(torch.rand(3, 1, 8, 8))
    assert out.shape == (3, 5)
    out.sum().backward()
    assert embed.network.linear.weight.grad is None
