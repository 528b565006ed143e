"""What of a configuration can be read without the right to its secrets; nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config.partial import Seen, look

TEXT = """\
[server]
hostname = "relay.test"
[upstream.contoso]
tenant = "contoso.onmicrosoft.com"
client_id = "11111111-1111-4111-8111-111111111111"
{secret}
mailbox = "alerts@contoso.com"
"""


def seen(
    folder: Path, secret: str, more: str = "", environment: dict[str, str] | None = None
) -> Seen:
    path = folder / "relayd.toml"
    path.write_text(TEXT.format(secret=secret) + more)
    path.chmod(0o600)
    return look(str(path), environment or {})


def test_a_whole_configuration_has_no_problem(tmp_path: Path) -> None:
    found = seen(tmp_path, 'client_secret = "x~1"')
    assert (found.problems, found.found) == ((), ())
    assert found.config.upstream[0].own_domains == ("contoso.com",)  # resolved, as for the relay
    assert found.secret_problem("contoso") is None


@pytest.mark.parametrize(
    ("secret", "key", "place"),
    [
        ('client_secret = "x~1"', "client_secret", "{folder}/relayd.toml"),
        ('client_secret_file = "secrets/a"', "client_secret_file", "{folder}/secrets/a"),
        ('client_secret_file = "/etc/x"', "client_secret_file", "/etc/x"),
        ('client_secret_env = "A"', "client_secret_env", "$A"),
        ('client_secret_credential = "a"', "client_secret_credential", "systemd credential a"),
        ("", "", ""),
    ],
)
def test_where_the_secret_is_is_known_though_it_cannot_be_read(
    tmp_path: Path, secret: str, key: str, place: str
) -> None:
    found = seen(tmp_path, secret)
    assert found.secret_key("contoso") == key
    assert found.secret_place("contoso") == place.format(folder=tmp_path)


def test_an_unreadable_secret_is_a_problem_of_its_own(tmp_path: Path) -> None:
    found = seen(tmp_path, 'client_secret_file = "none"')
    problem = found.secret_problem("contoso")
    assert problem is not None
    assert "No such file" in problem.text
    assert found.other_problems("contoso") == []
    assert found.config.upstream[0].mailbox == "alerts@contoso.com"


def test_other_problems_on_the_way_are_worded_with_their_place(tmp_path: Path) -> None:
    more = '[[device]]\nname = "a"\nnetworks = ["x"]\n[http]\nproxy = 7\n'
    found = seen(tmp_path, 'client_secret = "x~1"', more)
    (only,) = found.other_problems("contoso")
    assert only.startswith(f"{tmp_path}/relayd.toml:12: [http] proxy: ")
    assert len(found.problems) > 1  # the device's is not on this way


def test_a_file_that_cannot_be_read_is_told_and_nothing_is_raised(tmp_path: Path) -> None:
    found = look(str(tmp_path / "none.toml"), {})
    assert len(found.found) == 1
    assert found.config.upstream == ()


def test_an_environment_variable_is_read_where_it_is(tmp_path: Path) -> None:
    found = seen(tmp_path, 'client_secret_env = "A"', environment={"A": "x~1"})
    assert found.secret_problem("contoso") is None
