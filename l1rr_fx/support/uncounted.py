"""How figures are printed that leave out what some calls cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from passes.accounts import NotCounted

SHOWN = 6


def at_least(figure: str, not_counted: Sequence[NotCounted]) -> str:
    """The figure, after "at least" if calls are left out of it."""
    return f"at least {figure}" if not_counted else figure


def uncounted(not_counted: Sequence[NotCounted]) -> str:
    """One line that names the operators of these calls; "" if there are none."""
    calls = Counter(each.operator for each in not_counted)
    if not calls:
        return ""
    names = [name if count == 1 else f"{name} ({count} calls)" for name, count in calls.most_common(SHOWN)]
    more = f" and {len(calls) - SHOWN} other operators" if len(calls) > SHOWN else ""
    return f"not counted: {', '.join(names)}{more}, which no rule knows"
