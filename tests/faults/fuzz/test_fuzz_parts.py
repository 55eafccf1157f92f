"""Made up ids, patterns, streams and settings, given to the parts that read them: read rightly, or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from sse_app.client.event_stream import EventStreamParser, Sent
from sse_app.core.channels import ChannelPattern, parse_channel, parse_channels
from sse_app.core.errors import InvalidChannel, SettingsError
from sse_app.core.events import EventId
from sse_app.settings.loader import load_settings
from sse_app.settings.model import plain
from tests.faults.fuzz.made_up import mutations
from tests.faults.fuzz.reference import covers, is_channel, is_pattern, matches, overlap
from tests.support.server_process import clean_environment, run_program
from tests.support.sse_reader import EventStreamReader


@pytest.mark.ci
@pytest.mark.parametrize(
    "read", [EventId.parse, parse_channel, ChannelPattern, lambda text: parse_channels(text, 5)]
)
@hypothesis(max_examples=500, deadline=None)
@given(text=st.one_of(st.text(), st.from_regex(r"[a-z.*,0-9-]{0,40}", fullmatch=True)))
def test_an_id_a_channel_or_a_pattern_is_read_or_refused(read: Callable[[str], object], text: str) -> None:
    with suppress(InvalidChannel):
        read(text)


TEXTS = st.lists(
    st.sampled_from(["a", "b-1", "*", "**", "A", "", "a" * 64, "a" * 65]), min_size=1, max_size=3
).map(".".join)
NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)
PATTERNS = st.builds(
    lambda segments, end: ".".join([*segments, *end]),
    st.lists(st.sampled_from("ab*"), max_size=3),
    st.sampled_from([["a"], ["*"], ["**"]]),
)


@pytest.mark.ci
@hypothesis(max_examples=300, deadline=None)
@given(TEXTS)
def test_names_and_patterns_are_those_of_the_contract(text: str) -> None:
    def takes(read: Callable[[str], object]) -> bool:
        try:
            read(text)
        except InvalidChannel:
            return False
        return True

    assert takes(parse_channel) is is_channel(text)
    assert takes(ChannelPattern) is is_pattern(text)
    assert takes(lambda text: parse_channels(text, 5)) is (
        is_channel(text) or ("*" in text and is_pattern(text))
    )


@pytest.mark.ci
@hypothesis(max_examples=300, deadline=None)
@given(PATTERNS, PATTERNS, NAMES)
def test_what_patterns_match_cover_and_share_is_found_by_trying_all_channels_too(
    one: str, other: str, name: str
) -> None:
    assert ChannelPattern(one).matches(name) is matches(one, name)
    assert ChannelPattern(one).covers(ChannelPattern(other)) is covers(one, other)
    assert ChannelPattern(one).overlaps(ChannelPattern(other)) is overlap(one, other)


LINES = (
    *(b"data: a\n", b"data:b\r\n", b"data\r", b"\n", b"\r\n", b"\r", b"id: e-1\n", b"id: \0\n", b"id\n"),
    *(b"event: x\n", b"event:\n", b"retry: 10\n", b"retry: 1x\n", b"retry: " + b"9" * 4000 + b"\n"),
    *(b": c\n", b"\xef\xbb\xbf", b"\xff", b" "),
)
STREAMS = st.binary(max_size=200) | st.lists(st.sampled_from(LINES), max_size=12).map(b"".join)


@pytest.mark.ci
@hypothesis(max_examples=300, deadline=None)
@given(STREAMS.flatmap(mutations), st.lists(st.integers(0, 400)))
def test_the_client_reads_a_mutated_stream_cut_anywhere_as_another_reader_does(
    stream: bytes, cuts: list[int]
) -> None:
    """The other one is that of the tests; neither has been made after the other."""
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    parser, reader = EventStreamParser(), EventStreamReader(strict=False)
    sent: list[Sent] = []
    read = []
    for begin, end in pairwise(places):
        sent += parser.feed(stream[begin:end])
        read += reader.feed(stream[begin:end])
    assert [(one.type, one.data, one.id) for one in sent if one.data is not None] == [
        (one.type, one.data, one.id) for one in read
    ]
    assert read == EventStreamReader(strict=False).feed(stream)
    assert parser.retry is None or 0 <= parser.retry <= 86_400_000


def refusal_of(read: Callable[[], object]) -> str:
    """Return why settings are refused; empty where they are in force."""
    try:
        read()
    except SettingsError as error:
        return str(error) or "nothing is said"
    return ""


KEYS = st.sampled_from(
    [
        *("port", "host", "workers", "channels", "keepalive", "limits"),
        *("history", "auth", "log", "event_log", "node", "x"),
    ]
)
TREES = st.recursive(
    st.booleans()
    | st.integers()
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.sampled_from(["size", "ping_interval"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.ci
@hypothesis(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_settings_are_in_force_or_refused_in_one_line(values: dict[str, Any]) -> None:
    assert "\n" not in refusal_of(lambda: load_settings(None, values))


GOOD = b"""# a comment
port = 8123
host = "127.0.0.1"
channels = ["alerts", "user.**", { pattern = "ticks.*", conflate = "data.symbol" }]

