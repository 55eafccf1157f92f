"""The client: streams that reconnect, publishing without doubles, and a session that has the tokens for both.

>>> async with Session("https://events.example", "ann", password) as session:
...     async with Stream(session.url, ["alerts"], session) as stream:
...         async for item in stream:
...             match item:
...                 case Event():
...                     show(item.type, item.data)
...                 case Reset():
...                     await fetch_afresh(item.channel)

`sse_app.client.sync` is the same without asyncio; `sse_app.client.testing` has a server for the tests of applications.

It needs the extra ``client``, which is httpx, and of the server nothing but the pure core.
"""

try:
    import httpx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "httpx":
        raise
    needs = (
        "sse_app.client needs the extra 'client': pip install '.[client]' in a checkout, or pip install httpx"
    )
    raise ModuleNotFoundError(needs, name="httpx") from None

from sse_app.client.backoff import Backoff
from sse_app.client.errors import (
    CertificateRefused,
    ClientError,
    Forbidden,
    NotFound,
    ProtocolError,
    Refused,
    StreamEnded,
    Unauthorized,
    Unavailable,
)
from sse_app.client.items import Connected, Event, Reset, Waiting
from sse_app.client.presence import Presence, User, presence
from sse_app.client.publisher import Publisher
from sse_app.client.session import Session
from sse_app.client.stream import Stream

__all__ = [
    "Backoff",
    "CertificateRefused",
    "ClientError",
    "Connected",
    "Event",
    "Forbidden",
    "NotFound",
    "Presence",
    "ProtocolError",
    "Publisher",
    "Refused",
    "Reset",
    "Session",
    "Stream",
    "StreamEnded",
    "Unauthorized",
    "Unavailable",
    "User",
    "Waiting",
    "presence",
]
