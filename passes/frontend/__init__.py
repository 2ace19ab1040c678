"""Frontend: a model becomes a functional graph of ATen operators.

In go an `nn.Module` and an example input, out comes a graph module that computes the same, reads the parameters under
their names, and writes into none of its values.

    capture          the stage as one function, and the checks of its arguments
    constant_buffers numbers that code reads out of buffers are known during a capture
    limits           a capture that would be refused in the end, or would not end, is given up
    unlift           an exported program becomes a graph that reads its parameters as attributes
    regions          regions under `torch.no_grad` or autocast become part of the graph around them
    functionalise    in-place operators become functional ones, by the inverses of views (view_inverses)
    frozen_norms     batch norms that training does not switch become a product and a sum
"""
