"""What was meant by a name that is no setting: a typing error, one underscore for two, the wrong section."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from sse_app.settings.explain import TextOrTable

ALIKE = 0.7
"""How alike the names of two neighbours must be for one to be suggested for the other, from 0 to 1."""

VERY_ALIKE = 0.85
"""The same for names of different sections."""


def names_of(kind: type[msgspec.Struct], above: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings and sections of a kind."""
    for name, its in get_type_hints(kind).items():
        name = f"{above}{name}"
        yield name
        its, tail = _inner(its)
        if isinstance(its, type) and issubclass(its, msgspec.Struct):
            yield from names_of(its, f"{name}{tail}.")


def _inner(kind: Any) -> tuple[Any, str]:
    """Return what is checked of a setting, and what comes after its name where that is a part of it."""
    if get_origin(kind) is dict:
        return get_args(kind)[1], "[...]"
    if (
        get_origin(kind) is tuple
        and isinstance(item := get_args(kind)[0], type)
        and issubclass(item, TextOrTable)
    ):
        return item.table, "[...]"
    return kind, ""


_PLACE = re.compile(r"\[[0-9]+\]")


def meant(name: str, kind: Any) -> str | None:
    """Return the setting that was probably meant by a dotted name that is none, or None.

    Args:
        name: as it was given, e.g. ``keepalive_ping_interval``.
        kind: the settings that there are, or a section of them.
    """
    if place := _PLACE.search(name):
        found = meant(_PLACE.sub("[...]", name), kind)
        return found and found.replace("[...]", place[0])
    names = list(names_of(kind))
    above, _, last = name.rpartition(".")
    siblings = {one.rpartition(".")[2]: one for one in names if one.rpartition(".")[0] == above}
    if close := get_close_matches(last, siblings, 1, ALIKE):
        return siblings[close[0]]
    if above in names and not siblings:
        return None  # it is below a setting that has no parts: no other name was meant for it
    flat = {} if above and siblings else {one.replace(".", "_"): one for one in names}
    if close := get_close_matches(name.replace(".", "_"), flat, 1, VERY_ALIKE):
        return flat[close[0]]
    same = [one for one in names if one.rpartition(".")[2] == last]
    return same[0] if len(same) == 1 else None
