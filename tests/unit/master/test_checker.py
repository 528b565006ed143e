"""A checked configuration comes back sealed; anything else is a reason in words."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest

from relayd.config import codec
from relayd.config.model import Config, Secret, Upstream
from relayd.master import checker
from relayd.master.checker import Loaded, Rejected

PATIENCE_S = 20.0


def good(path: str, fd: int) -> int:
    config = Config(upstream=(Upstream(name="a", client_secret=Secret("hush")),), source=path)
    plain = json.loads(codec.dumps(config))
    os.write(fd, json.dumps({"config": plain, "problems": [], "warnings": ["w"]}).encode())
    return 0


def answer(text: str) -> Loaded | Rejected:
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    os.write(fd, text.encode())
    return checker.Checker(0, fd).finish(0)


def test_a_good_configuration_is_sealed() -> None:
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    good("/etc/x.toml", fd)
    loaded = checker.Checker(0, fd).finish(0)
    assert isinstance(loaded, Loaded)
    assert loaded.warnings == ("w",)
    assert loaded.settings.source == "/etc/x.toml"
    config = codec.loads(checker.read_all(loaded.fd))
    assert config.upstream[0].client_secret.reveal() == "hush"
    with pytest.raises(PermissionError):
        os.write(loaded.fd, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(loaded.fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(loaded.fd, 10)
    assert not os.get_inheritable(loaded.fd)
    loaded.close()


def test_every_problem_comes_back() -> None:
    rejected = answer('{"config": null, "problems": ["a", "b"], "warnings": []}')
    assert rejected == Rejected(("a", "b"))


@pytest.mark.parametrize(
    "text",
    [
        "nope",
        "[]",
        "{}",
        '{"problems": "x"}',
        '{"problems": [], "config": null}',
        '{"problems": [], "config": {"server": {}}}',
    ],
)
def test_an_answer_that_makes_no_sense_tells_nothing_of_it(text: str) -> None:
    rejected = answer(text)
    assert isinstance(rejected, Rejected)
    assert rejected.problems[0].startswith("the check gave no usable answer")


def test_a_checker_that_died_without_a_word_says_how() -> None:
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    rejected = checker.Checker(0, fd).finish(9)
    assert rejected == Rejected(("the check itself failed (SIGKILL)",))


def test_the_checker_runs_in_a_child(tmp_path: Path) -> None:
    path = tmp_path / "relayd.json"
    path.write_text(json.dumps({"problems": [str(os.getpid())]}))
    verdict = checker.run_and_wait(
        str(path), "tests.process.fake_child:run_checker", timeout_s=PATIENCE_S
    )
    assert verdict == Rejected((str(os.getpid()),))


def test_a_checker_that_is_not_there_is_a_problem(capfd: pytest.CaptureFixture[str]) -> None:
    verdict = checker.run_and_wait("/x", "relayd.nowhere:check", timeout_s=PATIENCE_S)
    assert verdict == Rejected(("the check itself failed (exit 70)",))
    assert "relayd.nowhere" in capfd.readouterr().err
