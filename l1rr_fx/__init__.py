"""Make zeroed channels disappear: `l1rr_fx.prune` removes them physically, and the small network computes the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import lazy_loader

_found = find_spec("passes")
_folder = Path(_found.origin).parent if _found is not None and _found.origin is not None else None
if _folder is None or not (_folder / "infra.py").is_file():
    raise ImportError(
        f"l1rr_fx needs its own package `passes`, which {_folder or 'another folder of that name'} hides: "
        "rename that one, or take its parent folder from sys.path (Python puts the working directory first)"
        if _found is not None
        else "l1rr_fx needs its own package `passes`, which is missing: install l1rr-fx again"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
