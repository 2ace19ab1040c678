"""What is unusual about a pruning, in lines for its report: nothing was zero, or outputs no longer depend on inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from passes.accounts import Accounts
from passes.audit.dependence import constant_outputs
from passes.compile import Removed


def what_is_unusual(model: nn.Module, accounts: Accounts, removed: Mapping[str, Removed]) -> tuple[str, ...]:
    """The lines; `removed` has each captured part by its name, the whole by the empty one."""
    return (*_constants(removed), *_nothing(model, accounts), *_constant_channels(model), *_positions(removed))


def _positions(removed: Mapping[str, Removed]) -> Iterator[str]:
    """That positions (tokens) were not told apart, because there would have been too many labels."""
    for name, each in removed.items():
        facts = each.plan.facts
        products = sum(
            site.rule.merges_positions(site, [facts.zero[node] for node in site.inputs])
            for site in each.plan.program.sites
        )
        if facts.merged or products:
            where = f" in {name}" if name else ""
            yield (
                f"tokens are not told apart{where} (positions of {len(facts.merged)} inputs or parameters, rows of "
                f"{products} products): there would be too many labels; tokens that no output needs stay, and the "
                "limit counts them"
            )


def _constants(removed: Mapping[str, Removed]) -> Iterator[str]:
    """The outputs that depended on the inputs before, and do so no longer."""
    for name, each in removed.items():
        before = constant_outputs(each.plan.program.module.graph)
        constant = [i for i in constant_outputs(each.module.graph) if i not in before]
        where = f" of {name}" if name else ""
        outputs = len(each.plan.program.output_tensors) - len(before)
        if constant and len(constant) >= outputs:
            whose = f"{name}'s outputs" if name else "the network's outputs"
            yield f"{whose} do not depend on its inputs: zeros cut all ways between them; zero fewer channels"
        elif constant:
            numbers = ", ".join(map(str, constant))
            yield f"output {numbers}{where} does not depend on the inputs: zeros cut all ways to it"


def _nothing(model: nn.Module, accounts: Accounts) -> Iterator[str]:
    """That nothing was removed, and whether there was anything to remove."""
    before, after, limit = accounts.before, accounts.after, accounts.limit
    if (before.parameters, before.macs) != (after.parameters, after.macs):
        return
    if (limit.parameters, limit.macs, limit.channels) != (before.parameters, before.macs, before.channels):
        yield "nothing was removed, although channels are dead: the table says why they stay"
        return
    weights = sum(parameter.numel() for parameter in model.parameters())
    zeros = weights - sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())
    single = f"{zeros:,} of {weights:,} parameters are zero, but they make up no whole channel" if zeros else "none is"
    yield f"nothing was removed: no channel is zero for every input ({single}). First zero channels, by l1rr_fx.choose"


def _constant_channels(model: nn.Module) -> Iterator[str]:
    """That channels are constant but not zero, which further training of the small network does not follow."""
    norms = [each for each in model.modules() if isinstance(each, _NormBase) and each.affine]
    count = sum(int(((norm.weight == 0) & (norm.bias != 0)).sum()) for norm in norms if norm.bias is not None)
    if count:
        yield (
            f"{count:,} channels of batch norms are constant but not zero (weight 0, bias not): exact, but further "
            "training differs from that of the zeroed model, in their statistics and the gradient of their weight"
        )
