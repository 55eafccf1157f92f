"""``systemd install``, ``systemd check``: write the units of this installation, or compare them.

One process has a socket and a service. Several workers have a template of each, ``sse-app@.socket`` and
``sse-app@.service``, and a target that names the instances.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shlex
import socket
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path
from typing import Any

from sse_app.cli.options import settings_of
from sse_app.cli.unit_texts import SEVERAL, SINGLE, TARGET, environment, render
from sse_app.cli.whole_files import write_over
from sse_app.core.errors import InvalidInput, StateError
from sse_app.process.standard_streams import complain
from sse_app.settings.database import calls_out
from sse_app.settings.model import Settings
from sse_app.settings.workers import require_shareable, worker_count

SYSTEM_FILE = Path("/etc/sse_app/sse_app.toml")
"""The settings file of the service where none is named."""

HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ``ProtectHome=`` hides (systemd.exec(5))."""

STATE = Path("/var/lib/sse_app")
"""The state directory of a service of the system, ``%S/sse_app`` in its unit."""

PACKAGE = Path(__file__).absolute().parent.parent
"""Where this program is, which is elsewhere than the interpreter where it runs from a checkout."""

TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
"""What ``PrivateTmp=`` replaces."""

SYSTEMCTL_TIMEOUT = 10.0
"""How long ``systemctl`` may take to answer, in seconds."""


def install(options: argparse.Namespace) -> int:
    """Write the units, and print the commands that start them; or with ``check`` compare them with what is there.

    Raises:
        InvalidInput: the settings file is named by a relative path, or the socket has no port of its own.
        SettingsError: a setting has a bad value, or one that several workers cannot have.
        StateError: the service's user is not there or cannot read the settings file, or the units cannot be written.
    """
    directory = options.unit_dir or _unit_directory(options.user)
    user = "" if options.user else options.run_as
    if options.action == "check":
        return _check(directory, unit_texts(options, user))
    if user:
        _require_user(user)
    config = _settings_file(options)
    if config and user:
        _require_readable(config, user)
    texts = unit_texts(options, user)
    if user:
        _warn_of_program(user)
    systemctl = ["systemctl", "--user"] if options.user else ["systemctl"]
    workers_before = max(_installed_workers(directory), 0 if options.unit_dir else _highest_worker(systemctl))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_over({directory / name: text for name, text in texts.items()})
    except OSError as error:
        raise StateError(f"cannot write the units to {directory}: {error.strerror}") from None
    for name in texts:
        print(f"wrote {directory / name}")
    print(f"settings: {config or f'the defaults, until there is a {SYSTEM_FILE}'}")
    print("next: " + " && ".join(_next_steps(directory, " ".join(systemctl), texts, workers_before)))
    return 0


def _next_steps(directory: Path, systemctl: str, texts: dict[str, str], workers_before: int) -> list[str]:
    """Return the commands that put the units in force, in place of those that were there before.

    Args:
        directory: of the units.
        systemctl: how it is called.
        texts: the units that have been written.
        workers_before: how many workers there were, by the target that was there, or that run; 0 where there were none.
    """
    steps = []
    if others := _of_the_other_kind(directory, texts):
        # The files stay until systemd has stopped what they describe: two kinds cannot have one port.
        if TARGET in texts:
            steps.append(f"{systemctl} disable --now {' '.join(SINGLE)}")
        else:
            steps += [f"{systemctl} disable {TARGET}", f"{systemctl} stop {TARGET} 'sse-app@*'"]
        steps.append(f"rm {shlex.join(map(str, others))}")
    steps.append(f"{systemctl} daemon-reload")
    if TARGET not in texts:
        return [*steps, f"{systemctl} enable --now {' '.join(SINGLE)}"]
    workers = _workers_of(texts[TARGET])
    if surplus := range(workers + 1, workers_before + 1):
        sockets, services = (
            " ".join(f"sse-app@{number}.{kind}" for number in surplus) for kind in ("socket", "service")
        )
        # By itself systemd closes a socket only when the service has ended, and what connects meanwhile is reset.
        steps += [
            f"{systemctl} stop --job-mode=ignore-dependencies {sockets}",
            f"{systemctl} stop {services}",
        ]
    if workers_before and workers_before != workers:
        steps.append(f"{systemctl} restart {TARGET}")
    return [*steps, f"{systemctl} enable --now {TARGET}"]


