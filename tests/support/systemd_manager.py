"""A real systemd user manager in a private runtime directory, and the server as its unit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.control_group import ControlGroup
from tests.support.ports import reserve_port
from tests.support.server_process import PROGRAM as PROGRAM
from tests.support.server_process import clean_environment, run_program
from tests.support.waiting import until

NEEDS_NAMESPACES = """
[Service]
ProtectSystem=no
ProtectHome=no
PrivateTmp=no
PrivateDevices=no
PrivateUsers=no
PrivateNetwork=no
ProtectHostname=no
ProtectClock=no
ProtectKernelTunables=no
ProtectKernelModules=no
ProtectKernelLogs=no
ProtectControlGroups=no
ProtectProc=default
ProcSubset=all
RestrictNamespaces=no
DevicePolicy=auto
"""
"""What a container does not let a user manager do; all else of the unit is in force in the tests."""

NEEDS_A_USER_NAMESPACE = "CapabilityBoundingSet=~\n"
"""What only root may do where PrivateUsers= cannot be had."""


TEMPLATES = ("sse-app.service", "sse-app@.service")
"""The services of one process, and of several workers."""

_ALL_UNITS = ("sse-app.service", "sse-app.socket", "sse-app.target", "sse-app@*")


class Manager:
    """A user manager of its own; its processes are ended with it.

    Args:
        user: whom it runs as, a name; None for whoever runs the tests.
        program: what starts the program; that user must be able to run it.
    """

    def __init__(self, user: str | None = None, program: Sequence[str] = PROGRAM) -> None:
        self._user = user
        self.program = program
        self.directory = Path(tempfile.mkdtemp(prefix="manager"))
        for name in ("runtime", "config", "state", "home"):
            (self.directory / name).mkdir(mode=0o700)
        self._give_to_user()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "XDG_RUNTIME_DIR": str(self.directory / "runtime"),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "SYSTEMD_LOG_TARGET": "console",
            # Else each reload runs what the machine's packages want of a user's session, gpg and desktop among them.
            "SYSTEMD_GENERATOR_PATH": "/nonexistent",
            "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": "/nonexistent",
        }
        self.log_path = self.directory / "log"
        self.port = reserve_port(self)
        self._installed = (0, 0)
        self._group = ControlGroup(self.directory.name, user)

    def _as_user(self, command: list[str]) -> list[str]:
        return (
            ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups", *command]
            if self._user
            else command
        )

    def start(self) -> None:
        """Start the manager, and wait until it answers."""
        Path("/run/systemd/system").mkdir(parents=True, exist_ok=True)  # else systemctl speaks to nobody
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._group.entering, *self._as_user(["/lib/systemd/systemd", "--user"])],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

        def runs() -> bool:
            assert self._process.poll() is None, self.log_path.read_text()
            return self.systemctl("is-system-running", check=False).stdout.strip() in ("running", "degraded")

        until(runs, "the manager runs")

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as an operator of this manager would."""
        if not self._user and tuple(command[: len(PROGRAM)]) == PROGRAM:
            return run_program(
                *command[len(PROGRAM) :],
                environment=clean_environment(**self.environment),
                cwd=self.directory,
            )
        return subprocess.run(
            self._as_user(command),
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ask the manager for something."""
        done = self.run(["systemctl", "--user", *arguments])
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log()[-3000:]}"
        return done

    def show(self, name: str, unit: str = "sse-app.service") -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).stdout.strip()

    def install(self, port: int, *, workers: int = 1, **settings: object) -> None:
        """Install the units as an operator would, with what this container cannot do switched off."""
        self.config.write_text(f"port = {port}\n")
        lines = "".join(f"Environment=SSE_APP_{name}={value}\n" for name, value in settings.items())
        missing = NEEDS_NAMESPACES + (NEEDS_A_USER_NAMESPACE if self._user else "")
        self.add_to_unit("test", f"{missing}{lines}StandardError=append:{self.server_log}\n")
        self._give_to_user()
        if self._installed == (port, workers):
            self.systemctl("daemon-reload")
            self.systemctl("start", *self.units)
        else:
            self.run_next(self.installed(port, workers))

    def _give_to_user(self) -> None:
        if self._user:
            subprocess.run(["chown", "-R", self._user, str(self.directory)], check=True)

    def installed(self, port: int, workers: int) -> str:
        """Write the units, and return what the operator is told to run next."""
        words = ["systemd", "install", "--user", "--config", str(self.config), "--workers", str(workers)]
        done = self.run([*self.program, *words])
        assert done.returncode == 0, done.stderr
        self._installed = (port, workers)
        return done.stdout.partition("next: ")[2].strip()

    def run_next(self, commands: str) -> None:
        """Run what the operator is told to."""
        done = self.run(["/bin/sh", "-c", commands])
        assert done.returncode == 0, f"{commands}: {done.stderr}\n{self.log()[-3000:]}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are started and stopped."""
        return ("sse-app.target",) if self._installed[1] > 1 else ("sse-app.socket", "sse-app.service")

    @property
    def config(self) -> Path:
        """The server's settings file."""
        return self.directory / "sse_app.toml"

    def add_to_unit(self, name: str, text: str) -> None:
        """Write what adds to the service's unit, as ``systemctl edit`` does; of the kind that is not installed too."""
        for template in TEMPLATES:
            directory = self.directory / f"config/systemd/user/{template}.d"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{name}.conf").write_text(text)

    @property
    def server_log(self) -> Path:
        """What the server writes."""
        return self.directory / "server.log"

    @property
    def state_dir(self) -> Path:
        """The server's state directory."""
        return self.directory / "config/sse_app"

    @property
    def pid(self) -> int:
        """The manager's own process."""
        return self._process.pid

    @property
    def main_pid(self) -> int:
        """The main process of the service."""
        return int(self.show("MainPID"))

    def pid_of(self, worker: int) -> int:
        """Return the main process of a worker; 0 where there is none."""
        return int(self.show("MainPID", f"sse-app@{worker}.service"))

    def processes(self, unit: str) -> set[int]:
        """Return all processes of a service: the main process, a standby, a successor."""
        return self._group.processes(unit)

    def log(self) -> str:
        """Return what manager and server wrote."""
        server = self.server_log.read_text() if self.server_log.exists() else ""
        return self.log_path.read_text() + server

    def reset(self) -> None:
        """End the server, and remove all that it and a test have left, but for the installed units."""
        self.systemctl("stop", *_ALL_UNITS, check=False)
        for name in ("sse-app.service", "sse-app@*.service"):
            self._group.end(name)
        self.systemctl("reset-failed", check=False)
        for template in TEMPLATES:
            shutil.rmtree(self.directory / f"config/systemd/user/{template}.d", ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        assert not self.state_dir.exists()
        for path in self.directory.iterdir():
            if path.is_file() and path != self.log_path:
                path.unlink()
        self.systemctl("daemon-reload")

    def stop(self) -> None:
        """End everything that the manager started, and itself."""
        self.systemctl("stop", *_ALL_UNITS, check=False)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._group.close()
        shutil.rmtree(self.directory, ignore_errors=True)
