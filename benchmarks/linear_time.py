"""Do pruning, saving and loading stay linear in the depth of the network, in time and in memory?

    python -m benchmarks.linear_time                       # narrow networks: seconds for each block
    python -m benchmarks.linear_time --width 128 --blocks 50 100 200     # wide ones: memory against the weights
    python -m benchmarks.linear_time --tokens 256 1024 4096 --blocks 4   # attention written out, learned positions
    python -m benchmarks.linear_time --network video/mvit_v2_s           # one of the zoo, half of its channels dead

Residual networks (conv, batch norm, ReLU, conv, batch norm, addition) with half of the channels dead, each in a process
of its own at one thread. Peak memory is the growth of the resident set while `prune`, `save` or `load` runs. Run it
from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = (50, 100, 200, 400, 800)
SAMPLED_EVERY_S = 0.002


class Block(nn.Module):
    """A basic residual block of constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, value: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(value)).relu()
        return torch.relu(self.bn2(self.conv2(inner)) + value)


def residual_network(blocks: int, width: int) -> nn.Module:
    """A stem, `blocks` residual blocks and a classifier; half of each batch norm's channels are dead, at random."""
    torch.manual_seed(0)
    body = [Block(width) for _ in range(blocks)]
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
            dead = torch.randperm(width)[: width // 2]
            module.weight.data[dead], module.bias.data[dead] = 0, 0
    return model.eval()


class AttentionBlock(nn.Module):
    """Attention written out with four heads, then a layer for each token, both beside a branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.mixed(x).view(batch, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        found: Tensor = x + self.narrow(self.wide(x).relu())
        return found


class TokenNetwork(nn.Module):
    """Learned positions on `tokens` tokens, then blocks; half of the channels within each block are dead, at random."""

    def __init__(self, blocks: int, width: int, tokens: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.positions = nn.Linear(3, width), nn.Parameter(torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(AttentionBlock(width) for _ in range(blocks)))
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.out_features > width:
                dead = torch.randperm(module.out_features)[: module.out_features // 2]
                module.weight.data[dead], module.bias.data[dead] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(self.embed(x) + self.positions)
        return found


def tokens_measured(blocks: int, width: int, tokens: int) -> dict[str, Any]:
    """One row of a network with attention."""
    x = torch.randn(1, tokens, 3)
    return {"tokens": tokens, **pruning(TokenNetwork(blocks, width, tokens).eval(), (x,))}


def network_measured(name: str) -> dict[str, Any]:
    """One row of a network of the zoo, in float64, with half of its channels dead."""
    from tests.oracle import Case, prepare, zero_channels
    from tests.zoo import by_name

    case = prepare(Case(*by_name(name).build()), seed=0)
    zero_channels(case, 0.5, seed=0)
    return pruning(case.model, case.args)


def pruning(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """What pruning takes: seconds of CPU, growth of the resident set, and what is left."""
    from l1rr_fx import prune

    torch.set_num_threads(1)
    with PeakMemory() as peak:
        started = time.process_time()
        report = prune(model, args, verify=False).report
        seconds = time.process_time() - started
    return {
        "cpu_s": seconds,
        "grown_mb": peak.grown / 1e6,
        "macs_left": report.after.macs / report.before.macs,
        "over_limit": report.macs_over_limit,
    }


class PeakMemory:
    """`with PeakMemory() as peak:` then `peak.grown` is the largest growth of the resident set in bytes, sampled."""

    def __enter__(self) -> PeakMemory:
        import psutil

        self._resident = lambda: int(psutil.Process().memory_info().rss)
        self.grown = 0
        self._start = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLED_EVERY_S):
            self.grown = max(self.grown, self._resident() - self._start)


def measured(blocks: int, width: int) -> dict[str, Any]:
    """One row; a small network is pruned first, so that first-call costs are not counted."""
    from l1rr_fx import load, prune

    torch.set_num_threads(1)
    images = torch.randn(1, 3, 8, 8)
    prune(residual_network(2, 8), (images,), verify=False)
    model = residual_network(blocks, width)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    with PeakMemory() as peak:
        started = time.perf_counter()
        pruned = prune(model, (images,), verify=False)
        whole = time.perf_counter() - started
    seconds = pruned.report.accounts.seconds
    kept = sum(value.numel() * value.element_size() for value in pruned.module.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        save_s, save_grown = _timed(lambda: pruned.save(f"{folder}/small"))
        load_s, load_grown = _timed(lambda: load(f"{folder}/small"))
    return {
        "blocks": blocks,
        "capture_s": seconds["capture"],
        "analysis_s": seconds["analysis"],
        "rewrite_s": seconds["rewrite"],
        "whole_s": whole,
        "ms_per_block": 1e3 * (seconds["analysis"] + seconds["rewrite"]) / blocks,
        "model_mb": size / 1e6,
        "grown_mb": peak.grown / 1e6,
        "grown_over_model": peak.grown / size,
        "over_limit": pruned.report.macs_over_limit,
        "save_ms_per_block": 1e3 * save_s / blocks,
        "load_ms_per_block": 1e3 * load_s / blocks,
        "save_grown_over_weights": save_grown / kept,
        "load_grown_over_weights": load_grown / kept,
    }


def _timed(work: Callable[[], object]) -> tuple[float, int]:
    """The seconds of CPU that something takes, and the growth of the resident set while it runs, in bytes.

    Waiting for the disk is not counted.
    """
    with PeakMemory() as peak:
        started = time.process_time()
        work()
        return time.process_time() - started, peak.grown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=list(BLOCKS))
    parser.add_argument("--width", type=int, help="channels (default: 16, with --tokens 64)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[])
    parser.add_argument("--network", default="", help="one of the zoo")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    width = options.width or (64 if options.tokens else 16)
    if options.child:
        call = json.loads(options.child)
        print(json.dumps(globals()[call[0]](*call[1:])))
    elif options.network:
        table([["network_measured", options.network]])
    elif options.tokens:
        table([["tokens_measured", options.blocks[0], width, tokens] for tokens in options.tokens])
    else:
        rows = table([["measured", blocks, width] for blocks in options.blocks])
        for name in ("ms_per_block", "save_ms_per_block", "load_ms_per_block"):
            times = [row[name] for row in rows]
            print(f"\n{name}, largest over smallest: {max(times) / min(times):.2f}")


def table(calls: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows of these calls, each made in a process of its own and printed when it is there."""
    rows: list[dict[str, Any]] = []
    for call in calls:
        command = [sys.executable, "-m", "benchmarks.linear_time", "--child", json.dumps(call)]
        output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        if len(rows) == 1:
            print(f"{call}, one thread.\n\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
        print(f"| {' | '.join(f'{value:.4g}' for value in rows[-1].values())} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
