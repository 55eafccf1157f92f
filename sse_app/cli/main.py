"""The ``sse-app`` command: parses the arguments and calls the function of `sse_app.cli` that they ask for."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from sse_app.core.errors import SSEAppError
from sse_app.process.garbage_collection import garbage_collection
from sse_app.process.standard_streams import complain, open_closed_streams, watched_output
from sse_app.version import VERSION

ALIKE = 0.7
"""How alike a flag must be to what was given to be suggested, from 0 to 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 for an error printed as one line, 2 for wrong usage."""
    open_closed_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    # As the unit does: a server that starts need not build the flags of twenty other commands. Nor has the collector
    # anything to find, as the server only builds what stays, thousands of streams too; it collects once it has started.
    if words == ["serve"]:
        with garbage_collection(False):
            return _run(lambda: argparse.Namespace(run="serve:serve"))
    return _run(lambda: _parse(words))


def run() -> NoReturn:
    """Run a command as a process of its own, and end that with the exit status.

    The interpreter would first look for garbage and give back each piece of memory, which takes as long as a third of
    a server's start; the process that takes its place waits for this one's end.
    """
    status = main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # which was told already
            stream.flush()
    os._exit(status)


def _parse(words: list[str]) -> argparse.Namespace:
    """Return the options, or exit with status 2 and what was probably meant."""
    options, unknown = _parser().parse_known_args(words)
    if not unknown:
        return options
    parser: argparse.ArgumentParser = options.parser
    flags = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    wrong = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    meant = [close[0] for flag in wrong if (close := get_close_matches(flag, flags, 1, ALIKE))]
    hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def _run(parse: Callable[[], argparse.Namespace]) -> int:
    status: int | None
    with watched_output() as output:
        try:
            options = parse()
            module, function = options.run.split(":")
            command = getattr(import_module(f"sse_app.cli.{module}"), function)
            status = command(options)
        except SystemExit:  # of the parser
            output.finish()
            if output.failure is None:
                raise
            return 1
        except (SSEAppError, OSError) as error:
            if output.failure is None:  # else that is why, and is told below
                complain(str(error))
            status = 1
        except EOFError:  # Ctrl-D where something was asked
            complain("the input has ended")
            status = 1
        except UnicodeError as error:
            complain(f"the input is not UTF-8: {error}")
            status = 1
        except KeyboardInterrupt:
            status = 130
        output.finish()
    return status or int(output.failure is not None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sse-app", description="Authenticated Server-Sent Events. Without a command it serves."
    )
    parser.add_argument("--version", action="version", version=f"sse-app {VERSION}")
    parser.set_defaults(run="serve:serve", parser=parser)
    everywhere = _settings_flags()
    _add_flags(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        name: str, run: str, help: str, to: Callable[..., argparse.ArgumentParser] = commands.add_parser
    ) -> argparse.ArgumentParser:
        command = to(name, help=help, description=help, parents=[everywhere])
        command.set_defaults(run=run, parser=command)
        return command

    add("serve", "serve:serve", "serve streams until SIGTERM or Ctrl-C")
    add(
        "check-config",
        "serve:check_config",
        "read the settings, try what a start would need, say what is wrong, and exit",
    )
    add(
        "upgrade",
        "upgrade:upgrade",
        "start a successor beside the running server, and hand everything over to it; of several workers for each, "
        "one after the other",
    )
    config = add(
        "config",
        "config_files:config",
        "print the settings file with all settings and comments, or what a proxy, systemd, Prometheus or Grafana takes",
    )
    config.add_argument(
        "what",
        choices=["print", "nginx", "caddy", "haproxy", "systemd", "prometheus", "grafana"],
        help="print: the settings file; systemd: the units of this installation; prometheus: alert rules; "
        "grafana: a dashboard",
    )
    config.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write it there instead, and over no file; for systemd a folder",
    )
    config.add_argument(
        "--run-as", default="sse_app", metavar="USER", help="with systemd: the service's user (sse_app)"
    )
    check_token = add(
        "check-token",
        "check_token:check_token",
        "say of a token what kind it is, whose, what it allows, until when, and whether this server takes it",
    )
    check_token.add_argument(
        "token",
        nargs="?",
        default="-",
        metavar="TOKEN",
        help="- (the default) reads it from standard input, where no other user of this machine sees it",
    )
    doctor = add(
        "doctor",
        "doctor:doctor",
        "look for what stands in the way of a server here, or of its streams behind a proxy, and say what to do",
    )
    doctor.add_argument(
        "--url",
        metavar="URL",
        help="the address that clients use, such as https://events.example.com: tries streams through the proxy there",
    )
    doctor.add_argument(
        "--token-stdin",
        action="store_true",
        help="read a stream token for --url from standard input (default: SSE_APP_TOKEN, else one minted with the "
        "keys in the state directory)",
    )
    _add_users(add("user", "users:show", "manage the accounts that can log in"))
    token = add("token", "tokens:mint", "mint a token for any subject, and print only it")
    token.add_argument("--kind", choices=["access", "stream"], default="access", help="default: access")
    token.add_argument("--subject", default="cli", metavar="S", help="whom it speaks for (default: cli)")
    token.add_argument("--session", metavar="ID", help="the session it belongs to (default: a new one)")
    _add_grants(token)
    token.add_argument("--ttl", type=int, default=600, metavar="SECONDS", help="how long it is valid (600)")
    publish = add("publish", "remote:publish", "publish one event to a running server, and print its id")
    publish.add_argument("channel", metavar="CHANNEL")
    publish.add_argument("type", metavar="TYPE")
    publish.add_argument("data", metavar="DATA", help="JSON; - reads it from standard input")
    publish.add_argument(
        "--text", action="store_true", help="DATA is a text of any lines, to be published as it is"
    )
    publish.add_argument(
        "--final", action="store_true", help="the channel's last event: streams on it alone end with it"
    )
    listen = add("listen", "remote:listen", "print the events of a running server, a JSON line each")
    listen.add_argument("channels", metavar="CHANNELS", help="channel names and patterns with commas")
    beginning = listen.add_mutually_exclusive_group()
    beginning.add_argument("--after", metavar="ID", help="first replay what came after this event id")
    beginning.add_argument(
        "--from",
        choices=["earliest", "latest"],
        dest="begin",
        help="begin with all that is kept (default: latest)",
    )
    beginning.add_argument(
        "--last", type=int, metavar="N", help="begin with the last N events of each channel"
    )
    beginning.add_argument(
        "--since",
        metavar="TIME",
        help="begin with the events of a time or later; -60: of the last 60 seconds",
    )
    listen.add_argument("--types", metavar="A,B", help="only events of these types")
    listen.add_argument(
        "--rate", type=float, metavar="N", help="of conflated channels at most N events of each key a second"
    )
    listen.add_argument("--no-token", action="store_true", help="listen to public channels, without a token")
    presence = add(
        "presence", "remote:presence", "print who is on a channel of a running server, a JSON line each"
    )
    presence.add_argument("channel", metavar="CHANNEL")
    for remote in (publish, listen, presence):
        remote.add_argument(
            "--url", help="the server (default: SSE_APP_URL, else host and port of the settings)"
        )
        remote.add_argument(
            "--token-stdin",
            action="store_true",
            help="read the token from standard input (default: "
            "SSE_APP_TOKEN, else one minted with the keys in the state directory)",
        )
    revoke = add("revoke", "revocation:revoke", "revoke tokens; a running server ends their streams at once")
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("--token-id", metavar="JTI", help="one token, by its jti claim")
    which.add_argument("--session", metavar="ID", help="a session, with all its tokens")
    which.add_argument(
        "--subject", metavar="S", help="what a subject has been issued until now, sessions too"
    )
    which.add_argument("--all", action="store_true", help="every token and session there is")
    audit = add("audit", "revocation:audit", "print the audit trail, a JSON line each, newest last")
    audit.add_argument("--limit", type=int, default=100, metavar="N", help="how many entries (100)")
    keys = add("keys", "keys:show", "look after the keys that sign tokens")
    key_actions = keys.add_subparsers(metavar="ACTION")
    add("list", "keys:show", "print the keys, the one that signs first", key_actions.add_parser)
    rotate = add(
        "rotate",
        "keys:rotate",
        "make a new key, which signs; old ones verify until spent",
        key_actions.add_parser,
    )
    rotate.add_argument(
        "--algorithm", choices=["HS256", "EdDSA", "ES256", "RS256"], help="default: as the key that signs now"
    )
    removed = add(
        "remove", "keys:remove", "delete a key: its tokens are refused from now on", key_actions.add_parser
    )
    removed.add_argument("id", metavar="ID")
    taken_in = add(
        "import",
        "keys:take_in",
        "seal keys that are in files, and keep them in the database that auth.keys_seal seals them for",
        key_actions.add_parser,
    )
    taken_in.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="where they are (default: those in the state directory)",
    )
    systemd = add("systemd", "systemd_units:install", "write the units for this installation")
    systemd.add_argument(
        "action",
        choices=["install", "check"],
        help="write the units of a socket and a service, or of several workers; or compare those that are there",
    )
    systemd.add_argument(
        "--user", action="store_true", help="for the systemd manager of the user who runs this"
    )
    systemd.add_argument("--run-as", default="sse_app", metavar="USER", help="the service's user (sse_app)")
    systemd.add_argument(
        "--unit-dir", type=Path, metavar="DIR", help="where to (default: where systemd looks)"
    )
    eventlog = add("eventlog", "eventlog:show", "look after the event log")
    actions = eventlog.add_subparsers(metavar="ACTION")
    add("show", "eventlog:show", "print the log's epoch, head and channels", actions.add_parser)
    add(
        "new-epoch",
        "eventlog:new_epoch",
        "after restoring a backup: make old event ids invalid",
        actions.add_parser,
    )
    copy = add(
        "copy",
        "eventlog_copy:copy",
        "copy the log on SQLite, with accounts and sessions, into PostgreSQL; a second run continues from there",
        actions.add_parser,
    )
    copy.add_argument(
        "--to", required=True, metavar="URL", help="the database: postgresql://user@host/database"
    )
    return parser


def _settings_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    _add_flags(flags)
    return flags


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that override settings.

    An absent flag sets no attribute, so a flag before the command is not overwritten by the command's own default.
    """
    absent = argparse.SUPPRESS
    group = parser.add_argument_group("settings", "override the environment and the settings file")
    group.add_argument("--config", type=Path, metavar="FILE", default=absent, help="the settings file")
    group.add_argument("--host", default=absent, metavar="ADDRESS")
    group.add_argument("--port", default=absent)
    group.add_argument("--state-dir", default=absent, metavar="DIR")
    group.add_argument(
        "--event-log", default=absent, metavar="URL", help="sqlite:, sqlite:/path, postgresql://… or memory:"
    )
    group.add_argument(
        "--workers",
        metavar="N",
        default=absent,
        help="processes that serve: a number, or auto: one for each core",
    )
    group.add_argument(
        "--set",
        action="append",
        default=absent,
        metavar="NAME=VALUE",
        help="any setting, as in keepalive.ping_interval=15",
    )


