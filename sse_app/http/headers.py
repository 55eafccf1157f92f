"""Headers of a request or a response, as Tornado's handlers use them, at a fraction of the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from tornado.httputil import HTTPHeaders

LONGEST_REMEMBERED = 64
"""How many characters a name has at most whose usual form is remembered."""


class Headers(HTTPHeaders):
    """Tornado's own in all that it does, with a single dictionary behind it.

    Args:
        lines: the values of each name, in its usual form, such as ``Content-Type``.
    """

    def __init__(self, lines: dict[str, tuple[str, ...]] | None = None) -> None:
        self._lines = {} if lines is None else lines.copy()

    def add(self, name: str, value: str, **_: Any) -> None:
        """Add a value to those that the name has."""
        name = (usual_form if len(name) <= LONGEST_REMEMBERED else form_anew)(name)
        self._lines[name] = (*self._lines.get(name, ()), value)

    def get_list(self, name: str) -> list[str]:
        """Return all values of a name."""
        return list(self._lines.get(usual_form(name), ()))

    def get_all(self) -> Iterable[tuple[str, str]]:
        """Return all names and values; a name comes once for each of its values."""
        return [(name, value) for name, values in self._lines.items() for value in values]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the values of a name with commas between them, or the default."""
        values = self._lines.get(name) or self._lines.get(usual_form(name))
        return default if values is None else values[0] if len(values) == 1 else ",".join(values)

    def __setitem__(self, name: str, value: str) -> None:
        self._lines[usual_form(name)] = (value,)

    def __getitem__(self, name: str) -> str:
        return ",".join(self._lines[usual_form(name)])

    def __delitem__(self, name: str) -> None:
        del self._lines[usual_form(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._lines or usual_form(name) in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def copy(self) -> Headers:
        """Return headers that can be changed without a change to these."""
        return Headers(self._lines)

    __copy__ = copy


def form_anew(name: str) -> str:
    """Return what `usual_form` does, and remember nothing."""
    return "-".join([word.capitalize() for word in name.split("-")])


usual_form = lru_cache(1024)(form_anew)
"""Returns the form of a header's name in which it is kept: ``content-type`` is ``Content-Type``."""
