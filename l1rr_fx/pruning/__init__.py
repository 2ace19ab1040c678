"""Pruning: in goes a model with zeroed channels and an example input, out comes a `Pruned`.

A `Pruned` holds the small network, a report of what was removed and what stays, and which part of each parameter was
kept. A model that cannot be captured whole is pruned in pieces (`partition`).

    compiler        `prune`: capture, compile, verify, report
    verification    the small network held against the zeroed model
    unusual         lines for the report: nothing was zero, outputs no longer depend on inputs
    size_guards     run-time checks of what capture assumed of the sizes of inputs
    pruned          the result, saved, loaded and exported
    pt2_file        a network as a file that torch loads without this package
    dense           the kernels of the network before pruning, to predict its latency
    report          the report, as tables and as JSON
    optimizer       the state of an optimizer, carried over to the small network
"""
