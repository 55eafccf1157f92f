"""Writes several text files so that either all are there, or none is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sse_app.core.errors import StateError


def write_new(texts: Mapping[Path, str]) -> None:
    """Write files that are not there yet; where one cannot be written, none is left.

    Raises:
        StateError: one is there already, or cannot be written.
    """
    made: list[Path] = []
    try:
        for path in texts:  # all names are taken before the first is written
            with path.open("x"):
                made.append(path)
        for path, text in texts.items():
            _write(path, text)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise StateError(f"{error.filename} is there already: remove it, or name another file") from None
        if isinstance(error, OSError):
            raise StateError(f"cannot write {_named(error, texts)}: {error.strerror}") from None
        raise


def write_over(texts: Mapping[Path, str]) -> None:
    """Write files in the place of those that are there; these stay as they are until all others are whole.

    A link stays, and the file that it leads to is replaced.

    Raises:
        OSError: one cannot be written; no other is either.
        StateError: there is something in the place of one that is no file.
    """
    places = {path: path.resolve() if path.is_symlink() else path for path in texts}
    for path, place in places.items():
        if place.exists() and not place.is_file():  # a unit that is masked leads to /dev/null
            raise StateError(f"cannot write {path}: it is not a file")
    drafts = {path: place.with_name(f".{place.name}.{os.getpid()}") for path, place in places.items()}
    try:
        for path, text in texts.items():
            _write(drafts[path], text)
            if places[path].exists():
                shutil.copymode(places[path], drafts[path])
        for path, place in places.items():
            drafts[path].replace(place)
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink()


def _write(path: Path, text: str) -> None:
    """Write a file so that it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _named(error: OSError, texts: Mapping[Path, str]) -> str:
    """Return what an error is about: an error of a write names no file."""
    return str(error.filename or ", ".join(map(str, texts)))
