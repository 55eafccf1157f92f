"""``user …``: the accounts in the state directory; it may be used while the server runs."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sse_app.auth.accounts import Accounts
from sse_app.commands.options import grants_of, settings_of
from sse_app.errors import InvalidInput
from sse_app.state import StateDirectory


@contextmanager
def _accounts(options: argparse.Namespace) -> Iterator[Accounts]:
    accounts = Accounts(StateDirectory(settings_of(options).state_dir).accounts)
    try:
        yield accounts
    finally:
        accounts.close()


def show(options: argparse.Namespace) -> None:
    """``user`` alone: the accounts."""
    list(options)


def add(options: argparse.Namespace) -> None:
    """Make an account."""
    grants = grants_of(options)
    with _accounts(options) as accounts:
        accounts.add(options.name, _password(options), grants)


def list(options: argparse.Namespace) -> None:
    """Print the accounts, one a line."""
    with _accounts(options) as accounts:
        for account in accounts.list():
            grants = account.grants
            words = [account.name]
            words += [f"subscribe={','.join(grants.subscribe.texts)}"] if grants.subscribe.texts else []
            words += [f"publish={','.join(grants.publish.texts)}"] if grants.publish.texts else []
            words += ["admin"] if grants.admin else []
            words += ["disabled"] if account.disabled else []
            print(" ".join(words))


def passwd(options: argparse.Namespace) -> None:
    """Change a password."""
    with _accounts(options) as accounts:
        accounts.set_password(options.name, _password(options))


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
