"""`relayd user`: what is asked, what is refused, and whose the file is in the end."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from relayd.access.passwords import verify
from relayd.access.users import read_users
from relayd.cli import logins
from relayd.config.model import User
from relayd.errors import Unavailable
from tests.control_socket import Terminal, relayd

NOBODY = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

CONFIG = """
[server]
hostname = "relay.test"
state_dir = "{folder}/state"
[spool]
url = "sqlite:///{folder}/spool/spool.db"
[cloud.lab]
authority = "https://127.0.0.1:8443"
graph = "https://127.0.0.1:8443/v1.0"
graph_scope = "https://graph.microsoft.com/.default"
[upstream.lab]
cloud = "lab"
tenant = "contoso.onmicrosoft.com"
client_id = "cc975d7e-9504-5f04-9789-32502b1969a8"
client_secret = "s"
mailbox = "alerts@contoso.com"
{more}
"""
SECOND = """
[upstream.other]
cloud = "lab"
tenant = "contoso.onmicrosoft.com"
client_id = "cc975d7e-9504-5f04-9789-32502b1969a8"
client_secret = "s"
mailbox = "other@contoso.com"
"""
CONFIGURED = """
[[user]]
name = "Written"
upstream = "lab"
password_hash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$\
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
"""


class Site:
    """A configuration in a folder, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "relayd.toml"
        self.state = folder / "state"
        self.file = self.state / "users.toml"
        self.configure()

    def configure(self, more: str = "") -> None:
        self.config.write_text(CONFIG.format(folder=self.folder, more=more))
        self.config.chmod(0o600)

    def run(self, *words: str) -> int:
        return relayd("--config", str(self.config), "user", *words)

    def users(self) -> dict[str, User]:
        return {one.name: one for one in read_users(str(self.file))}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def typed(monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(octets)))


def password_of(out: str) -> str:
    return out.partition("shown this once: ")[2].split()[0]


# ---- passwords


def test_a_generated_password_is_16_letters_and_digits_shown_once(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.run("add", "printer1", "--generate") == 0
    out = capsys.readouterr().out
    password = password_of(out)
    assert "shown this once" in out
    assert out.endswith("send --device printer1 --to ADDRESS --wait\n")
    assert len(password) == 16
    assert password.isascii()
    assert password.isalnum()
    assert verify(site.users()["printer1"].password_hash.reveal(), password)
    assert password not in site.file.read_text()


def test_generated_passwords_differ(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.run("add", "a", "--generate", "--json")
    site.run("add", "b", "--generate", "--json")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first.keys() == second.keys() == {"name", "password"}
    assert first["password"] != second["password"]


@pytest.mark.parametrize("octets", [b"s3cret\n", b"s3cret\r\n", b"s3cret"])
def test_a_password_is_read_from_standard_input_without_its_line_end(
    site: Site, monkeypatch: pytest.MonkeyPatch, octets: bytes
) -> None:
    typed(monkeypatch, octets)
    assert site.run("add", "nas", "--stdin") == 0
    assert verify(site.users()["nas"].password_hash.reveal(), "s3cret")


def test_a_password_need_not_be_utf_8(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, b"\xfcber\n")
    assert site.run("add", "nas", "--stdin") == 0
    assert verify(site.users()["nas"].password_hash.reveal(), "\udcfcber")


def test_an_empty_password_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, b"\n")
    assert site.run("add", "nas", "--stdin") == 1
    assert "empty; nothing changed" in capsys.readouterr().err
    assert site.users() == {}


@pytest.mark.parametrize(
    ("answers", "code"), [(["one", "one"], 0), (["one", "two"], 1), (["", ""], 1)]
)
def test_on_a_terminal_a_password_is_asked_for_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch, answers: list[str], code: int
) -> None:
    left = iter(answers)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("relayd.cli.logins.getpass.getpass", lambda _: next(left))
    assert site.run("add", "nas") == code
    assert ("nas" in site.users()) == (code == 0)
    assert next(left, "none left") == "none left"


