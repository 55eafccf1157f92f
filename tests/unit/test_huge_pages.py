"""The interpreter's memory in huge pages."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from sse_app.process.huge_pages import mostly_in_use, use_huge_pages
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

SIZE = 2 * 1024 * 1024


@pytest.fixture
def memory() -> mmap.mmap:
    """Four huge pages' worth of memory that nothing has been written to."""
    return mmap.mmap(-1, 4 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def first_in(memory: mmap.mmap) -> tuple[int, int]:
    """Return the first address at which a huge page can be in the memory, and how far in it that is."""
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    address = -(-begin // SIZE) * SIZE
    return address, address - begin


def huge(pid: int | str) -> int:
    """Return how much of a process's memory lies in huge pages, in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("AnonHugePages:")[2].split()[0])


def test_what_is_hardly_in_use_is_made_no_huge_page(memory: mmap.mmap) -> None:
    address, at = first_in(memory)
    memory[at : at + SIZE] = b"x" * SIZE
    memory[at + SIZE : at + SIZE + 64 * 1024] = b"x" * 64 * 1024
    found = list(mostly_in_use(SIZE))
    assert address in found
    assert address + SIZE not in found
    assert address + 2 * SIZE not in found


@pytest.mark.slow
def test_the_memory_of_a_server_that_has_started_lies_in_huge_pages(
    memory: mmap.mmap, server: ServerProcess
) -> None:
    address, at = first_in(memory)
    memory[at : at + SIZE] = b"x" * SIZE
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    libc = ctypes.CDLL(None)
    can = setting.exists() and "[never]" not in setting.read_text()
    if not can or libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), 25):
        pytest.skip("this kernel makes no huge pages when it is asked to")
    assert server.process is not None
    pid = server.process.pid
    until(lambda: huge(pid) >= 8 * 1024, "most of its memory does")


def test_memory_stays_as_it_is_where_the_operator_has_switched_huge_pages_off(
    memory: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, at = first_in(memory)
    memory[at : at + SIZE] = b"x" * SIZE
    before = huge("self")
    (tmp_path / "hpage_pmd_size").write_text(f"{SIZE}\n")
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr("sse_app.process.huge_pages._SETTINGS", tmp_path)
    use_huge_pages()
    assert huge("self") <= before
