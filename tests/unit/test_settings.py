"""The settings: whatever is wrong is one line that names the setting, and what comes later overrides the earlier."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from sse_app import Settings
from sse_app.core.channel_rules import ChannelRule
from sse_app.core.channels import ChannelPattern
from sse_app.core.errors import SettingsError
from sse_app.settings.channels import doubts, rules_of
from sse_app.settings.loader import load_settings, passed_over
from sse_app.settings.model import ChannelSettings, Section, plain
from tests.support.server_process import ROOT

Load = Callable[..., Settings]


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def of_type(wanted: type, kind: type[Section] = Settings, above: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a type."""
    for name, its in get_type_hints(kind).items():
        if its is wanted:
            yield above + name
        elif is_section(its):
            yield from of_type(wanted, its, f"{above}{name}.")


FLOATS = sorted(of_type(float))
WHOLE_NUMBERS = sorted(of_type(int))
SECTIONS = sorted(name for name, kind in get_type_hints(Settings).items() if is_section(kind))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load from a file's text, flags, and the environment."""

    def load(toml: str = "", flags: Mapping[str, object] | None = None, **environment: str) -> Settings:
        file = tmp_path / "settings.toml"
        file.write_text(toml)
        with monkeypatch.context() as here:
            for name, value in environment.items():
                here.setenv(f"SSE_APP_{name}", value)
            return load_settings(file, flags)

    return load


def nested(name: str, value: object) -> dict[str, Any]:
    """Return the arguments that say so of a setting with a dotted name."""
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def refusal(make: Callable[..., Settings], *arguments: Any, **named: Any) -> str:
    """Return the line with which it is refused."""
    with pytest.raises(SettingsError) as caught:
        make(*arguments, **named)
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


def test_what_is_introspected_here_is_what_there_is() -> None:
    assert {"history.age", "keepalive.ping_interval", "socket.user_timeout"} <= set(FLOATS)
    assert {"port", "limits.streams", "socket.backlog"} <= set(WHOLE_NUMBERS)
    assert {"limits", "log", "oidc"} <= set(SECTIONS)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1"])
def test_no_number_of_seconds_may_be_infinite_or_none_at_all(load: Load, name: str, number: str) -> None:
    for line in (
        refusal(Settings, **nested(name, float(number))),
        refusal(load, flags={name: number}),
        refusal(load, f"{name} = {number}"),
        refusal(load, **{name.upper().replace(".", "__"): number}),
    ):
        assert line.startswith(f"bad value for the setting {name}: ")
        assert number in line


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
@pytest.mark.parametrize("bad", [-1, 2**31 + 1, 10**30, 1.5, math.nan, True, None, "many", "", [], {}])
def test_whole_numbers_are_whole_and_within_their_bounds(name: str, bad: object) -> None:
    line = refusal(Settings, **nested(name, bad))
    assert line.startswith(f"bad value for the setting {name}: ")
    assert line.endswith(f"(got {bad!r})")


