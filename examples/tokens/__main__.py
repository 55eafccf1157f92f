"""A model's answer, word by word, that survives a reload of the page: each token is an event of text.

Usage: python -m examples.tokens, from the checkout. The model is made up: it runs here, and says nothing of sense.

Each answer has a channel of its own with a name that cannot be guessed, which is all that its reader needs. The page
begins with all that there is (``from=earliest``), so a reload shows the whole answer, each token once. The last
token is published with ``final``: the stream ends, the browser asks once more, is told that nothing is to come (204),
and asks no more.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from tornado.web import RequestHandler

from examples.page_server import arguments, run
from sse_app import SSEApp
from sse_app.settings.model import ChannelSettings

TEXT = (
    "a stream of events is <not> more than text & time, yet who reads it\nlater has to find each word that was "
    "written while its page was closed, in order and once; so we keep what we say until it is old"
)
ANSWER = ChannelSettings(pattern="answer.*", public=True, history_size=5000, history_age=3600)


def model(tokens: int) -> Iterator[str]:
    """Yield the tokens of an answer, each with what separates it from the next."""
    words = TEXT.split(" ")
    for number in range(tokens):
        yield f"{number}:{random.choice(words)} "


class AskHandler(RequestHandler):
    """``POST /ask``: begins an answer, and says on which channel it will come."""

    _answers: ClassVar[set[asyncio.Task[None]]] = set()

    def initialize(self, sse: SSEApp, tokens: int, pause: float) -> None:
        """Take what `run` gives."""
        self.sse, self.tokens, self.pause = sse, tokens, pause

    def post(self) -> None:
        """Answer at once; the model writes its answer to the end, with or without a client on the channel."""
        channel = f"answer.{secrets.token_hex(16)}"
        task = asyncio.create_task(self._answer(channel))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        self.write({"channel": channel})

    @classmethod
    def end(cls) -> None:
        """End the answers that are being written."""
        for task in cls._answers:
            task.cancel()

    async def _answer(self, channel: str) -> None:
        for number, token in enumerate(model(self.tokens), 1):
            await self.sse.publish(channel, "token", token, final=number == self.tokens)
            await asyncio.sleep(self.pause)


async def wait(sse: SSEApp, url: str) -> None:
    """Do nothing until the end, for the page asks; then end the answers."""
    try:
        await asyncio.Event().wait()
    finally:
        AskHandler.end()


if __name__ == "__main__":
    parser = arguments("tokens", "A model's answer that survives a reload of the page.")
    parser.add_argument("--tokens", type=int, default=2000, help="how many an answer has (2000)")
    parser.add_argument(
        "--pause", type=float, default=0.02, metavar="SECONDS", help="between two tokens (0.02)"
    )
    options = parser.parse_args()
    ask = (r"/ask", AskHandler, {"tokens": options.tokens, "pause": options.pause})
    run(options, [ANSWER], Path(__file__).parent / "page", wait, ask)
