"""A dictionary with several values under a key, for keys that mostly have one."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Hashable)


class Multimap(Generic[Key, Value]):
    """Values under keys. A single value is kept without a set around it, which takes 200 bytes.

    Values must not be sets themselves.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[Key, Value | set[Value]] = {}

    def __len__(self) -> int:
        """The number of keys that have a value."""
        return len(self._values)

    def __iter__(self) -> Iterator[Key]:
        """The keys that have a value."""
        return iter(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: Key) -> Collection[Value]:
        """Return the values of a key; those that are returned may change with the next `add` or `discard`."""
        values = self._values.get(key)
        if values is None:
            return ()
        return values if isinstance(values, set) else (values,)

    def add(self, key: Key, value: Value) -> None:
        """Add a value to a key, unless it has it already."""
        values = self._values.setdefault(key, value)
        if isinstance(values, set):
            values.add(value)
        elif values != value:
            self._values[key] = {values, value}

    def discard(self, key: Key, value: Value) -> None:
        """Remove a value from a key, if it has it."""
        values = self._values.get(key)
        if isinstance(values, set):
            values.discard(value)
            if not values:
                del self._values[key]
        elif values is not None and values == value:
            del self._values[key]