@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("limits.streams", 0, "expected int >= 1"),
        ("host", "", "length >= 1"),
        ("log.level", "loud", "one of debug, info, warning, error"),
        ("log.level", "a\nb", "one of debug, info, warning, error"),
        ("log.format", "xml", "one of auto, console, json"),
        ("event_log", "redis://localhost", "Redis is not supported"),
        ("event_log", "x\ny", "must be 'sqlite:'"),
        ("state_dir", 5, "expected str"),
        ("channels", "dashboard", "expected a list"),
        ("oidc.grants", ["a"], "expected a table"),
        ("oidc", {"issuer": "https://a"}, "audience and jwks_url"),
        ("oidc", {"issuer": "https://a", "audience": "b", "jwks_url": "ftp://a"}, "jwks_url"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_a_good_one(name: str, bad: object, why: str) -> None:
    line = refusal(Settings, **nested(name, bad))
    assert line.startswith(f"bad value for the setting {name}: ")
    assert why.lower() in line.lower()
    assert line.endswith(f"(got {bad!r})")


@pytest.mark.parametrize(
    ("name", "elements", "at"),
    [
        ("channels", ["a", "B"], 1),
        ("channels", ["a", "b", "sse_app.x"], 2),
        ("channels", ["a", 5], 1),
        ("channels", [["a"]], 0),
        ("channels", ["a", None], 1),
        ("channels", ["a", "user.{sub}"], 1),
        ("channels", ["a", {"public": True}], 1),
        ("channels", ["a", {}], 1),
        ("channels", [{"pattern": "a", "stored": False, "history_age": 1}], 0),
        ("channels", [{"pattern": "a", "stored": False, "history_size": 1}], 0),
        ("channels", [{"pattern": "a", "stored": False, "last_value_only": True}], 0),
        ("channels", [{"pattern": "a", "stored": False, "conflate": "x"}], 0),
        ("channels", [{"pattern": "a", "last_value_only": True, "history_size": 1}], 0),
        ("channels", ["a", {"pattern": "a", "last_value_only": True, "conflate": "x"}], 1),
        ("cors_origins", ["http://a", "http://a/path"], 1),
        ("hosts", ["*", "a.example", "*.b.example", "c.example:80"], 3),
        ("hosts", ["https://a.example"], 0),
        ("hosts", ["a.*.example"], 0),
        ("hosts", ["localhost", ""], 1),
        ("hosts", ["bücher.example"], 0),
        ("trusted_proxies", ["10.0.0.0/8", "10.0.0.1/8"], 1),
        ("metrics.allow", ["127.0.0.1\n"], 0),
        ("auth.own_channels", ["user.{sub}", "user.{name}"], 1),
    ],
)
def test_a_bad_element_of_a_list_is_named_by_its_place(name: str, elements: list[object], at: int) -> None:
    line = refusal(Settings, **nested(name, elements))
    assert line.startswith(f"bad value for the setting {name}[{at}]: ")
    assert line.endswith(f"(got {elements[at]!r})")


@pytest.mark.parametrize(
    ("member", "bad", "why"),
    [
        ("pattern", "B", "not a channel pattern"),
        ("pattern", 5, "expected str"),
        ("pattern", "sse_app.x", "the server's own"),
        ("history_size", 0, ">= 1"),
        ("history_size", 2**31 + 1, "<= 2147483648"),
        ("history_size", "many", "expected int"),
        ("history_age", 0, "> 0"),
        ("history_age", math.inf, "expected float"),
        ("history_age", math.nan, "expected float"),
        ("public", "perhaps", "expected bool"),
        ("stored", [], "expected bool"),
        ("last_value_only", 5, "expected bool"),
        ("types", [], "length >= 1"),
        ("types", "price", "expected a list"),
        ("types", ["t"] * 257, "length <= 256"),
        ("conflate", "", "length >= 1"),
        ("conflate", "x" * 256, "length <= 255"),
        ("conflate", ["symbol"], "expected str"),
    ],
)
def test_a_bad_value_in_a_table_of_channels_is_named_with_its_place(
    load: Load, member: str, bad: object, why: str
) -> None:
    tables = ["a", {"pattern": "b"}, {"pattern": "c", member: bad}]
    for line in (refusal(Settings, channels=tables), refusal(load, CHANNELS=json.dumps(tables))):
        assert line.startswith(f"bad value for the setting channels[2].{member}: "), line
        assert why in line
        assert line.endswith(f"(got {bad!r})")


def test_a_bad_event_type_in_a_table_of_channels_is_named(load: Load) -> None:
    line = refusal(load, '[[channels]]\npattern = "a"\ntypes = ["price", "ping"]')
    assert line.startswith("bad value for the setting channels[0].types[1]: ")
    assert "reserved" in line


def test_an_unknown_member_of_a_table_of_channels_is_named_with_the_one_that_was_meant(load: Load) -> None:
    line = refusal(load, '[[channels]]\npattern = "a"\n[[channels]]\npattern = "b"\nhistroy_age = 1')
    assert line == "unknown setting: channels[1].histroy_age (did you mean channels[1].history_age?)"
    assert refusal(load, CHANNELS='[{"pattern": "a", "quux": 1}]') == "unknown setting: channels[0].quux"


def test_channels_are_tables_in_a_file_and_a_mixed_list_in_the_environment(load: Load) -> None:
    toml = """
        [[channels]]
        pattern = "prices.**"
        history_size = 10
        history_age = 60
        public = true
        types = ["price", "halt"]
        conflate = "symbol"
        [[channels]]
        pattern = "state.*"
        last_value_only = true
        [[channels]]
        pattern = "cursors.*"
        stored = false
    """
    rules = rules_of(load(toml).channels)
    assert rules.texts == ("prices.**", "state.*", "cursors.*")
    prices, state, cursors = rules.rules
    assert prices[1:] == (10, 60.0, True, frozenset(("price", "halt")), True, "symbol")
    assert state[1:] == (1, None, False, None, True, "")
    assert cursors[1:] == (None, None, False, None, False, "")
    mixed: list[object] = ["a", {"pattern": "b.*", "public": True}, "c"]
    settings = load(toml, CHANNELS=json.dumps(mixed))
    assert plain(settings)["channels"] == mixed
    assert Settings(**plain(settings)) == settings
    assert [rule.public for rule in rules_of(settings.channels).rules] == [False, True, False]
    assert rules_of(Settings(channels=("a", ChannelSettings(pattern="b"))).channels).names == ("a", "b")


def test_the_plain_list_says_no_more_than_that_channels_are_configured(load: Load) -> None:
    settings = load('channels = ["a", "b.*", "a"]')
    assert plain(settings)["channels"] == ["a", "b.*", "a"]
    rules = [ChannelRule(ChannelPattern(text)) for text in ("a", "b.*", "a")]
    assert list(rules_of(settings.channels).rules) == rules


@pytest.mark.parametrize(
    ("channels", "never"),
    [
        (["a", "b", "a"], [2]),
        (["user.**", "user.*.orders"], [1]),
        (["*", {"pattern": "a", "public": True}], [1]),
        ([{"pattern": "**", "public": True}, "a"], [1]),
        (["a.*", "a.**", "a.b.c", {"pattern": "a.b.c", "stored": False}], [3]),
        (["**", "dashboard", "alerts"], []),  # these are listed in the public status
        (["dashboard", "*", "**"], []),
        (["a.*", "a"], []),
    ],
)
def test_channels_that_never_count_are_doubted(channels: list[object], never: list[int]) -> None:
    values: dict[str, Any] = {"channels": channels, "auth": {"own_channels": []}}
    lines = list(doubts(Settings(**values)))
    assert [int(line.partition("]")[0].removeprefix("channels[")) for line in lines] == never
    assert all("never counts" in line for line in lines)


@pytest.mark.parametrize(
    ("channels", "doubted"),
    [
        ([{"pattern": "**", "public": True}], True),
        ([{"pattern": "user.*.news", "public": True}, "user.**"], True),
        (["user.*.orders", {"pattern": "**", "public": True}], True),
        (["user.**", {"pattern": "**", "public": True}], False),
        (["dashboard", {"pattern": "news.**", "public": True}], False),
    ],
)
def test_public_channels_that_are_a_users_own_are_doubted(channels: list[object], doubted: bool) -> None:
    values: dict[str, Any] = {"channels": channels}
    lines = list(doubts(Settings(**values)))
    assert bool(lines) == doubted
    assert all("user.{sub}.**" in line for line in lines)


def test_what_is_wrong_with_a_group_is_said_with_the_groups() -> None:
    grants = {"team": {"subscribe": ["a", "B"]}}
    line = refusal(Settings, oidc={"grants": grants})
    assert line.startswith("bad value for the setting oidc.grants[...].subscribe[1]: ")
    assert "'team'" in line


@pytest.mark.parametrize(
    "name",
    [
        "quux",
        pytest.param("cls", marks=pytest.mark.slow),
        "self",
        pytest.param("values", marks=pytest.mark.slow),
        pytest.param("kind", marks=pytest.mark.slow),
        "",
    ],
)
def test_an_unknown_setting_is_named_at_every_level(load: Load, name: str) -> None:
    said = name or "(no name)"
    assert refusal(Settings, **{name: 1}) == f"unknown setting: {said}"
    assert refusal(load, json.dumps(name) + " = 1") == f"unknown setting: {said}"
    assert refusal(load, flags={name: 1}) == f"unknown setting: {said}"
    for section in SECTIONS:
        assert refusal(Settings, **{section: {name: 1}}) == f"unknown setting: {section}.{said}"
        assert refusal(load, flags={f"{section}.{name}": 1}) == f"unknown setting: {section}.{said}"
    grants = {"team": {name: 1}}
    assert refusal(Settings, oidc={"grants": grants}) == f"unknown setting: oidc.grants[...].{said}"


def test_an_unknown_setting_with_a_line_break_is_named_in_one_line(load: Load) -> None:
    assert refusal(load, '"a\\nb" = 1') == r"unknown setting: a\nb"
    assert refusal(load, flags={"limits.a\nb": 1}) == r"unknown setting: limits.a\nb"


@pytest.mark.parametrize(
    "variable", ["QUUX", "LIMITS__QUUX", "PORT__X", "LIMITS__STREAMS__X", "LIMITS__", "_"]
)
def test_an_unknown_variable_is_named(load: Load, variable: str) -> None:
    assert refusal(load, **{variable: "1"}) == f"unknown setting in the environment: SSE_APP_{variable}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("KEEPALIVE_PING_INTERVAL", "KEEPALIVE__PING_INTERVAL"),
        ("KEEPALIVE__PINGINTERVAL", "KEEPALIVE__PING_INTERVAL"),
        ("KEEPALIV__PING_INTERVAL", "KEEPALIVE__PING_INTERVAL"),
        ("PING_INTERVAL", "KEEPALIVE__PING_INTERVAL"),
        ("PRT", "PORT"),
        ("STATEDIR", "STATE_DIR"),
        ("STREAMS_PER_USER", "LIMITS__STREAMS_PER_USER"),
        ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("LOG__PORT", "PORT"),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_one_that_was_meant(
    load: Load, given: str, meant: str
) -> None:
    line = refusal(load, **{given: "1"})
    wanted = f"unknown setting in the environment: SSE_APP_{given} (did you mean SSE_APP_{meant}?)"
    assert line == wanted
    dotted, right = (name.lower().replace("__", ".") for name in (given, meant))
    section = right.partition(".")[0]  # where that is mistyped, it alone is named
    for line in (refusal(load, flags={dotted: "1"}), refusal(load, f"{dotted} = 1")):
        assert line.endswith((f"(did you mean {right}?)", f"(did you mean {section}?)"))


FOREIGN = {
    # Kubernetes, for the Services sse-app, sse-app-metrics and sse-app-port
    "SERVICE_HOST": "10.96.0.12",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "SERVICE_PORT_HTTP_ADMIN": "8001",
    "PORT": "tcp://10.96.0.12:8000",
    "PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.96.0.12",
    "PORT_8001_UDP": "udp://10.96.0.12:8001",
    "PORT_8001_UDP_ADDR": "10.96.0.12",
    "METRICS_SERVICE_HOST": "10.96.0.13",
    "METRICS_SERVICE_PORT_METRICS": "9100",
    "METRICS_PORT": "tcp://10.96.0.13:9100",
    "METRICS_PORT_9100_TCP_ADDR": "10.96.0.13",
    "LOG_PORT": "udp://[fd00::1]:514",
    "PORT_PORT": "tcp://10.96.0.14:1",
    "LIMITS_SERVICE_HOST": "10.96.0.15",
    # a link of Docker
    "NAME": "/page/sse_app",
    "ENV_PATH": "/usr/bin",
    "1_PORT": "tcp://172.17.0.2:8000",
}


def test_what_kubernetes_and_docker_name_after_us_is_passed_over(load: Load) -> None:
    assert load(**FOREIGN) == Settings()
    assert load("port = 1", **FOREIGN).port == 1


def test_what_is_passed_over_is_told_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SITE", "PORT_8000_TCP", "HOST"):
        monkeypatch.setenv(f"SSE_APP_{name}", "x")
    assert passed_over() == ["SSE_APP_PORT_8000_TCP", "SSE_APP_SITE"]


def test_the_proxies_variables_may_stand_in_the_same_environment(load: Load) -> None:
    named = {
        name
        for file in ("Caddyfile", "nginx/sse_app.conf")
        for name in re.findall(r"SSE_APP_(\w+)", (ROOT / "config" / file).read_text())
    }
    assert "SITE" in named
    assert load(**dict.fromkeys(named, "x")) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "tcp:/10.0.0.1"),
        ("PORTS", "tcp://10.0.0.1:1"),
        ("HOST_", "tcp://10.0.0.1:1"),
        ("SERVICE", "x"),
        ("SERVICE_HOSTS", "x"),
        ("PORT_HTTP_TCP", "x"),
        ("PORT_8000_TCPP", "x"),
        ("LIMITS__PORT_8000_TCP", "tcp://10.0.0.1:1"),
        ("LIMITS__SERVICE_HOST", "x"),
        ("NAME", "x"),
        ("SITES", "x"),
    ],
)
def test_what_only_looks_like_it_is_still_refused(load: Load, variable: str, value: str) -> None:
    assert "setting" in refusal(load, **{variable: value})


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_no_table_is_named(load: Load, section: str) -> None:
    beginning = f"bad value for the setting {section}: expected a table"
    wrong: list[object] = [5, "x", [], None, True]
    for bad in wrong:
        assert refusal(Settings, **{section: bad}).startswith(beginning)
    assert refusal(load, f"{section} = 5").startswith(beginning)
    assert refusal(load, flags={section: "5"}).startswith(beginning)
    assert refusal(load, **{section.upper(): "5"}).startswith(beginning)


