"""Who else signs with the server's keys: another server with accounts of its own, or a program with ids of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.forging import Forge
from tests.support.people import Site, claims_of, site
from tests.support.waiting import until


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    directory.chmod(0o700)
    return directory


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[list[Site]]:
    """Two servers with these keys, and ann's account on each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                site(tmp_path_factory.mktemp(name) / "state", users=("ann",), AUTH__KEYS_DIR=str(keys))
            )
            for name in ("first", "second")
        ]


def revoke(desk: Site) -> None:
    """Revoke what ann was issued, as an administrator does it at one server after the other."""
    time.sleep(0.01)
    desk.server.command("revoke", "--subject", "ann")


def test_servers_that_share_keys_tell_each_other_s_tokens_by_their_time(desks: list[Site]) -> None:
    """Each counts its revocations for itself: a number of the one says nothing at the other."""
    before = [desk.log_in("ann") for desk in desks]
    assert [desk.me(session.access) for desk in desks for session in before] == [200] * 4
    for desk in desks:
        revoke(desk)
    for desk in desks:
        for session in before:
            until(lambda desk=desk, session=session: desk.me(session.access) == 401, "it is revoked")  # type: ignore[misc]
    for issuer in desks:
        session = issuer.log_in("ann")
        narrowed = issuer.stream_token(session.access, "dashboard").json()["stream_token"]
        for desk in desks:
            assert desk.me(session.access) == 200
            assert desk.stream_status(session.stream) == desk.stream_status(narrowed) == 200


@pytest.mark.parametrize(
    "id", ["{now:.6f}", "{now:.0f}.1", "7.counted", "{micro}.x", "{micro}-7.abcdefghijklmnop"]
)
def test_an_id_that_another_signer_has_made_is_told_by_its_issuing_time(
    desks: list[Site], keys: Path, id: str
) -> None:
    """Whatever it looks like, a token of before is revoked and one of afterwards is not."""
    desk = desks[0]
    (key,) = keys.iterdir()
    forge = Forge("HS256", key.stem, key.read_bytes())

    def signed(index: int) -> str:
        now = time.time()
        jti = id.format(now=now, micro=int(now * 1e6)) + "0" * index
        return forge.token("access", claims=forge.claims(sub="ann", iat=now, jti=jti))

    before = signed(0)
    assert desk.me(before) == 200
    revoke(desk)
    until(lambda: desk.me(before) == 401, "it is revoked")
    assert desk.me(signed(1)) == 200


@pytest.mark.ci
@pytest.mark.parametrize("how", ["--subject ann", "--all"])
def test_no_id_that_a_forger_makes_up_escapes_a_revocation(desks: list[Site], keys: Path, how: str) -> None:
    """Where a key has leaked, taking it away refuses what was forged with it; open streams end by the revocation."""
    desk = desks[0]
    (key,) = keys.iterdir()
    forge = Forge("HS256", key.stem, key.read_bytes())
    number, dash, store = str(claims_of(desk.log_in("ann").access)["jti"]).partition(".")[0].partition("-")
    assert dash
    ids = [
        f"{made_up}-{store}.{'x' * 16}"
        for made_up in (10**18 - 1, int(number) + 10**9, int(time.time() * 1000) + 5000)
    ]
    now = time.time()
    tokens = [forge.token("stream", claims=forge.claims(sub="ann", iat=now, jti=id)) for id in ids]
    ears = [desk.hear(token) for token in tokens]
    desk.server.command("revoke", *how.split())
    until(lambda: not any(ear.open for ear in ears), "the streams end")
    assert [ear.farewell for ear in ears] == ["revoked"] * len(ears)
    assert [desk.stream_status(token) for token in tokens] == [401] * len(tokens)
    assert desk.me(desk.log_in("ann").access) == 200
