"""Trees become the model; each mistake is one message, and a default stands in for it."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config import model
from relayd.config.build import Wrong, build, convert, key_of, keys_of
from relayd.config.codec import hints
from relayd.config.model import Config, Secret
from relayd.config.read import Tree

MAIN = "relayd.toml"


def built(
    text: str, *, mode: int = 0o600, environment: Mapping[str, str] | None = None, root: str = MAIN
) -> tuple[Config, list[str], list[str]]:
    tree = Tree(root, data=tomllib.loads(text), modes={root: mode})
    config, problems, warnings = build(tree, environment or {})
    return config, [tree.word(each) for each in problems], [tree.word(each) for each in warnings]


def config_of(text: str) -> Config:
    config, problems, _ = built(text)
    assert problems == []
    return config


def problem_of(text: str, mode: int = 0o600) -> str:
    _, (problem,), _ = built(text, mode=mode)
    return problem.removeprefix(f"{MAIN}: ")


def test_nothing_gives_the_defaults() -> None:
    assert config_of("") == Config(source=MAIN)


def test_every_kind_of_value_is_read() -> None:
    config = config_of(
        """
        [server]
        workers = 3
        graceful_timeout = "2m"
        [limits]
        max_message_size = "2MiB"
        min_free_disk = 12345
        [spool]
        retry = ["1s", "2m"]
        [log]
        subjects = true
        level = "debug"
        [[listener]]
        name = "lan"
        address = ["127.0.0.1:25"]
        """
    )
    assert config.server.workers == 3
    assert config.server.graceful_timeout == 120.0
    assert config.limits.max_message_size == 2 * 1024 * 1024
    assert config.limits.min_free_disk == 12345
    assert config.spool.retry == (1.0, 120.0)
    assert config.log.subjects is True
    assert config.listener == (model.Listener(name="lan", address=("127.0.0.1:25",)),)


def test_auto_is_taken_where_it_means_something() -> None:
    assert config_of('[server]\nworkers = "auto"\n').server.workers == model.AUTO
    assert config_of('[limits]\nmax_message_size = "auto"\n').limits.max_message_size == model.AUTO
    assert '"auto" (a text)' in problem_of('[limits]\nmax_errors = "auto"\n')


def test_a_named_table_has_its_name_from_the_header() -> None:
    config = config_of('[upstream.contoso]\ntenant = "t"\n[upstream.acme]\n')
    assert [(each.name, each.tenant) for each in config.upstream] == [
        ("contoso", "t"),
        ("acme", ""),
    ]


def test_from_is_a_key_though_python_has_the_word() -> None:
    config = config_of('[[device]]\nname = "u"\nnetworks = ["10.0.0.1"]\nfrom = "a@b.example"\n')
    assert config.device[0].from_ == "a@b.example"
    assert key_of("from_") == "from"


def test_a_table_within_a_row_is_read() -> None:
    config = config_of(
        '[[device]]\nname = "u"\nnetworks = ["10.0.0.1"]\nlimits = { on_limit = "hold" }\n'
    )
    assert config.device[0].limits == model.RateLimits(on_limit="hold")


def test_empty_is_not_set_where_zero_is_the_default() -> None:
    device = '[[device]]\nname = "u"\nnetworks = ["10.0.0.1"]\n'
    assert config_of(device + 'max_age = ""\n').device[0].max_age == 0
    assert "is no duration" in problem_of('[spool]\nmax_age = ""\n')


def test_a_cloud_named_like_a_built_in_one_changes_only_what_it_says() -> None:
    (cloud,) = config_of('[cloud.global]\nsmtp = "127.0.0.1:8587"\n').cloud
    assert cloud.smtp == "127.0.0.1:8587"
    assert cloud.graph == "https://graph.microsoft.com/v1.0"


def test_a_wrong_value_leaves_the_default_and_the_rest_is_judged() -> None:
    config, problems, _ = built('[server]\nworkers = "x"\nhostname = 5\n[log]\nlevel = "loud"\n')
    assert len(problems) == 3
    assert config == Config(source=MAIN)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[serve]\n", '[serve]: unknown table; did you mean "server"?'),
        ("[zzz]\n", "[zzz]: unknown table; docs/settings.md has all of them"),
        ("workers = 1\n", "workers: unknown key; it belongs in [server]"),
        ("wrkers = 1\n", 'wrkers: unknown key; did you mean "workers"? it belongs in [server]'),
        ("[log]\nlevl = 1\n", '[log] levl: unknown key; did you mean "level"?'),
        ("[log]\nnetworks = []\n", "[log] networks: unknown key; it belongs in [[device]]"),
        ("[log]\ntenant = 1\n", "[log] tenant: unknown key; it belongs in [upstream.NAME]"),
        ("server = 1\n", "server: is a table, not a single value; write it in brackets as [name]"),
        ("upstream = 1\n", "upstream: is no table of tables; write [upstream.NAME]"),
        ("[log]\nlevel = 1\n", None),
        ("[log]\nlevel = []\n", None),
        ("[log]\nfile = 1979-05-27\n", None),
        ("[log]\nfile = {}\n", None),
        ("[limits]\nidle_timeout = 5\n", None),
        ("[limits]\nidle_timeout = true\n", None),
        ("[limits]\nmin_free_disk = 1.5\n", None),
        ("[limits]\nmin_free_disk = -1\n", None),
        ('[log]\nsubjects = "no"\n', None),
        ("[spool]\nretry = [60]\n", None),
        ("[[listener]]\nname = 'x'\naddress = [25]\n", None),
    ],
)  # fmt: skip
def test_a_mistake_makes_one_message_with_a_remedy(text: str, told: str | None) -> None:
    problem = problem_of(text)
    assert told is None or problem == told
    assert "; " in problem


def test_a_later_table_is_taken_when_it_asks_for_nothing() -> None:
    quiet = '[passthrough]\nenabled = false\ntenants = ["x"]\n[[route]]\nlarger_than = "3MB"\n'
    assert config_of(quiet) == Config(source=MAIN)
    assert "not available yet" in problem_of("[passthrough]\nenabled = true\n")
    assert "not available yet" in problem_of('[admin]\nbase_url = "https://x"\n')
    assert "not available yet" in problem_of('[[dkim.key]]\ndomain = "x"\n'.replace("[[", "[["))
    assert "not available yet" in problem_of('[fallback]\npassword_file = "/x"\n')
    assert "is a table" in problem_of("fallback = 1\n")


UPSTREAM = "[upstream.contoso]\n"


def secret_of(line: str, **options: Mapping[str, str]) -> Secret:
    config, problems, _ = built(UPSTREAM + line, environment=options.get("environment"))
    assert problems == []
    return config.upstream[0].client_secret


def test_a_secret_comes_from_one_of_four_places(tmp_path: Path) -> None:
    (tmp_path / "contoso").write_text("geheim\n")
    (tmp_path / "contoso").chmod(0o600)
    wanted = Secret("geheim")
    assert secret_of('client_secret = "geheim"') == wanted
    assert secret_of(f'client_secret_file = "{tmp_path}/contoso"') == wanted
    assert secret_of('client_secret_env = "S"', environment={"S": "geheim"}) == wanted
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert secret_of('client_secret_credential = "contoso"', environment=credentials) == wanted
    assert secret_of("") == Secret()


def test_a_command_beside_the_running_unit_reads_the_units_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "contoso").write_text("geheim\n")
    monkeypatch.setattr("relayd.config.build.UNIT_CREDENTIALS", str(tmp_path))
    assert secret_of('client_secret_credential = "contoso"') == Secret("geheim")


def test_a_relative_file_counts_from_the_configurations_folder(tmp_path: Path) -> None:
    (tmp_path / "contoso").write_text("geheim\r\n")
    text = UPSTREAM + 'client_secret_file = "contoso"'
    config, problems, warnings = built(text, root=str(tmp_path / MAIN))
    assert problems == []
    assert config.upstream[0].client_secret.reveal() == "geheim"
    assert "chmod 640" in warnings[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('client_secret = "geheim"\nclient_secret_env = "S"', "keep one of the two"),
        ("client_secret = 123456", "in double quotes"),
        ('client_secret_env = "UNSET"', "is not set"),
        ('client_secret_env = "$geheim"', "no name of an environment variable"),
        ('client_secret_env = "EMPTY"', "is empty"),
        ('client_secret_env = "BLANKS"', "blanks"),
        ('client_secret_env = "LINES"', "newlines"),
        ('client_secret_file = "/nonexistent"', "cannot be read"),
        ('client_secret_file = "geheim~ x"', "no name of a file"),
        ('client_secret_credential = "../geheim"', "no name of a systemd credential"),
        ('client_secret_credential = "contoso"', "LoadCredential"),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_once_and_never_shown(line: str, told: str) -> None:
    environment = {"EMPTY": " ", "BLANKS": " geheim", "LINES": "geheim\nx", "S": "x"}
    config, (problem,), _ = built(UPSTREAM + line, environment=environment)
    assert told in problem
    assert not any(word in problem for word in ("geheim", "123456"))
    assert repr(config).count("geheim") == 0


def test_a_binary_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00")
    _, (problem,), _ = built(UPSTREAM + f'client_secret_file = "{tmp_path}/key"')
    assert "is no text" in problem


def test_a_secret_in_clear_needs_a_file_others_cannot_read() -> None:
    text = UPSTREAM + 'client_secret = "geheim"\n'
    assert "chmod 640" in problem_of(text, mode=0o644)
    assert built(text, mode=0o640)[1] == []


def test_a_hash_others_can_read_is_warned_of() -> None:
    text = '[[user]]\nname = "p"\npassword_hash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA"\n'
    _, problems, warnings = built(text, mode=0o644)
    assert problems == []
    assert "chmod 640" in warnings[0]


def test_a_table_knows_its_keys_and_the_forms_of_its_secrets() -> None:
    keys = keys_of(model.Upstream)
    assert {"client_secret", "client_secret_file", "client_secret_credential"} <= set(keys)
    assert "name" not in keys
    assert "from" in keys_of(model.Device)
    assert "tls" in keys_of(model.Admin)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


ROWS = (model.Server, model.Limits, model.Spool, model.Log)
KINDS = [kind for row in ROWS for kind in hints(row).values() if kind is not Secret]


@given(st.sampled_from(KINDS), ODD)
def test_a_value_is_converted_or_told_why_not(kind: object, raw: object) -> None:
    with contextlib.suppress(Wrong):
        convert(kind, raw)


@given(st.dictionaries(st.sampled_from([*hints(Config), "route", "dkim", "x"]), ODD, max_size=3))
def test_no_tree_breaks_the_builder(data: dict[str, object]) -> None:
    config, _, _ = build(Tree(MAIN, data=data), {})
    assert isinstance(config, Config)
