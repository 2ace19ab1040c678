"""The options of a pruning: how residual branches meet, channel counts, and the machine that will run the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.assignment.cost_model import ByteCount, Target
from passes.choices import Mode
from passes.errors import InputError

MODES: tuple[Mode, ...] = ("exclude", "union", "recombine")


@dataclass(frozen=True)
class Options:
    """What layout assignment follows. `mode` says how residual branches meet:

    - "recombine": each branch keeps its own channels, and they are recombined where the branches meet. Where the
      `target` finds it cheaper, the channels that a branch lacks are computed as zeros instead;
    - "union": each branch keeps every channel that one of them keeps;
    - "exclude": the branches keep all channels.

    `channel_multiple` rounds channel counts up to a multiple by keeping dead channels, even where that does not pay.
    With None the target decides: it rounds up to its own multiple where that is faster. Without a target no
    multiplication is added to avoid a copy.

    `inference`: the network is for evaluation alone. A batch norm then gives constants where it reads them, and a
    dropout does nothing; in a network that may be trained both have a second value.

    Raises InputError for anything else.
    """

    mode: Mode = "recombine"
    channel_multiple: int | None = None
    target: Target = field(default_factory=ByteCount)
    inference: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        multiple = self.channel_multiple
        whole = isinstance(multiple, int) and not isinstance(multiple, bool) and multiple >= 1
        if not whole and multiple is not None:
            raise InputError(f"channel_multiple is {multiple!r}; expected a whole number of at least 1, or None")
        if not isinstance(self.target, Target):
            raise InputError(f"target is {self.target!r}; expected an object with contraction() and traffic()")

    @property
    def multiple(self) -> int:
        """Every channel count is rounded up to a multiple of this."""
        return self.channel_multiple or 1

    @property
    def preferred_multiple(self) -> int:
        """Channel counts are rounded up to a multiple of this where it pays."""
        return self.target.multiple if self.channel_multiple is None and self.mode != "exclude" else 1

    @property
    def smallest(self) -> bool:
        """Whether layouts should hold live channels only."""
        return self.mode == "recombine" and self.multiple == 1
