"""Attention: in go a detector and images with boxes, out comes the attention loss of any change of its parameters.

loss           `FeatureAttention`: the loss of a change, of a copy of the model, or as a term of a training
feature_maps   the feature maps that are compared: found in the graph, or named
ground_truth   boxes with classes, checked, and masks of the cells that they cover
replay         incremental evaluation: only what depends on a change is computed again
"""
