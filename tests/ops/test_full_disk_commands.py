"""What the commands say and leave behind on a disk that is really full: a small file system in a namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import ROOT, running

COMMANDS = (
    "user add bob --password-stdin",
    "user passwd ann --password-stdin",
    "user disable ann",
    "revoke --all",
    "keys rotate",
    "keys rotate --algorithm EdDSA",
    "eventlog new-epoch",
)
SCRIPT = """
set -e
mount -t tmpfs -o size=3m,mode=700 none "$DISK"
cp -a "$STATE/." "$DISK"
"$PYTHON" -c "$HOLDER" > "$OUT/held" &  # as a running server has the databases open
holder=$!
until [ -s "$OUT/held" ]; do sleep 0.05; done
head -c 4000000 /dev/zero > "$DISK/ballast" 2> /dev/null || true
set +e
number=0
printf '%s\\n' "$COMMANDS" | while read -r command; do
    number=$((number + 1))
    echo 'correct horse battery' | "$PYTHON" main.py $command > "$OUT/$number.out" 2> "$OUT/$number.err"
    echo $? > "$OUT/$number.status"
done
find "$DISK/keys" -type f -size -32c > "$OUT/empty_keys"
ls -A "$DISK/keys" > "$OUT/keys"
rm "$DISK/ballast"
kill $holder
"$PYTHON" main.py user list > "$OUT/users"
"$PYTHON" main.py audit > "$OUT/audit"
"$PYTHON" main.py eventlog show > "$OUT/log"
echo 'correct horse battery' | "$PYTHON" main.py user add bob --password-stdin 2> "$OUT/after"
"$PYTHON" main.py keys rotate >> "$OUT/after"
"""

HOLDER = """
import os, sqlite3, time
databases = [sqlite3.connect(f"{os.environ['DISK']}/{name}.db") for name in ("accounts", "events")]
for database in databases:
    database.execute("SELECT * FROM sqlite_schema").fetchall()
print("held", flush=True)
time.sleep(100)
"""


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_on_a_full_disk_each_command_says_so_in_one_line_and_does_nothing_by_halves(tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state") as server:
        server.add_user("ann", "correct horse battery")
        before = server.command("eventlog", "show")
        audit = server.command("audit")
    keys = os.listdir(tmp_path / "state/keys")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT],
        cwd=ROOT,
        env={
            **os.environ,
            "SSE_APP_STATE_DIR": str(disk),
            "STATE": str(tmp_path / "state"),
            "DISK": str(disk),
            "OUT": str(out),
            "PYTHON": sys.executable,
            "HOLDER": HOLDER,
            "COMMANDS": "\n".join(COMMANDS),
        },
        check=True,
        timeout=120,
    )
    for number, command in enumerate(COMMANDS, 1):
        errors = (out / f"{number}.err").read_text()
        assert (out / f"{number}.status").read_text() == "1\n", (command, errors)
        assert len(errors.splitlines()) == 1, (command, errors)
        assert errors.startswith("sse-app: "), (command, errors)
        assert (out / f"{number}.out").read_text() == "", command
    assert (out / "empty_keys").read_text() == ""
    assert (out / "keys").read_text().split() == keys
    assert (out / "users").read_text() == "ann\n"
    assert (out / "audit").read_text().strip() == audit
    assert (out / "log").read_text().strip() == before
    assert len((out / "after").read_text().splitlines()) == 1
