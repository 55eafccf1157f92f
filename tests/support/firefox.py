"""A real Firefox, driven by WebDriver BiDi, the protocol that it speaks by itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.programs import require, saying

PREFERENCES: dict[str, bool | int | str] = {
    # It asks nothing of the world.
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.region.network.url": "",
    "browser.safebrowsing.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "messaging-system.rsexperimentloader.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.server": "data:,",
    # Nor does it show what is new.
    "browser.aboutwelcome.enabled": False,
    "browser.startup.homepage_override.mstone": "ignore",
}


class Firefox:
    """One tab of it.

    Args:
        process: the program.
        address: of its WebSocket.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()  # another thread's, for a test may have one of Playwright's
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._socket: WebSocketClientConnection = self._wait(_connect(f"{address}/session"))
        self._call("session.new", capabilities={})
        self._context = self._call("browsingContext.getTree")["contexts"][0]["context"]

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _call(self, method: str, **params: Any) -> Any:
        return self._wait(self._answer(method, params))

    async def _answer(self, method: str, params: Mapping[str, Any]) -> Any:
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = await self._socket.read_message()
            assert message is not None, "Firefox has gone"
            answer = json.loads(message)
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression comes to, also where that is a promise."""
        answer = self._call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({script})))()",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        value = answer["result"].get("value")
        return None if value is None else json.loads(value)

    def set_offline(self, offline: bool) -> None:
        """Take the network from the page, or give it back."""
        conditions = {"type": "offline"} if offline else None
        self._call("emulation.setNetworkConditions", networkConditions=conditions, contexts=[self._context])

    def close(self) -> None:
        """End it."""
        self._call("browser.close")
        self._loop.call_soon_threadsafe(self._socket.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _connect(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address)


@contextmanager
def firefox(folder: Path, environment: Mapping[str, str]) -> Iterator[Firefox]:
    """Run a Firefox with a profile of its own in a folder."""
    profile = folder / "firefox"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = [require("firefox-esr"), "--headless", "--no-remote", "--profile", str(profile)]
    surroundings = {**environment, "HOME": str(folder), "MOZ_DISABLE_CONTENT_SANDBOX": "1"}
    with saying([*command, "--remote-debugging-port=0", "about:blank"], folder, surroundings) as (
        process,
        said,
    ):
        browser = Firefox(process, said("WebDriver BiDi listening on "))
        yield browser
        browser.close()
        process.wait(60)
