"""Errors: the line that stands for one in notes and warnings."""

from __future__ import annotations

import pytest

from passes.errors import CaptureError, first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a branch on a tensor\n  Usual causes are ...", "a branch on a tensor"),
        ("\n  a message that begins with an empty line\n", "a message that begins with an empty line"),
        ("", "CaptureError"),
        (" \n", "CaptureError"),
    ],
)
def test_the_first_line_of_an_error(message: str, line: str) -> None:
    assert first_line(CaptureError(message)) == line