def test_a_setting_that_is_also_taken_for_a_section_is_named(load: Load) -> None:
    for flags in ({"port": 1, "port.x": 1}, {"port.x": 1}):
        line = refusal(load, flags=flags)
        assert line.startswith("bad value for the setting port: expected int, got a table")


@pytest.mark.parametrize("variable", ["CHANNELS", "LIMITS", "OIDC__GRANTS"])
@pytest.mark.parametrize("text", ["", "{", "a,b", "[" * 100_000, "1" * 5000])
def test_a_variable_that_must_be_json_is_named(load: Load, variable: str, text: str) -> None:
    name = variable.lower().replace("__", ".")
    line = refusal(load, **{variable: text})
    assert line == f"bad value for the setting {name}: SSE_APP_{variable} must be JSON"


@pytest.mark.parametrize(
    "toml", ["not toml", "port = 1\nport = 2", "port = " + "1" * 5000, "channels = " + "[" * 5000]
)
def test_a_file_that_cannot_be_read_is_named(load: Load, tmp_path: Path, toml: str) -> None:
    assert refusal(load, toml).startswith(f"{tmp_path}/settings.toml is not TOML: ")
    for path in (tmp_path / "nowhere.toml", tmp_path):
        assert refusal(load_settings, path).startswith(f"cannot read the settings file {path}: ")
    (tmp_path / "latin.toml").write_bytes(b"host = '\xff'")
    assert refusal(load_settings, tmp_path / "latin.toml").startswith(f"{tmp_path}/latin.toml is not TOML: ")


