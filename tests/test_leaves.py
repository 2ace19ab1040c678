"""Outputs of any kind are taken apart down to numbers, and what was compared is counted."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.testing import assert_prunes_exactly, differences
from passes.audit.comparison import compare, relative_deviation, tolerance
from passes.audit.leaves import leaves_of
from passes.audit.sets import match_rows

INF = float("inf")


def three(value: float = 3.0) -> Tensor:
    return torch.tensor([1.0, 2.0, value])


class Boxes:
    """As detectron2 has them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, item: Any) -> Boxes:
        return Boxes(self.tensor[item].reshape(1))


class Instances:
    def __init__(self, **fields: Any) -> None:
        self._image_size = "4 x 4"
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        return self._fields[name]  # a KeyError where AttributeError is expected, as in real code


@dataclasses.dataclass
class Plain:
    value: Tensor
    name: str = "plain"


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("value",)
    value: Tensor


class Private:
    __slots__ = ("__hidden", "unset")

    def __init__(self, value: Tensor) -> None:
        self.__hidden = value


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Listed(list):  # type: ignore[type-arg]  # any elements
    """A list with a field."""

    def __init__(self, *parts: Any, extra: Any) -> None:
        super().__init__(parts)
        self.extra = extra


class Lazy(Sequence):  # type: ignore[type-arg]  # any elements
    """A sequence whose elements are made when they are asked for."""

    def __init__(self, *parts: Any) -> None:
        self.part = parts.__getitem__

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: Any) -> Any:
        if i:
            raise IndexError(i)
        return self.part(i)


class Table(Mapping):  # type: ignore[type-arg]  # any keys
    __slots__ = ()
    held: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def table(value: Any) -> Table:
    class Of(Table):
        __slots__ = ()
        held = {"x": value}

    return Of()


def holding_itself(value: Any) -> Any:
    node = types.SimpleNamespace(value=value)
    node.node = node
    return node


def list_in_itself(value: Any) -> list[Any]:
    outer = [value]
    outer.append(outer)
    return outer


def deep(value: Any) -> Any:
    for _ in range(3000):
        value = types.SimpleNamespace(next=value)
    return value


HOLDERS: dict[str, Any] = {
    "tensor": lambda t: t,
    "list": lambda t: [t],
    "dict of tuples": lambda t: {"a": (t,)},
    "named tuple": lambda t: Pair(t, t[:0]),
    "deque": lambda t: collections.deque([t]),
    "boxes": lambda t: [Boxes(t)],
    "instances": lambda t: [{"instances": Instances(boxes=Boxes(t), n=Boxes(t[:0]))}],
    "dataclass": Plain,
    "dataclass with slots": Slotted,
    "private slots": Private,
    "namespace": lambda t: types.SimpleNamespace(t=t),
    "list with a field": lambda t: Listed(extra=t),
    "list of its own kind": lambda t: Listed(t, extra=None),
    "dict of its own kind": lambda t: type("Own", (dict,), {})(a=t),
    "sequence": lambda t: Lazy(t),
    "mapping": table,
    "user dict": lambda t: collections.UserDict(a=t),
    "itself": holding_itself,
    "list in itself": list_in_itself,
    "deep": deep,
    "float64": lambda t: t.double(),
    "complex": lambda t: torch.complex(t[:0], t[:0]).new_tensor([1 + 1j, 2, complex(0, float(t[2]))]),
    "integers": lambda t: t.int(),
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t[None].to_sparse_csr(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.5, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t[:1], t[1:]], layout=torch.jagged),
    "parameter": nn.Parameter,
    "array": lambda t: t.numpy(),
    "array of objects": lambda t: numpy.array([t, None], dtype=object)[:1],
    "structured array": lambda t: numpy.array([(float(x),) for x in t], dtype=[("x", "f4")]),
    "half array": lambda t: t.numpy().astype(numpy.float16),
    "scalars of numpy": lambda t: [numpy.float32(float(x)) for x in t],
    "doubles of numpy": lambda t: [numpy.float64(float(x)) for x in t],
    "numbers": lambda t: t.tolist(),
    "set": lambda t: set(t.tolist()),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|prototype|quantize|deprecat).*")
@pytest.mark.parametrize("name", HOLDERS)
def test_numbers_are_found_wherever_they_are(name: str) -> None:
    hold = HOLDERS[name]
    same = compare(hold(three()), hold(three()))
    assert same.within(0) and same.compared == 3 and not same.notes()
    other = compare(hold(three()), hold(three(5.0)))
    assert not other.within(0.5) and 0.5 < other.deviation < 1


