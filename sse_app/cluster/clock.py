"""How far the database's clock is ahead of the monotonic one of this process, by what the database answers."""

from __future__ import annotations


class ClockComparison:
    """Keeps what each answer leaves possible.

    A time that the database tells was its time at some moment between the question and the answer. So an answer that
    takes long, as where this process stands still meanwhile, says little, and takes nothing back that a quick one said.

    Args:
        ahead: the first estimate, in seconds.
    """

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        """In seconds; off by no more than the quickest answer took, as long as both clocks run evenly."""

    def learn(self, clock: float, asked_at: float, answered_at: float) -> None:
        """Take over what an answer says.

        Args:
            clock: the database's time.
            asked_at: when it was asked, by the monotonic clock.
            answered_at: when the answer was there.
        """
        self.ahead = min(max(self.ahead, clock - answered_at), clock - asked_at)
