"""Graph: what every stage reads of a graph and of its values. This folder is no stage of its own.

In go graph modules, nodes and tensors, out come answers about them: shapes, layouts, constants. No file here knows what
an operator computes.

    layout       which elements of a tensor exist in the small network, in which order
    selection    which part of a parameter the small network keeps
    nodes        questions about single nodes, and the names that a module holds
    values       shapes, sizes, parameters and constants of a graph
    constants    what a graph computes from parameters and buffers alone
    modes        batch norm and dropout as modules that switch between training and evaluation
    isolation    runs of a model without side effects, and copies of it
"""
