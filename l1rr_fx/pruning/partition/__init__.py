"""Models that cannot be captured whole: in goes such a model, out comes a copy with its capturable submodules pruned.

calls      one forward pass recorded: how each submodule is called, and who reads its parameters
pieces     the largest submodules that can be captured, pruned and put back in the copy
capturing  a submodule captured, with free sizes where that is cheap
body       the parts side by side in one graph, for plans
crossing   a limit for all pieces together, by what crosses between them
runs       neighbours in a Sequential that are one piece
piece      a pruned submodule, which refuses calls that its graph cannot serve
agreement  whether the pieces, and the code around them, compute what the zeroed model does
"""
