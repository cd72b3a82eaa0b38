"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

from robust import checkpoint, data, supervised
from robust.attacks import trades_attack
from robust.config import load_preset, override
from robust.graphs import Replay
from robust.models import ResNet, Twin

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU = torch.device("cuda")
SMOKE = override(load_preset("smoke"), ["train.epochs=3"], "train")


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(3, [16, 32], [1, 1], classes=10).to(GPU).eval()


def test_a_replayed_attack_makes_the_same_images() -> None:
    model, replay = network(), Replay(GPU)
    options = SMOKE.adversary
    twin = Twin(model, torch.bfloat16)
    for step in range(4):
        with torch.no_grad():
            model.conv1.weight.add_(0.05 * torch.randn_like(model.conv1.weight))
        replay(twin.refresh)
        images = torch.rand(32, 3, 16, 16, device=GPU)
        torch.manual_seed(step)
        replayed = trades_attack(twin, images, options, replay)
        twin.refresh()
        torch.manual_seed(step)
        assert torch.equal(replayed, trades_attack(twin, images, options))
        assert not torch.equal(replayed, images)


def test_batches_of_other_sizes_are_other_graphs() -> None:
    replay, seen = Replay(GPU), []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return 2 * x

    for size in (4, 4, 3, 4, 3, 3):
        x = torch.rand(size, 2, device=GPU)
        assert torch.equal(replay(double, x), 2 * x)
    # Each plainly once, then to warm up and to be recorded; never more.
    assert seen.count(4) == seen.count(3) == 3


def test_the_same_seed_gives_the_same_network(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = [
        supervised.train(SMOKE, 0, None, False, str(tmp_path / name), root=None, device=GPU)
        for name in ("one.pt", "two.pt")
    ]
    assert made[0] == made[1]
    dataset = data.load(SMOKE.data, None)
    assert checkpoint.load(str(tmp_path / "one.pt"), ["train"]).data.fingerprint == (
        dataset.fingerprint
    )
