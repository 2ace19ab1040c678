"""Training: in goes a model with its sites, out comes one in which the channels that matter least are zero.

sparsity         `ReweightedL1`: the penalty, as a proximal step, a subgradient or a term of the loss
reweighting      the weight of each channel in the penalty
pushed           the channels that are pushed for a budget
channel_vector   the channels of all sites as one vector, measured in the parameters and applied to them
penalised        the parameters of sites: found, checked, measured by channel
schedules        the strength of the penalty over a training
options          the options of a penalty, checked
decay            `parameter_groups`: weight decay that spares the scales
hold             zeros that stay zero while a model trains
recalibrate      `recalibrate_batch_norm`: statistics measured again
"""
