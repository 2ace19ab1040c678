"""Every error that l1rr-fx raises on purpose; `passes.errors` draws their tree."""

from __future__ import annotations

from passes.errors import CaptureError as CaptureError
from passes.errors import InputError as InputError
from passes.errors import L1RRError as L1RRError
from passes.errors import LoadError as LoadError
from passes.errors import LoweringError as LoweringError
from passes.errors import RewriteError as RewriteError
from passes.errors import VanishedError as VanishedError
from passes.errors import VerifyError as VerifyError
