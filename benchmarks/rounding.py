"""How far does rounding alone move a zeroed network of the zoo? To be read beside a row of docs/zoo.md that differs.

    python -m benchmarks.rounding yolo/rtdetr-l 0.7

Noise of 1e-15 (relative, float64) on the input, three times, and how far it moves the outputs of the zeroed network;
then how far the pruned one is from it without noise. Run it from the root of the repository.
"""

from __future__ import annotations

import sys

import torch

import l1rr_fx
from tests.oracle import fresh_input, relative_error, zeroed_case
from tests.zoo import by_name

NOISE = 1e-15


def main(name: str, ratio: str) -> None:
    """Print the four deviations."""
    torch.set_num_threads(1)
    case = zeroed_case(by_name(name), float(ratio))
    args = fresh_input(case.args, seed=7)
    expected = case(args)
    for seed in range(3):
        dice = torch.Generator().manual_seed(seed)
        noisy = tuple(x * (1 + NOISE * torch.randn(x.shape, generator=dice, dtype=x.dtype)) for x in args)
        print(f"zeroed, noise {seed}: {relative_error(case(noisy), expected):.1e}")
    pruned = l1rr_fx.prune(case.model, case.args, case.kwargs, verify=False)
    with torch.no_grad():
        print(f"pruned: {relative_error(pruned.module(*args, **case.kwargs), expected):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
