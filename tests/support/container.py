"""Builds what a Containerfile says into a folder, and runs it as a container engine would, without one.

Each stage is a copy of Debian as debootstrap makes it; each step is run in it by chroot(8). A container is a process
with its own processes, mounts and host name (unshare(1)), its root read-only, as a user without capabilities
(setpriv(1)). It has the network of the machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.programs import require

BASE = "docker.io/library/debian:bookworm-slim"
MIRROR = "http://deb.debian.org/debian"

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""What this machine trusts, for those of the steps that fetch something."""


@dataclass(frozen=True)
class Instruction:
    """A line of a Containerfile, with those that continue it."""

    name: str
    flags: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """What is given to it: a JSON list, or words."""
        return (
            [str(word) for word in json.loads(self.rest)]
            if self.rest.startswith("[")
            else shlex.split(self.rest)
        )


@dataclass
class Image:
    """What the instructions of a stage have made.

    Attributes:
        root: its files.
        environment: its variables.
        user: who runs in it, as numbers.
        folder: where it is begun.
        entrypoint, command: what is run.
        health: what is run to see whether it is well.
        volumes: folders whose content outlives a container.
        stop_signal: asks it to end.
        ports: those that it listens on.
    """

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"
    ports: list[int] = field(default_factory=list)


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Containerfile.

    Raises:
        AssertionError: it has one that is not understood here.
    """
    found = []
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        flags: dict[str, str] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest := rest.strip()):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        assert name in _STEPS, f"no instruction that is understood here: {line}"
        found.append(Instruction(name, flags, rest))
    return found


def debian(folder: Path) -> Path:
    """Make a minimal Debian 12 in a folder, and return it."""
    command = [require("debootstrap"), "--variant=minbase", "bookworm", str(folder), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return folder


def build(containerfile: Path, context: Path, base: Path, folder: Path) -> Image:
    """Do what a Containerfile says, and return the image of its last stage.

    Args:
        containerfile: the file.
        context: where COPY copies from.
        base: the one image that it begins with, as files.
        folder: where the stages are made.
    """
    stages: dict[str, Image] = {}
    image: Image | None = None
    for step in instructions(containerfile.read_text()):
        if step.name == "FROM":
            words = step.rest.split()
            assert words[0] == BASE, words
            name = words[2] if len(words) == 3 else str(len(stages))
            image = stages[name] = Image(folder / name)
            subprocess.run(["cp", "-a", str(base), str(image.root)], check=True)
        else:
            assert image is not None
            _STEPS[step.name](image, step, context, stages)
    assert image is not None
    return image


def _run(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    """Run a command as root, with the network and the certificates of this machine."""
    shutil.copy("/etc/resolv.conf", image.root / "etc/resolv.conf")
    shutil.copy(CERTIFICATES, image.root / "tmp/certificates")
    given = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = (
        image.environment | given | {"PIP_CERT": "/tmp/certificates", "DEBIAN_FRONTEND": "noninteractive"}
    )
    mounts = f"mount -t proc proc {image.root}/proc && mount --bind /dev {image.root}/dev"
    changed = f"cd {shlex.quote(image.folder)} && {step.rest}"
    command = [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"),
        f'{mounts} && exec chroot {image.root} /bin/sh -c "$1"',
        *("sh", changed),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    (image.root / "tmp/certificates").unlink()
    assert done.returncode == 0, f"{step.rest}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def _copy(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    *sources, target = step.words
    root = stages[step.flags["from"]].root if "from" in step.flags else context
    to = image.root / (target if target.startswith("/") else f"{image.folder}/{target}").lstrip("/")
    for source in sources:
        path = root / source.lstrip("/")
        if path.is_dir():  # of a folder its content is copied
            shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                            if root is context else None)  # fmt: skip
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)


def _workdir(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.folder = step.rest
    (image.root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _env(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.environment |= dict(word.split("=", 1) for word in step.words)


def _user(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.user = step.rest


def _volume(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.volumes += step.words


def _expose(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.ports += map(int, step.words)


def _stopsignal(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.stop_signal = step.rest


def _healthcheck(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    assert step.rest.startswith("CMD ["), step.rest
    image.health = [str(word) for word in json.loads(step.rest.removeprefix("CMD "))]


def _entrypoint(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.entrypoint = step.words


def _cmd(image: Image, step: Instruction, context: Path, stages: dict[str, Image]) -> None:
    image.command = step.words


_STEPS = {
    "FROM": _run,
    "RUN": _run,
    "COPY": _copy,
    "WORKDIR": _workdir,
    "ENV": _env,
    "USER": _user,
    "VOLUME": _volume,
    "EXPOSE": _expose,
    "STOPSIGNAL": _stopsignal,
    "HEALTHCHECK": _healthcheck,
    "ENTRYPOINT": _entrypoint,
    "CMD": _cmd,
}

_START = """
set -e
root="$1" volume="$2" at="$3" user="$4" group="$5" folder="$6"; shift 6
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$volume" "$root$at"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid="$user" --regid="$group" --clear-groups --bounding-set=-all --no-new-privs \
    /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" "$@"
"""


@dataclass(frozen=True)
class Container:
    """A container that runs.

    Attributes:
        image: what it was made of.
        starter: the process that started it, whose end is its end.
        environment: its variables.
        log: what it has written.
    """

    image: Image
    starter: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path

    @property
    def pid(self) -> int:
        """The number of its process 1 on this machine."""
        (child,) = Path(f"/proc/{self.starter.pid}/task/{self.starter.pid}/children").read_text().split()
        return int(child)

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command within, as ``podman exec`` does."""
        user, _, group = self.image.user.partition(":")
        within = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd"]
        return subprocess.run(
            [*within, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@contextmanager
def container(
    image: Image,
    volume: Path,
    log: Path,
    *,
    user: str = "",
    command: list[str] | None = None,
    **variables: str,
) -> Iterator[Container]:
    """Run a container, whose root cannot be written to; it is killed at the end, if it has not ended.

    Args:
        image: what it is made of.
        volume: the folder that is the one volume of the image.
        log: a file for what it writes.
        user: who runs in it, instead of the image's user.
        command: instead of the image's.
        variables: for its environment.
    """
    environment = image.environment | variables
    uid, _, gid = (user or image.user).partition(":")
    words = [*image.entrypoint, *(image.command if command is None else command)]
    with log.open("ab") as output:
        starter = subprocess.Popen(
            [
                *(
                    "unshare",
                    "--mount",
                    "--pid",
                    "--uts",
                    "--ipc",
                    "--fork",
                    "--kill-child",
                    "sh",
                    "-c",
                    _START,
                ),
                *("sh", str(image.root), str(volume), image.volumes[0], uid, gid, image.folder, *words),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Container(image, starter, environment, log)
    finally:
        starter.kill()
        starter.wait()
