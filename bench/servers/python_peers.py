"""Peers from PyPI, installed in a virtual environment of their own (see `bench.installation`)."""

from __future__ import annotations

import json
import subprocess
from typing import ClassVar

from bench.servers.interface import PEERS, PythonApp

_HINT = "python -m bench --install"
_VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({package: version(package) for package in sys.argv[1:]}))
"""


class _PythonPeer(PythonApp):
    interpreter = PEERS / "venv" / "bin" / "python"
    packages: ClassVar[tuple[str, ...]]

    @classmethod
    def _versions(cls) -> dict[str, str]:
        done = subprocess.run(
            [str(cls.interpreter), "-c", _VERSIONS, *cls.packages], capture_output=True, text=True
        )
        if done.returncode != 0:
            return {}
        found: dict[str, str] = json.loads(done.stdout)
        return found

    @classmethod
    def missing(cls) -> str:
        if cls.interpreter.exists() and cls._versions():
            return ""
        return f"{cls.packages[0]} is not installed ({_HINT})"

    @classmethod
    def version(cls) -> str:
        return ", ".join(f"{name} {number}" for name, number in cls._versions().items())


class SseStarlette(_PythonPeer):
    """sse-starlette on uvicorn, one process, uvloop and httptools."""

    name = "sse-starlette"
    title = "sse-starlette on uvicorn, uvloop"
    module = "sse_starlette_app"
    packages = ("sse-starlette", "starlette", "uvicorn", "uvloop", "httptools")


class AiohttpSse(_PythonPeer):
    """aiohttp-sse on aiohttp, uvloop."""

    name = "aiohttp-sse"
    title = "aiohttp-sse"
    module = "aiohttp_sse_app"
    packages = ("aiohttp-sse", "aiohttp", "uvloop")
