"""The fake server for unit tests of applications in JavaScript, with the real client, in Node.js."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.npm import CLIENT
from tests.support.programs import require

pytestmark = pytest.mark.node


def run(code: str) -> str:
    """Run tests as a module of the package, and return what they print."""
    command = [require("node"), "--input-type=module", "--eval", code]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_does_to_clients_what_a_test_says(built: str) -> None:
    assert "pass 9\n" in run(Path(__file__).with_suffix(".mjs").read_text())


def test_the_example_of_the_readme_runs_as_it_stands(built: str) -> None:
    text = (CLIENT / "README.md").read_text()
    (code,) = (code for code in re.findall(r"```js\n(.*?)```", text, re.DOTALL) if "fakeServer" in code)
    assert "pass 1\n" in run(code)
