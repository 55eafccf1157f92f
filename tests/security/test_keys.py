"""The keys: rotated while streams go on, several at once, weak and odd ones refused at the start in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from sse_app.auth.tokens import keyring
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.auth.tokens.keyring import KeyRing, rotate
from sse_app.storage.ownership import read_trusted
from tests.support.forging import private_pem
from tests.support.people import Site, assert_go_on, site
from tests.support.server_process import ROOT, clean_environment, run_program
from tests.support.waiting import until

ALGORITHMS = ["EdDSA", "ES256", "RS256", "HS256"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("keys") / "state", users=("ann",)) as served:
        yield served


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def test_a_key_made_after_the_clock_was_set_back_signs_all_the_same(tmp_path: Path) -> None:
    KeyRing.load(tmp_path)
    (first,) = tmp_path.iterdir()
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(first, ns=(ahead, ahead))
    made = [rotate(tmp_path, "HS256", 0.0)[0] for _ in range(2)]
    assert [key.id for key in KeyRing.load(tmp_path)] == [made[1], made[0], "first"]


@pytest.mark.parametrize(
    ("use", "reads"),
    [
        (KeyRing.load, 1),
        # These read all keys first to see whether they are good.
        (keyring.read_files, 4),
        (lambda directory: keyring.remove(directory, "old"), 4),
        (lambda directory: rotate(directory, "HS256", time.time() + 60), 4),
    ],
    ids=["load", "read_files", "remove", "rotate"],
)
def test_a_key_that_a_command_removes_while_they_are_read_is_only_gone(
    use: Callable[[Path], object], reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("going", "old", "new"), -3):
        file = tmp_path / f"{name}.hs256"
        file.write_bytes(os.urandom(32))
        file.chmod(0o600)
        os.utime(file, (time.time() + age, time.time() + age))
    going = tmp_path / "going.hs256"
    read_by_now: list[Path] = []

    def read(file: Path, *within: Any) -> tuple[bytes, os.stat_result]:
        read_by_now.append(file)
        if len(read_by_now) == reads:
            going.unlink()
        return read_trusted(file, *within)

    monkeypatch.setattr(keyring, "read_trusted", read)
    use(tmp_path)
    assert not going.exists()
    assert KeyRing.load(tmp_path).find("new") is not None


def test_a_public_half_outlives_rotations_and_does_not_end_the_key_that_signs(tmp_path: Path) -> None:
    """It belongs to a backend that signs tokens itself, and is the successor of no key of ours."""
    KeyRing.load(tmp_path)
    (tmp_path / "backend.pem").write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate()))
    for age, name in ((3000, "first.hs256"), (2000, "backend.pem")):
        seconds = time.time() - age
        os.utime(tmp_path / name, (seconds, seconds))
    second, deleted = rotate(tmp_path, "HS256", time.time() - 1000)
    assert deleted == [], "first has signed until now"
    later = time.time() + 2000
    third, deleted = rotate(tmp_path, "HS256", later)
    assert deleted == ["first"]
    assert {key.id for key in KeyRing.load(tmp_path)} == {"backend", second, third}


@pytest.mark.slow
def test_keys_are_rotated_while_the_server_serves_and_streams_go_on(desk: Site) -> None:
    tokens = [desk.log_in("ann")]
    ears = [desk.hear(tokens[0].stream)]
    for algorithm in ALGORITHMS:
        kid = desk.server.command("keys", "rotate", "--algorithm", algorithm)
        minted = desk.mint(TokenKind.ACCESS, "ann")
        assert kid_of(minted) == kid
        until(lambda minted=minted: desk.me(minted) == 200, "the running server knows the new key")  # type: ignore[misc]
        tokens.append(desk.log_in("ann"))
        assert kid_of(tokens[-1].access) == kid_of(tokens[-1].stream) == kid
        assert jwt.get_unverified_header(tokens[-1].access)["alg"] == algorithm
        ears.append(desk.hear(tokens[-1].stream))
    assert_go_on(desk, ears)
    for session in tokens:
        assert desk.me(session.access) == 200
        assert desk.stream_status(session.stream) == 200
    listed = desk.server.command("keys").splitlines()
    assert [line.split()[1] for line in listed] == [*reversed(ALGORITHMS), "HS256"]
    assert [line.split()[2] for line in listed] == ["signs"] + ["verifies"] * 4
    desk.leave_all()
    desk.restart()
    for session in tokens:
        assert desk.me(session.access) == 200


def test_two_keys_that_are_made_within_one_tick_of_the_clock_are_both_known(desk: Site) -> None:
    keys = desk.server.state_dir / "keys"
    for kept in (keys.stat().st_mtime_ns, time.time_ns()):
        os.utime(keys, ns=(kept, kept))
        first = desk.mint(TokenKind.ACCESS, "ann")
        until(lambda first=first: desk.me(first) == 200, "the server has looked at the directory")  # type: ignore[misc]
        rotate(keys, "HS256", 0.0)
        os.utime(keys, ns=(kept, kept))
        second = desk.mint(TokenKind.ACCESS, "ann")
        assert kid_of(second) != kid_of(first)
        assert desk.me(second) == 200


@pytest.mark.slow
def test_the_published_keys_verify_our_tokens_and_hold_no_secret(desk: Site) -> None:
    for algorithm in ALGORITHMS:
        desk.server.command("keys", "rotate", "--algorithm", algorithm)
        token = desk.mint(TokenKind.ACCESS, "ann")
        until(lambda token=token: desk.me(token) == 200, "the running server knows the new key")  # type: ignore[misc]
        client = jwt.PyJWKClient(f"{desk.server.url}/.well-known/jwks.json", cache_keys=False)
        if algorithm == "HS256":
            with pytest.raises(jwt.PyJWKClientError):
                client.get_signing_key_from_jwt(token)
            continue
        key = client.get_signing_key_from_jwt(token)
        claims = jwt.decode(token, key, algorithms=[algorithm], audience="sse_app", issuer="sse_app")
        assert claims["sub"] == "ann"
    document = desk.http.get("/.well-known/jwks.json").json()
    assert {jwk["alg"] for jwk in document["keys"]} == {"EdDSA", "ES256", "RS256"}
    for jwk in document["keys"]:
        assert set(jwk) <= {"kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops"}
        assert (jwk["use"], jwk["key_ops"]) == ("sig", ["verify"])


def test_a_bad_key_beside_a_running_server_is_told_and_changes_nothing(tmp_path: Path) -> None:
    with site(tmp_path / "state", expected=("keys_refused",)) as desk:
        token = desk.mint(TokenKind.ACCESS, "ann")
        (tmp_path / "state" / "keys" / "weak.hs256").write_bytes(b"short")
        until(lambda: "keys_refused" in desk.server.log_path.read_text(), "it is told")
        assert desk.me(token) == 200
        (tmp_path / "state" / "keys" / "weak.hs256").unlink()
        again = desk.mint(TokenKind.ACCESS, "ann")
        assert desk.me(again) == 200


def test_a_key_that_is_taken_away_verifies_no_more(tmp_path: Path) -> None:
    with site(tmp_path / "state") as desk:
        old = desk.mint(TokenKind.ACCESS, "ann")
        assert desk.me(old) == 200
        desk.server.command("keys", "rotate")
        (tmp_path / "state" / "keys" / "first.hs256").unlink()
        until(lambda: desk.me(old) == 401, "the old key is gone")
        assert desk.me(desk.mint(TokenKind.ACCESS, "ann")) == 200


def test_a_key_is_removed_by_a_command_unless_it_signs(tmp_path: Path) -> None:
    with site(tmp_path / "state") as desk:
        old = desk.mint(TokenKind.ACCESS, "ann")
        assert desk.me(old) == 200
        new = desk.server.command("keys", "rotate", "--algorithm", "EdDSA")
        for id, reason in ((new, "signs; make another one first"), ("none", "there is no key")):
            refused = run_program("keys", "remove", id, environment=desk.server.environment)
            assert (refused.returncode, reason in refused.stderr) == (1, True)
        desk.server.command("keys", "remove", kid_of(old))
        until(lambda: desk.me(old) == 401, "the old key is gone")
        assert desk.server.command("keys", "list").splitlines() == [f"{new} EdDSA signs"]


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def encrypted_pem() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )


def jwk(**members: object) -> Callable[[], bytes]:
    return lambda: json.dumps(members).encode()


BAD: dict[str, Callable[[], bytes]] = {
    "short.hs256": lambda: os.urandom(31),
    "empty.hs256": bytes,
    "pem.hs256": lambda: private_pem(ed25519.Ed25519PrivateKey.generate()),
    "public.hs256": lambda: public_pem(rsa.generate_private_key(65_537, 2048)),
    "weak.pem": lambda: private_pem(rsa.generate_private_key(65_537, 1024)),
    "p384.pem": lambda: private_pem(ec.generate_private_key(ec.SECP384R1())),
    "koblitz.pem": lambda: private_pem(ec.generate_private_key(ec.SECP256K1())),
    "ed448.pem": lambda: private_pem(ed448.Ed448PrivateKey.generate()),
    "x25519.pem": lambda: private_pem(x25519.X25519PrivateKey.generate()),
    "dsa.pem": lambda: private_pem(dsa.generate_private_key(1024)),
    "encrypted.pem": encrypted_pem,
    "public.pem": lambda: public_pem(ed25519.Ed25519PrivateKey.generate()),
    "empty.pem": bytes,
    "binary.pem": lambda: os.urandom(500),
    "cut.pem": lambda: private_pem(ed25519.Ed25519PrivateKey.generate())[:60],
    "certificate.pem": lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "empty.jwk": bytes,
    "list.jwk": lambda: b"[]",
    "null.jwk": lambda: b"null",
    "binary.jwk": lambda: b"\xff\xfe\x00",
    "deep.jwk": lambda: b"[" * 100_000,
    "empty-object.jwk": jwk(),
    "no-kind.jwk": jwk(kty="none"),
    "kind.jwk": jwk(kty=5),
    "short.jwk": jwk(kty="oct", k="AAAA"),
    "number.jwk": jwk(kty="oct", k=5),
    "rsa.jwk": jwk(kty="RSA", n=5, e="AQAB"),
    "rsa-empty.jwk": jwk(kty="RSA", n="", e=""),
    "ec.jwk": jwk(kty="EC", crv="P-256", x=None, y=[]),
    "okp.jwk": jwk(kty="OKP", crv="Ed25519", x=5, d=5),
    "kid.jwk": jwk(kty="oct", k="A" * 43, kid=5),
    "none.jwk": jwk(kty="oct", k="A" * 43, alg="none"),
    "other.jwk": jwk(kty="oct", k="A" * 43, alg="HS512"),
    "mixed.jwk": jwk(kty="oct", k="A" * 43, alg="RS256"),
    "notes.txt": lambda: b"do not touch",
    "first.hs256~": lambda: os.urandom(32),
    "no-suffix": lambda: os.urandom(32),
}


def load(keys: Path) -> subprocess.CompletedProcess[str]:
    """List the keys, which reads them as the start does."""
    environment = {**os.environ, "SSE_APP_STATE_DIR": str(keys.parent)}
    arguments = [sys.executable, "-c", _LOAD, str(keys)]
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


_LOAD = """
import sys
from pathlib import Path
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.errors import StateError
for directory in sorted(Path(sys.argv[1]).iterdir()):
    try:
        KeyRing.load(directory)
        print(f"{directory.name}: accepted")
    except StateError as error:
        print(f"{directory.name}: {error}")
    except BaseException as error:
        print(f"{directory.name}: uncaught {error!r:.80}")
