"""Operators that show the elements of their first input again, each exactly once or repeated, listed in one place."""

from __future__ import annotations

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
"""The same elements in the same order under other axes."""

PERMUTATIONS = ("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT")
"""The same elements with the axes in another order."""

COPIES = ("clone", "contiguous", "detach", "alias")
"""The same elements under the same axes."""

REPETITIONS = ("expand", "repeat")
"""Each element several times."""

SAME_VALUES = frozenset((*RESHAPES, *PERMUTATIONS, *COPIES, *REPETITIONS))
"""All of them: whatever holds for every element of the input holds for every element of the result."""
