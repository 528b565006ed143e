"""Users: kept in a file that is replaced whole, seen by the worker at the next login."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import tomllib
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from relayd.access.passwords import DUMMY_HASH
from relayd.access.users import (
    Users,
    UsersFile,
    _locked,
    _replace,
    parse_users,
    path_in,
    problems,
    render_users,
)
from relayd.config.model import Config, Secret, Server, Upstream, User
from relayd.errors import ConfigError, Unavailable

HASH = Secret(DUMMY_HASH)
FULL = User(
    name="printer1",
    password_hash=HASH,
    upstream="contoso",
    from_="a@contoso.com",
    default_from="b@contoso.com",
    allow_from=("*@contoso.com",),
    allow_to=("*",),
    priority="high",
    hide=("STARTTLS",),
    lf_dot=True,
    reply="cutthrough",
    max_age=90.0,
)


def config_in(folder: Path, *users: User) -> Config:
    return Config(
        server=Server(state_dir=str(folder)),
        user=users,
        upstream=(Upstream(name="contoso", mailbox="a@contoso.com"),),
    )


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))

    assert file.list() == ()
    assert file.add(FULL)
    assert file.add(User(name="camera", password_hash=HASH))
    assert not file.add(User(name="camera", password_hash=HASH))

    assert file.list() == (FULL, User(name="camera", password_hash=HASH))


def test_a_password_changes_and_a_user_goes(tmp_path: Path) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))
    file.add(FULL)
    other = DUMMY_HASH.replace("AAAA$", "AAAQ$", 1)

    assert file.set_password("printer1", other)
    assert file.list() == (dataclasses.replace(FULL, password_hash=Secret(other)),)
    assert not file.set_password("nobody", other)
    assert file.delete("printer1")
    assert not file.delete("printer1")
    assert file.list() == ()


def test_the_file_is_for_its_owner_only_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    file = UsersFile(str(path))
    file.add(FULL)
    path.chmod(0o644)

    file.delete("printer1")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())
    assert os.listdir(tmp_path) == ["users.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays_when_root_writes(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    path = tmp_path / "users.toml"

    UsersFile(str(path)).add(FULL)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)

    os.chown(path, 23456, 23457)
    UsersFile(str(path)).delete("printer1")
    assert (path.stat().st_uid, path.stat().st_gid) == (23456, 23457)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    UsersFile(str(victim)).add(User(name="root", password_hash=HASH))
    before = victim.read_bytes()
    (tmp_path / "users.toml").symlink_to(victim)

    with pytest.raises(ConfigError):
        UsersFile(str(tmp_path / "users.toml")).add(FULL)

    assert victim.read_bytes() == before


def test_a_failed_replacement_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "users.toml").mkdir()

    with _locked(str(tmp_path)) as folder, pytest.raises(OSError, match="directory"):
        _replace(folder, "users.toml", b"x")

    assert os.listdir(tmp_path) == ["users.toml"]


def test_what_is_no_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "users.toml").mkdir()

    with pytest.raises(ConfigError, match="cannot be read"):
        UsersFile(str(tmp_path / "users.toml")).list()


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))

    with _locked(str(tmp_path)), pytest.raises(Unavailable, match="try again"):
        file.add(FULL)

    assert file.add(FULL)


def test_no_folder_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be changed"):
        UsersFile(str(tmp_path / "nowhere" / "users.toml")).add(FULL)


@pytest.mark.parametrize(
    "user",
    [
        User(name="", password_hash=HASH),
        User(name="with space", password_hash=HASH),
        User(name="sur\udcffrogate", password_hash=HASH),
        User(name="x", password_hash=Secret("clear text")),
        User(name="x", password_hash=HASH, from_="no address"),
        User(name="x", password_hash=HASH, allow_to=("a b",)),
        User(name="x", password_hash=HASH, max_age=1e9),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, user: User) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))

    with pytest.raises(ConfigError):
        file.add(user)

    assert os.listdir(tmp_path) == []


@given(name=st.text(max_size=20), address=st.text(max_size=20))
def test_any_text_is_written_as_toml_says(name: str, address: str) -> None:
    text = render_users([User(name=name, from_=address, allow_to=(address, "*"))])

    row = tomllib.loads(text)["user"][0]

    assert row["name"] == name
    assert row.get("from", "") == address
    assert row["allow_to"] == [address, "*"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[user]\n", "no TOML"),
        ("x = 1\n", 'unknown table "x"'),
        ('[user.x]\nname = "x"\n', r"\[\[user\]\]"),
        ("user = 5\n", r"\[\[user\]\]"),
        ('[[user]]\nname = "x"\nnonsense = 1\n', "unknown key nonsense"),
        ('[[user]]\nname = "x"\npriority = "urgent"\n', "priority"),
        ('[[user]]\nname = "x"\npassword_hash = 5\n', "password_hash"),
        ('[[user]]\nname = "x"\npassword_hash = "clear"\n', "no argon2id hash"),
        ("[[user]]\n", "name"),
        ('[[user]]\nname = "x"\n[[user]]\nname = "x"\n', "twice"),
        ('[[user]]\nname = "x"\nallow_from = ["*@"]\n', "allow_from"),
    ],
)
def test_a_broken_file_is_told_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_users(text.encode(), "users.toml")


def test_octets_that_are_no_text_are_no_users() -> None:
    with pytest.raises(ConfigError, match="no TOML"):
        parse_users(b"\xff", "users.toml")


def test_a_hash_never_stands_in_a_complaint() -> None:
    secret = "$argon2id$v=19$m=9999999,t=9,p=1$AAAAAAAAAAAAAAAAAAAAAA$c2VjcmV0c2VjcmV0c2VjcmV0"
    with pytest.raises(ConfigError) as caught:
        parse_users(f'[[user]]\nname = "x"\npassword_hash = "{secret}"\n'.encode(), "users.toml")

    assert "c2VjcmV0" not in str(caught.value)


def test_a_worker_sees_changes_at_the_next_login(tmp_path: Path) -> None:
    users = Users(config_in(tmp_path))
    file = UsersFile(str(tmp_path / "users.toml"))
    assert users.find("printer1") is None

    file.add(FULL)
    users.refresh()
    assert users.find("printer1") == FULL

    file.delete("printer1")
    users.refresh()
    assert users.find("printer1") is None


def test_a_file_that_is_gone_has_no_users(tmp_path: Path) -> None:
    UsersFile(str(tmp_path / "users.toml")).add(FULL)
    users = Users(config_in(tmp_path))

    (tmp_path / "users.toml").unlink()
    users.refresh()

    assert users.find("printer1") is None


def test_a_broken_file_keeps_the_users_and_is_logged_once(tmp_path: Path) -> None:
    UsersFile(str(tmp_path / "users.toml")).add(FULL)
    users = Users(config_in(tmp_path))
    (tmp_path / "users.toml").write_text("[[user]")

    with structlog.testing.capture_logs() as lines:
        users.refresh()
        users.refresh()

    assert users.find("printer1") == FULL
    assert [line["event"] for line in lines] == ["users.refused"]


def test_a_file_mended_without_a_new_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    UsersFile(str(path)).add(FULL)
    good = path.read_bytes()
    path.write_bytes(good.replace(b"=", b"?", 1))  # as where root restored it for root only
    before = path.stat()
    users = Users(config_in(tmp_path))
    assert users.find("printer1") is None

    path.write_bytes(good)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    users.refresh()

    assert users.find("printer1") == FULL


def test_the_configuration_wins_over_the_file(tmp_path: Path) -> None:
    UsersFile(str(tmp_path / "users.toml")).add(FULL)
    own = User(name="printer1", password_hash=HASH)

    with structlog.testing.capture_logs() as lines:
        users = Users(config_in(tmp_path, own))

    assert users.find("printer1") is own
    assert [line["event"] for line in lines] == ["users.hidden"]


def test_check_finds_clashes_dear_hashes_and_lost_upstreams(tmp_path: Path) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))
    file.add(FULL)
    file.add(User(name="lost", password_hash=HASH, upstream="fabrikam"))
    dear = Secret(DUMMY_HASH.replace("m=19456", "m=9999999"))

    found = problems(
        config_in(
            tmp_path, User(name="Printer1", password_hash=HASH), User(name="d", password_hash=dear)
        )
    )

    clash = f'[[user]] "printer1" is in {path_in(config_in(tmp_path))} too; remove one of them'
    clash += " (relayd user delete printer1)"
    assert [problem.split(":")[0] for problem in found] == [
        '[[user]] "d" password_hash',
        clash,
        path_in(config_in(tmp_path)),
    ]
    assert "fabrikam" in found[2]


def test_check_tells_of_a_broken_file_and_is_silent_without_one(tmp_path: Path) -> None:
    assert problems(config_in(tmp_path)) == []

    (tmp_path / "users.toml").write_text("[[user]")

    assert "no TOML" in problems(config_in(tmp_path))[0]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "users.toml", "wb") as file:
        file.truncate(9 * 1024 * 1024)

    with pytest.raises(ConfigError, match="larger"):
        UsersFile(str(tmp_path / "users.toml")).list()


def test_all_who_may_log_in_are_known_the_configurations_own_first(tmp_path: Path) -> None:
    config = Config(
        server=Server(state_dir=str(tmp_path)), user=(User(name="a", upstream="configured"),)
    )
    UsersFile(path_in(config)).add(User(name="b", password_hash=Secret(DUMMY_HASH)))
    UsersFile(path_in(config)).add(
        User(name="a", upstream="file", password_hash=Secret(DUMMY_HASH))
    )

    found = {one.name: one.upstream for one in Users(config).all()}

    assert found == {"a": "configured", "b": ""}


class Scarce:
    """os.open, or os.stat, of a process that has a trouble which passes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> int:
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_trouble_that_passes_is_no_verdict_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    file = UsersFile(str(tmp_path / "users.toml"))
    file.add(FULL)
    users = Users(config_in(tmp_path))
    file.add(User(name="camera", password_hash=HASH))
    with monkeypatch.context() as scarce, structlog.testing.capture_logs() as logs:
        trouble = Scarce(number)
        scarce.setattr(os, call, trouble)
        users.refresh()
        users.refresh()
    assert trouble.calls == 2  # it is looked at again
    assert [line["event"] for line in logs] == ["users.refused"]  # but told once
    assert users.find("printer1") == FULL
    assert users.find("camera") is None
    users.refresh()
    assert users.find("camera") is not None