@pytest.mark.parametrize("name", ["port", "host", "state_dir", "auth.issuer", "oidc.audience"])
def test_a_text_that_is_not_utf_8_is_refused_by_the_name_of_its_setting(load: Load, name: str) -> None:
    variable = name.upper().replace(".", "__")
    for line in (refusal(load, **{variable: "\udcff"}), refusal(load, flags={name: "\udcff"})):
        assert line == rf"bad value for the setting {name}: must be UTF-8 (got '\udcff')"


def test_a_text_that_is_not_utf_8_is_found_within_lists_and_tables(load: Load) -> None:
    line = refusal(load, HOSTS='["a", "\\ud800"]')
    assert line == r"bad value for the setting hosts[1]: must be UTF-8 (got '\ud800')"
    line = refusal(load, OIDC='{"grants": {"\\ud800": {}}}')
    assert line == r"unknown setting: oidc.grants.\ud800"


def test_flags_come_before_the_environment_and_that_before_the_file(load: Load) -> None:
    toml = "port = 1\n[limits]\nstreams = 1\nbody_bytes = 1\nbatch_events = 1\n"
    flags = {"limits.streams": "3", "port": "3"}
    settings = load(toml, flags, PORT="2", LIMITS__STREAMS="2", LIMITS__BODY_BYTES="2")
    limits = settings.limits
    assert (settings.port, limits.streams, limits.body_bytes, limits.batch_events) == (3, 3, 2, 1)
    assert limits.streams_per_user == Settings().limits.streams_per_user


