"""Tries a server by the address that its clients use: whether the proxy there lets streams through as they come."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from sse_app.auth.tokens.issuer import is_compact
from sse_app.cli.findings import FAILURE, OK, TIMEOUT, WARNING, Line
from sse_app.core.channels import ADMIN_CHANNEL
from sse_app.core.errors import InvalidInput
from sse_app.settings.model import Settings

CLOCKS_APART = 5.0
"""Seconds that two clocks may differ by: tokens are checked without leeway, so an hour's token may not mind, and one
that is issued a moment ago does."""

SHOWN = 500
"""How many characters of an answer are shown."""

LONGEST = 1 << 20
"""How many bytes of an answer are read."""

SECOND_SOURCE = "127.0.0.2"
"""Where connections to this machine come from, so that the client's address is another one than a proxy's here."""

CLAIMED = "192.0.2.77"
"""An address of no machine (RFC 5737), claimed in ``X-Forwarded-For``: no proxy may pass that on as the client's."""

HELD_BACK = (
    "the proxy holds back what the server sends: switch buffering off for /api/v1/sse "
    "(nginx: proxy_buffering off, and nothing that hides X-Accel-Buffering; Caddy: flush_interval -1)"
)

FIGURES_WITHIN = 15.0
"""Within how many seconds figures that are told each second have to come at two times, also on a busy machine."""


