"""Damaged and hostile files, each of its number: what a bit, a tool or a forger makes of a good one."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import onnx

Bytes = Callable[[random.Random, bytes], bytes]

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, 2**70, -(2**63), 0.5, -0.0, 1e308, "", "x", "\0", "\ud800", "a.b",
    "_in_spec", "forward", "nan", "9" * 400, [], [[]], [0], {}, {"": 0}, {"node": "x"}, {"tuple": []}, {"float": "inf"},
    [0] * 100, {"dict": [["a", "*"]]}, "*", "aten::relu.default", "aten::conv2d.default", "I64",
)  # fmt: skip
"""What a value of a JSON document is replaced by."""


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes, a few times changed as by a disk, a network or an editor."""
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        content = rng.choice(DAMAGES)(rng, content)
    return content


def _place(rng: random.Random, content: bytes) -> int:
    return rng.randrange(len(content) + 1)


def _flipped(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(rng: random.Random, content: bytes) -> bytes:
    i = _place(rng, content)
    return content[:i] + rng.choice((b"\0", b"\xff", b"\x80", b"\x7f", b'"', b"9")) + content[i + 1 :]


def _cut(rng: random.Random, content: bytes) -> bytes:
    i = _place(rng, content)
    return content[:i] + content[i + rng.randrange(1, 64) :]


def _truncated(rng: random.Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _doubled(rng: random.Random, content: bytes) -> bytes:
    i, n = _place(rng, content), rng.randrange(1, 64)
    return content[:i] + content[i : i + n] * 2 + content[i + n :]


def _inserted(rng: random.Random, content: bytes) -> bytes:
    i = _place(rng, content)
    return content[:i] + rng.randbytes(rng.randrange(1, 16)) + content[i:]


def _moved(rng: random.Random, content: bytes) -> bytes:
    i, j, n = _place(rng, content), _place(rng, content), rng.randrange(1, 64)
    return content[:i] + content[j : j + n] + content[i + n :]


DAMAGES: tuple[Bytes, ...] = (_flipped, _flipped, _set, _cut, _truncated, _doubled, _inserted, _moved)


def forged(rng: random.Random, text: bytes) -> bytes:
    """A JSON document with a few values replaced, removed, moved or doubled; one that is none is damaged."""
    try:
        document = json.loads(text)
    except ValueError:
        return damaged(rng, text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        container, key = rng.choice(places)
        _forge(rng, container, key, places)
    return json.dumps(document).encode()


def _forge(rng: random.Random, container: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    action = rng.randrange(5)
    if action == 0:
        del container[key]
    elif action == 1:
        other, name = rng.choice(places)
        container[key] = json.loads(json.dumps(other[name]))
    elif action == 2 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), json.loads(json.dumps(container[key])))
    elif action == 2:
        container[str(rng.choice(VALUES))] = container[key]
    else:
        container[key] = rng.choice(VALUES)


def _places(document: Any) -> Any:
    """Every value within a document: the list or object that holds it, and its index or key."""
    found, left = [], [document]
    while left:
        container = left.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            found.append((container, key))
            if isinstance(value, (dict, list)):
                left.append(value)
    return found


def network(rng: random.Random, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a saved network, of which one is damaged or forged; mostly with a manifest that fits."""
    changed = dict(files)
    name = rng.choice(sorted(files))
    if name.endswith(".json"):
        change: Bytes = rng.choice((damaged, forged, forged, forged))
        changed[name] = change(rng, files[name])
    else:
        changed[name] = rng.choice((damaged, _forged_header))(rng, files[name])
    if name != "manifest.json" and rng.random() < 0.9:
        manifest = json.loads(files["manifest.json"])
        digest = hashlib.sha256(changed[name]).hexdigest()
        manifest["files"][name] = {"bytes": len(changed[name]), "sha256": digest}
        changed["manifest.json"] = json.dumps(manifest).encode()
    return changed


def _forged_header(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = forged(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def archive(rng: random.Random, content: bytes) -> bytes:
    """A zip archive that is damaged, or of whose files one is."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        files = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    name = rng.choice(sorted(files))
    action = rng.randrange(6)
    if action == 0:
        del files[name]
    elif action == 1:
        files[name] = files[rng.choice(sorted(files))]
    else:
        change: Bytes = forged if name.endswith(".json") and action > 2 else damaged
        files[name] = change(rng, files[name])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as whole:
        for each, content in files.items():
            whole.writestr(each, content)
    return out.getvalue()


def model(rng: random.Random, content: bytes) -> bytes:
    """An ONNX model that is damaged, or of which a part is changed, doubled, removed or moved."""
    if rng.random() < 0.4:
        return damaged(rng, content)
    proto = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        messages = list(_messages(proto))
        _change(rng, rng.choice(messages), messages)
    return bytes(proto.SerializeToString())


def _messages(message: Any) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _change(rng: random.Random, message: Any, messages: list[Any]) -> None:
    """One field of a message takes another value, or its list gets shorter or longer."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.5 and message.ListFields():
        field = rng.choice(message.ListFields())[0]
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return
    if field.message_type is not None:
        alike = [each for each in messages if each.DESCRIPTOR is field.message_type]
        copy = field.message_type._concrete_class()
        copy.CopyFrom(rng.choice(alike) if alike else copy)
        if field.is_repeated:
            getattr(message, field.name).append(copy)
        else:
            getattr(message, field.name).CopyFrom(copy)
        return
    value = rng.choice(_scalars(field))
    if not field.is_repeated:
        setattr(message, field.name, value)
    elif (values := getattr(message, field.name)) and rng.random() < 0.7:
        values[rng.randrange(len(values))] = value
    else:
        values.append(value)


def _scalars(field: Any) -> tuple[Any, ...]:
    kinds = {
        field.CPPTYPE_STRING: ("", "x", "Relu", "Conv", "If", "f", "ai.onnx", "\n", "y" * 300),
        field.CPPTYPE_FLOAT: (0.0, -1.0, 3e38, float("nan")),
        field.CPPTYPE_DOUBLE: (0.0, -1.0, 1e308, float("nan")),
        field.CPPTYPE_INT64: (0, 1, -1, 2**31, 2**63 - 1, -(2**63)),
        field.CPPTYPE_UINT64: (0, 1, 2**64 - 1),
        field.CPPTYPE_INT32: (0, 1, -1, 7, 99, 2**31 - 1),
    }
    if field.enum_type is not None:
        return tuple(each.number for each in field.enum_type.values)
    if field.type == field.TYPE_BYTES:
        return (b"", b"x", b"\xff\xfe", b"\0" * 64)
    return kinds[field.cpp_type]
