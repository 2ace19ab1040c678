"""Canonical form: several spellings of an operation become one, so that fewer operators need rules.

In goes a functional graph of ATen operators, out comes the same graph, rewritten in place, which computes the same.

    normalise    the stage as one function
    decompose    operators without a rule become their composite implementation in torch
    recompose    operators of core ATen become those that they were made of
    spellings    the rewrite of one call, for each operator that has another form
    fusions      several calls that become one
"""
