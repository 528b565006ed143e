"""Three pages from what the master says; silence and bugs are answers too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relayd.admin.http import Request
from relayd.admin.pages import GOOD_FOR_S, Pages, ask_at
from relayd.clock import FakeClock
from relayd.master.client import NotRunning
from relayd.master.frames import Frame
from tests.control_socket import ControlSocket, pages


class Master:
    """Answers, or is silent. asked: the commands in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None

    def __call__(self, command: str) -> Frame:
        self.asked.append(command)
        if self.failure is not None:
            raise self.failure
        answers: dict[str, Frame] = {
            "ping": {"pid": 7, "version": "0.1.0"},
            "status": {"state": "starting"},
            "metrics": {"metrics": {"relayd_connections": {"": len(self.asked)}}},
        }
        return answers[command]


def get(made: Pages, path: str) -> tuple[int, str]:
    response = made.answer(Request("GET", path, ""))
    return response.status, response.body.decode()


def test_each_path_asks_the_master_what_it_needs() -> None:
    master = Master()
    made = Pages(master)
    status, text = get(made, "/metrics")
    assert (status, "relayd_connections 1.0\n" in text) == (200, True)
    status, text = get(made, "/healthz")
    assert (status, json.loads(text)["ok"]) == (200, True)
    status, text = get(made, "/readyz")
    assert (status, json.loads(text)["ok"]) == (503, False)
    assert master.asked == ["metrics", "ping", "status"]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/../etc", "/%6detrics", "//metrics"])
def test_other_paths_are_told_what_there_is(path: str) -> None:
    master = Master()
    assert get(Pages(master), path) == (404, "here are: /metrics /healthz /readyz\n")
    assert master.asked == []


def test_an_answer_is_good_for_a_second() -> None:
    master, clock = Master(), FakeClock()
    made = Pages(master, clock=clock)
    for _ in range(100):
        get(made, "/metrics")
    assert master.asked == ["metrics"]
    clock.advance(GOOD_FOR_S)
    assert "relayd_connections 2.0\n" in get(made, "/metrics")[1]


def test_a_silent_master_is_a_503_and_is_not_asked_by_everybody() -> None:
    master, clock = Master(), FakeClock()
    master.failure = NotRunning("no answer within 3 s")
    made = Pages(master, clock=clock)
    for _ in range(10):
        status, text = get(made, "/metrics")
        assert (status, text) == (503, "the master does not answer: no answer within 3 s\n")
    status, text = get(made, "/healthz")
    assert status == 503
    assert "no answer within 3 s" in json.loads(text)["checks"]["master"]["text"]
    assert get(made, "/readyz")[0] == 503
    assert master.asked == ["metrics", "ping", "status"]
    clock.advance(GOOD_FOR_S)
    master.failure = None
    assert get(made, "/metrics")[0] == 200


def test_a_bug_costs_one_answer_and_says_nothing_of_itself() -> None:
    master = Master()
    master.failure = KeyError("secret")
    assert get(Pages(master), "/metrics") == (500, "a bug; see the log\n")


def test_the_master_is_asked_over_its_socket(tmp_path: Path) -> None:
    with ControlSocket(tmp_path) as control:
        control.answers["ping"] = pages({"pid": 7})
        question = ask_at(str(tmp_path / "control.sock"))
        assert question("ping") == {"pid": 7}
        with pytest.raises(NotRunning):
            question("nonsense")
    with pytest.raises(NotRunning):
        ask_at(str(tmp_path / "nobody.sock"))("ping")
