"""Finds why values are refused as settings, by converting their parts one by one: no error text is taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from sse_app.core.redaction import redact

_NAMED_SECRET = re.compile(
    r"""
    ( [?&]\w*(?:password|passwd|secret|token)= ) [^&]*                          # in the query of a URL
    | ( (?:^|\s)\w*(?:password|passwd|secret|token)\s*=\s* ) (?: '(?:\\.|[^'\\])*'? | \S+ )  # as libpq takes words
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""A secret that stands behind its name, as in a URL or in libpq's other form: ``host=db password='two words'``."""

_PASSWORD = re.compile(r"((?<!\bsqlite):(?!//)).*(?=@)", re.DOTALL)
"""The password in a URL, also one with a sign in it that should have been encoded: it reaches to the last ``@``."""


class Problem(NamedTuple):
    """What is wrong with a setting.

    Args:
        name: the setting, such as ``limits.streams`` or ``channels[0]``.
        reason: a phrase; empty where the name is unknown.
        value: what was given.
    """

    name: str
    reason: str
    value: object

    def __str__(self) -> str:
        if not self.reason:
            return f"unknown setting: {self.name}"
        reason = f"{self.reason[0].lower()}{self.reason[1:]}"
        return f"bad value for the setting {self.name}: {reason} (got {shown(self.value)})"


class _EitherOfThem(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (cls.text, cls.table))  # type: ignore[attr-defined]


class TextOrTable(metaclass=_EitherOfThem):
    """Stands for a text of a type of ours, or a table: msgspec has no such unions."""

    text: ClassVar[type[str]] = str
    table: ClassVar[type[msgspec.Struct]] = msgspec.Struct


def shown(value: object) -> str:
    """Return a value as it is written, without the password of a URL and without what looks like another secret."""
    # The user in a URL is shown, which `redact` would take for a part of the secret.
    return "://".join(map(redact, repr(_without_passwords(value)).split("://")))


def _without_passwords(value: object) -> object:
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1***", _NAMED_SECRET.sub(r"\1\2***", value))
    if isinstance(value, Mapping):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_without_passwords, value))
    return value


def parse(kind: type, value: object) -> object:
    """Return a value of a type that msgspec does not know, for its ``dec_hook``.

    Raises:
        ValueError: it cannot be made from this value.
    """
    if isinstance(value, kind):
        return value
    if issubclass(kind, TextOrTable):
        if isinstance(value, Mapping):
            return msgspec.convert(value, kind.table, strict=False, dec_hook=parse)
        return parse(kind.text, value)
    if not isinstance(value, str):
        raise ValueError(f"expected str, got {type(value).__name__}")
    make: Callable[[str], object] = kind
    return make(value)


def find_unwritable(value: object, name: str = "") -> Problem | None:
    """Return where a value has a text that cannot be written as UTF-8, or None: msgspec takes some of these.

    The environment and the command line can hold any bytes; later such a text would fail wherever it is written.

    Args:
        value: a value of settings, or all of them.
        name: where it stands; empty for the settings themselves.
    """
    if isinstance(value, str):
        return None if _is_writable(value) else Problem(name, "must be UTF-8", value)
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()]
        if unwritable := [key for key in value if not _is_writable(str(key))]:
            return Problem(f"{name and name + '.'}{repr(str(unwritable[0]))[1:-1]}", "", None)
    elif isinstance(value, (list, tuple)):
        parts = [(f"{name}[{place}]", inner) for place, inner in enumerate(value)]
    else:
        return None
    return next(filter(None, (find_unwritable(inner, part) for part, inner in parts)), None)


def _is_writable(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def find_problem(value: object, kind: Any, name: str = "") -> Problem | None:
    """Return what is wrong with the first part of a value that is not of its type, or None.

    Args:
        value: to be converted to ``kind``.
        kind: a type that settings have.
        name: where the value stands; empty for the settings themselves.
    """
    try:
        msgspec.convert(value, kind, strict=False, dec_hook=parse)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`", "")
    else:
        return None
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    origin = get_origin(bare) or bare
    if origin in (Union, UnionType) and NoneType in get_args(bare):
        return find_problem(value, get_args(bare)[0], name)
    if origin is Literal:
        return Problem(name, f"must be one of {', '.join(get_args(bare))}", value)
    if origin in (Union, UnionType):
        return Problem(name, f"expected {' or '.join(map(_named, get_args(bare)))}", value)
    if origin is tuple:
        return _problem_in_list(value, get_args(bare)[0], name) or Problem(name, reason, value)
    if origin is dict:
        return _problem_in_table(value, get_args(bare)[1], name)
    if issubclass(origin, TextOrTable):
        if isinstance(value, Mapping):
            return find_problem(value, origin.table, name)
        if not isinstance(value, str):
            reason = f"expected a text or a table, got {_kind_of(value)}"
    if issubclass(origin, msgspec.Struct):
        return _problem_in_section(value, origin, name, reason)
    if origin in (int, float, str) and isinstance(value, (Mapping, list, tuple)):
        reason = f"expected {origin.__name__}, got {_kind_of(value)}"
    return Problem(name, reason, value)


def _named(kind: Any) -> str:
    """Return in words what the values of one of several types are."""
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    bare, bounds = get_args(kind)  # a number with both
    return f"{bare.__name__} from {bounds.ge} to {bounds.le}"


def _problem_in_list(value: object, item: Any, name: str) -> Problem | None:
    if not isinstance(value, (list, tuple)):
        return Problem(name, f"expected a list, got {_kind_of(value)}", value)
    problems = (find_problem(element, item, f"{name}[{place}]") for place, element in enumerate(value))
    return next(filter(None, problems), None)


def _problem_in_table(value: object, item: Any, name: str) -> Problem | None:
    if not isinstance(value, Mapping):
        return Problem(name, f"expected a table, got {_kind_of(value)}", value)
    for inner in value.values():
        if problem := find_problem(inner, item, f"{name}[...]"):
            return problem._replace(value=value) if problem.reason else problem
    return None


def _problem_in_section(
    value: object, section: type[msgspec.Struct], name: str, reason: str
) -> Problem | None:
    if not isinstance(value, Mapping):
        return Problem(name, f"expected a table, got {_kind_of(value)}", value)
    kinds = get_type_hints(section, include_extras=True)
    for key, inner in value.items():
        inner_name = f"{name}.{key}" if name else key
        if key not in kinds:
            return Problem(f"{name and name + '.'}{repr(str(key))[1:-1] or '(no name)'}", "", inner)
        if problem := find_problem(inner, kinds[key], inner_name):
            return problem
    if missing := [name for name in _required(section) if name not in value]:
        reason = f"{missing[0]} is missing"
    return Problem(name, reason, value)  # each is good: it is their combination


def _required(section: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(section) if field.required]


def _kind_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "null" if value is None else type(value).__name__
