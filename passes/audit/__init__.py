"""Audit: what a rewrite cost, and whether it is right.

In go a layout plan and the rewritten network, out come their accounts, and the first node whose value is wrong, if
there is one.

    costs         MACs and parameters of calls and of layout plans
    flops         operators without a rule, counted by torch's formulas
    accounting    the accounts: costs before, after and at the limit, and what explains the difference
    leaves        outputs taken apart, down to their numbers
    comparison    how far two outputs are apart, and what was compared
    sets          rows of outputs compared without their order
    verify        both networks run against each other, node by node
    dependence    outputs that do not depend on the inputs
"""
