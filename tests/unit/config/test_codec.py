"""Config -> JSON -> Config is the identity, secrets included; nothing else is taken."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config import codec
from relayd.config.model import Config, Device, Secret, Upstream, User


def values(kind: object) -> st.SearchStrategy[object]:
    """Return values a field of that type may have."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return values(args[0])
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if kind is Secret:
        return st.text(max_size=5).map(Secret)
    if dataclasses.is_dataclass(kind):
        row = typing.cast("type[object]", kind)
        return st.fixed_dictionaries(
            {name: values(each) for name, each in codec.hints(row).items()}
        ).map(lambda made: row(**made))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    simple = {str: st.text(max_size=5), int: st.integers(), float: numbers, bool: st.booleans()}
    return simple[typing.cast("type[typing.Any]", kind)]


CONFIGS = values(Config).map(lambda made: typing.cast("Config", made))


@given(CONFIGS)
def test_what_is_carried_arrives_unchanged(config: Config) -> None:
    assert codec.loads(codec.dumps(config)) == config


def test_every_value_of_every_kind_arrives_as_its_own_type() -> None:
    config = Config(
        upstream=(Upstream(name="a", client_secret=Secret("s"), own_domains=("x", "y")),),
        device=(Device(name="d", networks=("192.0.2.1/32",)),),
        user=(User(name="u"),),
    )
    arrived = codec.loads(codec.dumps(config))
    assert arrived.upstream[0].client_secret.reveal() == "s"
    assert isinstance(arrived.server.graceful_timeout, float)
    assert arrived == config


def changed(**edits: object) -> bytes:
    plain = json.loads(codec.dumps(Config()))
    plain.update(edits)
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"[]",
        b"{}",
        changed(unknown=1),
        changed(source=5),
        changed(source=None),
        changed(device={}),
        changed(device=[{"name": "x"}]),
        changed(log={"level": "loud", "format": "auto", "file": "", "subjects": False}),
        changed(log={"level": "info", "format": "auto", "file": "", "subjects": 0}),
        changed(admin={"address": 1}),
    ],
)
def test_what_another_version_wrote_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError):
        codec.loads(octets)


def test_a_duration_json_made_whole_is_a_float_again() -> None:
    plain = json.loads(codec.dumps(Config()))
    plain["server"]["graceful_timeout"] = 150
    graceful = codec.loads(json.dumps(plain).encode()).server.graceful_timeout
    assert isinstance(graceful, float)


@pytest.mark.slow(0.3)
def test_the_codec_is_lean_enough_for_the_master() -> None:
    probe = (
        "import sys; from relayd.config import codec, clouds;"
        "print({'gevent', 'ssl', 'structlog', 'tomllib', 'logging'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"