def test_the_end_of_the_terminal_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("relayd.cli.logins.getpass.getpass", end)
    assert site.run("add", "nas") == 1
    assert site.users() == {}


def test_octets_the_terminal_cannot_mean_are_refused_in_words(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(_: str) -> str:
        return b"caf\xe9".decode("utf-8")

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("relayd.cli.logins.getpass.getpass", typed)
    assert site.run("add", "nas") == 1
    assert "no text" in capsys.readouterr().err


def test_without_a_terminal_the_ways_to_give_a_password_are_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, b"")
    assert site.run("add", "nas") == 2
    assert "--generate or --stdin" in capsys.readouterr().err


# ---- users


def test_what_a_user_may_do_is_kept(site: Site) -> None:
    words = "--upstream lab --from nas@contoso.com --allow-to * --allow-to a@b.c --priority high"
    assert site.run("add", "nas", "--generate", *words.split()) == 0
    kept = site.users()["nas"]
    assert (kept.upstream, kept.from_) == ("lab", "nas@contoso.com")
    assert kept.allow_to == ("*", "a@b.c")
    assert kept.priority == "high"


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["--upstream", "elsewhere"], "no upstream named elsewhere: lab", 1),
        (["--from", "no address"], "from", 2),
        (["--allow-to", "@@"], "allow_to", 2),
        (["--priority", "urgent"], "", 2),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    site: Site, capsys: pytest.CaptureFixture[str], words: list[str], told: str, code: int
) -> None:
    assert site.run("add", "nas", "--generate", *words) == code
    assert told in capsys.readouterr().err
    assert site.users() == {}


@pytest.mark.parametrize("name", ["", "two words", "x" * 200])
def test_a_name_that_is_none_is_refused(site: Site, name: str) -> None:
    assert site.run("add", name, "--generate") == 2
    assert site.users() == {}


