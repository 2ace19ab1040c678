"""How soon are ten bugs found that are planted in rules, and how small does what shows them shrink?

    python -m benchmarks.planted [--seeds 5] [--first 0] [--examples 500] [--bug bias]

Each bug of tests/planted.py is looked for in random networks of its family, anew for each seed. A line is printed when
a hunt is over, and in the end a table: networks drawn before the first that shows the bug, operators drawn for the
shrunk one, and calls in its graph, the worst of the seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch

from tests.planted import BUGS, Hunt, hunt

BELOW = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--examples", type=int, default=500, help="networks in which a bug must be found")
    parser.add_argument("--bug", default="", help="only bugs whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    hunts: dict[str, list[Hunt]] = {}
    for bug in (bug for bug in BUGS if options.bug in bug.name):
        for number in range(options.first, options.first + options.seeds):
            found = hunt(bug, examples=options.examples, shrink=True, number=number)
            hunts.setdefault(bug.name, []).append(found)
            print(f"{bug.name}, seed {number}: {_said(found)}", flush=True)
    print("\n| planted bug | found after | shrunk to operators | calls in its graph |\n|---|---:|---:|---:|")
    for name, all_found in hunts.items():
        after = ", ".join("never" if found.found_after is None else str(found.found_after) for found in all_found)
        small = [found for found in all_found if found.smallest is not None]
        worst = max((found.operators for found in small), default=0), max((found.calls for found in small), default=0)
        print(f"| {name} | {after} | {worst[0]} | {worst[1]} |")
    everything = [found for all_found in hunts.values() for found in all_found]
    shown = [found for found in everything if found.smallest is not None]
    print(
        f"\nfound: {len(shown)} of {len(everything)}; below {BELOW} operators: "
        f"{sum(found.operators < BELOW for found in shown)}; below {BELOW} calls with stem and head: "
        f"{sum(found.calls < BELOW for found in shown)}; {time.process_time():.0f} s of CPU"
    )
    sys.exit(len(shown) < len(everything))


def _said(found: Hunt) -> str:
    if found.smallest is None:
        return f"not found in {found.drawn} networks"
    return f"found after {found.found_after}, {found.operators} operators, {found.calls} calls"


if __name__ == "__main__":
    main()
