"""The table: how each ATen operator is said in ONNX, one file a family.

A form is a function of the writer, the fake result, and the call's arguments in the order of the operator's schema. It
gives the name of its result (several: a tuple of names; None for one that the target cannot give), an operand that is
the result already, or a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l1rr_fx.lowering.onnx.operators import contraction, indexing, mixing, movement, parts, pointwise, pooling, sampling
from l1rr_fx.lowering.onnx.operators.pointwise import Form

FORMS: Mapping[Any, Form] = {
    **pointwise.FORMS,
    **contraction.FORMS,
    **mixing.FORMS,
    **pooling.FORMS,
    **movement.FORMS,
    **parts.FORMS,
    **indexing.FORMS,
    **sampling.FORMS,
}
