"""Login, accounts and the commands that make tokens."""

from __future__ import annotations

import re
import sqlite3
import statistics
import time

import jwt
import pytest

from tests.support.house import (
    PASSWORDS,
    House,
    assert_login_refused,
    assert_refused,
    bearer,
    claims_of,
    command,
)

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet")


def test_a_login_gives_both_tokens_and_what_they_are_good_for(house: House) -> None:
    answer = house.login("ann")
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    assert set(tokens) >= {
        "access_token",
        "stream_token",
        "token_type",
        "expires_in",
        "stream_expires_in",
        "channels",
    }
    assert tokens["token_type"] == "Bearer"
    assert 0 < tokens["expires_in"] <= 3_600
    assert 0 < tokens["stream_expires_in"] <= 600
    access, stream = claims_of(tokens["access_token"]), claims_of(tokens["stream_token"])
    for claims, lifetime in ((access, "expires_in"), (stream, "stream_expires_in")):
        assert set(claims) == {"iss", "aud", "sub", "iat", "exp", "jti", "sid", "sse"}
        assert claims["sub"] == "ann"
        assert claims["exp"] - time.time() <= tokens[lifetime] + 1
    assert access["sid"] == stream["sid"]
    assert stream["sse"]["publish"] == []
    assert house.open("dashboard", tokens["stream_token"]).status_code == 200
    assert_refused(house.open("alerts", tokens["stream_token"]), 403)
    assert house.publish("alerts", tokens["access_token"]).status_code == 201
    assert_refused(house.publish("dashboard", tokens["access_token"]), 403)


def test_me_says_who_it_is_and_no_secret(house: House) -> None:
    answer = house.http.get("/api/v1/auth/me", headers=bearer(house.tokens("ann")["access_token"]))
    assert answer.status_code == 200
    assert "ann" in answer.text
    assert "argon2" not in answer.text
    assert "password" not in answer.text


def test_a_wrong_password_and_an_unknown_user_are_told_apart_by_nothing(house: House) -> None:
    wrong, unknown = house.login("ann", "wrong"), house.login("nobody", "wrong")
    assert_login_refused(wrong)
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert list(wrong.headers) == list(unknown.headers)
    times: dict[str, list[float]] = {"ann": [], "nobody": []}
    for number in range(15):
        for name, taken in times.items():
            before = house.server.processor_time()
            house.login(name, f"wrong {number}", f"127.0.1.{number + 1}")
            taken.append(house.server.processor_time() - before)
    ratio = statistics.median(times["ann"]) / statistics.median(times["nobody"])
    assert 0.5 < ratio < 2, times


def test_a_name_is_not_a_pattern_and_a_password_is_not_trimmed(house: House) -> None:
    attempts = (
        ("*", PASSWORDS["ann"]),
        ("ANN", PASSWORDS["ann"]),
        ("ann ", PASSWORDS["ann"]),
        ("ann\x00", PASSWORDS["ann"]),
        ("ann", PASSWORDS["ann"] + " "),
        ("ann", PASSWORDS["ann"] + "\n"),
        ("ann", PASSWORDS["ann"] + "\x00"),
        ("ann", PASSWORDS["ann"].upper()),
        ("ann", PASSWORDS["ann"][:-1]),
        ("ann", PASSWORDS["bob"]),
    )
    for number, (name, password) in enumerate(attempts):
        answer = house.login(name, password, f"127.0.2.{number + 1}")
        assert answer.status_code in (400, 401, 422), (name, password)


def test_passwords_are_argon2id_in_the_database_and_nowhere_else(house: House) -> None:
    with sqlite3.connect(house.server.state_dir / "accounts.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert len(re.findall(r"\$argon2id\$v=19\$m=\d{5,},t=[2-9]", dump)) >= 2
    for file in house.server.state_dir.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [password for password in PASSWORDS.values() if password.encode() in content], file


@pytest.mark.slow
def test_accounts_change_while_the_server_runs(house: House) -> None:
    user = house.server.command
    assert_login_refused(house.login("carl", "one secret"))
    user("user", "add", "carl", "--subscribe", "dashboard", "--password-stdin", input="one secret\n")
    assert house.login("carl", "one secret").status_code == 200
    user("user", "passwd", "carl", "--password-stdin", input="another secret\n")
    assert_login_refused(house.login("carl", "one secret"))
    assert house.login("carl", "another secret").status_code == 200
    user("user", "disable", "carl")
    unknown = house.login("nobody", "wrong")
    assert house.login("carl", "wrong").content == unknown.content
    disabled = house.login("carl", "another secret")
    assert disabled.status_code in (401, 403)
    assert set(disabled.json()) == {"error"}
    user("user", "enable", "carl")
    assert house.login("carl", "another secret").status_code == 200
    user("user", "remove", "carl")
    assert house.login("carl", "another secret").content == unknown.content


def test_passwords_of_any_characters_work(house: House) -> None:
    password = "  ünï😀 \t$1 'q' \"w\" "
    house.server.command("user", "add", "dora", "--password-stdin", input=password + "\n")
    assert house.login("dora", password).status_code == 200
    assert_login_refused(house.login("dora", password.strip()))


def test_the_token_command_puts_its_flags_into_the_claims_and_prints_only_the_token(house: House) -> None:
    printed = house.server.command(
        *[
            "token",
            "--kind",
            "stream",
            "--subject",
            "ann",
            "--session",
            "s-7",
            "--subscribe",
            "dashboard,desk.*",
            "--ttl",
            "30",
        ]
    )
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", printed)
    claims = claims_of(printed)
    assert (claims["sub"], claims["sid"]) == ("ann", "s-7")
    assert set(claims["sse"]["subscribe"]) >= {"dashboard", "desk.*"}
    assert claims["exp"] - claims["iat"] <= 30
    assert jwt.get_unverified_header(printed)["typ"] == "stream+jwt"
    assert house.open("desk.a", printed).status_code == 200
    access = house.server.command(*["token", "--publish", "alerts", "--admin"])
    claims = claims_of(access)
    assert claims["sse"]["admin"] is True
    assert claims["sse"]["publish"] == ["alerts"]
    assert 0 < claims["exp"] - claims["iat"] <= 600
    assert jwt.get_unverified_header(access)["typ"] == "at+jwt"
    assert house.publish("alerts", access).status_code == 201


@pytest.mark.parametrize(
    "flags",
    [
        "--ttl 0",
        "--ttl -5",
        "--ttl soon",
        "--ttl 1e400",
        "--kind refresh",
        "--subscribe **.a",
    ],
)
def test_a_bad_flag_makes_no_token(house: House, flags: str) -> None:
    done = command(house, "token", *flags.replace(" ", "=", 1).split())
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr
