"""Shows that the faults find bugs: each is put into a copy of the program, and has to be found by its name.

python -m tests.faults.bugs [NAME]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.accountant import Mistake

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bug:
    """A mistake in the program.

    Attributes:
        changes: files, and in each a piece of the text with what takes its place.
        fault: that brings it to light.
        times: how often the fault is brought about, at most.
        found: what the accountant has to find, any of these.
    """

    changes: Sequence[tuple[str, str, str]]
    fault: str
    times: int
    found: Sequence[Mistake]

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


WRITER, STREAM, PAST = (
    "sse_app/eventlog/sqlite/writer.py",
    "sse_app/streams/stream.py",
    "sse_app/streams/past.py",
)

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
        [(STREAM, "before + encode_closing(reason, retry)", "before")],
        "restart",
        5,
        (Mistake.UNTOLD,),
    ),
}


def find(name: str) -> bool:
    """Put a bug into a copy of the program, run the fault that brings it to light, and return whether it was found."""
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
        words = ["--fault", bug.fault, "--way", "one process", "--times", str(bug.times)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults", *words], cwd=tree, capture_output=True, text=True
        )
    print(f"== {name}\n{done.stdout}{done.stderr[-2000:]}", flush=True)
    return done.returncode == 1 and any(f": {mistake}: " in done.stdout for mistake in bug.found)


def main() -> int:
    names = sys.argv[1:] or [*BUGS]
    unfound = [name for name in names if not find(name)]
    for name in names:
        print(f"{name}: {'NOT FOUND' if name in unfound else 'found'}")
    return int(bool(unfound))


if __name__ == "__main__":
    sys.exit(main())
