"""How figures are printed that leave out what some calls cost, or what is not known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from passes.accounts import NotCounted, Opaque

SHOWN = 6


def at_least(figure: str, not_counted: Sequence[NotCounted]) -> str:
    """The figure, after "at least" if calls are left out of it."""
    return f"at least {figure}" if not_counted else figure


def uncounted(not_counted: Sequence[NotCounted]) -> str:
    """One line that names the operators of these calls; "" if there are none."""
    names = _listed(each.operator for each in not_counted)
    return f"not counted: {names}, which no rule knows" if names else ""


def unknown_places(opaque: Sequence[Opaque]) -> str:
    """One line that names the places around which the limit may be lower than it is known to be."""
    names = _listed(each.operator for each in opaque)
    return f"the limit may be lower: around {names} nothing is known to be dead" if names else ""


def _listed(operators: Iterable[str]) -> str:
    """Operators with the number of their calls, the most frequent first; "" if there are none."""
    calls = Counter(operators)
    names = [name if count == 1 else f"{name} ({count} places)" for name, count in calls.most_common(SHOWN)]
    return ", ".join(names) + (f" and {len(calls) - SHOWN} other operators" if len(calls) > SHOWN else "")