class Address(NamedTuple):
    """Where clients find the server.

    Args:
        scheme: ``http`` or ``https``.
        host: without brackets.
        port: also where it is the scheme's own.
        path: before ``/api``, without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Return the parts of a URL.

        Raises:
            InvalidInput: it is no address of a server.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"--url: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput("--url takes the address of a server, such as https://events.example.com")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidInput("--url takes an address without user, query and fragment")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class _Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str


class _Refused(Exception):
    """What was asked got no answer; the text says why."""


class _TooSlow(_Refused):
    """There was no answer in time."""


class _Server:
    """Asks the server at an address, each time on a connection of its own."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.own_address = ""
        """Where the last connection came from, as this machine sees it."""

    def connect(self, *protocols: str) -> socket.socket:
        """Return a connection, with TLS where the address says so.

        Args:
            protocols: those that are offered within TLS (ALPN, RFC 7301).

        Raises:
            _Refused: there is none; the text says what to look at.
        """
        where = self.address
        try:
            sock = self._tcp()
        except (OSError, UnicodeError) as error:  # a name may be none that can be looked up
            reason = getattr(error, "strerror", None) or error
            raise _Refused(f"cannot connect to {where.host}:{where.port}: {reason}") from None
        self.own_address = str(sock.getsockname()[0])
        if where.scheme == "http":
            return sock
        context = ssl.create_default_context()
        context.set_alpn_protocols(list(protocols))
        try:
            return context.wrap_socket(sock, server_hostname=where.host)
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise _Refused(
                f"the certificate is not trusted here: {error.verify_message}: browsers will say so too, "
                "unless they know its authority (SSL_CERT_FILE names it for this command)"
            ) from None
        except OSError as error:
            sock.close()
            raise _Refused(f"no TLS at {where.host}:{where.port}: {error.strerror or error}") from None

    def _tcp(self) -> socket.socket:
        where = self.address
        for *_, found in socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM):
            if found[0] == "127.0.0.1":
                try:
                    return socket.create_connection((found[0], where.port), TIMEOUT, (SECOND_SOURCE, 0))
                except OSError:
                    break
        return socket.create_connection((where.host, where.port), TIMEOUT)

    def send(self, path: str, **headers: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request, and return its connection and its answer, which is still to be read."""
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=TIMEOUT)
        connection.default_port = 443 if self.address.scheme == "https" else 80  # of the Host header
        connection.sock = self.connect("http/1.1")
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", self.address.path + path, headers=named)
            return connection, connection.getresponse()
        except TimeoutError:
            connection.close()
            raise _TooSlow(f"no answer within {TIMEOUT:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _Refused(f"no answer: {error or type(error).__name__}") from None

    def get(self, path: str, **headers: str) -> _Answer:
        """Return the answer to a request."""
        connection, response = self.send(path, **headers)
        try:
            return _Answer(
                response.status, response.headers, response.read(1 << 20).decode("utf-8", "replace")
            )
        except (OSError, http.client.HTTPException) as error:
            raise _Refused(f"the answer breaks off: {error or type(error).__name__}") from None
        finally:
            connection.close()


def _text_of(response: http.client.HTTPResponse) -> str:
    """Return what an answer has, as far as it comes in time."""
    text, end = b"", time.monotonic() + TIMEOUT
    while len(text) < LONGEST and time.monotonic() < end and (part := response.read1(65536)):
        text += part
    return text.decode("utf-8", "replace")


def try_proxy(
    address: Address, settings: Settings, given: str, tokens: tuple[str, str] | str | None
) -> Iterator[Line]:
    """Yield a line for each thing that was tried by the address of the clients.

    Args:
        address: which that is.
        settings: of the server behind it, as far as this machine knows them.
        given: a stream token that the caller has; empty for none.
        tokens: an access and a stream token of our own, or why there are none; None where one is given.
    """
    server = _Server(address)
    try:
        yield from _connection(server)
        health = server.get("/healthz")
    except _Refused as error:
        yield Line(FAILURE, f"proxy: {address}: {error}")
        return
    if 300 <= health.status < 400:
        yield Line(FAILURE, f"proxy: {address} leads to {health.headers.get('Location')}: name that address")
        return
    if health.status != 200 or '"ok"' not in health.text:
        yield Line(
            FAILURE,
            f"proxy: {address}/healthz answers {health.status}, and not as sse_app does: "
            "is it passed to the server, and does that run?",
        )
        return
    yield Line(OK, f"proxy: {address} leads to a server of sse_app")
    try:
        yield _clock(health)
        named = server.get("/api/v1/sse/status")
        if named.status == 421:
            yield Line(
                FAILURE,
                f"hosts: the server does not serve the name {address.host}: name it in hosts, the proxy in "
                "trusted_proxies, and have the proxy pass on the Host of the client",
            )
            return
        if named.status == 200:
            yield Line(OK, f"hosts: the server serves the name {address.host}")
        else:
            yield Line(WARNING, f"hosts: not known, for {address}/api/v1/sse/status answers {named.status}")
        if server.get("/metrics").status == 200 and not _is_here(server):
            yield Line(
                WARNING,
                f"metrics: {address}/metrics can be read from {server.own_address}: take it out of metrics.allow "
                "unless that is meant",
            )
        yield from _streams(server, settings, given, tokens)
    except _Refused as error:
        yield Line(FAILURE, f"proxy: {address}: {error}")


def _is_here(server: _Server) -> bool:
    return ip_address(server.own_address.partition("%")[0]).is_loopback


def _is_direct(server: _Server, settings: Settings) -> bool:
    """Return whether there is no proxy: the address is the server's own, on this machine."""
    return _is_here(server) and server.address.port == settings.port


def _connection(server: _Server) -> Iterator[Line]:
    """Look at the connection: TLS, and HTTP/2, without which a browser has six streams for a host."""
    sock = server.connect("h2", "http/1.1")
    with sock:
        if isinstance(sock, ssl.SSLSocket):
            yield Line(OK, f"TLS: {sock.version()}, with a certificate that is trusted here")
            if sock.selected_alpn_protocol() == "h2":
                yield Line(OK, "HTTP/2: the proxy speaks it")
            else:
                yield Line(
                    WARNING,
                    "HTTP/2: the proxy does not speak it, so a browser opens no more than six streams in all its "
                    "tabs: switch it on (nginx: listen … ssl http2)",
                )
        elif not _is_here(server):
            yield Line(WARNING, "TLS: there is none, and tokens can be read on the way: use https")
        else:
            yield Line(OK, "TLS: there is none, and none is needed on this machine")


def _clock(answer: _Answer) -> Line:
    try:
        apart = parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
    except (TypeError, ValueError):
        return Line(WARNING, "clocks: the answer has no Date")
    if abs(apart) <= CLOCKS_APART:
        return Line(OK, "clocks: here and there they agree to some seconds")
    return Line(
        FAILURE,
        f"clocks: the one there is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}: set both from the network "
        "(NTP), for tokens are checked by the clock",
    )


def _streams(
    server: _Server, settings: Settings, given: str, tokens: tuple[str, str] | str | None
) -> Iterator[Line]:
    if isinstance(tokens, str):
        yield Line(
            WARNING, f"streams: not tried, for there is no token ({tokens}): give one with --token-stdin"
        )
        return
    access, stream = tokens or ("", given)
    channels = [ADMIN_CHANNEL] if tokens else _channels_of(given)
    if not channels:
        yield Line(FAILURE, "streams: not tried, for the token is no stream token that names a channel")
        return
    client_id = f"doctor-{secrets.token_urlsafe(6)}"
    claimed = {} if _is_direct(server, settings) else {"X_Forwarded_For": CLAIMED}
    try:
        connection, response = server.send(
            f"/api/v1/sse/{quote(','.join(channels), safe=',*')}?client_id={client_id}",
            Authorization=f"Bearer {stream}",
            Accept="text/event-stream",
            Accept_Encoding="gzip, br",
            **claimed,
        )
    except _TooSlow:
        yield Line(FAILURE, f"streams: {HELD_BACK}")
        return
    try:
        if response.status != 200:
            text = _text_of(response)[:SHOWN].strip()
            hint = ""
            if response.status == 401 and tokens:
                hint = ": it has other keys than the state directory here, which --token-stdin helps, or another clock"
            yield Line(FAILURE, f"streams: refused with {response.status}{hint} ({text})")
            return
        problem = _buffering(response, figures=bool(tokens))
        if problem:
            yield Line(FAILURE, f"streams: {problem}")
            return
        yield Line(OK, "streams: they come through at once, unbuffered")
        if access:
            yield _client_address(server, settings, access, client_id)
    finally:
        connection.close()


def _channels_of(token: str) -> list[str]:
    """Return a channel that a stream token names, or a pattern; nothing where it names none, or is no token."""
    from sse_app.auth.tokens import jose

    payload = jose.object_in(token.split(".")[1]) if is_compact(token) else None
    grants = (payload or {}).get("sse")
    named = grants.get("subscribe") if isinstance(grants, dict) else None
    return [str(named[0])] if isinstance(named, list) and named else []


def _buffering(response: http.client.HTTPResponse, *, figures: bool) -> str:
    """Return what keeps the beginning of a stream from coming at once; empty where nothing does.

    Args:
        response: the stream.
        figures: whether something is to come each second, which must not be held back until more has come.
    """
    if encoding := response.headers.get("Content-Encoding"):
        return (
            f"the proxy compresses them ({encoding}), which holds events back: switch that off for "
            "text/event-stream (nginx: gzip off)"
        )
    seen, arrivals = b"", []
    end = time.monotonic() + FIGURES_WITHIN
    while time.monotonic() < end:
        try:
            part = response.read1(65536)
        except TimeoutError:
            break
        except (OSError, http.client.HTTPException) as error:
            return f"the stream breaks off: {error or type(error).__name__}"
        if not part:
            return (
                "the server or the proxy ended the stream: the server's log says why"
                if b"event: connected" in seen
                else HELD_BACK
            )
        seen += part
        if b"event: closing" in seen:
            return "the server turned the stream away: it is full, stopping, or away (see /readyz)"
        if b"event: connected" not in seen:
            continue
        if not figures:
            return ""
        if part.count(b"event: figures"):
            arrivals.append(time.monotonic())
            if len(arrivals) > 1 and arrivals[-1] - arrivals[0] > 0.5:
                return ""
    return HELD_BACK


def _client_address(server: _Server, settings: Settings, access: str, client_id: str) -> Line:
    """Compare the address that the server has for the stream with the one that the connection came from."""
    answer = server.get(
        f"/api/v1/admin/connections?field=client_id&search={client_id}", Authorization=f"Bearer {access}"
    )
    try:
        rows: list[dict[str, Any]] = json.loads(answer.text)["connections"]
        seen = str(rows[0]["address"])
    except (ValueError, KeyError, IndexError, TypeError):
        return Line(
            WARNING, f"trusted_proxies: not known, for the table of connections answers {answer.status}"
        )
    if _is_direct(server, settings):
        return Line(OK, "trusted_proxies: not tried, for this is the server's own port")
    if seen == CLAIMED:
        return Line(
            FAILURE,
            "trusted_proxies: the proxy passes on X-Forwarded-For as a client sends it, so any client can claim any "
            "address: have the proxy set it (nginx: proxy_set_header X-Forwarded-For $remote_addr)",
        )
    own = server.own_address.removeprefix("::ffff:")
    if seen == own:
        return Line(OK, f"trusted_proxies: the server sees clients by their own address ({seen})")
    text = (
        f"trusted_proxies: the server takes {seen} for the address of this client, which is {own}: if {seen} is the "
        "proxy, name it in trusted_proxies, or all clients share its limits"
    )
    return Line(
        FAILURE if _is_here(server) else WARNING,
        text if _is_here(server) else f"{text}; if not, there is NAT",
    )
