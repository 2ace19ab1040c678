"""The method L1RR (docs/l1rr.md): in goes a model with training data, out comes a plan of the channels to zero.

`l1rr_fx.prune` then removes them. The parts, in the order in which a user meets them:

    sites       where channels can be zeroed, and what blocks the others
    training    sparse training: the penalty, zeros that stay zero, statistics measured again
    attention   the feature attention loss of a detector
    planning    the plan that meets a budget
"""
