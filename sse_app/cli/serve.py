"""``serve`` and ``check-config``: run a server, or find out whether one could start."""

from __future__ import annotations

import argparse
import logging
import signal
import socket

from sse_app.cli.options import settings_of, uncovered
from sse_app.core.errors import EXHAUSTED, StateError
from sse_app.process import huge_pages, logs
from sse_app.process.replacement import is_replacement
from sse_app.process.standard_streams import complain
from sse_app.process.systemd import Systemd
from sse_app.process.workers import worker_number
from sse_app.settings.channels import doubts
from sse_app.settings.database import calls_out
from sse_app.settings.explain import shown
from sse_app.settings.loader import find_settings_file, passed_over
from sse_app.settings.model import Settings, plain
from sse_app.settings.workers import worker_count

log = logging.getLogger(__name__)


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGQUIT; return the exit status."""
    replaces = is_replacement()
    for number in () if replaces else (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # until the server handles them; by default they would end it
    settings = settings_of(options)
    worker = worker_number()

    def reread() -> Settings:
        return _warn_of_missing_network(settings_of(options))

    with logs.to_standard_error(settings.log.level, settings.log.format, worker):
        if worker <= 1 and not replaces and (foreign := passed_over()):
            log.info("environment_passed_over", extra={"variables": ", ".join(foreign)})
        _warn_of_missing_network(settings)
        try:
            if replaces or (not worker and worker_count(settings) > 1):
                from sse_app.process import supervisor

                return supervisor.run(settings, reread)
            huge_pages.reserve()
            from sse_app.process import server

            server.run(settings, reread)
            return 0
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            raise StateError(f"cannot serve: {error.strerror} (see ulimit -n)") from None


def _warn_of_missing_network(settings: Settings) -> Settings:
    """Say in the log where the settings need a network that the unit, installed with others, does not give."""
    if calls_out(settings) and Systemd().knows_unit and {name for _, name in socket.if_nameindex()} == {"lo"}:
        log.warning(
            "unit_outdated",
            extra={
                "detail": f"{'oidc' if settings.oidc.issuer else 'event_log'} needs the network, "
                "the unit has PrivateNetwork=yes: run 'systemd install' again"
            },
        )
    return settings


def check_config(options: argparse.Namespace) -> int:
    """Print the settings in force, and whether a server could start with them now; return 1 where it could not."""
    from sse_app.process.dry_run import try_start

    settings = settings_of(options)
    print(f"settings file: {find_settings_file(getattr(options, 'config', None)) or 'none'}")
    if foreign := passed_over():
        print(f"passed over in the environment: {', '.join(foreign)}")
    for name, value in plain(settings).items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                print(f"{name}.{inner} = {shown(inner_value)}")
        else:
            print(f"{name} = {shown(value)}")
    good, bad = try_start(settings)
    for line in good:
        print(f"# {line}", flush=True)
    for line in doubts(settings):
        complain(f"warning: {line}")
    for group, granted in settings.oidc.grants.items():
        for line in uncovered((*granted.subscribe, *granted.publish), settings):
            complain(f"warning: oidc.grants.{group}: {line}")
    for line in bad:
        complain(line)
    return 1 if bad else 0
