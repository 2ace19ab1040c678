"""Functions named on the command line as package.module:function."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from passes.errors import InputError


def called(spec: str, what: str, *, wanted: str = "package.module:function") -> Any:
    """What `package.module:function` returns, looked up in the working directory first. `what` names the argument.

    InputError, saying what is wrong, where there is no such function or it raises.
    """
    module_name, colon, function_name = spec.partition(":")
    if not (colon and function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise InputError(f"{what} is {spec!r}; expected {wanted}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything, and leave
        raise InputError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{module_name} has no function {function_name!r}")
    try:
        return function()
    except (Exception, SystemExit) as error:  # and so may the function
        raise InputError(f"{spec} raised {type(error).__name__}: {error}") from error
