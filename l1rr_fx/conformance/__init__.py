"""A conformance suite for structural pruning: small named networks, and whether a pruner gets them right.

In goes a pruner, out comes a verdict for each network.

    cases, patterns, zoo    the networks
    tools                   the pruners
    judgement, outputs      one verdict; which layers make the outputs of a network
    runner, record          all verdicts, each in a process of its own, kept in a file
    page                    the verdicts as tables and as docs/conformance.md
"""

from __future__ import annotations

from l1rr_fx.conformance.cases import Case, pattern
from l1rr_fx.conformance.judgement import Judgement, Tool, Verdict, judge
from l1rr_fx.conformance.record import Record
from l1rr_fx.conformance.runner import cases_of, judgements
from l1rr_fx.conformance.tools import TOOLS

__all__ = ["TOOLS", "Case", "Judgement", "Record", "Tool", "Verdict", "cases_of", "judge", "judgements", "pattern"]
