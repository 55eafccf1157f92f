"""HAProxy, as Debian has it, in front of a server, which it asks with HEAD whether it is well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.ports import reserved_port
from tests.support.programs import require
from tests.support.proxies import running
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

CONFIGURATION = """
defaults
    mode http
    timeout connect 5s
    timeout check 60s
    timeout client 60s
    timeout server 60s
listen sse_app
    bind 127.0.0.1:{port}
    maxconn 100
    {check}
    server one 127.0.0.1:{upstream} check inter 100 rise 1 fall 1
"""


@pytest.mark.parametrize(
    "check",
    [
        pytest.param("option httpchk HEAD /healthz", marks=pytest.mark.slow),
        pytest.param("option httpchk HEAD /readyz", marks=pytest.mark.slow),
        "option httpchk\n    http-check send meth HEAD uri /readyz ver HTTP/1.1 hdr Host sse-app.internal",
    ],
    ids=["healthz", "readyz", "by name"],
)
def test_haproxy_that_checks_with_head_keeps_the_server_up(
    start_server: Callable[..., ServerProcess], tmp_path: Path, check: str
) -> None:
    server = start_server(TRUSTED_PROXIES=["127.0.0.0/8"])

    def checks() -> int:
        return sum(line.get("method") == "HEAD" and line["status"] == 200 for line in server.log_lines())

    program = require("haproxy")
    with reserved_port() as port:
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(CONFIGURATION.format(port=port, check=check, upstream=server.port))
        with running(
            [program, "-db", "-f", str(configuration)], f"http://127.0.0.1:{port}", tmp_path, {}
        ) as proxy:
            until(lambda: checks() >= 3, "it has asked three times")
            assert httpx.get(f"{proxy.url}/api/v1/sse/status").status_code == 200
            assert "DOWN" not in proxy.logs(), proxy.logs()
