"""Which of the names that there are was meant by one that is none: pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

MOST_COMPARED = 64
"""With how many of the names that there are one is compared at most."""

MOST_SHOWN = 5
"""How many of them an error's text has at most, where there may be many."""

LONGEST = 80
"""How many characters of a name are compared: it comes from a client, and the time grows with its square."""


def nearest_first(name: str, known: Sequence[str]) -> list[str]:
    """Return the names that there are: those much like ``name`` first, the others in their order."""
    from difflib import get_close_matches  # only a mistake needs it

    close = get_close_matches(name[:LONGEST].lower(), known, len(known) or 1)
    return [*close, *(other for other in known if other not in close)]


def some_of(name: str, known: Sequence[str]) -> str:
    """Return a few of the names that there are, the nearest first, for an error's text; empty where none are."""
    near = nearest_first(name, known[:MOST_COMPARED])[:MOST_SHOWN]
    return ", ".join([*near, "…"] if len(known) > len(near) else near)
