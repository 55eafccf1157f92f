"""Which of the names that there are was meant by one that is none: pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 80
"""How many characters of a name are compared: it comes from a client, and the time grows with its square."""


def nearest_first(name: str, known: Sequence[str]) -> list[str]:
    """Return the names that there are: those much like ``name`` first, the others in their order."""
    from difflib import get_close_matches  # only a mistake needs it

    close = get_close_matches(name[:LONGEST].lower(), known, len(known) or 1)
    return [*close, *(other for other in known if other not in close)]
