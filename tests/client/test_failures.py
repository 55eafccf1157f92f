"""Which failures end a stream of the Python client and which pass, by the table of both clients."""

from __future__ import annotations

from tests.support.failures import table
from tests.support.server_process import ROOT


def test_the_documents_show_the_table_of_failures() -> None:
    assert f"\n{table()}\n" in (ROOT / "docs/clients.md").read_text(), table()