def _add_users(user: argparse.ArgumentParser) -> None:
    actions = user.add_subparsers(metavar="ACTION")
    for name, help in (
        ("add", "make an account"),
        ("list", "print the accounts and what they may do"),
        ("passwd", "change a password, and end the account's sessions"),
        ("grants", "change what an account may do; its open streams end and come back"),
        ("disable", "refuse an account its login, and end its sessions"),
        ("enable", "allow an account its login again"),
        ("remove", "delete an account, and end its sessions"),
    ):
        action = actions.add_parser(name, help=help, description=help, parents=[_settings_flags()])
        action.set_defaults(run=f"users:{name}", parser=action)
        if name != "list":
            action.add_argument("name", metavar="NAME")
        if name in ("add", "grants"):
            _add_grants(action)
        if name == "add":
            action.add_argument(
                "--init",
                action="store_true",
                help="begin a new state directory, or the tables in a database, where there are none, or make the "
                "accounts anew where they were lost: what was issued before is then revoked",
            )
        if name in ("add", "passwd"):
            action.add_argument(
                "--password-stdin",
                action="store_true",
                help="read the password from standard input, else ask",
            )


def _add_grants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subscribe", default="", metavar="A,B", help="channels or patterns it may listen to"
    )
    parser.add_argument("--publish", default="", metavar="A,B", help="channels or patterns it may publish to")
    parser.add_argument("--admin", action="store_true", help="allow administration")
    parser.add_argument(
        "--presence", default="", metavar="A,B", help="channels or patterns whose users it may see"
    )
