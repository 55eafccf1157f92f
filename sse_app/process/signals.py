"""The signals that a server alone and the parent of workers take in the same way."""

from __future__ import annotations

import logging
import signal

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""At these a process ends; under systemd SIGTERM may be a restart, the others never are."""

NO_LOG_FILE = "there is no log file to open again: the log is standard error"
"""Why SIGUSR1 is ignored, at which other servers open their log files again."""

log = logging.getLogger(__name__)


def ignore(number: int, detail: str) -> None:
    """Log that a signal is ignored, which by default would end the process.

    Args:
        number: of the signal.
        detail: why.
    """
    log.info("signal_ignored", extra={"signal": signal.Signals(number).name, "detail": detail})
