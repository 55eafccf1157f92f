"""A number of bytes that many share."""

from __future__ import annotations


class ByteBudget:
    """Counts how many bytes are taken together.

    Args:
        most: how many may be.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, size: int) -> bool:
        """Take so many bytes, and return whether there were as many."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Give back bytes that were taken."""
        self._left += size
