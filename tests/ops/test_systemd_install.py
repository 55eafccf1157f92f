"""What ``systemd install`` writes and refuses, and how ``systemd check`` finds that a unit is of other days."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_app.cli.unit_texts import SEVERAL, SINGLE, render
from tests.support.programs import require
from tests.support.server_process import ROOT, clean_environment, run_program
from tests.support.service import Service
from tests.support.systemd_manager import Manager

USER = "daemon"
"""A user that each system has."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's access is looked at")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is in none of those that a service does not see, and that all may enter."""
    path = Path(tempfile.mkdtemp(prefix="sse-app-test-", dir="/opt"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def systemd(
    action: str, units: Path, *words: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    where = ["--unit-dir", str(units)]
    if "--user" not in words and "--run-as" not in words:
        where += ["--run-as", USER]
    return run_program("systemd", action, *where, *words, environment=clean_environment(**variables), cwd=cwd)


@pytest.mark.parametrize(("workers", "names"), [(1, SINGLE), (4, SEVERAL)])
def test_the_units_in_the_repository_are_those_that_are_written(workers: int, names: tuple[str, ...]) -> None:
    texts = render(
        command=["/opt/sse_app/current/bin/python", "-m", "sse_app", "serve"],
        config="",
        listen=["127.0.0.1:8000"],
        user="sse_app",
        home=False,
        calls_out=False,
        workers=workers,
    )
    assert texts == {name: (ROOT / "config/systemd" / name).read_text() for name in names}
    assert {path.name for path in (ROOT / "config/systemd").iterdir()} == {*SINGLE, *SEVERAL}


def next_steps(units: Path, *words: str) -> list[str]:
    done = systemd("install", units, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("next: ")[2].strip().split(" && ")


@pytest.mark.slow
def test_the_operator_is_told_how_to_get_from_each_number_of_workers_to_each_other(tmp_path: Path) -> None:
    single, begin = "sse-app.socket sse-app.service", "systemctl enable --now sse-app.target"
    reload, restart = "systemctl daemon-reload", "systemctl restart sse-app.target"
    assert next_steps(tmp_path) == [reload, f"systemctl enable --now {single}"]
    removal = f"rm {tmp_path}/sse-app.socket {tmp_path}/sse-app.service"
    from_one = [f"systemctl disable --now {single}", removal, reload, begin]
    assert next_steps(tmp_path, "--workers", "2") == from_one
    assert next_steps(tmp_path, "--workers", "2") == from_one  # as long as it is not done
    for name in SINGLE:
        (tmp_path / name).unlink()
    assert next_steps(tmp_path, "--workers", "2") == [reload, begin]
    assert next_steps(tmp_path, "--set", "workers=4") == [reload, restart, begin]
    assert next_steps(tmp_path, "--workers", "2") == [
        reload,
        "systemctl stop --job-mode=ignore-dependencies sse-app@3.socket sse-app@4.socket",
        "systemctl stop sse-app@3.service sse-app@4.service",
        restart,
        begin,
    ]
    assert next_steps(tmp_path) == [
        "systemctl disable sse-app.target",
        "systemctl stop sse-app.target 'sse-app@*'",
        f"rm {' '.join(str(tmp_path / name) for name in SEVERAL)}",
        reload,
        f"systemctl enable --now {single}",
    ]


def test_check_finds_another_number_of_workers_and_units_of_the_other_kind(tmp_path: Path) -> None:
    assert systemd("install", tmp_path, "--workers", "2").returncode == 0
    assert systemd("check", tmp_path, "--workers", "2").returncode == 0
    other = systemd("check", tmp_path, "--workers", "3")
    assert other.returncode == 1
    assert "+Wants=sse-app@3.socket sse-app@3.service" in other.stdout.splitlines()
    assert "+Environment=SSE_APP_WORKERS=3" in other.stdout.splitlines()
    alone = systemd("check", tmp_path)
    assert alone.returncode == 1
    assert f"{tmp_path}/sse-app.target is of workers, and there is to be one process" in alone.stdout
    assert systemd("install", tmp_path).returncode == 0
    both = systemd("check", tmp_path, "--workers", "2")
    assert both.returncode == 1
    assert f"{tmp_path}/sse-app.service is of one process, and the settings ask for workers" in both.stdout


@pytest.mark.parametrize(
    "words", [("--workers", "0"), ("--workers", "x"), ("--workers", "2", "--event-log", "memory:")]
)
def test_workers_that_there_cannot_be_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = systemd("install", tmp_path / "units", *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "workers" in done.stderr
    assert not (tmp_path / "units").exists()


@as_root
def test_the_settings_of_a_checkout_do_not_get_into_a_unit(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "config").mkdir(parents=True)
    (checkout / "config/sse_app.toml").write_text('port = 1234\n[oidc]\nissuer = "x"\n')  # not even read
    done = systemd("install", tmp_path / "units", cwd=checkout)
    assert done.returncode == 0, done.stderr
    service, socket = ((tmp_path / "units" / f"sse-app.{kind}").read_text() for kind in ("service", "socket"))
    if not Path("/etc/sse_app/sse_app.toml").exists():
        assert "SSE_APP_CONFIG" not in service
        assert "ListenStream=127.0.0.1:8000\n" in socket
        assert "settings: the defaults, until there is a /etc/sse_app/sse_app.toml" in done.stdout
    assert str(checkout) not in service
    for words, variables in (
        (("--config", "config/sse_app.toml"), {}),
        ((), {"SSE_APP_CONFIG": "config/sse_app.toml"}),
    ):
        refused = systemd("install", tmp_path / "other", *words, cwd=checkout, **variables)
        assert refused.returncode == 1
        assert "no relative path" in refused.stderr
    assert not (tmp_path / "other").exists()


@as_root
def test_settings_that_the_services_user_cannot_read_are_refused(tmp_path: Path, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir()
    for file in (folder / "private.toml", closed / "settings.toml", folder / "good.toml"):
        file.write_text("port = 8123\n")
        file.chmod(0o644)
    (folder / "private.toml").chmod(0o600)
    closed.chmod(0o700)
    (folder / "link.toml").symlink_to(closed / "settings.toml")
    (tmp_path / "hidden.toml").write_text("port = 8123\n")
    for file, obstacle in (
        (folder / "private.toml", folder / "private.toml"),
        (closed / "settings.toml", closed),
        (folder / "link.toml", closed),
        (tmp_path / "hidden.toml", Path("/tmp")),
        (folder / "absent.toml", folder / "absent.toml"),
    ):
        done = systemd("install", tmp_path / "units", "--config", str(file))
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert str(obstacle) in line
        assert not (tmp_path / "units").exists()
    done = systemd("install", tmp_path / "units", "--config", str(folder / "good.toml"))
    assert done.returncode == 0, done.stderr
    assert f'"SSE_APP_CONFIG={folder / "good.toml"}"' in (tmp_path / "units/sse-app.service").read_text()
    assert "ListenStream=127.0.0.1:8123\n" in (tmp_path / "units/sse-app.socket").read_text()


@as_root
def test_an_interpreter_in_a_home_is_seen_by_the_service_also_through_a_link(
    tmp_path: Path, folder: Path
) -> None:
    with tempfile.TemporaryDirectory(dir="/root") as home:
        shutil.copy(Path(sys.executable).resolve(), Path(home) / "python")
        (folder / "python").symlink_to(Path(home) / "python")
        done = subprocess.run(
            [
                str(folder / "python"),
                "-m",
                "sse_app",
                "systemd",
                "install",
                *("--run-as", USER, "--unit-dir", str(tmp_path / "units")),
            ],
            env=clean_environment(PYTHONPATH=f"{ROOT}:{sysconfig.get_path('purelib')}"),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    service = (tmp_path / "units/sse-app.service").read_text()
    assert f"ExecStart={folder}/python -m sse_app serve\n" in service
    assert "ProtectHome=read-only\n" in service
    assert f"the user {USER} has no access to /root" in done.stderr


@as_root
@pytest.mark.parametrize(
    "what",
    [
        "script",
        pytest.param("package", marks=pytest.mark.slow),
        pytest.param("auth.keys_dir", marks=pytest.mark.slow),
        pytest.param("auth.keys_seal", marks=pytest.mark.slow),
    ],
)
def test_what_else_the_service_needs_in_a_home_is_seen_by_it(tmp_path: Path, folder: Path, what: str) -> None:
    shutil.copy(Path(sys.executable).resolve(), folder / "python")  # which is in no home
    command, more, path = [str(ROOT / "main.py")], [], sysconfig.get_path("purelib")
    with tempfile.TemporaryDirectory(dir="/root") as home:
        if what == "script":
            (Path(home) / "main.py").symlink_to(ROOT / "main.py")
            command = [f"{home}/main.py"]
        elif what == "package":  # as installed with "pip install --editable"
            (Path(home) / "sse_app").symlink_to(ROOT / "sse_app")
            command, path = ["-m", "sse_app"], f"{home}:{path}"
        else:
            more = ["--set", f"{what}={home}/keys"]
        done = subprocess.run(
            [
                *(str(folder / "python"), *command, "systemd", "install", *more),
                *("--run-as", USER, "--unit-dir", str(tmp_path / "units")),
            ],
            env=clean_environment(PYTHONPATH=path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert "ProtectHome=read-only\n" in (tmp_path / "units/sse-app.service").read_text()


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("/srv/log/events.db", "ReadWritePaths=-/srv/log"),
        pytest.param(
            '/srv/50% of "it\'s" \\log/events.db',
            """ReadWritePaths='-/srv/50%% of "it'"'"'s" \\\\log'""",
            marks=pytest.mark.slow,
        ),
        pytest.param("/home/ann/events.db", "ReadWritePaths=-/home/ann", marks=pytest.mark.slow),
        pytest.param("/var/lib/sse_app/log.db", "", marks=pytest.mark.slow),
        pytest.param("", "", marks=pytest.mark.slow),
    ],
)
def test_the_service_may_write_to_the_folder_of_a_log_that_is_elsewhere(
    tmp_path: Path, log: str, line: str
) -> None:
    require("systemd-analyze")
    assert systemd("install", tmp_path, "--set", f"event_log=sqlite:{log}").returncode == 0
    unit = tmp_path / "sse-app.service"
    lines = unit.read_text().splitlines()
    assert [found for found in lines if found.startswith("ReadWritePaths=")] == [line] * bool(line)
    if log.startswith("/home/"):
        assert "ProtectHome=read-only" in lines
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_a_user_that_is_not_there_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    done = systemd("install", tmp_path / "units", "--run-as", "no-such-user")
    assert done.returncode == 1
    assert "useradd --system no-such-user" in done.stderr
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize(
    ("host", "listens"),
    [
        pytest.param("127.0.0.1", ["127.0.0.1:8000"], marks=pytest.mark.slow),
        pytest.param("0.0.0.0", ["0.0.0.0:8000"], marks=pytest.mark.slow),
        ("::", ["[::]:8000"]),
        pytest.param("::1", ["[::1]:8000"], marks=pytest.mark.slow),
        ("localhost", ["127.0.0.1:8000"]),
        ("fe80::1%lo", ["[fe80::1]:8000%%lo"]),
    ],
)
def test_the_socket_unit_has_addresses_also_where_the_host_is_a_name(
    tmp_path: Path, host: str, listens: list[str]
) -> None:
    require("systemd-analyze")
    assert systemd("install", tmp_path, "--host", host).returncode == 0
    lines = (tmp_path / "sse-app.socket").read_text().splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith("ListenStream=")]
    assert set(found) >= set(listens)
    assert "BindIPv6Only=both" in lines
    units = [str(tmp_path / name) for name in ("sse-app.socket", "sse-app.service")]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.slow
def test_a_command_with_signs_that_systemd_would_expand_is_run_as_it_is(
    manager: Manager, tmp_path: Path
) -> None:
    program, said = tmp_path / "100%n $HOME", tmp_path / "said"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {said}\n")
    program.chmod(0o755)
    words = ["50%h", "$HOME", "${HOME}", r"a\x41", "two words", "it's"]
    command = [str(program), *words]
    texts = render(command=command, config="", listen=[], user="", home=True, calls_out=False)
    (line,) = re.findall(r"^ExecStart=.*", texts["sse-app.service"], re.MULTILINE)
    unit = manager.directory / "config/systemd/user/printed.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(f"[Service]\nType=oneshot\n{line}\n")
    try:
        manager.systemctl("daemon-reload")
        manager.systemctl("start", unit.name)
    finally:
        unit.unlink()
    assert said.read_text().splitlines() == words


@pytest.mark.parametrize("words", [("--port", "0"), ("--host", "nowhere.invalid")])
def test_what_systemd_cannot_listen_on_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = systemd("install", tmp_path / "units", *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "units").exists()


def test_units_are_as_they_were_where_the_disk_gets_full_meanwhile(tmp_path: Path) -> None:
    before = {"sse-app.socket": "the old socket", "sse-app.service": "the old service"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    done = run_program(
        *("systemd", "install", "--unit-dir", str(tmp_path), "--run-as", USER),
        environment=clean_environment(PYTHONDONTWRITEBYTECODE="1"),
        within=[require("prlimit"), "--fsize=1024"],  # the socket fits, the service does not
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"sse-app: cannot write the units to {tmp_path}: File too large"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_unit_that_is_a_link_stays_one_and_one_that_is_masked_is_refused(tmp_path: Path) -> None:
    units, elsewhere = tmp_path / "units", tmp_path / "elsewhere"
    units.mkdir()
    elsewhere.write_text("the old socket")
    (units / "sse-app.socket").symlink_to(elsewhere)
    (units / "sse-app.service").symlink_to("/dev/null")
    masked = systemd("install", units)
    assert (masked.returncode, masked.stdout) == (1, "")
    assert f"{units / 'sse-app.service'}: it is not a file" in masked.stderr
    assert elsewhere.read_text() == "the old socket"
    (units / "sse-app.service").unlink()
    assert systemd("install", units).returncode == 0
    assert (units / "sse-app.socket").is_symlink()
    assert "ListenStream=" in elsewhere.read_text()
    assert {path.name for path in units.iterdir()} == set(SINGLE)


def test_check_finds_a_unit_that_this_version_would_write_otherwise(tmp_path: Path) -> None:
    assert systemd("check", tmp_path).returncode == 1
    assert systemd("install", tmp_path).returncode == 0
    assert systemd("check", tmp_path).returncode == 0
    provider = ("oidc.issuer=https://a", "oidc.audience=b", "oidc.jwks_url=https://a/keys")
    for elsewhere in (provider, ("event_log=postgresql://db.example/events",)):
        flags = [word for one in elsewhere for word in ("--set", one)]
        done = systemd("check", tmp_path, *flags)
        assert done.returncode == 1
        assert "-PrivateNetwork=yes" in done.stdout.splitlines()
        assert "+PrivateNetwork=no" in done.stdout.splitlines()
        assert "systemd install" in done.stderr
    service = tmp_path / "sse-app.service"
    service.write_text(service.read_text().replace("LimitCORE=0\n", ""))
    done = systemd("check", tmp_path)
    assert (done.returncode, "+LimitCORE=0" in done.stdout.splitlines()) == (1, True)


def test_the_service_is_limited_in_memory_tasks_and_core_dumps(service: Service) -> None:
    assert service.manager.show("MemoryMax") == str(4 * 2**30)
    assert service.manager.show("TasksMax") == "128"
    limits = Path(f"/proc/{service.manager.main_pid}/limits").read_text().splitlines()
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]


def test_settings_that_need_the_network_in_a_unit_without_one_are_told_at_the_start(tmp_path: Path) -> None:
    require("unshare")
    log = subprocess.run(
        ["unshare", "--net", *[sys.executable, str(ROOT / "main.py"), "serve"]],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")},
            "SYSTEMD_UNIT": "sse-app.service",
            "SSE_APP_STATE_DIR": str(tmp_path / "state"),
            "SSE_APP_AUTH__KEYS_DIR": str(tmp_path / "absent"),  # the start ends by itself
            "SSE_APP_OIDC": '{"issuer": "https://a", "audience": "b", "jwks_url": "https://a/keys"}',
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if log.stderr.startswith("unshare:"):
        pytest.skip("network namespaces need root")
    assert log.returncode == 1
    assert '"event":"unit_outdated"' in log.stderr
    assert "systemd install" in log.stderr
