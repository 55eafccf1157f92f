"""What the figures were taken on: processor, memory, kernel, interpreter; no names of hosts, no paths."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from bench.native import compiler_version


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def describe(file_limit: int) -> dict[str, str]:
    """Return the machine as it goes into every result."""
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1024 / 1024
    kernel = re.match(r"\d+(\.\d+)*", platform.release())
    flags = _field("/proc/cpuinfo", "flags").split()
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": f"{os.cpu_count()}, shared by server, client and publisher",
        "virtual machine": "yes" if "hypervisor" in flags else "no",
        "memory": f"{memory:.0f} GiB",
        "system": f"{_distribution()}, Linux {kernel[0] if kernel else '?'}",
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "open files per process": f"{file_limit:,}",
        "python": platform.python_version(),
        "compiler": compiler_version(),
    }