def test_a_section_in_one_variable_comes_before_its_single_settings_and_over_the_file(load: Load) -> None:
    section = {"streams": 2, "body_bytes": 2}
    limits = load(
        "[limits]\nstreams = 1\nbatch_events = 1", LIMITS=json.dumps(section), LIMITS__BODY_BYTES="3"
    ).limits
    assert (limits.streams, limits.body_bytes, limits.batch_events) == (2, 3, 1)


def test_a_list_replaces_the_one_below_it(load: Load) -> None:
    assert load('channels = ["a", "b"]', CHANNELS='["c"]').channels == ("c",)


def test_settings_made_directly_are_checked_and_frozen() -> None:
    assert refusal(Settings, port=-1).startswith("bad value for the setting port: ")
    texts: dict[str, Any] = {"port": "1", "limits": {"streams": "5"}, "state_dir": "there"}
    settings = Settings(**texts)
    assert (settings.port, settings.limits.streams, settings.state_dir) == (1, 5, Path("there"))
    for section, name in ((settings, "port"), (settings.limits, "streams")):
        with pytest.raises(AttributeError):
            setattr(section, name, 7)
    assert (settings.port, settings.limits.streams) == (1, 5)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_made_directly_is_checked_as_well(section: str) -> None:
    kind = get_type_hints(Settings)[section]
    assert refusal(kind, quux=1) == "unknown setting: quux"
    assert Settings(**{section: kind()}) == Settings()


def test_settings_written_plainly_are_the_same_settings() -> None:
    sections: dict[str, Any] = {
        "metrics": {"allow": ["::1/128"]},
        "oidc": {"grants": {"g": {"publish": ["a"]}}},
    }
    settings = Settings(port=5, **sections)
    assert Settings(**plain(settings)) == settings
