"""``sse-app doctor``: what it finds on a good machine, and of each thing that goes wrong at a first installation."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.ports import reserved_port
from tests.support.proxies import PROXIES, bare_nginx, make_certificate
from tests.support.server_process import ROOT, ServerProcess, clean_environment, run_program, running
from tests.support.wall_clock import HOUR, ClockedServer, WallClock
from tests.support.wall_clock import clock_library as clock_library
from tests.support.wall_clock import wall_clock as wall_clock

SITE = """
    access_log off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            {more}
        }}
    }}
"""


HOST = "proxy_set_header Host $http_host;"
FORWARDED = "proxy_set_header X-Forwarded-For $remote_addr;"


class Diagnosis:
    """What the command printed.

    Args:
        done: the command, at its end.
    """

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == "", done.stderr
        assert "eyJ" not in done.stdout
        self.status = done.returncode
        self.lines = done.stdout.splitlines()

    def level_of(self, subject: str) -> str:
        """Return the level of the one line on a subject."""
        return self.line_on(subject).split()[0]

    def line_on(self, subject: str) -> str:
        """Return the one line on a subject."""
        (line,) = [line for line in self.lines if line[9:].startswith(f"{subject}:")]
        return line

    @property
    def failures(self) -> list[str]:
        """The lines that say what stands in the way."""
        return [line for line in self.lines if line.startswith("failure")]


def diagnose(*words: str, input: str | None = None, cwd: Path = ROOT, **variables: str) -> Diagnosis:
    """Run the command with these settings."""
    return Diagnosis(
        run_program("doctor", *words, environment=clean_environment(**variables), cwd=cwd, input=input)
    )


def of_server(server: ServerProcess, *words: str, input: str | None = None, **more: str) -> Diagnosis:
    """Run the command with the settings of a server that runs."""
    environment = server.environment | more
    return Diagnosis(run_program("doctor", *words, environment=environment, input=input))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that trusts the proxies of this machine."""
    folder = tmp_path_factory.mktemp("server")
    with running(state_dir=folder / "state", TRUSTED_PROXIES=["127.0.0.0/8"], LIMITS__STREAMS=500) as server:
        yield server


@contextmanager
def proxied(server: ServerProcess, folder: Path, more: str = HOST + FORWARDED) -> Iterator[str]:
    """Run nginx before a server, with these lines of configuration; yield its URL."""
    with reserved_port() as port:
        site = SITE.format(port=port, upstream=server.port, more=more)
        with bare_nginx(site, f"http://localhost:{port}", folder) as proxy:
            yield proxy.url


def test_before_the_first_start_it_says_that_nothing_stands_in_the_way_and_makes_nothing(
    tmp_path: Path,
) -> None:
    with reserved_port() as port:
        found = diagnose(cwd=tmp_path, SSE_APP_PORT=str(port), SSE_APP_LIMITS__STREAMS="100")
    assert (found.status, found.failures) == (0, [])
    assert found.level_of("address") == found.level_of("open files") == "ok"
    assert list(tmp_path.iterdir()) == []


def test_beside_a_server_it_says_that_it_is_ready_and_leaves_nothing_behind(server: ServerProcess) -> None:
    before = sorted(server.state_dir.iterdir())
    found = of_server(server)
    assert (found.status, found.failures) == (0, [])
    assert f"process {server.process.pid}" in found.line_on("address")  # type: ignore[union-attr]
    assert found.line_on("server").endswith("is ready")
    assert found.level_of("disk") == "ok"
    assert sorted(server.state_dir.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROXIES)
def test_the_proxies_of_this_repository_pass_each_look(
    server: ServerProcess, tmp_path: Path, kind: str
) -> None:
    certificate = make_certificate(tmp_path)
    with PROXIES[kind](server.port, certificate, tmp_path) as proxy:
        found = of_server(server, "--url", proxy.url, SSL_CERT_FILE=str(certificate.certificate))
        assert "eyJ" not in proxy.logs()
    assert (found.status, found.failures) == (0, [])
    subjects = ("TLS", "HTTP/2", "proxy", "clocks", "hosts", "streams", "trusted_proxies")
    assert [found.level_of(subject) for subject in subjects] == ["ok"] * len(subjects)
    assert "(127.0.0.2)" in found.line_on("trusted_proxies")


