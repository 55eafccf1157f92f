"""The texts of the systemd units: templates in `units`, filled for one process or for several workers."""

from __future__ import annotations

import shlex
from pathlib import Path
from string import Template

TEMPLATES = Path(__file__).parent / "units"

SINGLE = ("sse-app.socket", "sse-app.service")
"""The units of one process."""

TARGET = "sse-app.target"
"""The unit that names the workers, and starts and stops them together."""

SEVERAL = ("sse-app@.socket", "sse-app@.service", TARGET)
"""The units of several workers."""

_STOPPED_WITH_TARGET = f"""# A restart of the target leaves the socket as it is.
StopPropagatedFrom={TARGET}"""

_REUSE_PORT = """# Each worker has a socket of its own on this port; the kernel spreads the connections over them.
ReusePort=yes"""


def render(
    *,
    command: list[str],
    config: str,
    listen: list[str],
    user: str,
    home: bool,
    calls_out: bool,
    log_folder: Path | None = None,
    workers: int = 1,
) -> dict[str, str]:
    """Return the units' texts by their names.

    Args:
        command: the words of the command that starts the server.
        config: the ``Environment=`` line that names the settings file; empty without one.
        listen: the addresses of the socket, as ``ListenStream=`` takes them.
        user: the user that the service runs as; empty in a user's own manager.
        home: whether the program is in a home directory, which the service must then be able to read.
        calls_out: whether the server opens connections of its own, as it does to an OpenID provider and to PostgreSQL.
        log_folder: where the server writes its event log; None where that is in the state directory, or in no file.
        workers: how many processes share the port; from 2 on there is a target for them.
    """
    several = workers > 1
    count = f"Environment=SSE_APP_WORKERS={workers}"
    target = "multi-user.target" if user else "default.target"
    values = {
        "command": _command(command),
        "config": config,
        "listen": "\n".join(f"ListenStream={address}" for address in listen),
        "user": f"User={user}" if user else "",
        "protect_home": "read-only" if home or not user else "yes",
        "read_write_paths": _read_write_paths(log_folder) if log_folder else "",
        "private_network": "no" if calls_out else "yes",
        "target": target,
        "instance": "@%i" if several else "",
        "which": ", worker %i" if several else "",
        "workers": f"Environment=SSE_APP_WORKER=%i\n{count}" if several else count,
        "count": str(workers),
        "wants": "\n".join(
            f"Wants=sse-app@{number}.socket sse-app@{number}.service" for number in range(1, workers + 1)
        ),
        "part_of": f"PartOf={TARGET}" if several else "",
        "stopped_with": _STOPPED_WITH_TARGET if several else "",
        "reuse_port": _REUSE_PORT if several else "",
        "install_service": "" if several else f"\n[Install]\nWantedBy={target}\nAlso=sse-app.socket",
        "install_socket": "" if several else "\n[Install]\nWantedBy=sockets.target",
    }
    names = SEVERAL if several else SINGLE
    return {name: _filled((TEMPLATES / Path(name).suffix[1:]).read_text(), values) for name in names}


def _filled(template: str, values: dict[str, str]) -> str:
    """Return a template with its values; a line that has nothing but an empty one is left out."""
    lines = [line for line in template.splitlines() if not line.startswith("$") or values.get(line[1:], line)]
    return Template("\n".join(lines)).substitute(values) + "\n"


def _read_write_paths(folder: Path) -> str:
    """Return the line that lets a service write to a folder; one that is not there is the server's to tell."""
    return f"ReadWritePaths={_quoted(f'-{folder}')}"


def _command(words: list[str]) -> str:
    """Return what ``ExecStart=`` takes (systemd.service(5)): a variable may stand in all words but the first."""
    program, *arguments = map(_quoted, words)
    return " ".join([program, *(word.replace("$", "$$") for word in arguments)])


def _quoted(word: str) -> str:
    """Return a word in quotes, where it needs them (systemd.syntax(7), systemd.unit(5) on specifiers)."""
    return shlex.quote(word.replace("\\", "\\\\").replace("%", "%%"))


def environment(name: str, value: str) -> str:
    """Return the line that sets a variable (systemd.syntax(7), systemd.unit(5) on specifiers)."""
    for sign, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        value = value.replace(sign, written)
    return f'Environment="{name}={value}"'
