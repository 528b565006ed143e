"""Whether this code and the spool on disk fit together, seen without opening the database.

SQLite keeps a number for the schema (user_version) and one for the program (application_id) in
the first hundred octets of the file. They are read as octets: opened by root, SQLite would
leave files beside the database that the relay cannot write.

A migration ends with a checkpoint, so what stands in the file is what holds; for the seconds in
which it does not, the worker that opens the database says the same.

Source: sqlite.org/fileformat.html §1.3.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from relayd.config.model import Config
from relayd.config.resolve import spool_path
from relayd.spool import backup, schema

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100


class Header(NamedTuple):
    """schema: its version, 0 before there is one. program: who set it, as `schema.stamp`."""

    schema: int
    program: int
    size_bytes: int


def header(path: str) -> Header | None:
    """Return what a database says of itself; None: there is none, or it is not ours to read."""
    try:
        with open(path, "rb") as file:
            octets = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return None
    if len(octets) < _HEADER_BYTES or not octets.startswith(_MAGIC):
        return None
    (version,) = struct.unpack_from(">I", octets, 60)
    (program,) = struct.unpack_from(">I", octets, 68)
    return Header(version, program, size)


def openness(folder: str) -> str:
    """Return why no mail is put into `folder`: others could read it; "" if not, or not there."""
    try:
        mode = os.stat(folder).st_mode & 0o777
    except OSError:
        return ""
    if not mode & 0o077:
        return ""
    return (
        f"[spool] url: {folder} is open to others (mode {mode:o}) and would hold mail; "
        f"give the spool a folder of its own, or: chmod 700 {folder}"
    )


def problems(config: Config) -> list[str]:
    """Return why this code cannot work on the spool of a configuration."""
    path, told = _look(config)
    openly = openness(os.path.dirname(path)) if path else ""
    if openly:
        return [openly]
    if told is None:
        return []
    if told.schema > schema.version():
        return [schema.too_new(path, told.schema, told.program)]
    if 0 < told.schema < schema.version():
        lack = backup.lacking(os.path.dirname(path), told.size_bytes)
        return [f"[spool] url: {lack}"] if lack else []
    return []


def standstill(config: Config) -> str:
    """Return why no relay may work on the spool while this code changes it; "" if one may."""
    _, told = _look(config)
    if told is None or not 0 < told.schema < schema.version():
        return ""
    steps = schema.MIGRATIONS[told.schema :]
    if all(schema.is_additive(statement) for step in steps for statement in step):
        return ""
    return (
        f"the spool's schema {told.schema} becomes {schema.version()} in a way that the running "
        "relayd could not work on; it needs a restart: systemctl restart relayd"
    )


def _look(config: Config) -> tuple[str, Header | None]:
    path = spool_path(config.spool.url)
    return path, header(path) if path else None
