"""Counts the distinct names of several nodes together, of which each sends no more than some kilobytes."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from zlib import crc32

MOST = 8192
"""How many checksums of names are sent at most; up to so many the count is exact, but for names of one checksum."""

BITS = 32
"""The length of a checksum."""

Sample = tuple[int, bytes]
"""How many bits the checksums of the sample begin with that are zero, and the checksums, in the machine's order."""


def sample(names: Collection[str]) -> Sample:
    """Return the checksums of the names; where they are very many, only those below a bound, which all nodes share."""
    zeros = 0
    sums = {crc32(name.encode(errors="surrogatepass")) for name in names}
    while len(sums) > MOST:
        zeros += 1
        sums = {each for each in sums if each < 1 << (BITS - zeros)}
    return zeros, array("I", sums).tobytes()


def distinct(samples: Iterable[Sample]) -> int:
    """Return how many names there are in all: exactly where all were sampled, else to one or two per cent."""
    zeros = 0
    sums: set[int] = set()
    for fewer, sampled in samples:
        zeros = max(zeros, fewer)
        sums.update(array("I", sampled))
    return sum(each < 1 << (BITS - zeros) for each in sums) << zeros
