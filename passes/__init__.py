"""The compiler: it removes zeroed channels from a network. It imports torch and networkx, each when it is used.

In goes a model with zeroed channels and an example input, out comes a smaller graph module that computes the same:

    captured = capture(model, args)                  # a functional graph of ATen operators
    small = remove_zero_channels(captured).module    # the same network without its zeroed channels

or step by step:

    program = Program(normalise(captured), rule_for) # the call sites of the canonical graph
    facts = channel_facts(program)                   # liveness: what is zero, what is needed
    plan = plan_layouts(program, facts)              # the layout of every tensor of the small network
    rewritten = rewrite(plan)                        # the small network

The stages are folders, in the order in which a network passes through them: `frontend`, `canonical`, `analysis`,
`assignment`, `rewriting`, `audit`. All of them use `graph` and `rules`. `compile` is all stages in one call, `infra`
has them as passes of torch.fx, `accounts` is costs as data, `errors` the tree of errors.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
