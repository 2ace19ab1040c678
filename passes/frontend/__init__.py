"""Frontend: a model becomes a functional graph of ATen operators.

In go an `nn.Module` and an example input, out comes a graph module that computes the same, reads the parameters under
their names, and writes into none of its values.

    capture          the stage as one function, and the checks of its arguments
    unlift           an exported program becomes a graph that reads its parameters as attributes
    regions          regions under `torch.no_grad` or autocast become part of the graph around them
    functionalise    in-place operators become functional ones
"""