"""


def test_weak_and_odd_keys_are_refused_each_by_name_in_one_line(tmp_path: Path) -> None:
    for name, make in BAD.items():
        directory = tmp_path / name
        directory.mkdir()
        (directory / name).write_bytes(make())
        (directory / name).chmod(0o600)
    (tmp_path / "directory.pem" / "directory.pem").mkdir(parents=True)
    done = load(tmp_path)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(told) == {*BAD, "directory.pem"}
    wrong = {name: text for name, text in told.items() if name not in text.replace(f"/{name}/", "/")}
    wrong = {name: text for name, text in wrong.items() if name != "public.pem"}
    assert wrong == {}
    assert "public" in told["public.pem"]


@pytest.mark.parametrize(
    "name",
    [
        "short.hs256",
        pytest.param("weak.pem", marks=pytest.mark.slow),
        pytest.param("okp.jwk", marks=pytest.mark.slow),
    ],
)
def test_a_server_with_a_bad_key_does_not_start_and_says_so_in_one_line(tmp_path: Path, name: str) -> None:
    keys = tmp_path / "state" / "keys"
    keys.mkdir(parents=True)
    (keys / "good.hs256").write_bytes(os.urandom(32))
    (keys / name).write_bytes(BAD[name]())
    for file in keys.iterdir():
        file.chmod(0o600)
    environment = clean_environment(SSE_APP_STATE_DIR=str(keys.parent), SSE_APP_PORT="0")
    done = run_program("serve", environment=environment)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert name in done.stderr
