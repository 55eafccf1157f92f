"""What is wrong with what was sent in the place of a token: said in words that hold no part of it.

Only what can be seen without a key is told, so nothing is told that the caller does not have.
"""

from __future__ import annotations

_NO_VALUE = frozenset({"undefined", "null", "none", "[object promise]", "[object object]"})
"""How a variable reads that has no value yet, or a promise that was not waited for; none of these is a secret."""

_SCHEMES = frozenset({"apikey", "basic", "digest", "jwt", "token"})
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


def of_text(text: str) -> str:
    """Return what to tell of a text that has not the form of a token."""
    bare = text.strip()
    if not bare:
        return "the token is empty"
    if bare.lower() in _NO_VALUE:
        return f"the token is the text {bare.lower()}: what it was made from has no value yet"
    if bare.lower().startswith("bearer"):
        return "the token begins with Bearer, which belongs before it in the Authorization header, and only there"
    if not set(bare).isdisjoint(_QUOTES):
        return "there are quotes around the token or in it: send it without"
    if any(sign.isspace() for sign in text):
        return "there is a space or line break in the token, or before or after it: send it without"
    if text.count(".") != 2:
        return "the token is not valid: one has three parts with dots between them; a refresh token is none"
    return "the token is not valid: it has characters that no token has, or lacks a part"


def of_header(header: str) -> str:
    """Return what to tell of an Authorization header that has no bearer token in it (RFC 6750 §2.1)."""
    rule = "the Authorization header must be: Bearer TOKEN"
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return f"{rule}; {of_text(rest)}"
    if scheme.lower() == "bearer:":
        return f"{rule}; without a colon"
    if scheme.lower() in _SCHEMES and rest:
        return f"{rule}; not {scheme.capitalize()}"
    return f"{rule}; the word Bearer is missing" if header.strip() else f"{rule}; it is empty"
