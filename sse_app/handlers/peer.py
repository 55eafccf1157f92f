"""Where a request comes from, and which name of this server it is for."""

from __future__ import annotations

import logging

from sse_app.core.addresses import LOOPBACK, is_in, network_of
from sse_app.core.errors import Forbidden
from sse_app.handlers.client_address import SIGNS_OF_A_PROXY, UNKNOWN, client_address
from sse_app.handlers.cors import OriginHandler
from sse_app.handlers.errors import Refusal
from sse_app.handlers.hosts import is_local_name, is_named

UNKNOWN_HOST = (
    "this server does not serve the name in the Host header: "
    "its settings must have the name in hosts, or the proxy in trusted_proxies"
)

UNTRUSTED_PROXIES = 8
"""How many peers the log names as proxies that are not trusted; any client can send the headers of a proxy."""

log = logging.getLogger(__name__)


class PeerHandler(OriginHandler):
    """Knows the address of the client, behind proxies too, and refuses names that this server does not serve."""

    any_host = False
    """Whether requests for any ``Host`` are answered: load balancers have names of their own for the server."""

    @property
    def address(self) -> str:
        """The address of the client: what a trusted proxy says, or else the connection's own."""
        if not self._is_from_trusted_proxy:
            return self._peer
        if "X-Forwarded-For" in self.request.headers:
            forwarded = self.request.headers.get_list("X-Forwarded-For")
            return client_address(self._peer, forwarded, self.node.settings.trusted_proxies)
        return UNKNOWN if self._came_through_proxy else self._peer

    @property
    def _peer(self) -> str:
        return self.request.remote_ip or UNKNOWN

    @property
    def _is_from_trusted_proxy(self) -> bool:
        trusted = self.node.settings.trusted_proxies
        return bool(trusted) and is_in(self._peer, trusted)

    @property
    def _came_through_proxy(self) -> bool:
        return not SIGNS_OF_A_PROXY.isdisjoint(self.request.headers)

    def warn_of_untrusted_proxy(self) -> None:
        """Log once for each of the first such peers that what it forwards is not believed."""
        told = self.node.untrusted_proxies
        if len(told) < UNTRUSTED_PROXIES and self._came_through_proxy and not self._is_from_trusted_proxy:
            network = network_of(self._peer)
            if network not in told:
                told.add(network)
                detail = (
                    "it forwards requests and is not believed, so all its clients have its address; "
                    "if it is a proxy of yours, name it in trusted_proxies"
                )
                log.warning("proxy_not_trusted", extra={"address": self._peer, "detail": detail})

    def require_host(self) -> None:
        """Refuse a request for a name that this server does not serve.

        A page may give the name that it has been loaded by another address (DNS rebinding): its browser then takes
        this server for the page's own, and sends it what only this machine may ask. An address cannot be
        rebound, nor ``localhost``.

        Raises:
            Refusal: the name in ``Host`` is not configured (RFC 9110 §15.5.20).
        """
        if self.any_host or self._has_own_host():
            return
        if self.node.settings.hosts or (is_in(self._peer, LOOPBACK) and not self._is_from_trusted_proxy):
            raise Refusal(421, "unknown_host", UNKNOWN_HOST)

    def require_local(self) -> None:
        """Refuse a client that may not read the metrics.

        Raises:
            Refusal: it comes from this machine, for a name that this server does not serve.
            Forbidden: the address is not among ``metrics.allow``, or the request came through a proxy.
        """
        if is_in(self._peer, LOOPBACK) and not self._has_own_host():
            raise Refusal(421, "unknown_host", UNKNOWN_HOST)  # a browser here may pose as a proxy here
        forwarded = self._came_through_proxy and not self._is_from_trusted_proxy
        if forwarded or not is_in(self.address, self.node.settings.metrics.allow):
            raise Forbidden("metrics are not for this address")

    def _has_own_host(self) -> bool:
        name, settings = self.request.host_name, self.node.settings
        return (
            not self.request.headers.get("Host")  # HTTP/1.0: no browser
            or is_local_name(name)
            or is_named(name, (*settings.hosts, settings.host.lower()))
        )