WORDS: dict[str, tuple[Any, Any]] = {
    "string": ("cat", "dog"),
    "none": (None, "x"),
    "enum": (enum.Enum("E", "a b").a, 3 + 4j),
    "path": (pathlib.Path("a"), pathlib.Path("b")),
    "decimal": (decimal.Decimal("1.5"), decimal.Decimal("1.6")),
    "integer": (10**30, 10**30 + 1),
    "labels": (torch.tensor([2**60]), torch.tensor([2**60 + 1])),
    "truth": (torch.tensor([True]), torch.tensor([False])),
    "range": (range(10**12), range(10**12 - 1)),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_no_fraction_is_equal_or_not(name: str) -> None:
    one, other = WORDS[name]
    assert compare([one], [one]).within(0)
    assert not compare([one], [other]).within(0.5)
    assert "output[0]" in str(compare([one], [other])) or relative_deviation([one], [other]) == INF


STRUCTURES: list[tuple[Any, Any]] = [
    (three(), [three(), three()]),
    ({"a": three()}, {"b": three()}),
    ([Boxes(three())], [Instances(tensor=three())]),
    (Plain(three()), Plain(three()[:2])),
    ({"a": [three()]}, {"a": {"b": three()}}),
]


@pytest.mark.parametrize("pair", STRUCTURES, ids=range(len(STRUCTURES)))
def test_other_structures_deviate_without_end(pair: tuple[Any, Any]) -> None:
    assert relative_deviation(*pair) == relative_deviation(*reversed(pair)) == INF


def test_keys_may_come_in_another_order_and_a_flat_list_fits_any_structure() -> None:
    assert relative_deviation({"a": three(), "b": three(4)}, {"b": three(4), "a": three()}) == 0
    assert relative_deviation({"a": (three(), {"b": three(4)})}, [three(), three(4)]) == 0
    assert relative_deviation({"a": (three(), {"b": three(4)})}, [three(4), three()]) > 0


@pytest.mark.parametrize(
    "nothing", [[], None, "x", [Boxes(torch.ones(0, 4))], {}, torch.full((3,), torch.nan), nn.Linear(2, 2), [print]]
)
def test_where_there_is_no_number_nothing_is_compared(nothing: Any) -> None:
    found = compare(nothing, nothing)
    assert found.compared == 0
    assert "nothing of them was compared" in found.notes()[0]


def test_what_cannot_be_taken_apart_is_named() -> None:
    found = compare([three(), iter([1])], [three(), iter([1])])
    assert found.compared == 3
    assert found.notes() == ("not compared, because it cannot be taken apart: output[1]",)


def test_infinite_numbers_are_counted_apart() -> None:
    found = compare(torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 1.0]))
    assert found.compared == 1
    assert "1 numbers of the outputs are NaN or infinite" in found.notes()[0]


def test_leaves_are_named_and_ordered_as_pytree_has_them() -> None:
    outputs = {"b": Pair(three(), three()), "a": [Boxes(three()), 2]}
    assert [leaf.path for leaf in leaves_of(outputs)] == ["['b'].first", "['b'].second", "['a'][0].tensor", "['a'][1]"]


def test_a_reference_to_the_model_is_no_result() -> None:
    assert compare(Listed(three(), extra=nn.Linear(2, 2)), Listed(three(), extra=nn.Linear(3, 3))).within(0)


def test_numbers_that_are_no_tensors_are_as_precise_as_the_model() -> None:
    assert tolerance([1.5], [torch.ones(1)]) == 1e-4
    assert tolerance([1.5], [torch.ones(1, dtype=torch.float64)]) == 1e-10
    assert tolerance([torch.ones(1, dtype=torch.complex128)], [torch.ones(1)]) == 1e-10
    assert tolerance([torch.ones(1, dtype=torch.complex64)]) == 1e-4


def detections(order: list[int]) -> list[dict[str, Tensor]]:
    boxes = torch.arange(20.0).reshape(5, 4)
    return [{"boxes": boxes[order], "scores": torch.ones(5)[order], "labels": torch.arange(5)[order]}]


def test_detections_are_a_set() -> None:
    found = match_rows(detections([0, 1, 2, 3, 4]), detections([1, 0, 2, 4, 3]), 1e-10)
    assert found is not None and (found.matched, found.rows, found.deviation, found.numbers) == (5, 5, 0, 30)
    fewer = match_rows(detections([0, 1, 2, 3, 4]), detections([1, 0, 2]), 1e-10)
    assert fewer is not None and (fewer.matched, fewer.rows) == (3, 5)
    twice = match_rows(detections([0, 1, 2, 3, 4]), detections([0, 0, 0, 0, 0]), 1e-10)
    assert twice is not None and (twice.matched, twice.rows) == (1, 5)
    batch = torch.rand(2, 6, 6)
    assert match_rows([batch], [batch.flip(0)], 1e-10).matched == 0  # type: ignore[union-attr]  # there are rows
    assert match_rows([batch], [batch.flip(1)], 1e-10).matched == 12  # type: ignore[union-attr]  # there are rows
    assert match_rows(torch.ones(()), torch.ones(()), 1e-10) is None


class Nothing(nn.Module):
    """Outputs without a number on any input, or numbers in objects."""

    def __init__(self, *, some: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)
        self.some = some

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return [Boxes(y if bool(y.sum() > 0) else -y)] if self.some else y[:0]


def test_an_assertion_that_compares_nothing_fails() -> None:
    args = (torch.rand(1, 3, 4, 4),)
    with pytest.raises(AssertionError, match="the outputs hold no number"):
        assert_prunes_exactly(Nothing(some=False), args)
    assert_prunes_exactly(Nothing(some=True), args)


def test_differences_are_found_in_objects_too() -> None:
    assert differences([Boxes(three())], [Boxes(three())]) == [0]
    assert differences([Boxes(three(4.0))], [Boxes(three(8.0))]) == [0.5]
    assert differences(["a", three()[:0]], ["a", three()[:0]]) == []
    assert differences(["a"], ["b"]) == differences((1.0,), [1.0]) == differences([1], [2]) == [INF]
    assert differences([1.0], [1.0 + 1e-15])[0] < 1e-14
    assert differences([three().to_sparse()], [three(6.0).to_sparse()]) == [0.5]