def test_with_two_upstreams_one_must_be_named(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.configure(SECOND)
    assert site.run("add", "nas", "--generate") == 1
    assert "--upstream lab | other" in capsys.readouterr().err
    assert site.run("add", "nas", "--generate", "--upstream", "other") == 0


def test_a_name_is_taken_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.run("add", "nas", "--generate")
    before = site.file.read_text()
    assert site.run("add", "nas", "--generate") == 1
    assert "relayd user passwd nas" in capsys.readouterr().err
    assert site.file.read_text() == before


def test_a_name_that_somebody_else_took_meanwhile_is_not_told_as_added(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("relayd.access.users.UsersFile.add", lambda *_: False)
    assert site.run("add", "nas", "--generate") == 1
    out, err = capsys.readouterr()
    assert "was added meanwhile" in err
    assert "password" not in out


def test_passwd_changes_the_password_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run("add", "nas", "--generate", "--from", "nas@contoso.com")
    typed(monkeypatch, b"another\n")
    assert site.run("passwd", "nas", "--stdin") == 0
    kept = site.users()["nas"]
    assert verify(kept.password_hash.reveal(), "another")
    assert kept.from_ == "nas@contoso.com"


def test_delete_removes(site: Site) -> None:
    site.run("add", "nas", "--generate")
    assert site.run("delete", "nas") == 0
    assert site.users() == {}


@pytest.mark.parametrize("word", ["passwd", "delete"])
def test_a_user_nobody_knows_names_those_there_are(
    site: Site, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert site.run(word, "nas") == 1
    assert "none yet (relayd user add NAME)" in capsys.readouterr().err
    site.run("add", "printer1", "--generate")
    assert site.run(word, "nas") == 1
    assert "there are: printer1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "written", "--generate"], "change it there"),
        (["delete", "Written"], "remove it there"),
    ],
)
def test_a_user_of_the_configuration_is_changed_there(
    site: Site, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    site.configure(CONFIGURED)
    assert site.run(*words) == 1
    assert told in capsys.readouterr().err


def test_passwd_of_a_user_of_the_configuration_says_what_to_write_there(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.configure(CONFIGURED)
    assert site.run("passwd", "Written", "--generate") == 1
    err = capsys.readouterr().err
    made = err.partition('password_hash = "')[2].partition('"')[0]
    assert verify(made, password_of(err))


def test_a_list_says_who_and_from_where(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.run("list") == 0
    assert capsys.readouterr().out == "no users; make one: relayd user add NAME\n"
    site.configure(CONFIGURED)
    site.run("add", "nas", "--generate", "--allow-to", "*")
    capsys.readouterr()
    assert site.run("list") == 0
    out = capsys.readouterr().out
    assert "argon2" not in out
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "Written", "nas"]
    assert out.splitlines()[2].endswith(str(site.file))


def test_a_list_as_json_has_stable_keys_and_no_secret(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.run("add", "nas", "--generate")
    capsys.readouterr()
    assert site.run("--json", "list") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "nas", "upstream": "", "from": "", "default_from": "", "allow_from": [],
            "allow_to": [], "priority": "normal", "file": str(site.file),
        }
    ]  # fmt: skip


def test_a_broken_file_is_left_alone(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.state.mkdir()
    site.file.write_text("[[user\n")
    assert site.run("add", "nas", "--generate") == 78
    assert "users.toml is no TOML" in capsys.readouterr().err
    assert site.file.read_text() == "[[user\n"


def test_somebody_else_changing_the_file_is_temporary(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> bool:
        raise Unavailable("another `relayd user` is changing the file; try again")

    monkeypatch.setattr("relayd.access.users.UsersFile._change", busy)
    assert site.run("add", "nas", "--generate") == 75


# ---- whose the file is


def test_who_may_not_write_is_told_before_a_password_is_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(logins, "_password", None)
    assert site.run("add", "nas") == 1
    assert "say it again with sudo" in capsys.readouterr().err


def test_a_new_state_dir_is_for_nobody_else(site: Site) -> None:
    assert site.run("add", "nas", "--generate") == 0
    assert site.state.stat().st_mode & 0o777 == 0o700
    assert site.file.stat().st_mode & 0o777 == 0o600


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


@needs_root
def test_a_file_root_makes_belongs_to_the_owner_of_state_dir(site: Site) -> None:
    site.state.mkdir(mode=0o700)
    os.chown(site.state, NOBODY, NOBODY)
    assert site.run("add", "nas", "--generate") == 0
    assert owner(site.file) == (NOBODY, NOBODY)
    assert site.run("passwd", "nas", "--generate") == 0
    assert owner(site.file) == (NOBODY, NOBODY)


@needs_root
def test_a_state_dir_root_makes_belongs_to_the_owner_of_the_spool(site: Site) -> None:
    spool = site.folder / "spool"
    spool.mkdir()
    os.chown(spool, NOBODY, NOBODY)
    assert site.run("add", "nas", "--generate") == 0
    assert owner(site.state) == owner(site.file) == (NOBODY, NOBODY)


@needs_root
def test_a_file_that_was_roots_by_mistake_is_given_back(site: Site) -> None:
    assert site.run("add", "nas", "--generate") == 0
    os.chown(site.file, 0, 0)
    os.chown(site.state, NOBODY, NOBODY)
    assert site.run("passwd", "nas", "--generate") == 0
    assert owner(site.file) == (NOBODY, NOBODY)


@needs_root
def test_where_everything_is_roots_the_file_stays_so(site: Site) -> None:
    assert site.run("add", "nas", "--generate") == 0
    assert owner(site.file)[0] == 0


@needs_root
def test_before_anything_is_there_the_relays_user_is_found_by_name(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "_RELAY_USER", "nobody")
    assert site.run("add", "nas", "--generate") == 0
    assert owner(site.state)[0] == owner(site.file)[0] == NOBODY


@needs_root
def test_a_link_in_state_dir_leads_root_nowhere(site: Site, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("[[user]]\n")
    site.state.mkdir(mode=0o700)
    os.chown(site.state, NOBODY, NOBODY)
    site.file.symlink_to(treasure)
    assert site.run("add", "nas", "--generate") == 78
    assert owner(treasure)[0] == 0
    assert treasure.read_text() == "[[user]]\n"
