"""Absorption: what reads a constant channel pays nothing for it.

In goes a canonical graph, out comes the same graph, changed in place, which computes the same: its constant channels
are zero, or nothing depends on them, so that the stages after this one remove them.

    absorb      the stage as one function
    maps        channels that no input changes, though their elements differ
    columns     the weights that read constant channels: into the bias, or one column for all of them
    gates       constants times a live gate: into a product on 1 x 1 maps
    shifts      the sums and the layers that constants come from
    record      where the constants of each tensor went
    edits       new values of parameters, and new parameters, in a module that shares the old ones with the user
"""
