"""Streams without a token, and events that are not stored, over restarts under a real systemd, warm and cold."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from tests.support.people import bearer
from tests.support.room import first, listen, numbers, take
from tests.support.service import Service

CHANNELS = [{"pattern": "open", "public": True}, {"pattern": "moves", "public": True, "stored": False}]


@pytest.mark.slow
def test_a_channel_that_is_private_after_a_cold_restart_ends_who_had_it_only_as_it_was_public(
    start_service: Callable[..., Service],
) -> None:
    def variable(*channels: object) -> str:
        return json.dumps(channels, separators=(",", ":")).replace('"', r"\"")

    service = start_service(CHANNELS=variable(CHANNELS[0], "dashboard"))
    path = service.stream_path().replace("/dashboard?", "/open,dashboard?")
    with listen(f"{service.url}{path}") as frames:
        first(frames)
        private = f'Environment="SSE_APP_CHANNELS={variable("open", "dashboard")}"'
        service.configure("z-private", f"KillMode=mixed\n{private}")  # behind the settings of the start
        service.restart()
        assert take(frames, 1)[0].data["reason"] == "revoked"


@pytest.mark.parametrize("kind", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_streams_without_a_token_go_on_over_restarts_and_get_what_is_not_stored(
    start_service: Callable[..., Service], kind: str
) -> None:
    channels = json.dumps(CHANNELS, separators=(",", ":"))
    service = start_service(CHANNELS=channels.replace('"', r"\""))  # as systemd.syntax(7) has quotes
    if kind == "cold":
        service.configure("cold", "KillMode=mixed")
    headers = bearer(service.access_token())
    with (
        httpx.Client(base_url=service.url, headers=headers, timeout=60) as http,
        listen(f"{service.url}/api/v1/sse/open,moves?client_id=c") as frames,
    ):
        first(frames)
        for n in (0, 10):
            if n:
                service.restart()
                (row,) = http.get("/api/v1/admin/connections").raise_for_status().json()["connections"]
                assert (row["client_id"], row["adopted"]) == ("c", True)
                assert (row["subject"], row["expires_at"]) == (None, None)
            for channel, number, status in (("open", n, 201), ("moves", n + 1, 202), ("open", n + 2, 201)):
                event = {"event": "e", "data": {"n": number}}
                assert http.post(f"/api/v1/sse/{channel}", json=event).status_code == status
            assert numbers(take(frames, 3)) == [n, n + 1, n + 2]
