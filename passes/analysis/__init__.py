"""Analysis: what is known of the channels of a canonical graph before anything is decided.

In goes a canonical graph, out come its call sites, the liveness of each tensor, and the tensors whose channels are
coupled. Nothing is changed.

    program     the graph as call sites, each with the rule of its operator
    zeros       what is zero for every input, forward
    liveness    the facts: what is zero, and on which labels some output depends (backward)
    coupling    the groups of tensors whose channels must be removed together if nothing is recombined
"""
