"""Two processes of a torchrun (gloo): the same gammas on both as in one process with the same global batch, and the
curves of `choose` measured in parts."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.training.sparsity import ReweightedL1

STEPS = 40


class Detector(nn.Module):
    """A batch norm that scales, and a prediction that is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.other = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(F.relu(self.other(self.b(F.relu(self.norm(self.a(x)))))))
        return found


def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector().double().eval()  # in training each process would normalise by its own part of the batch
    nn.init.uniform_(model.norm.weight, 0.2, 1.5)
    nn.init.uniform_(model.other.weight, 0.2, 1.5)
    return model


def trained(rank: int, world: int) -> Detector:
    """The detector after training on this process's part of each batch of four."""
    model = detector()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    ReweightedL1(wrapped, total_steps=STEPS).attach(optimizer)
    dice = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.rand(4, 3, 8, 8, generator=dice, dtype=torch.float64)
        optimizer.zero_grad()
        wrapped(images[rank::world]).square().mean().backward()
        optimizer.step()
    return model


def chosen(file: Path | None) -> Plan:
    model = detector()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batches = [(images, [torch.tensor([[1.0, 1, 5, 6]]), torch.zeros(0, 4)])]
    attention = FeatureAttention(model, (images,), batches)
    return choose(model, (images,), budget=Budget(macs=0.5), attention=attention, curves=file)


def main(folder: Path) -> None:
    """What each process of the torchrun does."""
    plan = chosen(folder / "curves")  # makes its own process group
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = trained(rank, world)
    torch.distributed.destroy_process_group()
    gc.collect()  # the wrapped model is in a cycle; gloo's threads abort a Python that ends before them
    torch.save((model.state_dict(), plan.to_json()), folder / f"rank{rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes wrote what they had at the end."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, "-m", "tests.test_sparsity_ddp", str(folder)],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def test_both_processes_have_the_gammas_of_one(folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}")[0] for rank in (0, 1))
    alone = trained(0, 1).state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # gradients are summed in another order
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-12)
    zero = alone["norm.weight"] == 0
    assert torch.equal(first["norm.weight"] == 0, zero) and 0 < int(zero.sum()) < 16


def test_curves_measured_in_parts_give_the_plan_of_one(folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}")[1] for rank in (0, 1))
    assert first == second == chosen(None).to_json()
    parts = [(folder / name).read_text().splitlines()[1:] for name in ("curves", "curves.1")]
    assert [len(part) for part in parts] == [1, 1], "the two layers were not shared between the two processes"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
