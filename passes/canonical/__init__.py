"""Canonical form: an operation that can be written in several ways is written in one, so that fewer need rules.

In goes a functional graph of ATen operators, out comes the same graph, rewritten in place, which computes the same.

    normalise    the stage as one function
    decompose    operators without a rule become their composite implementation in torch
    recompose    operators of core ATen become those that they were made of
    spellings    the rewrite of one call into canonical form, for each operator that is not in it
    fusions      several calls that become one
"""
