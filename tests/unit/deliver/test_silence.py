"""After ErrorAccessDenied a mailbox is left alone for half an hour, whoever asks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.deliver.silence import FILE_NAME, Silence

BOX = "alerts@contoso.com"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def silence(tmp_path: Path, clock: FakeClock) -> Silence:
    return Silence(str(tmp_path), clock=clock)


def test_nobody_was_refused_yet(silence: Silence) -> None:
    assert silence.until("contoso", BOX) is None


def test_a_refusal_is_kept_silent_about_for_half_an_hour(
    silence: Silence, clock: FakeClock, tmp_path: Path
) -> None:
    assert silence.note("contoso", BOX)
    ends = clock.now + timedelta(minutes=30)
    clock.advance(1799)
    another_process = Silence(str(tmp_path), clock=clock)
    assert another_process.until("contoso", "Alerts@Contoso.com") == ends
    clock.advance(1)
    assert another_process.until("contoso", BOX) is None


def test_it_is_about_one_mailbox_of_one_upstream(silence: Silence) -> None:
    silence.note("contoso", BOX)
    assert silence.until("contoso", "ups@contoso.com") is None
    assert silence.until("fabrikam", BOX) is None


def test_being_let_in_ends_it(silence: Silence) -> None:
    silence.note("contoso", BOX)
    silence.note("contoso", "ups@contoso.com")
    assert silence.lift("contoso", BOX)
    assert silence.until("contoso", BOX) is None
    assert silence.until("contoso", "ups@contoso.com") is not None


def test_what_is_over_is_not_kept_for_ever(
    silence: Silence, clock: FakeClock, tmp_path: Path
) -> None:
    silence.note("contoso", BOX)
    clock.advance(1801)
    silence.note("contoso", "ups@contoso.com")
    assert BOX not in (tmp_path / FILE_NAME).read_text()


def test_a_note_from_the_future_is_not_believed(silence: Silence, clock: FakeClock) -> None:
    clock.advance(86_400)
    silence.note("contoso", BOX)
    clock.advance(-86_400)
    assert silence.until("contoso", BOX) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"contoso alerts@contoso.com": "today"}', "[1]"])
def test_a_damaged_file_silences_nobody_and_is_written_anew(
    silence: Silence, tmp_path: Path, text: str
) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert silence.until("contoso", BOX) is None
    assert silence.note("contoso", BOX)
    assert silence.until("contoso", BOX) is not None


def test_without_a_folder_it_says_that_nothing_was_written(tmp_path: Path) -> None:
    nowhere = Silence(str(tmp_path / "none"))
    assert nowhere.note("contoso", BOX) is False
    assert nowhere.lift("contoso", BOX) is False


def test_the_file_is_for_the_relay_only(silence: Silence, tmp_path: Path) -> None:
    silence.note("contoso", BOX)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
