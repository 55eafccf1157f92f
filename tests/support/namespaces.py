"""What a test has to itself although it is of the whole machine: a small disk, and a network that can be cut."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.full_disk import fill_up
from tests.support.programs import require, unavailable

NOWHERE = "02:00:00:00:00:fe"
"""The address of no interface."""


class SmallDisk:
    """A directory that is a disk of its own for the processes of a mount namespace.

    Args:
        holder: a process in the namespace.
        directory: where the disk is, in there.
    """

    def __init__(self, holder: int, directory: Path) -> None:
        self.within = ("nsenter", "--mount", f"--target={holder}")
        """A command that runs another one where the disk is."""
        self.root = Path(f"/proc/{holder}/root")
        """How the root directory of the namespace looks from outside."""
        self._directory = self.root / directory.relative_to("/")

    def fill(self) -> None:
        """Leave no room on it."""
        fill_up(self._directory / "ballast")

    def empty(self) -> None:
        """Have room again."""
        (self._directory / "ballast").unlink()


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk of so many megabytes in a mount namespace; it has gone when the last of its processes has."""
    _require_root()
    script = (
        f"mount -t tmpfs -o size={megabytes}m,mode=1777 none {directory} && echo mounted && exec sleep 1000"
    )
    with subprocess.Popen(
        [require("unshare"), "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "mounted\n"
            yield SmallDisk(holder.pid, directory)
        finally:
            holder.kill()


class Link:
    """A pair of interfaces between this network namespace and another.

    Args:
        namespace: the other one.
        name: of the interface in this one, and its beginning in the other.
        subnet: the first three numbers of the addresses.
    """

    def __init__(self, namespace: str, name: str, subnet: str) -> None:
        self.near, self.far = f"{subnet}.1", f"{subnet}.2"
        """The addresses in this namespace and in the other."""
        self._namespace = namespace
        self._name = name
        _ip("link", "add", "name", name, "type", "veth", "peer", "name", f"{name}b", "netns", namespace)
        _ip("addr", "add", f"{self.near}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", namespace, "addr", "add", f"{self.far}/30", "dev", f"{name}b")
        _ip("-n", namespace, "link", "set", f"{name}b", "up")

    def drop(self) -> None:
        """Drop all that is sent over it, in both directions, without a word: it goes to an interface that is none."""
        self._neighbour("replace", "lladdr", NOWHERE, "nud", "permanent")

    def mend(self) -> None:
        """Have it carry again what is sent."""
        self._neighbour("delete")

    def _neighbour(self, verb: str, *rest: str) -> None:
        _ip("neighbour", verb, self.far, "dev", self._name, *rest)
        _ip("-n", self._namespace, "neighbour", verb, self.near, "dev", f"{self._name}b", *rest)

    def remove(self) -> None:
        """Remove it at once; with the namespace it would go a little later."""
        _ip("link", "delete", self._name)


@contextmanager
def reserved_subnet() -> Iterator[str]:
    """Yield the first three numbers of addresses that only this test gives to interfaces meanwhile."""
    with socket.socket(socket.AF_UNIX) as reservation:
        for number in secrets.SystemRandom().sample(range(1, 255), 254):
            try:
                reservation.bind(f"\0sse-app-tests-subnet-{number}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                break
        else:
            raise AssertionError("other tests have all subnets")
        yield f"10.214.{number}"


@contextmanager
def links(count: int) -> Iterator[tuple[list[str], list[Link]]]:
    """Make a network namespace, and links to it; yield a command that runs another one there, and the links."""
    _require_root()
    require("ip")
    name = f"sse{uuid.uuid4().hex[:7]}"
    _ip("netns", "add", name)
    with ExitStack() as ends:
        ends.callback(_ip, "netns", "delete", name)
        _ip("-n", name, "link", "set", "lo", "up")
        made: list[Link] = []
        for number in range(count):
            subnet = ends.enter_context(reserved_subnet())
            made.append(Link(name, f"{name}{number}", subnet))
            ends.callback(made[-1].remove)
        yield ["ip", "netns", "exec", name], made


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (arguments, done.stderr)


def _require_root() -> None:
    if os.geteuid() != 0:
        unavailable("namespaces need root")