[keepalive]
ping_interval = 15.5

[limits]
streams_per_user = 7
body_bytes = 65536

[log]
level = "debug"
"""
SCALARS: dict[str, Any] = {
    "port": 8123,
    "keepalive.ping_interval": 15.5,
    "limits.streams_per_user": 7,
    "limits.body_bytes": 65_536,
    "log.level": "debug",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A settings file."""
    return tmp_path_factory.mktemp("settings") / "sse_app.toml"


@pytest.mark.ci
@hypothesis(max_examples=400, deadline=None, suppress_health_check=[*HealthCheck])
@given(content=mutations(GOOD))
def test_a_mutated_settings_file_is_in_force_or_refused_in_one_line(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refusal = refusal_of(lambda: load_settings(file))
    assert "\n" not in refusal
    if not refusal:  # what the file says is what is in force, by another reader of TOML
        said = msgspec.toml.decode(content)
        in_force = plain(load_settings(file))
        for name in SCALARS:
            section, _, key = name.rpartition(".")
            there, now = (said.get(section, {}), in_force[section]) if section else (said, in_force)
            if key in there:
                assert now[key] == there[key], (name, content)


VARIABLES = st.sampled_from(
    ["PORT", "KEEPALIVE__PING_INTERVAL", "LIMITS__STREAMS_PER_USER", "CHANNELS", "LIMITS", "HOST", "x"]
)
TEXTS_OF_VARIABLES = st.one_of(
    st.sampled_from(
        [
            *("1", "-1", "1e3", "", " 1", "0x10", "٣", "nan", "inf"),
            *("[]", '["a"]', '{"streams": 5}', "{", "\n", "[" * 3000),
        ]
    ),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
)


@pytest.mark.ci
@hypothesis(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(variables=st.dictionaries(VARIABLES, TEXTS_OF_VARIABLES, max_size=2))
@example(variables={"LIMITS__STREAMS_PER_USER": "5"})
def test_made_up_variables_are_in_force_or_refused_in_one_line(file: Path, variables: dict[str, str]) -> None:
    file.write_bytes(GOOD)
    with patch.dict(os.environ, {f"SSE_APP_{name}": value for name, value in variables.items()}):
        refusal = refusal_of(lambda: load_settings(file))
        assert "\n" not in refusal
        if not refusal:
            in_force = plain(load_settings(file))
            if (port := variables.get("PORT")) is not None:
                assert in_force["port"] == float(port)
            if (interval := variables.get("KEEPALIVE__PING_INTERVAL")) is not None:
                assert in_force["keepalive"]["ping_interval"] == float(interval)


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.long)])
def test_check_config_says_of_a_mutated_file_that_it_is_good_or_what_is_wrong_in_one_line(
    tmp_path: Path, count: int
) -> None:
    file = tmp_path / "sse_app.toml"
    environment = clean_environment(
        SSE_APP_STATE_DIR=str(tmp_path / "state"),
        SSE_APP_HOST="127.0.0.1",  # else it may try to listen at a name that was made up
        SSE_APP_PORT="0",
    )

    @hypothesis(max_examples=count, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(mutations(GOOD))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        done = run_program("check-config", "--config", str(file), environment=environment)
        assert done.returncode in (0, 1, 2), done
        assert "Traceback" not in done.stdout + done.stderr, done
        if done.returncode:
            assert re.fullmatch(r"sse-app: [^\n]+\n", done.stderr), done
            assert refusal_of(lambda: load_settings(file)), done

    check()
