"""Assignment: one layout for each tensor of the small network.

In go a program, its liveness, the options of the user and a cost model. Out comes a layout plan: layouts that every
operator can produce, where each reader recombines, and why dead channels stay.

    options          the mode, the multiple of channel counts, and the cost model
    cost_model       the protocol of a cost model, and the default, which counts bytes
    channel_order    an order of channels in which the operands of sums are runs
    pq_tree          orders in which given sets are runs, by PQ-trees
    held             dead labels that tensors can hold without more work
    prices           what dead channels cost, against copies without them
    candidates       the layouts that a tensor can have, with costs and savings
    assign           the stage as one function: a sweep from the outputs to the inputs
    whole            the plan that removes nothing, to compare with
    plan             its result, as data and as a table
"""
