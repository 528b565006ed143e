"""Every way to break the configuration is a file, with what is said about it.

tests/configs/bad/NAME.toml, or a folder NAME with relayd.toml and conf.d. Its first lines are
`# expect: ` and one problem each, as `relayd check` prints it, all of them and no others, places
without the folder. `# mode: 644` gives the file's permissions (600 otherwise).
tests/configs/good/*.toml and the shipped conf/relayd.toml pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relayd.check import check
from relayd.cli.main import main
from relayd.config.model import Config
from relayd.errors import ConfigError

ROOT = Path(__file__).parent.parent
BAD = sorted((ROOT / "tests/configs/bad").iterdir())
GOOD = sorted((ROOT / "tests/configs/good").glob("*.toml"))
_MOVED = {
    "/run/relayd": "run",
    "/var/lib/relayd": "state",
    "/var/spool/relayd": "spool",
    "/etc/relayd/secrets": "secrets",
}


def installed(source: Path, folder: Path) -> Path:
    """Return the file's place in `folder` as root would have put it there."""
    whole = folder / "etc"
    if source.is_dir():
        shutil.copytree(source, whole)
    else:
        whole.mkdir()
        shutil.copy(source, whole / "relayd.toml")
    for file in whole.rglob("*.toml"):
        text = file.read_text()
        for usual, here in _MOVED.items():
            text = text.replace(f'"{usual}', f'"{folder / here}')
            text = text.replace(f'"sqlite://{usual}', f'"sqlite://{folder / here}')
        file.write_text(text)
        mode = next((line[8:] for line in text.splitlines() if line.startswith("# mode: ")), "600")
        file.chmod(int(mode, 8))
    return whole / "relayd.toml"


def problems(source: Path) -> list[str]:
    """Return what `check` says about a configuration, without the folder it stands in."""
    with tempfile.TemporaryDirectory() as folder:
        path = installed(source, Path(folder))
        try:
            check(str(path))
        except ConfigError as wrong:
            near = f"{path.parent}/"
            return [each.replace(near, "").replace(f"{folder}/", "") for each in wrong.problems]
    return []


def expected(source: Path) -> list[str]:
    main = source / "relayd.toml" if source.is_dir() else source
    lines = main.read_text().splitlines()
    return [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]


@pytest.mark.parametrize("source", BAD, ids=lambda source: source.stem)
def test_a_bad_configuration_is_told_in_full(source: Path) -> None:
    assert expected(source), "a bad configuration says what is expected of it"
    assert problems(source) == expected(source)


@pytest.mark.parametrize("source", BAD, ids=lambda source: source.stem)
def test_a_message_says_what_is_wrong_and_what_to_do(source: Path) -> None:
    for line in expected(source):
        assert ".toml" in line.split(": ")[0]
        assert ";" in line
        assert len(line) < 300


@pytest.mark.parametrize("source", BAD, ids=lambda source: source.stem)
def test_the_command_prints_it_and_ends_with_78(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = installed(source, tmp_path)
    assert main(["check", "--config", str(path)]) == os.EX_CONFIG
    said = "".join(capsys.readouterr())
    shown = said.replace(f"{path.parent}/", "").replace(f"{tmp_path}/", "")
    for line in expected(source):
        assert line in shown


@pytest.mark.slow(1)
def test_the_program_ends_with_78(tmp_path: Path) -> None:
    path = installed(ROOT / "tests/configs/bad/several_problems_at_once.toml", tmp_path)
    command = [sys.executable, "-m", "relayd", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 78
    assert b"Traceback" not in done.stderr


def test_no_message_shows_a_secret() -> None:
    for source in BAD:
        for line in expected(source):
            assert not any(word in line for word in ("s3cr3t", "geheim", "8Q~", "12345"))


def load_good(source: Path, folder: Path) -> Config:
    for name in ("run", "state", "spool", "secrets"):
        (folder / name).mkdir(mode=0o700)
    (folder / "secrets/contoso").write_text("s3cr3t\n")
    (folder / "secrets/contoso").chmod(0o600)
    return check(str(installed(source, folder))).config


@pytest.mark.parametrize("source", GOOD, ids=lambda source: source.stem)
def test_a_good_configuration_passes(source: Path, tmp_path: Path) -> None:
    assert load_good(source, tmp_path).listener


def test_the_shipped_configuration_passes_and_says_the_next_step(tmp_path: Path) -> None:
    path = installed(ROOT / "conf/relayd.toml", tmp_path)
    checked = check(str(path))
    assert any("nothing can be sent yet" in each for each in checked.warnings)
    assert [each.address for each in checked.config.listener] == [("127.0.0.1:25",)]


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 45
    assert os.path.exists(ROOT / "tests/configs/good/interface.toml")
