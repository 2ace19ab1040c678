"""What do the random networks of each family reach? Calls by family of rules; docs/testing.md has the table.

python -m benchmarks.reached [--networks 40]
"""

from __future__ import annotations

import argparse
from collections import Counter

from rich.progress import track

from l1rr_fx.testing import FAMILIES
from l1rr_fx.testing.draft import OPERATORS
from passes.analysis.program import Program
from passes.canonical.normalise import normalise
from passes.frontend.capture import capture
from passes.rules import RULES, rule_for
from tests.test_testing import drawn

KINDS = (*dict.fromkeys(rule.family for rule in RULES.values()), "unknown")


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=40, help="networks of each family (default: %(default)s)")
    options = parser.parse_args()
    rows = [row(family, options.networks) for family in track(FAMILIES, "families")]
    print(f"| networks of | operators drawn | ATen operators | {' | '.join(KINDS)} |")
    print("|---|" + "---:|" * (2 + len(KINDS)))
    print("\n".join(rows))


def row(family: str, count: int) -> str:
    """One line of the table."""
    operators, targets, calls = set[str](), set[str](), Counter[str]()
    for network in drawn(family, count):
        operators.update(network.operators)
        program = Program(normalise(capture(*network.build())), rule_for)
        calls.update(site.rule.family for site in program.sites)
        targets.update(str(site.node.target) for site in program.sites)
    own = [each.name for each in OPERATORS if family in each.families]
    reached = f"{len(operators & set(own))} of {len(own)}"
    return f"| {family} | {reached} | {len(targets)} | {' | '.join(str(calls[kind]) for kind in KINDS)} |"


if __name__ == "__main__":
    main()