@pytest.mark.slow
def test_a_certificate_that_is_not_trusted_is_named(server: ServerProcess, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with PROXIES["nginx"](server.port, certificate, tmp_path) as proxy:
        found = of_server(server, "--url", proxy.url)
    assert found.status == 1
    (line,) = found.failures
    assert "certificate is not trusted" in line


class Buffering(BaseHTTPRequestHandler):
    """A proxy that passes streams on only once it has a lot of them, as those of some companies do."""

    upstream = 0
    with_head = False
    """Whether the head of the response is held back too."""

    def do_GET(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        try:
            named = {name: value for name, value in self.headers.items() if name != "X-Forwarded-For"}
            connection.request("GET", self.path, headers=named | {"X-Forwarded-For": self.client_address[0]})
            response = connection.getresponse()
            is_stream = response.headers["Content-Type"] == "text/event-stream"
            if not (is_stream and self.with_head):
                self._send_head(response)
            held = response.read(LOT if is_stream else None)
            self.wfile.write(held)
        except OSError:
            pass  # the client has left
        finally:
            connection.close()

    def _send_head(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status)
        for name in ("Content-Type", "Date"):
            self.send_header(name, response.headers[name])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


LOT = 20_000
"""How many bytes of a stream it has before it passes them on: more than come while the command looks."""


@pytest.mark.slow
@pytest.mark.parametrize("with_head", [False, True], ids=["body", "head"])
def test_a_proxy_that_holds_streams_back_is_found(server: ServerProcess, with_head: bool) -> None:
    handler = type("Holding", (Buffering,), {"upstream": server.port, "with_head": with_head})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,)).start()
        try:
            found = of_server(server, "--url", f"http://localhost:{proxy.server_port}")
        finally:
            proxy.shutdown()
    assert found.status == 1
    (line,) = found.failures
    assert line[9:].startswith("streams: the proxy holds back what the server sends: ")
    assert "proxy_buffering off" in line


