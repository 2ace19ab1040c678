"""Planning: in go a model, a budget and scores or an attention loss, out comes the plan that meets the budget.

choose   `choose`: the plan
group_norm  `GroupNorm`: the norm of all that a channel is, as a score
scores   the order of the channels within a layer
curves   the attention loss by the number of channels zeroed, of each layer alone
removable   the sites that may lose channels, in the order of their scores, and why the others do not
weighing    what a channel saves, weighed against its loss
search   the number of removals that meets a budget, by false position
families, blocks, moves, paths, allocate
         channels and branches that go together, what their widths cost on a machine, the order in which they go, and
         where it ends
explain  where the predicted time goes, and the moves that were not made
finish   the plan that results, with what came back and what explains it
revive   channels that the pruned network computes all the same come back
threshold   `threshold`: the plan of everything below a score
plan     `Plan`: printed, stored as JSON, zeroed in a model
"""
