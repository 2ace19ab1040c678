"""What the user chose: how residual branches meet, channel counts, and the machine that will run the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.assignment.cost_model import ByteCount, Target
from passes.errors import InputError

MODES = ("exclude", "union", "recombine")


@dataclass(frozen=True)
class Options:
    """The choices that a plan follows. `mode` says how residual branches meet:

    - "recombine": each keeps its own channels, and they are recombined where they meet; where the `target` finds
      that cheaper, the missing ones are computed as zeros instead;
    - "union": each keeps whatever any of them keeps;
    - "exclude": they keep everything.

    `channel_multiple` grows channel counts to a multiple where dead channels are left; None leaves it to the target,
    which grows them to its own multiple where that pays. Without a target no multiplication is made to spare a copy.

    Raises InputError for anything else.
    """

    mode: str = "recombine"
    channel_multiple: int | None = None
    target: Target = field(default_factory=ByteCount)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; one of {', '.join(MODES)} is wanted")
        multiple = self.channel_multiple
        whole = isinstance(multiple, int) and not isinstance(multiple, bool) and multiple >= 1
        if not whole and multiple is not None:
            raise InputError(f"channel_multiple is {multiple!r}; a whole number of at least 1, or None, is wanted")
        if not isinstance(self.target, Target):
            raise InputError(f"target is {self.target!r}; an object with contraction() and traffic() is wanted")

    @property
    def multiple(self) -> int:
        """What every channel count is grown to, whether it pays or not."""
        return self.channel_multiple or 1

    @property
    def preferred_multiple(self) -> int:
        """What channel counts are grown to where it pays."""
        return self.target.multiple if self.channel_multiple is None and self.mode != "exclude" else 1

    @property
    def smallest(self) -> bool:
        """Whether only what is live should be kept."""
        return self.mode == "recombine" and self.multiple == 1
