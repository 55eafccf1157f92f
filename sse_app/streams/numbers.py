"""The numbers of streams: no two of all nodes have the same, and none means another stream later."""

from __future__ import annotations

import time

TIME_BITS = 44
"""How many bits the part has that counts; before it is the number of the node.

With nodes up to 511 that stays below 2**53, from where on the numbers of JSON and JavaScript are not exact.
"""

_BEGIN = 1_577_836_800
_A_SECOND = 10_000
"""A node counts on from the time in tenths of milliseconds since 2020, which lasts until 2075. It cannot open as many
streams in a second, so that what it has given before a restart is behind that."""


def first_number(node: int) -> int:
    """Return the number of the next stream of a node that has just started; 0 is the node that is alone."""
    return (node << TIME_BITS) + int((time.time() - _BEGIN) * _A_SECOND) % (1 << TIME_BITS)


def node_of(number: int) -> int:
    """Return which node has given a number."""
    return number >> TIME_BITS
