"""What hypothesis makes up for all kinds of requests, and how it changes bytes."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.faults.fuzz.conversation import Manner

ALPHABET = st.characters(exclude_categories=["Cs"])

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(ALPHABET, max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(ALPHABET, max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)

SHARES = st.floats(0, 1)
CUTS = st.lists(SHARES, max_size=4)


def manners(*ends: str) -> st.SearchStrategy[Manner]:
    """Make up how a client sends, with one of these ends."""
    pauses = st.sampled_from([0.0, 0.0, 0.0, 0.002])
    return st.builds(Manner, CUTS, pauses, st.sampled_from(ends or ("half-close",)))


def mutated(draw: st.DrawFn, made: bytes, most: int = 3) -> bytes:
    """Change, insert or drop some bytes."""
    changed = bytearray(made)
    for share, byte, how in draw(
        st.lists(st.tuples(SHARES, st.integers(0, 255), st.sampled_from("cid")), max_size=most)
    ):
        place = int(share * len(changed))
        if how == "i" or place == len(changed):
            changed.insert(place, byte)
        elif how == "c":
            changed[place] = byte
        else:
            del changed[place]
    return bytes(changed)


mutations = st.composite(mutated)
"""Does so as a strategy."""
