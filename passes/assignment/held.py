"""What a tensor can hold without more work upstream: its live labels, and dead ones that are computed anyway.

Dead labels of a tensor are computed anyway where another reader of the same value needs them, and where the operator
cannot do without them (fillers of a grouped convolution). A tensor without them has to be copied out of one that has
them; a tensor with them hands them on to its readers. Layout assignment weighs the two (`Chooser`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.layout import box_of
from passes.rules.base import Site


def held_labels(program: Program, facts: Facts) -> Mapping[Node, Tensor]:
    """For each computed tensor that has any, the dead labels that it can hold without more work upstream.

    Masks in compact shape. One sweep forward: what inputs hold is carried to where the operator takes its elements.
    """
    return _Sweep(program, facts).run()


class _Sweep:
    def __init__(self, program: Program, facts: Facts) -> None:
        self.program = program
        self.facts = facts
        self.dead: dict[Node, Tensor] = {}
        self.source: dict[Node, Site] = {}  # the operator with layouts of its own from which channels come unchanged

    def run(self) -> Mapping[Node, Tensor]:
        for site in self.program.sites:
            found = self._fillers(site) or site.rule.carried(site, [self._held(node) for node in site.inputs])
            for out, mask in zip(site.outputs, found, strict=True):
                if out is not None and mask is not None and mask.shape == self.facts.zero[out].shape:
                    self._hold(site, out, mask)
        return self.dead

    def _hold(self, site: Site, out: Node, mask: Tensor) -> None:
        live = self.facts.live(out)
        source = self.source.get(site.inputs[0]) if site.inputs and site.rule.keeps_channels(site) else None
        if source is not None:
            self.source[out] = source
            if bool((live & ~mask).any()) and self.facts.zero[source.node].shape == live.shape:
                mask = self._legal(source, live | mask)  # what the call fills in is made by the source instead
        if bool((dead := mask & ~live).any()):
            self.dead[out] = dead

    def _held(self, node: Node) -> Tensor:
        """All labels that a tensor can hold; an input of the network is whole, a constant adds none of its own."""
        if node.op == "placeholder":
            return torch.ones_like(self.facts.zero[node])
        if node.op == "get_attr":
            return torch.zeros_like(self.facts.zero[node])
        live = self.facts.live(node)
        return live | self.dead[node] if node in self.dead else live

    def _fillers(self, site: Site) -> list[Tensor | None] | None:
        """What an operator produces that makes its layouts larger than what is live (None: it does not)."""
        if len(site.outputs) > 1 or site.rule.keeps_channels(site) or site.rule.growth(site) is None:
            return None
        live = self.facts.live(site.node)
        if not bool(live.any()):
            return None
        self.source[site.node] = site
        return [self._legal(site, live)]

    def _legal(self, site: Site, wanted: Tensor) -> Tensor:
        """The labels of the smallest layout that an operator can produce and that holds those wanted."""
        (layout,) = site.rule.legalise(site, [box_of(wanted)], self.facts.at(site))
        return layout.mask()
