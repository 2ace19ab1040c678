"""Rewriting: a layout plan becomes a network.

In goes a layout plan, out comes a graph module with the selected parts of the parameters, which shares no memory with
the original.

    rewriter             the stage as one function
    sketcher             the network's graph with the shapes of all values and without parameters, for predictions
    recombine            values brought from one layout to another: slice, concatenation, padding, gather
    stored_parameters    the part of each parameter that is stored, the union of what its readers select
    channel_sources      where channels come from, through copies
    halves               the product and the sum of a frozen batch norm
    fold                 batch norms folded into weights, and constants computed once, for deployment
"""
