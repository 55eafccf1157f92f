"""``user …``: the accounts in the state directory or the database; it may be used while the server runs."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sse_app.auth.accounts.accounts import Accounts, check_new_account
from sse_app.auth.accounts.passwords import PasswordThreads
from sse_app.cli.auth_store import auth_store, note, require_tables
from sse_app.cli.options import grants_of, settings_of, warn_of_uncovered
from sse_app.core.errors import InvalidInput
from sse_app.settings.database import make_database
from sse_app.storage.state_dir import StateDirectory, has_state

T = TypeVar("T")


def show(options: argparse.Namespace) -> None:
    """``user`` alone: the accounts."""
    list(options)


def add(options: argparse.Namespace) -> None:
    """Make an account."""
    granted = grants_of(options)
    settings = settings_of(options)
    if (database := make_database(settings)) is None:
        options.init = options.init or _wants_new_state(options, settings.state_dir)
    if not options.init:  # before a password is asked for
        if database is None:
            StateDirectory(settings.state_dir, create=False)
        else:
            asyncio.run(require_tables(database))
    warn_of_uncovered(granted, settings)
    password = _password(options)
    check_new_account(options.name, password, granted, settings.auth)  # before state is begun for it
    _change(
        options,
        "user_added",
        lambda accounts: accounts.add(options.name, password, granted),
        create=options.init,
    )


def list(options: argparse.Namespace) -> None:
    """Print the accounts, one a line."""
    for account in asyncio.run(_with_accounts(options, lambda accounts: accounts.list())):
        words = [account.name, account.grants.in_words()]
        words += ["disabled"] if account.disabled else []
        print(" ".join(filter(None, words)))


def passwd(options: argparse.Namespace) -> None:
    """Change a password."""
    password = _password(options)
    _change(options, "password_changed", lambda accounts: accounts.set_password(options.name, password))


def grants(options: argparse.Namespace) -> None:
    """Change what an account may do."""
    granted = grants_of(options)
    warn_of_uncovered(granted, settings_of(options))
    _change(options, "grants_changed", lambda accounts: accounts.set_grants(options.name, granted))


def disable(options: argparse.Namespace) -> None:
    """Refuse an account its login."""
    _change(options, "user_disabled", lambda accounts: accounts.disable(options.name))


def enable(options: argparse.Namespace) -> None:
    """Allow an account its login again."""
    _change(options, "user_enabled", lambda accounts: accounts.enable(options.name))


def remove(options: argparse.Namespace) -> None:
    """Delete an account."""
    _change(options, "user_removed", lambda accounts: accounts.remove(options.name))


def _change(
    options: argparse.Namespace,
    noted_as: str,
    change: Callable[[Accounts], Awaitable[None]],
    *,
    create: bool = False,
) -> None:
    """Do something to an account, and note it in the audit trail."""
    asyncio.run(_with_accounts(options, change, noted_as, create=create))


def _wants_new_state(options: argparse.Namespace, path: Path) -> bool:
    """Return what is answered on a terminal when asked whether to begin a state directory where there is none."""
    if has_state(path) or options.password_stdin or not sys.stdin.isatty():
        return False
    answer = input(f"there is no state in {path.absolute()} yet; begin a new one there? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


async def _with_accounts(
    options: argparse.Namespace,
    work: Callable[[Accounts], Awaitable[T]],
    noted_as: str = "",
    *,
    create: bool = False,
) -> T:
    async with auth_store(options, create=create) as (store, settings):
        threads = PasswordThreads()
        try:
            done = await work(Accounts(store, threads, settings.auth))
        finally:
            threads.close()
        if noted_as:
            await note(store, noted_as, options.name)
        return done


def _password(options: argparse.Namespace) -> str:
    if options.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask for a password on; use --password-stdin")
    password = getpass.getpass("password: ")
    if getpass.getpass("the same again: ") != password:
        raise InvalidInput("the passwords differ")
    return password
