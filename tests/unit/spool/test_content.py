"""Content files: nothing under a name that is not whole, nothing damaged given out whole."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.clock import SYSTEM
from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.spool.content import PIECE, FileReader, FileWriter, Shelf, unavailable
from relayd.spool.model import QueueId, queue_id_text

MESSAGE = QueueId(1_700_000_000_000_000 << 12)
OCTETS = b"0123456789abcdef" * 50_000


def make_shelf(folder: Path, *, unnamed: bool = True) -> tuple[Shelf, list[str]]:
    points: list[str] = []
    shelf = Shelf(str(folder), points.append)
    shelf.has_unnamed = shelf.has_unnamed and unnamed
    return shelf, points


def stored(shelf: Shelf, octets: bytes = OCTETS) -> FileWriter:
    writer = FileWriter(shelf, MESSAGE)
    writer.write([octets])
    writer.finish()
    return writer


def read(reader: FileReader) -> bytes:
    found = b""
    while piece := reader.read():
        assert len(piece) <= PIECE
        found += piece
    reader.close()
    return found


@pytest.mark.parametrize("unnamed", [True, False], ids=["O_TMPFILE", "named"])
def test_what_was_written_is_read_and_named_only_when_durable(
    tmp_path: Path,
    unnamed: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    shelf, points = make_shelf(tmp_path, unnamed=unnamed)
    writer = FileWriter(shelf, MESSAGE)
    writer.write([OCTETS[:1000], OCTETS[1000:]])
    assert queue_id_text(MESSAGE) not in os.listdir(shelf.folder)
    writer.finish()
    assert points == ["content-written", "content-synced", "content-linked", "content-named"]
    assert os.listdir(shelf.folder) == [queue_id_text(MESSAGE)]
    assert os.stat(shelf.path(MESSAGE)).st_mode & 0o777 == 0o600
    assert read(FileReader(shelf.path(MESSAGE), size=writer.size, crc=writer.crc)) == OCTETS


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=8))
def test_any_split_gives_the_same_content(tmp_path: Path, pieces: list[bytes]) -> None:
    shelf, _ = make_shelf(tmp_path)
    writer = FileWriter(shelf, MESSAGE)
    writer.write(pieces)
    writer.finish()
    whole = b"".join(pieces)
    assert (writer.size, writer.crc) == (len(whole), zlib.crc32(whole))
    assert read(FileReader(shelf.path(MESSAGE), size=len(whole), crc=writer.crc)) == whole
    shelf.remove(MESSAGE)


@pytest.mark.parametrize("unnamed", [True, False], ids=["O_TMPFILE", "named"])
@pytest.mark.parametrize("finished", [True, False])
def test_abandoning_leaves_nothing(
    tmp_path: Path,
    *,
    unnamed: bool,
    finished: bool,
) -> None:
    shelf, _ = make_shelf(tmp_path, unnamed=unnamed)
    writer = FileWriter(shelf, MESSAGE)
    writer.write([OCTETS])
    if finished:
        writer.finish()
    writer.abandon()
    writer.abandon()
    assert not os.listdir(shelf.folder)


@pytest.mark.parametrize(
    "damaged",
    [OCTETS[:-1], OCTETS + b"x", b"x" + OCTETS[1:], OCTETS[:-1] + b"x", b""],
    ids=["short", "long", "first", "last", "empty"],
)
def test_damage_is_told_before_the_last_piece_is_given_out(tmp_path: Path, damaged: bytes) -> None:
    shelf, _ = make_shelf(tmp_path)
    stored(shelf)
    Path(shelf.path(MESSAGE)).write_bytes(damaged)
    reader = FileReader(shelf.path(MESSAGE), size=len(OCTETS), crc=zlib.crc32(OCTETS))
    given_out = 0

    def read_on() -> None:
        nonlocal given_out
        while piece := reader.read():
            given_out += len(piece)

    with pytest.raises(EOFError):
        read_on()
    reader.close()
    assert given_out < len(OCTETS)


def test_what_is_put_aside_is_kept(tmp_path: Path) -> None:
    shelf, _ = make_shelf(tmp_path)
    stored(shelf)
    shelf.put_aside(MESSAGE)
    shelf.put_aside(MESSAGE)
    assert not os.listdir(shelf.folder)
    assert (tmp_path / "corrupt" / queue_id_text(MESSAGE)).read_bytes() == OCTETS


def test_old_files_are_named_and_unfinished_ones_of_the_dead_removed(tmp_path: Path) -> None:
    shelf, _ = make_shelf(tmp_path)
    stored(shelf)
    for name in (queue_id_text(MESSAGE), ".unfinished", "not ours", "Z" * 13):
        (Path(shelf.folder) / name).write_bytes(b"")
        os.utime(Path(shelf.folder) / name, (0, 0))
    (Path(shelf.folder) / ".new").write_bytes(b"")
    assert shelf.old_files(SYSTEM) == [MESSAGE]
    assert sorted(os.listdir(shelf.folder)) == sorted(
        [queue_id_text(MESSAGE), ".new", "not ours", "Z" * 13]
    )


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, SpoolFull),
        (errno.EDQUOT, SpoolFull),
        (errno.EIO, SpoolUnavailable),
        (errno.EROFS, SpoolUnavailable),
    ],
)
def test_no_room_is_told_from_no_disk(number: int, kind: type[SpoolUnavailable]) -> None:
    assert type(unavailable(OSError(number, "x"))) is kind
