"""The server as a unit of systemd, or as the workers of a target: systemd starts it again whatever ends it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support.systemd_manager import Manager
from tests.support.upgradable import Upgradable
from tests.support.waiting import until

STANDBY, SUCCESSOR, NEXT = "SSE_APP_STAND_IN=1", "SSE_APP_SUCCESSOR=", "LISTEN_PID={pid}"
"""What is in the environment of a process that serves during a restart, of any that takes over from the one that
started it, and of one that systemd started."""


class UnitServer(Upgradable):
    """A server that a manager runs. Its number is that of a worker; one process has the number 0.

    Args:
        manager: started; it has no other server.
        workers: how many.
        unit: what is added to the section ``[Service]`` of its unit.
        settings: as those of `ServerProcess`.
    """

    def __init__(self, manager: Manager, *, workers: int = 1, unit: str = "", **settings: Any) -> None:
        super().__init__(state_dir=manager.state_dir, PORT=manager.port, **settings)
        self.log_path = manager.server_log
        self.manager = manager
        self.numbers = range(1, workers + 1) if workers > 1 else range(1)
        self._unit = unit

    def start(self, stderr: int | None = None) -> None:
        """Install and start it, and wait until it is ready."""
        if self._unit:
            self.manager.add_to_unit("more", f"[Service]\n{self._unit}\n")
        prefix, apart = "SSE_APP_", ("SSE_APP_PORT", "SSE_APP_STATE_DIR")
        settings = {
            name.removeprefix(prefix): value
            for name, value in self.environment.items()
            if name.startswith(prefix) and name not in apart
        }
        self.manager.install(self.port, workers=max(self.numbers) or 1, **settings)
        self.wait_until_settled()

    def unit_of(self, number: int) -> str:
        """Return the name of a worker's unit, or of that of the one process."""
        return f"sse-app@{number}.service" if number else "sse-app.service"

    def pid_of(self, number: int) -> int:
        """Return its main process; 0 where there is none."""
        return int(self.manager.show("MainPID", self.unit_of(number)))

    @property
    def whole(self) -> tuple[str, ...]:
        """What is asked of systemd to act on all of it."""
        return ("sse-app.target", "sse-app@*") if max(self.numbers) else ("sse-app.service",)

    def restart(self, *options: str) -> None:
        """Restart all of it as an operator would."""
        self.manager.systemctl("restart", *options, self.whole[0])

    def upgrade(self) -> None:
        """Upgrade all of it as an operator would."""
        words = ["upgrade", "--state-dir", str(self.state_dir)]
        done = self.manager.run([*self.manager.program, *words])
        assert done.returncode == 0, done.stderr

    def wait_for(self, number: int, mark: str, before: set[int]) -> int:
        """Wait for a process of a unit that was not there before, and return it.

        Args:
            number: of the unit.
            mark: what is in its environment, with its number for ``{pid}``.
            before: processes that were there.
        """
        found: list[int] = []

        def appears() -> bool:
            found[:] = [pid for pid in self.processes(number) - before if self._is(pid, mark)]
            return bool(found)

        until(appears, f"{self.unit_of(number)} has a process with {mark}", pause=0.005)
        return found[0]

    def _is(self, pid: int, mark: str) -> bool:
        """Return whether a process is the program, not a shell that starts it: then its parent is the manager."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just gone
            return False
        begin = mark.format(pid=pid).encode()
        return int(fields[1]) == self.manager.pid and any(one.startswith(begin) for one in environment)

    def processes(self, number: int) -> set[int]:
        """Return all processes of a unit."""
        return self.manager.processes(self.unit_of(number))

    def wait_until_settled(self) -> None:
        """Wait until each unit is active, with its main process alone, and the server is ready."""
        for number in self.numbers:
            until(lambda number=number: self._is_settled(number), f"{self.unit_of(number)} is settled")  # type: ignore[misc]

    def _is_settled(self, number: int) -> bool:
        shown = self.manager.systemctl(
            "show", "--property=ActiveState,MainPID,Job", self.unit_of(number)
        ).stdout.split()
        values = dict(line.split("=", 1) for line in shown)
        return (
            values["ActiveState"] == "active"
            and values["Job"] in ("", "0")
            and self.processes(number) == {int(values["MainPID"])}
        )

    def _log(self) -> str:
        """Return the text of the log, with the line that a process ends with which refuses to start as an error."""
        return re.sub(
            "^sse-app: .*$",
            lambda line: json.dumps({"level": "error", "event": line[0]}),
            super()._log(),
            flags=re.MULTILINE,
        )

    def stop(self) -> int:
        """Stop all of it, and return 0 where each unit has ended well."""
        self.manager.systemctl("stop", *self.whole)
        results = [self.manager.show("Result", self.unit_of(number)) for number in self.numbers]
        return int(set(results) != {"success"})

    def kill(self) -> None:
        """End all of its processes."""
        self.manager.systemctl("kill", "--signal=KILL", *map(self.unit_of, self.numbers))


def runs(pid: int) -> bool:
    """Return whether a process runs."""
    return Path(f"/proc/{pid}").exists()
