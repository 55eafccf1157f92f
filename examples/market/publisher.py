"""The publishing backend of the demo: a process of its own that logs in and publishes over HTTP.

Usage: MARKET_PASSWORD=... python -m examples.market.publisher --url http://127.0.0.1:8000 --user market

It goes round the data for ever and ends cleanly on SIGINT and SIGTERM. The password comes from the
environment, because the arguments of a process can be read by everybody on the machine.
"""

import argparse
import asyncio
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sse_app.client import ClientError, Publisher, Session
from sse_app.client.http import check_address

from .bars import BadBars, load_bars, load_vix
from .events import Event, abandoned
from .feeds import Market, Tick, backtest_feed, portfolio_feed, training_feed

PASSWORD_VARIABLE = "MARKET_PASSWORD"

PORTFOLIO_PERIOD = 0.5
TRAINING_PERIOD = 0.7
BACKTEST_PERIOD = 0.5
"""Seconds between two ticks of each feed."""

GRACE = 1.0
"""Seconds for the requests under way when a signal comes, and again to tell that the runs are cut short."""


@dataclass(slots=True)
class Feed:
    """A feed being published: what comes next, how often in seconds, and what went out last."""

    ticks: Iterator[Tick]
    period: float
    last: Event | None = None

    async def publish(self, client: Publisher, stop: asyncio.Event) -> None:
        """Publish tick after tick until there are no more or `stop` is set; never ends amid a request."""
        clock = asyncio.get_running_loop()
        due = clock.time()
        for events in self.ticks:
            if len(events) == 1:
                await client.publish(**events[0])
            elif events:
                # A day and its alerts belong together: subscribers see all of them or none.
                await client.publish_batch(events)
            if events:
                self.last = events[-1]
            # After an outage the next tick is due now; those that were missed are not sent in a burst.
            due = max(due + self.period, clock.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await stop.wait()
            if stop.is_set():
                return


async def publish_all(client: Publisher, feeds: Sequence[Feed]) -> None:
    """Publish the feeds side by side until all have ended, one is refused, or a signal comes.

    Raises:
        ClientError: the server refuses the account or an event.
    """
    stop = asyncio.Event()
    tasks = [asyncio.create_task(feed.publish(client, stop)) for feed in feeds]

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    def end() -> None:
        stop.set()
        asyncio.get_running_loop().call_later(GRACE, cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)

    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    # A feed that had to be cancelled is left out: whether its last event arrived is not known.
    known = [feed.last for feed, outcome in zip(feeds, outcomes, strict=True) if outcome is None]
    endings = [ending for last in known if last and (ending := abandoned(last))]
    if endings:
        with suppress(TimeoutError, ClientError):
            await asyncio.wait_for(client.publish_batch(endings), GRACE)


async def main(url: str, user: str, password: str, speed: float, once: bool, quoted: bool) -> None:
    """Publish the market to the server at `url`."""
    market = Market(load_bars(), load_vix())
    passes = 1 if once else None
    feeds = (
        Feed(portfolio_feed(market, passes, quoted=quoted), PORTFOLIO_PERIOD / speed),
        Feed(training_feed(market, passes), TRAINING_PERIOD / speed),
        Feed(backtest_feed(market, passes), BACKTEST_PERIOD / speed),
    )
    async with (
        Session(url, user, password) as session,
        Publisher(
            url, session, patience=math.inf, report=_say
        ) as client,  # it outlasts the server's restarts
    ):
        await publish_all(client, feeds)


def _say(sentence: str) -> None:
    print(f"publisher: {sentence}", file=sys.stderr, flush=True)


def _address(text: str) -> str:
    try:
        check_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return text


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.market.publisher",
        description="Publish the market demo to a running server.",
        epilog=f"The password is read from the environment variable {PASSWORD_VARIABLE}.",
    )
    add = parser.add_argument
    add("--url", type=_address, default="http://127.0.0.1:8000", help="address of the server (%(default)s)")
    add("--user", default="market", help="account to publish as (%(default)s)")
    add("--speed", type=_speed, default=1.0, help="how many times faster than usual (%(default)s)")
    add("--quotes", action="store_true", help="publish quotes too, on a channel that the server must have")
    add("--once", action="store_true", help="end after one pass over the data")
    return parser.parse_args()


if __name__ == "__main__":
    # For a signal that comes before the work begins, or amid the last of it.
    for early in (signal.SIGINT, signal.SIGTERM):
        signal.signal(early, lambda number, frame: sys.exit(0))
    arguments = _arguments()
    secret = os.environ.get(PASSWORD_VARIABLE, "")
    if not secret:
        _say(f"the environment variable {PASSWORD_VARIABLE} holds no password")
        sys.exit(2)
    try:
        asyncio.run(
            main(arguments.url, arguments.user, secret, arguments.speed, arguments.once, arguments.quotes)
        )
    except (BadBars, ClientError) as error:
        _say(str(error))
        sys.exit(1)
