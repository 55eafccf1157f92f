"""A position that cannot be continued brings a reset, and live events after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import httpx
import pytest

from tests.support.databases import back_up
from tests.support.room import Room, first, listen, numbers, sequence, take
from tests.support.waiting import until


@pytest.mark.slow
def test_a_position_older_than_the_history_brings_a_reset_and_then_live_events(
    start_room: Callable[..., Room],
) -> None:
    room = start_room(HISTORY__SIZE=10)
    fresh = room.head("dashboard")
    ids = [room.publish("dashboard", n) for n in range(30)]
    for round in range(2):
        for old in (fresh, ids[0], ids[18]):
            with listen(room.url("dashboard"), after=old) as frames:
                assert first(frames).data["recovered"] is False
                (reset,) = take(frames, 1)
                assert (reset.type, reset.id) == ("reset", None)
                assert set(reset.data) == {"channel", "reason"}
                assert reset.data["channel"] == "dashboard"
                assert isinstance(reset.data["reason"], str)
                assert reset.data["reason"]
                room.http.post("/api/v1/sse/dashboard", json={"event": "live", "data": {}})
                assert [frame.type for frame in take(frames, 1)] == ["live"]
            room.publish_batch([("dashboard", n) for n in range(10)])
        ids = [room.publish("dashboard", n) for n in range(30)]
        with listen(room.url("dashboard"), after=ids[19]) as frames:
            assert first(frames).data["recovered"] is True
            assert numbers(take(frames, 10)) == list(range(20, 30))
        if round == 0:  # a restart does not forget what was trimmed
            room.server.stop()
            room.server.start()


@pytest.mark.slow
def test_a_position_before_an_event_that_grew_too_old_brings_a_reset(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__AGE=1)
    before = room.publish("dashboard", 0)
    last = room.publish("dashboard", 1)
    after = {"after": before}

    def gone() -> bool:
        answer = room.http.get("/api/v1/sse/dashboard/history", params=after).json()
        assert answer["complete"] is (answer["events"] != [])
        return not answer["events"]

    until(gone, "the event grew too old")
    for _ in range(2):
        with listen(room.url("dashboard"), after=before) as frames:
            assert first(frames).data["recovered"] is False
            assert [frame.type for frame in take(frames, 1)] == ["reset"]
        with listen(room.url("dashboard"), after=last) as frames:
            assert first(frames).data["recovered"] is True
            new = room.publish("dashboard", 2)
            assert [(frame.type, frame.id) for frame in take(frames, 1)] == [("e", new)]
        # Nothing is left in the log but its head; ids go on from there all the same.
        assert sequence(new) == sequence(last) + 1
        until(
            lambda: not room.http.get("/api/v1/sse/dashboard/history").json()["events"],
            "the next event grew too old",
        )
        last = new
        room.server.stop()
        room.server.start()
    assert sequence(room.publish("dashboard", 3)) == sequence(last) + 1


def test_a_quiet_channel_goes_on_while_a_busy_one_was_trimmed(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__SIZE=10)
    position = room.publish("alerts", 0)
    next_id = room.publish("alerts", 1)
    room.publish_batch([("dashboard", n) for n in range(50)])
    room.publish("training", 2)
    with listen(room.url("alerts"), after=position) as frames:
        assert first(frames).data["recovered"] is True
        assert [frame.id for frame in take(frames, 1)] == [next_id]
    with listen(room.url("training,dashboard,alerts"), after=position) as frames:
        connected = first(frames)
        assert connected.data["recovered"] is False
        reset, quiet, other = take(frames, 3)
        assert (reset.type, reset.data["channel"]) == ("reset", "dashboard")
        assert (quiet.id, quiet.data["channel"]) == (next_id, "alerts")
        assert other.data["channel"] == "training"
        live = room.publish("dashboard", 99)
        assert [frame.id for frame in take(frames, 1)] == [live]
    # Cut before the replay, it is told and gets the same again.
    with listen(room.url("training,dashboard,alerts"), after=connected.id) as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 3)] == ["reset", "e", "e"]


@pytest.mark.parametrize(
    "make",
    [
        "0badc0de-{seq}",
        "{epoch}",
        "{epoch}-",
        "-{seq}",
        "{seq}",
        "garbage",
        "{epoch}-ahead",
        "{epoch}-{ahead}",
        "{epoch}-9223372036854775807",
        "{epoch}-9223372036854775808",
        "{epoch}-999999999999999999999999999999999999999",
        "{epoch}--1",
        "{epoch}-1.5",
        "{epoch}-1e0",
        "{epoch}-0x1",
        "{epoch}-+{seq}",
        "{epoch}-0_1",
        "{epoch}-{seq}-{seq}",
        "{epoch}-²",
        "{epoch}-\u0661",
        "{epoch}\u2028-{seq}",
        "'; drop table events; --",
        "null",
        "é",
    ],
)
def test_a_position_that_means_nothing_here_brings_a_reset_for_each_channel(room: Room, make: str) -> None:
    a, b = room.channel(), room.channel()
    id = room.publish(a, 0)
    room.publish(b, 0)
    epoch = id.rpartition("-")[0]
    position = make.format(epoch=epoch, seq=sequence(id), ahead=sequence(id) + 1000)
    for url, header in (
        (room.url(f"{a},{b}", last_event_id=position), None),
        (room.url(f"{a},{b}"), position),
    ):
        with listen(url, after=header) as frames:
            connected = first(frames)
            assert connected.data["recovered"] is False
            resets = take(frames, 2)
            assert [frame.type for frame in resets] == ["reset", "reset"]
            assert [frame.data["channel"] for frame in resets] == [a, b]
            live = room.publish(b, 1)
            assert [frame.id for frame in take(frames, 1)] == [live]


@pytest.mark.parametrize("lost", ["trimmed", "another epoch", "unreadable", "ahead"])
def test_a_client_cut_between_connected_and_reset_is_told_again(
    start_room: Callable[..., Room], lost: str
) -> None:
    room = start_room(HISTORY__SIZE=10)
    head = room.head("dashboard")
    ids = room.publish_batch([("dashboard", n) for n in range(30)])
    position = {
        "trimmed": head,
        "another epoch": f"0badc0de-{sequence(ids[5])}",
        "unreadable": "unreadable",
        "ahead": ids[-1].replace(f"-{sequence(ids[-1])}", "-5000"),
    }[lost]
    for _ in range(3):
        with listen(room.url("dashboard"), after=position) as frames:
            connected = next(frames)
            assert (connected.type, connected.data["recovered"]) == ("connected", False)
        # A client keeps the last id that it was given, and this one saw no `reset` yet.
        position = position if connected.id is None else connected.id


def test_bytes_in_the_header_that_are_no_utf8_bring_a_reset(room: Room) -> None:
    channel = room.channel()
    with listen(room.url(channel), after=b"\xff\xfe\x80") as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 1)] == ["reset"]


def test_an_id_of_any_length_brings_a_reset_and_only_control_characters_are_refused(room: Room) -> None:
    channel = room.channel()
    for value in ("x" * 128, "x" * 129, "é" * 65):
        for url, header in ((room.url(channel, last_event_id=value), None), (room.url(channel), value)):
            with listen(url, after=header) as frames:
                assert first(frames).data["recovered"] is False
                assert [frame.type for frame in take(frames, 1)] == ["reset"]
    for value in ("a\nb", "\n", " a\x00", "a\t", "\x7f", "a\r", "x" * 200 + "\n"):
        with httpx.stream("GET", room.url(channel, last_event_id=value)) as answer:
            assert answer.status_code == 400, value
            answer.read()
            assert set(answer.json()["error"]) == {"code", "message"}


def test_after_a_restored_backup_a_new_epoch_makes_old_ids_recognisable(
    start_room: Callable[..., Room],
) -> None:
    room = start_room()
    server = room.server
    saved = [room.publish("dashboard", n) for n in range(5)]
    assert server.stop() == 0
    backup = server.state_dir.with_name("backup")
    back_up(server.state_dir, backup)
    server.start()
    lost = [room.publish("dashboard", n) for n in range(5, 10)]
    server.stop()
    shutil.rmtree(server.state_dir)
    backup.rename(server.state_dir)
    server.command("eventlog", "new-epoch")
    server.start()
    new = [room.publish("dashboard", n) for n in range(10, 15)]
    assert not {*saved, *lost} & {*new}
    for old in (saved[0], saved[-1], lost[0], lost[-1]):
        with listen(room.url("dashboard"), after=old) as frames:
            assert first(frames).data["recovered"] is False
            assert [frame.type for frame in take(frames, 1)] == ["reset"]
        history = room.http.get("/api/v1/sse/dashboard/history", params={"after": old}).json()
        assert history["complete"] is False
    with listen(room.url("dashboard"), after=new[2]) as frames:
        assert first(frames).data["recovered"] is True
        assert [frame.id for frame in take(frames, 2)] == new[3:]


def test_a_lost_log_is_another_one_when_it_is_made_again(start_room: Callable[..., Room]) -> None:
    room = start_room()
    old = [room.publish("dashboard", n) for n in range(3)]
    room.server.stop()
    for path in room.server.state_dir.glob("events.db*"):
        path.unlink()
    room.server.start()
    new = [room.publish("dashboard", n) for n in range(3)]
    assert not set(old) & set(new)
    with listen(room.url("dashboard"), after=old[0]) as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 1)] == ["reset"]
