"""Ours: `python main.py serve` as it is delivered, with tokens, ids and the SQLite log on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from bench import postgres
from bench.load import Publish
from bench.payload import EVENT_ITEM
from bench.processes import ServerFailed
from bench.servers.interface import START_SECONDS, Server
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import ADMIN_CHANNEL
from sse_app.settings.model import Settings
from sse_app.version import VERSION

_LIFETIME = 3600


class SseApp(Server):
    """Every stream has a token and a user of its own; the state directory is on disk and new each time."""

    name = "sse_app"
    title = "**sse_app** (tokens, ids, SQLite log)"
    ready = "connected"
    batches = True
    health_path = "/healthz"
    checkout: ClassVar[Path] = Path(__file__).resolve().parent.parent.parent

    @classmethod
    def missing(cls) -> str:
        return "" if (cls.checkout / "main.py").exists() else f"sse_app is not in {cls.checkout}"

    @classmethod
    def version(cls) -> str:
        return f"sse_app {VERSION}"

    def launch(self) -> None:
        limits = dict.fromkeys(
            ("STREAMS", "STREAMS_PER_USER", "STREAMS_PER_ADDRESS"), self.options.most_streams
        )
        env = {
            "SSE_APP_HOST": "127.0.0.1",
            "SSE_APP_PORT": str(self.port),
            "SSE_APP_STATE_DIR": str(self._state),
            "SSE_APP_CHANNELS": json.dumps(["bench.**"]),
            "SSE_APP_KEEPALIVE__PING_INTERVAL": str(self.options.ping_interval),
            **{f"SSE_APP_LIMITS__{name}": str(value) for name, value in limits.items()},
            **self.options.env,
        }
        command = [sys.executable, str(self.checkout / "main.py"), "serve"]
        if self.options.workers > 1:
            command += ["--workers", str(self.options.workers)]
        self.processes.start(command, env, cwd=self.checkout)

    def start(self) -> None:
        """Start, and return when all workers serve: until then one's connections are lent to another.

        Raises:
            ServerFailed: a process has ended, or not all serve in time.
        """
        super().start()
        deadline = time.monotonic() + START_SECONDS
        while self.options.workers > 1 and self.processes.logged('"event":"serving"') < self.options.workers:
            self.processes.check()
            if time.monotonic() > deadline:
                raise ServerFailed("not all workers serve")
            time.sleep(0.1)

    @property
    def _state(self) -> Path:
        return self.directory / "state"

    def _mint(self, kind: TokenKind, grants: Iterable[Grants]) -> Iterator[str]:
        """Yield a token for each of the grants: what `main.py token` does, without a process for each."""
        auth = Settings().auth
        tokens = Tokens(
            KeyRing.load(self._state / "keys"),
            issuer=auth.issuer,
            audience=auth.audience,
            longest=auth.longest_lifetime,
        )
        for number, grant in enumerate(grants):
            yield tokens.issue(kind, f"bench-{number}", f"bench-{number}", grant, _LIFETIME)

    def stream_paths(self, channels: Sequence[str], streams: int) -> list[str]:
        tokens = -(-streams // self.options.streams_per_token)
        names = [channels[number % len(channels)] for number in range(tokens)]
        if self.options.foreign_tokens:
            granted = {name: Grants.of(subscribe=[name]) for name in channels}
            minted = self._mint(TokenKind.STREAM, (granted[name] for name in names))
        else:
            minted = self._ask_for(names)
        return [f"/api/v1/sse/{name}?token={token}" for name, token in zip(names, minted, strict=True)]

    def _ask_for(self, names: Sequence[str]) -> Iterator[str]:
        """Yield stream tokens as clients get them: the server issues them for an access token."""
        access = next(self._mint(TokenKind.ACCESS, [Grants.of(subscribe=["bench.**"])]))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for name in names:
            connection.request(
                "POST",
                "/api/v1/auth/stream-token",
                json.dumps({"channels": [name]}),
                {"Authorization": f"Bearer {access}", "Content-Type": "application/json"},
            )
            yield str(json.load(connection.getresponse())["stream_token"])
        connection.close()

    def upgrade(self) -> None:
        """Have a successor take over, with all streams, and return when it serves.

        Raises:
            ServerFailed: no other process serves after a minute.
        """
        (before,) = self.processes.pids()
        os.kill(before, signal.SIGUSR2)
        deadline = time.monotonic() + 60
        while before in (now := self.processes.pids()) or len(now) != 1:
            if time.monotonic() > deadline:
                raise ServerFailed("no successor has taken over")
            time.sleep(0.05)
        self.processes.forget_ended()

    def figures_path(self) -> str:
        """Return the path of a stream of the server's own figures."""
        token = next(self._mint(TokenKind.STREAM, [Grants.of([ADMIN_CHANNEL], admin=True)]))
        return f"/api/v1/sse/{ADMIN_CHANNEL}?token={token}"

    def admin_token(self) -> str:
        """Return an access token of an administrator."""
        return next(self._mint(TokenKind.ACCESS, [Grants.of(admin=True)]))

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        token = next(self._mint(TokenKind.ACCESS, [Grants.of(publish=["bench.**"])]))
        headers = ("Content-Type: application/json", f"Authorization: Bearer {token}")
        if batch == 1:
            paths = tuple(f"/api/v1/sse/{channel}" for channel in channels)
            return Publish(
                self.port, paths[0], EVENT_ITEM, '{"event":"tick","data":', "", "}", headers, paths=paths
            )
        item = f'{{"channel":"{channels[0]}","event":"tick","data":{EVENT_ITEM}}}'
        return Publish(self.port, "/api/v1/sse", item, '{"events":[', ",", "]}", headers, batch=batch)


class SseAppPostgres(SseApp):
    """The same with its log on PostgreSQL; the scenario starts that, and says where it is."""

    name = "sse_app-postgres"
    title = "**sse_app** with PostgreSQL"

    @classmethod
    def missing(cls) -> str:
        return super().missing() or postgres.missing()

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, {postgres.version()}"


class SseAppBefore(SseApp):
    """Another checkout of ours, to be measured beside this one in the same run (`--before`)."""

    name = "before"
    title = "sse_app before"

    @classmethod
    def version(cls) -> str:
        if cls.missing():
            return "none"
        described = subprocess.run(
            ["git", "log", "-1", "--format=%h, %s"], cwd=cls.checkout, capture_output=True, text=True
        )
        return f"sse_app, another checkout: {described.stdout.strip() or 'not under git'}"
