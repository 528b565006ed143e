"""Run every tests/dialogs/*.txt against the session, over a wire that follows the script."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

import pytest

from relayd.clock import FakeClock
from relayd.serve.session import Manners, PeerSilent, Session
from tests.dialog_script import DIALOGS, Act, Dialog, Expect, Kept, Say, load
from tests.smtp_desk import FakeDesk


class ScriptedWire:
    """Says the C: lines when the session wants to hear; checks the S: lines as they come."""

    def __init__(self, dialog: Dialog, desk: FakeDesk) -> None:
        self.steps = list(dialog.steps)
        self.desk = desk
        self.said = b""
        self.is_secure = False
        self.session: Session | None = None
        self.early = b""
        if isinstance(self.steps[0], Say):
            self.early = self.steps[0].octets
            del self.steps[0]

    def receive(self, deadline: float) -> bytes:
        if self.early:
            octets, self.early = self.early, b""
            return octets
        self.catch_up()
        step = self.steps.pop(0) if self.steps else Act("LEAVES")
        match step:
            case Say(octets):
                return octets
            case Act("LEAVES"):
                return b""
            case Act("SILENCE"):
                raise PeerSilent("no octet came")
            case Act("DRAIN") if self.session is not None:
                self.session.drain()
                return b""
            case _:
                raise AssertionError(f"the session waits; the script says {step}")

    def catch_up(self) -> None:
        """Compare what was said with the steps that are due."""
        while self.steps:
            step = self.steps[0]
            if isinstance(step, Expect):
                step.check(self._reply())
            elif isinstance(step, Kept):
                assert self.desk.kept[-1] == step.body
            else:
                return
            self.steps.pop(0)

    def _reply(self) -> list[str]:
        lines = list[str]()
        while not lines or lines[-1][3:4] == "-":
            assert self.said, f"nothing said for {self.steps[0]}"
            line, _, self.said = self.said.partition(b"\r\n")
            lines.append(line.decode("ascii"))
        return lines

    def has_input(self) -> bool:
        return bool(self.early)

    def send(self, octets: bytes) -> None:
        self.said += octets

    def start_tls(self, context: ssl.SSLContext) -> tuple[str, str]:
        self.catch_up()
        assert self.steps.pop(0) == Act("TLS")
        assert not self.said
        self.is_secure = True
        return "TLSv1.3", "TLS_AES_128_GCM_SHA256"

    def wake(self) -> None:
        pass  # `receive` returns by itself


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: Path) -> None:
    dialog = load(path)
    settings = dialog.settings
    desk = FakeDesk(
        limit=int(settings["limit"]),
        lf_dot=settings["lf_dot"] == "yes",
        auth=settings["auth"] != "off",
        tls=settings["tls"] != "off",
    )
    profile: Literal["device", "strict"] = "strict" if settings["profile"] == "strict" else "device"
    wire = ScriptedWire(dialog, desk)
    manners = Manners(profile=profile, max_errors=int(settings["max_errors"]))
    session = wire.session = Session(wire, desk, manners, clock=FakeClock())

    session.run()
    wire.catch_up()

    assert wire.steps in ([], [Act("CLOSED")])
    assert not wire.said
    assert desk.calls[-1] == "drop"


def test_there_are_dialogs() -> None:
    assert len(DIALOGS) >= 50
