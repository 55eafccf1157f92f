"""A handover by somebody who is not root: sockets under way are counted against the open files allowed (unix(7))."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import assert_all_received
from tests.support.installation import install
from tests.support.service import Service, managed

STREAMS = 1000
USER = "daemon"  # there is one on every Debian


@pytest.fixture
def service_of_a_user() -> Iterator[Service]:
    """The service of an unprivileged user, with hardly more open files allowed than it has streams."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; all the other tests are unprivileged then")
    folder = Path(tempfile.mkdtemp(prefix="installation"))
    folder.chmod(0o755)
    try:
        for manager in managed(USER, install(folder / "of_user", user=USER)):
            service = Service(manager)
            service.configure("files", f"LimitNOFILE={STREAMS + 300}")
            service.restart()
            yield service
            service.close()
            service.check_log()
    finally:
        shutil.rmtree(folder)


@pytest.mark.long
def test_streams_go_on_under_an_unprivileged_user_too(service_of_a_user: Service) -> None:
    service = service_of_a_user
    assert Path(f"/proc/{service.manager.main_pid}").stat().st_uid != 0
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher(pause=0.1)
    for change in (service.restart, service.upgrade, service.restart):
        change()
        service.settle(publisher)
    service.configure("cold", "KillMode=mixed")
    service.restart()
    service.settle(publisher)
    assert [line["streams"] for line in service.logged("adopted")] == [STREAMS]
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
