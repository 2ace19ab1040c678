"""Audit: what a rewrite cost, and whether it is right.

In go a layout plan and the rewritten network, out come their accounts, and the first node whose value is wrong, if
there is one.

    costs         MACs and parameters of calls and of layout plans
    accounting    the accounts: costs before, after and at the limit, and what explains the difference
    verify        both networks run against each other
"""
