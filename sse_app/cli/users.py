"""``user …``: the accounts in the state directory; it may be used while the server runs."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sse_app.auth.accounts.accounts import Accounts
from sse_app.cli.auth_database import auth_database, note
from sse_app.cli.options import grants_of
from sse_app.core.errors import InvalidInput

_NOTED = {
    "users:add": "user_added",
    "users:passwd": "password_changed",
    "users:grants": "grants_changed",
    "users:disable": "user_disabled",
    "users:enable": "user_enabled",
    "users:remove": "user_removed",
}


@contextmanager
def _accounts(options: argparse.Namespace) -> Iterator[Accounts]:
    """Open the accounts; what is done to one of them is noted in the audit trail."""
    with auth_database(options) as (database, settings):
        yield Accounts(database, settings.auth.longest_lifetime)
        if action := _NOTED.get(options.run):
            note(database, action, options.name)


def show(options: argparse.Namespace) -> None:
    """``user`` alone: the accounts."""
    list(options)


def add(options: argparse.Namespace) -> None:
    """Make an account."""
    granted = grants_of(options)
    password = _password(options)
    with _accounts(options) as accounts:
        accounts.add(options.name, password, granted)


def list(options: argparse.Namespace) -> None:
    """Print the accounts, one a line."""
    with _accounts(options) as accounts:
        for account in accounts.list():
            granted = account.grants
            words = [account.name]
            words += [f"subscribe={','.join(granted.subscribe.texts)}"] if granted.subscribe.texts else []
            words += [f"publish={','.join(granted.publish.texts)}"] if granted.publish.texts else []
            words += ["admin"] if granted.admin else []
            words += ["disabled"] if account.disabled else []
            print(" ".join(words))


def passwd(options: argparse.Namespace) -> None:
    """Change a password."""
    password = _password(options)
    with _accounts(options) as accounts:
        accounts.set_password(options.name, password)


def grants(options: argparse.Namespace) -> None:
    """Change what an account may do."""
    changed = grants_of(options)
    with _accounts(options) as accounts:
        accounts.set_grants(options.name, changed)


def disable(options: argparse.Namespace) -> None:
    """Refuse an account its login."""
    with _accounts(options) as accounts:
        accounts.set_disabled(options.name, True)


def enable(options: argparse.Namespace) -> None:
    """Allow an account its login again."""
    with _accounts(options) as accounts:
        accounts.set_disabled(options.name, False)


def remove(options: argparse.Namespace) -> None:
    """Delete an account."""
    with _accounts(options) as accounts:
        accounts.remove(options.name)


def _password(options: argparse.Namespace) -> str:
    if options.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask for a password on; use --password-stdin")
    password = getpass.getpass("password: ")
    if getpass.getpass("again: ") != password:
        raise InvalidInput("the passwords differ")
    return password