def _of_the_other_kind(directory: Path, texts: dict[str, str]) -> list[Path]:
    """Return the units that are there of one process, where those of workers are meant, or the other way round."""
    return [
        directory / name for name in (*SINGLE, *SEVERAL) if name not in texts and (directory / name).exists()
    ]


def _installed_workers(directory: Path) -> int:
    """Return how many workers the target has that is there; 0 where there is none that can be read."""
    try:
        return _workers_of((directory / TARGET).read_text())
    except (OSError, ValueError):
        return 0


def _highest_worker(systemctl: list[str]) -> int:
    """Return the highest number of a worker that systemd runs; 0 where there is none, or it does not say.

    Units may have been written before, and what was printed then not been done.
    """
    asked = [*systemctl, "list-units", "--plain", "--no-legend", "--full", "sse-app@*.service"]
    try:
        listed = subprocess.run(
            asked, capture_output=True, text=True, timeout=SYSTEMCTL_TIMEOUT, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return max(map(int, re.findall(r"^sse-app@([0-9]+)\.service", listed, re.MULTILINE)), default=0)


def _workers_of(target: str) -> int:
    return target.count("Wants=sse-app@")


def unit_texts(options: argparse.Namespace, user: str) -> dict[str, str]:
    """Return the units as this version writes them for the settings in force.

    Args:
        options: of the command.
        user: the service's user; empty in a user's own manager.

    Raises:
        InvalidInput, SettingsError, StateError: as `install` says.
    """
    config = _settings_file(options)
    options.config = config or Path(os.devnull)  # else the one of a checkout would be found
    settings = settings_of(options)
    log_folder = _log_folder(settings)
    seen = [PACKAGE, *map(Path, _program()), Path(settings.auth.keys_dir), Path(settings.auth.keys_seal)]
    seen += [path for path in (config, log_folder) if path]
    workers = worker_count(settings)
    if workers > 1:
        require_shareable(settings)
    return render(
        command=[*_program(), "serve"],
        config=environment("SSE_APP_CONFIG", str(config)) if config else "",
        listen=_addresses(settings.host, settings.port),
        user=user,
        calls_out=calls_out(settings),
        log_folder=log_folder,
        home=any(path.is_relative_to(home) for path in _with_targets(seen) for home in HOMES),
        workers=workers,
    )


def _with_targets(paths: list[Path]) -> list[Path]:
    """Return the paths with what they lead to: a link to an interpreter in a home is of no use where that is hidden.

    What is relative is left out: it is a word of the command, or not set.
    """
    absolute = [path for path in paths if path.is_absolute()]
    return [*absolute, *(path.resolve() for path in absolute)]


def _log_folder(settings: Settings) -> Path | None:
    """Return where a log in a file is, unless that is the state directory of the service, which it may write to."""
    if not settings.event_log.startswith("sqlite:/"):
        return None
    folder = Path(settings.event_log.removeprefix("sqlite:")).parent
    # With / the service could write to all of the machine: who keeps the log there has to allow that by hand.
    return None if folder == Path("/") or folder.is_relative_to(STATE) else folder


def _settings_file(options: argparse.Namespace) -> Path | None:
    """Return the settings file of the service: the one that is named, else the system's, never that of a checkout.

    Raises:
        InvalidInput: its path is relative.
        StateError: it is not there.
    """
    named = getattr(options, "config", None) or os.environ.get("SSE_APP_CONFIG")
    if not named:
        return SYSTEM_FILE if SYSTEM_FILE.is_file() else None
    path = Path(named)
    if path == Path(os.devnull):
        return None
    if not path.is_absolute():
        raise InvalidInput(
            f"a unit takes no relative path: name the settings file {named} from the root, or {SYSTEM_FILE}"
        )
    if not path.is_file():
        raise StateError(f"cannot read the settings file {path}: it is not a file")
    return path


def _addresses(host: str, port: int) -> list[str]:
    """Return what ``ListenStream=`` takes: addresses, for systemd looks no name up.

    Raises:
        InvalidInput: systemd cannot listen there.
    """
    if port == 0:
        raise InvalidInput("a socket unit needs a port: port = 0 takes any that is free")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot look up the host {host}: {error}") from None
    return list(dict.fromkeys(_listen_stream(address) for *_, address in found))


def _listen_stream(address: tuple[Any, ...]) -> str:
    """Return an address of `getaddrinfo` as systemd.socket(5) takes it: one of a link with the interface behind it."""
    name, port, *ipv6 = address
    if not ipv6:
        return f"{name}:{port}"
    scope = ipv6[1]
    interface = f"%{socket.if_indextoname(scope)}" if scope else ""
    return f"[{str(name).partition('%')[0]}]:{port}{interface.replace('%', '%%')}"


def _require_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise StateError(f"there is no user {name}: make it with 'useradd --system {name}'") from None


def _require_readable(path: Path, user: str) -> None:
    """Refuse a settings file that the service will not be able to read.

    Raises:
        StateError: it cannot; the text names what is in the way.
    """
    for own in TEMPORARY:
        if path.is_relative_to(own):
            raise StateError(
                f"the service has a {own} of its own (PrivateTmp=), without {path}: put it to {SYSTEM_FILE}"
            )
    if (obstacle := _obstacle(path, user)) is not None:
        verb = "read" if obstacle == path.resolve() else "enter"
        raise StateError(
            f"the user {user} cannot {verb} {obstacle}: the service could not read its settings in {path}"
        )


def _obstacle(path: Path, user: str) -> Path | None:
    """Return what keeps a user from reading a file, a directory above it or itself; only root can find out."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    real = path.resolve()
    for place in (*reversed(real.parents), real):
        asked = ["test", "-r" if place == real else "-x", str(place)]
        done = subprocess.run(asked, user=entry.pw_uid, group=entry.pw_gid, extra_groups=groups, cwd="/")
        if done.returncode != 0:
            return place
    return None


def _warn_of_program(user: str) -> None:
    for word in _program():
        if os.path.isabs(word) and (obstacle := _obstacle(Path(word), user)) is not None:
            complain(f"warning: the user {user} has no access to {obstacle}, and so cannot run {word}")


def _check(directory: Path, texts: dict[str, str]) -> int:
    """Print how the units that are installed differ from those of this version, and return 1 where they do."""
    others = _of_the_other_kind(directory, texts)
    kind = (
        "one process, and the settings ask for workers"
        if TARGET in texts
        else "workers, and there is to be one process"
    )
    differences = [f"{path} is of {kind}" for path in others]
    for name, text in texts.items():
        there, here = f"{directory / name} (installed)", f"{name} (this version, with these settings)"
        try:
            installed = (directory / name).read_text()
        except OSError as error:
            if not others:
                raise StateError(f"cannot read {directory / name}: {error.strerror}") from None
            continue
        differences += unified_diff(installed.splitlines(), text.splitlines(), there, here, n=0, lineterm="")
    if differences:
        print("\n".join(differences))
        complain("the units differ: run 'systemd install' again, and then what it prints")
        return 1
    print("the units are as this version writes them")
    return 0


def _program() -> list[str]:
    """Return the words of the command that starts this program.

    The interpreter's path is kept as it was called, perhaps through a link, so that the unit starts what the link
    names later.
    """
    script = Path(sys.argv[0])
    if script.name == "main.py":
        return [sys.executable, str(script.absolute())]
    return [sys.executable, "-m", "sse_app"]


def _unit_directory(of_user: bool) -> Path:
    if not of_user:
        return Path("/etc/systemd/system")
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd/user"