@pytest.mark.parametrize(
    ("more", "subject", "said"),
    [
        (
            HOST + FORWARDED + "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;",
            "streams",
            "gzip off",
        ),
        (
            HOST + "proxy_set_header X-Forwarded-For $http_x_forwarded_for;",
            "trusted_proxies",
            "can claim any address",
        ),
        pytest.param(
            FORWARDED + "proxy_set_header Host intranet.example;",
            "hosts",
            "name it in hosts",
            marks=pytest.mark.slow,
        ),
        pytest.param("return 200 '<html>ok</html>';", "proxy", "not as sse_app does", marks=pytest.mark.slow),
        pytest.param("return 502;", "proxy", "answers 502", marks=pytest.mark.slow),
        pytest.param(
            "return 301 https://elsewhere.example$request_uri;",
            "proxy",
            "leads to https://elsewhere.example",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["compressed", "spoofed", "renamed", "another", "away", "moved"],
)
def test_what_a_proxy_does_wrong_is_found_and_named(
    tmp_path: Path, more: str, subject: str, said: str
) -> None:
    trusted, hosts = ["127.0.0.0/8"], ["events.example"]
    with (
        running(state_dir=tmp_path / "state", TRUSTED_PROXIES=trusted, HOSTS=hosts) as server,
        proxied(server, tmp_path, more) as url,
    ):
        found = of_server(server, "--url", url)
    assert found.status == 1
    (line,) = found.failures
    assert line[9:].startswith(f"{subject}:")
    assert said in line


@pytest.mark.slow
def test_a_proxy_that_the_server_does_not_trust_is_named_with_its_address(tmp_path: Path) -> None:
    with (
        running(state_dir=tmp_path / "state", expected=("proxy_not_trusted",)) as server,
        proxied(server, tmp_path) as url,
    ):
        found = of_server(server, "--url", url)
    assert found.status == 1
    (line,) = found.failures
    assert (
        "trusted_proxies: the server takes 127.0.0.1 for the address of this client, which is 127.0.0.2"
        in line
    )


@pytest.mark.slow
def test_a_clock_that_is_an_hour_ahead_is_found(wall_clock: WallClock, tmp_path: Path) -> None:
    server = ClockedServer(wall_clock, state_dir=tmp_path / "state")
    try:
        server.start()
        wall_clock.set(HOUR)
        environment = {
            name: value for name, value in server.environment.items() if name not in wall_clock.environment
        }
        found = Diagnosis(run_program("doctor", "--url", server.url, environment=environment))
        assert server.stop() == 0
    finally:
        server.kill()
    assert found.status == 1
    assert "ahead" in found.line_on("clocks")
    assert any(f"{seconds} s" in found.line_on("clocks") for seconds in range(3590, 3660))


def test_from_elsewhere_it_takes_a_stream_token(server: ServerProcess, tmp_path: Path) -> None:
    token = server.stream_token("alerts")
    with reserved_port() as port:
        elsewhere = {"SSE_APP_PORT": str(port)}
        found = diagnose("--url", server.url, cwd=tmp_path, **elsewhere)
        assert found.line_on("streams").startswith("warning  streams: not tried, for there is no token")
        words = ("--url", server.url, "--token-stdin")
        found = diagnose(*words, input=f"{token}\n", cwd=tmp_path, **elsewhere)
        assert (found.status, found.level_of("streams")) == (0, "ok")
        found = diagnose("--url", server.url, cwd=tmp_path, SSE_APP_TOKEN=token + "x", **elsewhere)
        assert (found.status, found.level_of("streams")) == (1, "failure")
        assert "401" in found.line_on("streams")
        for wrong in (
            "no token",
            "a.b.c",
            "\x1b[2J",
            server.access_token(subscribe=""),
            token.replace(".", ".\n"),
        ):
            found = diagnose("--url", server.url, cwd=tmp_path, SSE_APP_TOKEN=wrong, **elsewhere)
            assert (found.status, len(found.failures)) == (1, 1), wrong
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://localhost",
        "http://",
        "https://ann:secret@localhost",
        "http://[::1",
        "http://h:x",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(tmp_path: Path, url: str) -> None:
    done = run_program("doctor", "--url", url, environment=clean_environment(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sse-app: --url")
    assert "secret" not in line


@pytest.mark.slow
@pytest.mark.parametrize("host", ["x" * 70 + ".example", ".."])
def test_a_name_that_cannot_be_looked_up_is_one_failure(server: ServerProcess, host: str) -> None:
    (line,) = of_server(server, "--url", f"http://{host}").failures
    assert f"cannot connect to {host}:80: " in line


class Hostile(BaseHTTPRequestHandler):
    """Answers with what would set the title of a terminal, and without an end."""

    def do_GET(self) -> None:
        self.send_response(200 if "health" in self.path else 500)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}\x1b]0;owned\x07\x1b[2J')
        with contextlib.suppress(OSError):
            while "health" not in self.path:
                self.wfile.write(b"\x9b31m\n" * 10_000)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.slow
def test_what_a_hostile_server_answers_does_no_harm(server: ServerProcess) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as hostile:
        threading.Thread(target=hostile.serve_forever, args=(0.05,)).start()
        try:
            found = of_server(server, "--url", f"http://127.0.0.1:{hostile.server_port}")
        finally:
            hostile.shutdown()
    assert found.status == 1
    assert all(line.isprintable() and len(line) < 1000 for line in found.lines)


@pytest.mark.slow
def test_an_address_at_which_nothing_listens_is_one_failure(server: ServerProcess) -> None:
    with reserved_port() as port:
        found = of_server(server, "--url", f"http://127.0.0.1:{port}")
    (line,) = found.failures
    assert f"cannot connect to 127.0.0.1:{port}: Connection refused" in line


def test_a_port_in_use_is_named_with_its_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = diagnose(cwd=tmp_path, SSE_APP_PORT=str(port))
    assert found.status == 1
    (line,) = found.failures
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert f"process {os.getpid()}" in line


def test_too_few_open_files_are_a_warning_with_what_they_suffice_for(tmp_path: Path) -> None:
    command = 'ulimit -n 512; ulimit -Sn 300; exec "$@"'  # a server raises its limit to the hard one
    with reserved_port() as port:
        done = subprocess.run(
            ["/bin/sh", "-c", command, "sh", sys.executable, str(ROOT / "main.py"), "doctor"],
            cwd=tmp_path,
            env=clean_environment(SSE_APP_PORT=str(port)),
            capture_output=True,
            text=True,
            check=False,
        )
    found = Diagnosis(done)
    assert (found.status, found.level_of("open files")) == (0, "warning")
    assert "no more than 256 streams" in found.line_on("open files")


def test_a_setting_that_is_no_setting_is_one_line(tmp_path: Path) -> None:
    done = run_program("doctor", "--set", "keepalive.pings=1", environment=clean_environment(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["sse-app: unknown setting: keepalive.pings"]


def test_keys_that_others_can_read_are_a_failure(tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state") as server:
        environment = server.environment
    (key,) = (tmp_path / "state/keys").glob("*.hs256")
    key.chmod(0o644)
    found = Diagnosis(run_program("doctor", environment=environment))
    assert found.status == 1
    (line,) = found.failures
    assert "chmod" in line


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
FULL = """
cp -a "$1" "$1.copy" && mount -t tmpfs -o size=3m,mode=700 none "$1" && cp -a "$1.copy/." "$1"
head -c 4000000 /dev/zero > "$1/ballast"
rm -r "$1.copy"
"""


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
@pytest.mark.parametrize(
    ("mounted", "said"),
    [(READ_ONLY, "not writable|Read-only file system"), (FULL, "disk: cannot write in .*No space left")],
    ids=["read-only", "full"],
)
def test_a_state_directory_that_cannot_be_written_is_a_failure(
    tmp_path: Path, mounted: str, said: str
) -> None:
    with running(state_dir=tmp_path / "state") as server:
        environment = server.environment
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{mounted}\nshift; exec "$@"',
        "sh",
        str(tmp_path / "state"),
    ]
    done = subprocess.run(
        [*command, sys.executable, "main.py", "doctor"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    failures = [line for line in done.stdout.splitlines() if line.startswith("failure")]
    assert any(re.search(said, line) for line in failures), done.stdout


@pytest.fixture(autouse=True)
def _no_certificates_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command read the certificates that the machine trusts."""
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@pytest.mark.long
def test_many_looks_at_once_leave_each_other_alone(server: ServerProcess, tmp_path: Path) -> None:
    with proxied(server, tmp_path) as url:
        command = [sys.executable, str(ROOT / "main.py"), "doctor", "--url", url]
        started = [
            subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        assert [process.communicate()[0].count("\nfailure") for process in started] == [0, 0, 0]
        assert [process.returncode for process in started] == [0, 0, 0]
