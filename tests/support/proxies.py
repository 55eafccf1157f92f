"""Real proxies in front of a server, on the configuration that comes with it: nginx and Caddy."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.ports import reserved_port
from tests.support.programs import require
from tests.support.server_process import ROOT
from tests.support.waiting import until


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost, signed by itself."""

    certificate: Path
    key: Path

    def trusted(self) -> ssl.SSLContext:
        """Return what trusts it, and nothing else."""
        return ssl.create_default_context(cafile=str(self.certificate))


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate that is good for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    made.key.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    return made


def connections_to(port: int) -> int:
    """Return how many TCP connections to a port of this machine are established, as the kernel says."""
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs.

    Attributes:
        url: where it listens.
        folder: all it writes is below.
        environment: its own.
    """

    url: str
    folder: Path
    environment: dict[str, str]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def logs(self) -> str:
        """Return all that it has written, on standard error and in files."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.rglob("*.log")))


@contextmanager
def running(command: list[str], url: str, folder: Path, environment: dict[str, str]) -> Iterator[Proxy]:
    """Run a proxy in a process group of its own until it listens, and end that group."""
    proxy = Proxy(url, folder, {"PATH": os.environ["PATH"], "HOME": str(folder), **environment})
    with (folder / "stderr.log").open("ab") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=proxy.environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    try:
        until(lambda: _listens(process, proxy), "the proxy listens")
        yield proxy
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(process: subprocess.Popen[bytes], proxy: Proxy) -> bool:
    assert process.poll() is None, proxy.logs()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", proxy.port)) == 0


NGINX = """
daemon off;
{user}
worker_processes 2;
pid nginx.pid;
error_log startup.log;
events {{ worker_connections 256; }}
http {{
    {site}
    client_body_temp_path bodies;
    proxy_temp_path proxied;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
}}
"""


@contextmanager
def bare_nginx(site: str, url: str, folder: Path) -> Iterator[Proxy]:
    """Run nginx with what is in its http block."""
    user = "user root;" if os.geteuid() == 0 else ""  # its workers write below the folder, which is private
    (folder / "nginx.conf").write_text(NGINX.format(user=user, site=site))
    command = [require("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running([*command, "-e", str(folder / "startup.log")], url, folder, {}) as proxy:
        yield proxy


@contextmanager
def nginx(
    upstream: int, certificate: Certificate, folder: Path, changes: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Proxy]:
    """Run nginx on the configuration that comes with the server; only addresses, paths and ``changes`` are others."""
    with reserved_port() as port:
        site = (ROOT / "config/nginx/sse_app.conf").read_text()
        for theirs, ours in {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "server_name events.example.com;": "server_name localhost;",
            "/etc/ssl/sse_app/fullchain.pem": str(certificate.certificate),
            "/etc/ssl/sse_app/privkey.pem": str(certificate.key),
            "/var/log/nginx/": f"{folder}/",
            **changes,
        }.items():
            assert theirs in site, theirs
            site = site.replace(theirs, ours)
        with bare_nginx(site, f"https://localhost:{port}", folder) as proxy:
            yield proxy


@contextmanager
def caddy(upstream: int, certificate: Certificate, folder: Path) -> Iterator[Proxy]:
    """Run Caddy on the configuration that comes with the server."""
    with reserved_port(everywhere=True) as port, reserved_port(everywhere=True) as unencrypted:
        url = f"https://localhost:{port}"
        environment = {
            "SSE_APP_SITE": url,
            "SSE_APP_TLS": f"tls {certificate.certificate} {certificate.key}",
            "SSE_APP_UPSTREAM": f"127.0.0.1:{upstream}",
            "SSE_APP_ACCESS_LOG": str(folder / "access.log"),
            "SSE_APP_CADDY_ADMIN": f"unix/{folder}/admin.sock",
            "SSE_APP_HTTP_PORT": str(unencrypted),
        }
        command = [
            require("caddy"),
            "run",
            "--adapter",
            "caddyfile",
            "--config",
            str(ROOT / "config/Caddyfile"),
        ]
        with running(command, url, folder, environment) as proxy:
            yield proxy


PROXIES = {"nginx": nginx, "caddy": caddy}
