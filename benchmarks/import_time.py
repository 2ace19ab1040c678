"""How long does `import l1rr_fx` take, beside `import torch` alone, and beside another checkout?

    python -m benchmarks.import_time [--rounds 10] [--against ../other-checkout]

Each import runs in a process of its own, in turn with the others; printed are the minimum and the median of the user
and system time of each, and the ratios of the medians.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="imports of each kind (default: %(default)s)")
    parser.add_argument(
        "--against", type=Path, help="another checkout, whose l1rr_fx is imported in turn with this one"
    )
    options = parser.parse_args()
    kinds = {"torch": ("import torch, torch.export, torch.fx", ROOT), "l1rr_fx": ("import l1rr_fx", ROOT)}
    if options.against is not None:
        kinds["l1rr_fx there"] = ("import l1rr_fx", options.against.resolve())
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in track(range(options.rounds + 1), "imports"):
        for kind, (code, folder) in kinds.items():
            seconds[kind].append(timed(code, folder))
    base = median(seconds["torch"][1:])
    for kind, found in seconds.items():
        counted = found[1:]  # the first fills the caches
        print(
            f"{kind:16} min {min(counted):.3f} s, median {median(counted):.3f} s, {median(counted) / base:.3f} of torch"
        )
    if options.against is not None:
        pairs = [one / other for one, other in zip(seconds["l1rr_fx"][1:], seconds["l1rr_fx there"][1:], strict=True)]
        print(f"here / there, pair by pair: min {min(pairs):.3f}, median {median(pairs):.3f}, max {max(pairs):.3f}")


def timed(code: str, folder: Path) -> float:
    """The processor time of a Python process that runs `code` with `folder` as its working directory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
