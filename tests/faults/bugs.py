"""Shows that the faults find bugs: each is put into a copy of the program, and has to be found by its name.

python -m tests.faults.bugs [--seed N] [--results FILE] [NAME …]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.faults.result import Result, add_option, commit, keep
from tests.faults.verdict import Mistake

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bug:
    """A mistake in the program.

    Attributes:
        changes: files, and in each a piece of the text with what takes its place.
        fault: that brings it to light.
        way: to run the server.
        times: how often the fault is brought about, at most.
        found: what the accountant has to find, any of these.
    """

    changes: Sequence[tuple[str, str, str]]
    fault: str
    times: int
    found: Sequence[Mistake]
    way: str = "one process"

    def put_into(self, tree: Path) -> None:
        """Make the mistake in a copy of the program.

        Raises:
            ValueError: the program has changed, and the mistake has to be thought of anew.
        """
        for file, before, after in self.changes:
            path = tree / file
            text = path.read_text()
            if text.count(before) != 1:
                raise ValueError(f"{file} has {text.count(before)} of: {before}")
            path.write_text(text.replace(before, after))


class Found(msgspec.Struct, kw_only=True):
    """What became of a bug.

    Attributes:
        bug: its name.
        commit: of the program that it was put into.
        sought: the mistakes that it leads to, any of which has to be found.
        result: of the run with it; None where there was none.
    """

    bug: str
    commit: str
    sought: list[Mistake]
    result: Result | None

    @property
    def is_found(self) -> bool:
        """Whether the accountant has found it by its name."""
        return self.result is not None and any(self.result.found.get(mistake) for mistake in self.sought)


WRITER, STREAM, PAST = (
    "sse_app/eventlog/sqlite/writer.py",
    "sse_app/streams/stream.py",
    "sse_app/streams/past.py",
)
SEVERAL, MACHINES = "several processes", "several machines"

BUGS = {
    "deliver before commit": Bug(
        [
            (
                WRITER,
                '            file.db.execute("COMMIT")\n        except Exception as error:',
                "        except Exception as error:",
            ),
            (
                WRITER,
                "            self.reports.append(commit)\n        if file.is_long_after(size):",
                '            self.reports.append(commit)\n        self._wake()\n        file.db.execute("COMMIT")\n'
                "        if file.is_long_after(size):",
            ),
        ],
        "kill -9",
        40,
        (Mistake.LOST, Mistake.INVENTED, Mistake.TWO_EVENTS, Mistake.SILENT_GAP),
    ),
    "acknowledge before the disk has it": Bug(
        [("sse_app/storage/sqlite.py", "PRAGMA synchronous=FULL", "PRAGMA synchronous=OFF")],
        "power loss",
        5,
        (Mistake.LOST, Mistake.TWO_EVENTS, Mistake.NEEDLESS_RESET),
    ),
    "skip one event at a replay's edge": Bug(
        [(PAST, "self.cache.between(after, until,", "self.cache.between(after + 1, until,")],
        "restart",
        5,
        (Mistake.SILENT_GAP,),
    ),
    "forget trimmed": Bug(
        [
            (
                "sse_app/eventlog/sqlite/log.py",
                "if position.seq < (state.trimmed if state else alone.forgotten)",
                "if position.seq < 0",
            ),
            (
                "sse_app/eventlog/sqlite/reader.py",
                "gap = gap or floor < trimmed\n                begins",
                "begins",
            ),
        ],
        "history trimmed",
        5,
        (Mistake.SILENT_GAP,),
    ),
    "use an id twice": Bug(
        [
            (
                "sse_app/eventlog/sqlite/file.py",
                "self.head = max(self.head, state.head)",
                "self.head = max(self.head, state.head - 1)",
            ),
            (
                "sse_app/eventlog/sqlite/schema.py",
                '"INSERT INTO events (seq,',
                '"INSERT OR REPLACE INTO events (seq,',
            ),
        ],
        "restart",
        5,
        (Mistake.TWO_EVENTS,),
    ),
    "drop the farewell": Bug(
        [(STREAM, "before + encode_closing(reason, retry)", "before")], "restart", 5, (Mistake.UNTOLD,)
    ),
    "forget idempotency keys over a restart": Bug(
        [
            (
                "sse_app/eventlog/sqlite/file.py",
                "        if begun is None:\n",
                '        self.db.execute("DELETE FROM answers")\n        if begun is None:\n',
            )
        ],
        "restart",
        5,
        (Mistake.DOUBLED,),
    ),
    "go on without a word where too much waits": Bug(
        [(STREAM, 'self.end("slow_consumer", self.retry)', "self._pending, self._pending_bytes = None, 0")],
        "clients do not read",
        2,
        (Mistake.SILENT_GAP,),
    ),
    "hand over a stream without what waits for it": Bug(
        [("sse_app/handover/sender.py", "data=stream.unsent()", 'data=b""')],
        "upgrade while clients do not read",
        2,
        (Mistake.SILENT_GAP, Mistake.MALFORMED),
    ),
    "skip what another worker has stored in between": Bug(
        [
            (
                "sse_app/eventlog/sqlite/log.py",
                "if bell.events and bell.previous <= self._seq < bell.head:",
                "if bell.events and self._seq < bell.head:",
            ),
            (
                "sse_app/eventlog/sqlite/log.py",
                "bell.events[self._seq - bell.previous :]",
                "bell.events[max(0, self._seq - bell.previous) :]",
            ),
            (
                "sse_app/eventlog/tail.py",
                "if self._behind or first != self._last + 1:",
                "if self._behind or first <= self._last:",
            ),
        ],
        "SIGSTOP",
        12,
        (Mistake.SILENT_GAP,),
        SEVERAL,
    ),
    "acknowledge before PostgreSQL has it on disk": Bug(
        [
            (
                "sse_app/storage/postgres/sql/10_numbers_after_a_promotion.sql",
                "IF current_setting('synchronous_commit') = 'off' THEN\n        PERFORM sse_app.wait_for_disk();",
                "IF true THEN\n        PERFORM set_config('synchronous_commit', 'off', true);",
            )
        ],
        "the database ends",
        5,
        (Mistake.LOST, Mistake.TWO_EVENTS),
        MACHINES,
    ),
    "listen no more once the database was away": Bug(
        [
            (
                "sse_app/storage/postgres/listener.py",
                "            await asyncio.sleep(wait * (1 - random.random() / 2))",
                "            await asyncio.Event().wait()",
            ),
            (
                "sse_app/eventlog/postgres/log.py",
                "PeriodicCallback(self._due.set, LOOK_INTERVAL)",
                "PeriodicCallback(self._due.set, 3600.0)",
            ),
        ],
        "the database ends",
        1,
        (Mistake.SILENT_GAP,),
        MACHINES,
    ),
}


def find(name: str, seed: int) -> Found:
    """Put a bug into a copy of the program, run the fault that brings it to light, and return what was found.

    Args:
        name: of the bug.
        seed: of the run; 0 for one by chance.
    """
    bug = BUGS[name]
    with tempfile.TemporaryDirectory(prefix="sse-bug-") as directory:
        tree = Path(directory) / "tree"
        files = subprocess.run(
            ["git", "ls-files", "-z", "sse_app", "tests", "config", "main.py", "pyproject.toml", "setup.py"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for file in filter(None, files.split("\0")):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)
        bug.put_into(tree)
        words = ["--fault", bug.fault, "--way", bug.way, "--times", str(bug.times)]
        words += ["--results", directory + "/results", *(["--seed", str(seed)] if seed else [])]
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults", *words], cwd=tree, capture_output=True, text=True
        )
        results = Path(directory, "results")
        result = msgspec.json.decode(results.read_bytes(), type=Result) if results.exists() else None
    print(f"== {name}\n{done.stdout}{done.stderr[-2000:]}", flush=True)
    return Found(bug=name, commit=commit(), sought=list(bug.found), result=result)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.bugs", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--seed", type=int, default=0, help="that of a run that is to be run again")
    add_option(parser)
    options = parser.parse_args()
    founds = []
    for name in options.names or [*BUGS]:
        founds.append(found := find(name, options.seed))
        keep(found, options.results)
    for found in founds:
        print(f"{found.bug}: {'found' if found.is_found else 'NOT FOUND'}")
    return int(not all(found.is_found for found in founds))


if __name__ == "__main__":
    sys.exit(main())
