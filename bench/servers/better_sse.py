"""Peer: better-sse from npm, on Node (see `bench.installation`)."""

from __future__ import annotations

import json
import subprocess

from bench.servers.interface import APPS, PEERS, Server, missing_command


class BetterSse(Server):
    """better-sse with one channel object for each channel."""

    name = "better-sse"
    title = "better-sse on Node"
    health_path = "/healthz"

    @classmethod
    def missing(cls) -> str:
        package = PEERS / "node_modules" / "better-sse" / "package.json"
        absent = "" if package.exists() else "better-sse is not installed (python -m bench --install)"
        return missing_command("node", "Debian: apt install nodejs npm; Node 20 or later") or absent

    @classmethod
    def version(cls) -> str:
        package = json.loads((PEERS / "node_modules" / "better-sse" / "package.json").read_text())
        node = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        return f"better-sse {package['version']}, Node {node.removeprefix('v')}"

    def launch(self) -> None:
        self.processes.start(["node", str(APPS / "better_sse_app.mjs"), str(self.port), str(PEERS)])
