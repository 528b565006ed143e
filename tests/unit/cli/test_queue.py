"""`relayd queue` asks the daemon, shows what it hears in words, and changes nothing by accident."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relayd.cli import queue
from relayd.cli.main import main
from relayd.master.frames import Json, done, refused
from tests.control_socket import ControlSocket, Terminal, pages

ROOT = Path(__file__).parents[3]
ID = "1JV7SEQSLMJCW"
ROW: dict[str, Json] = {
    "id": ID, "state": "deferred", "from": "ups@contoso.com", "to": ["a@contoso.com"],
    "device": "ups", "user": "", "upstream": "contoso", "mailbox": "alerts@contoso.com",
    "priority": "normal", "bytes": 2_100_000, "accepted_at": "2026-11-20T10:00:00Z",
    "expires_at": "2026-11-25T10:00:00Z", "due_at": "2999-11-20T10:05:00Z", "held_by": "",
    "attempts": 3, "maybe_sent": False, "results": {},
}  # fmt: skip
STORY: dict[str, Json] = {
    "id": ID, "message_id": "<1@ups.local>", "subject": "", "session": "S1", "listener": "lan",
    "ip": "192.0.2.5", "helo": "ups\x1b[2J", "body_sha256": "00", "has_content": True,
    "deliveries": [{**ROW, "why": "Tried 3 times.", "do": "Nothing.", "results": {"b@x": ""}}],
    "attempts": [
        {
            "number": 1, "holder": "h", "transport": "graph", "started_at": "2026-11-20T10:00:01Z",
            "finished_at": "2026-11-20T10:00:02Z", "outcome": "deferred", "http_status": 429,
            "code": "ApplicationThrottled", "request_id": "r-1", "text": "Slow down.",
            "upstream": "contoso", "mailbox": "alerts@contoso.com",
        }
    ],
}  # fmt: skip


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        yield control


def run(control: ControlSocket, *words: str) -> int:
    return control.relayd("queue", *words)


# ---- looking


def test_a_list_shows_what_waits_and_when_it_is_tried(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.list"] = pages({"messages": [ROW]})
    assert run(control, "list") == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ID", "STATE", "ACCEPTED"]
    assert line.split("  ")[0] == ID
    assert line.endswith("tried 3 times, again 2999-11-20T10:05:00Z")
    assert "2.1 MB" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "held", "held_by": "operator"}, "operator"),
        ({"attempts": 1}, "tried once, again"),
        ({"due_at": "2020-11-20T10:05:00Z"}, "tried 3 times, again now"),
        ({"state": "ready", "reason": "contoso is down (429)"}, "contoso is down (429)"),
        ({"reason": "the clock is wrong"}, "again 2999-11-20T10:05:00Z; the clock is wrong"),
        ({"state": "ready", "maybe_sent": True}, "maybe sent"),
        ({"maybe_sent": True}, "again 2999-11-20T10:05:00Z, maybe sent"),
        ({"to": ["a@x", "b@x", "c@x"]}, "a@x and 2 more"),
        ({"to": []}, ID),
        ({"user": "printer1"}, "printer1"),
        ({"device": "\x1b[31m"}, "\\x1b[31m"),
    ],
)
def test_a_row_says_what_is_special_about_it(
    control: ControlSocket,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Json],
    words: str,
) -> None:
    control.answers["queue.list"] = pages({"messages": [{**ROW, **changes}]})
    assert run(control, "list") == 0
    assert words in capsys.readouterr().out


def test_pages_are_one_table(control: ControlSocket, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["queue.list"] = pages(
        {"messages": []},
        {"messages": [{**ROW, "device": "a-long-name"}]},
        {"messages": []},
        {"messages": [ROW]},
    )
    assert run(control, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({line.index("a@contoso.com") for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [(["list"], "nothing is waiting\n"), (["list", "--state", "held"], "none\n")],
)
def test_nothing_is_said_in_words(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    control.answers["queue.list"] = pages({"messages": []})
    assert run(control, *words) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_as_json_is_one_array_over_all_pages(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    rows = [{**ROW, "helo": "\u202e\ud800", "bytes": number} for number in range(count)]
    control.answers["queue.list"] = pages(*({"messages": [row]} for row in rows), {"messages": []})
    assert run(control, "--json", "list") == 0
    out = capsys.readouterr().out
    assert json.loads(out) == rows
    assert out.isascii()


def test_filters_are_handed_on(control: ControlSocket) -> None:
    control.answers["queue.list"] = pages({"messages": []})
    words = "--state sent --from u@ --to a@ --device ups --upstream c --message-id 1@ --limit 7"
    assert run(control, "list", *words.split(), "--since", "2026-11-20T10:00:00Z") == 0
    assert control.asked() == [
        {
            "command": "queue.list", "limit": 7, "state": "sent", "to": "a@", "from": "u@",
            "device": "ups", "upstream": "c", "message_id": "1@",
            "since": "2026-11-20T10:00:00+00:00",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2h", 7200), ("3 d", 259_200), ("1w", 604_800)]
)
def test_since_may_be_said_as_people_do(text: str, seconds: int) -> None:
    found = datetime.fromisoformat(queue.since(text))
    assert abs(datetime.now(UTC) - timedelta(seconds=seconds) - found) < timedelta(seconds=5)


@pytest.mark.parametrize("text", ["yesterday", "h", "-2h", "99999999w", "2026-13-01"])
def test_a_since_that_makes_no_sense_says_what_to_write(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        queue.since(text)
    assert leaving.value.code == 2
    assert 'write "2h", "3d" or 2026-11-20T10:00:00Z' in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
def test_a_limit_is_a_number_from_one_up(control: ControlSocket, limit: str) -> None:
    assert run(control, "list", "--limit", limit) == 2


def test_show_says_why_and_what_to_do_first(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.show"] = pages(STORY)
    assert run(control, "show", ID) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{ID}  <1@ups.local>\ncame from 192.0.2.5 (ups\\x1b[2J) by listener lan")
    assert re.search(r"state +deferred\n +why +Tried 3 times.\n +do +Nothing.\n", out)
    assert "b@x: sent" in out
    assert control.asked() == [{"command": "queue.show", "id": ID}]


def test_show_of_a_report_and_a_subject(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**ROW, "from": "", "state": "held", "held_by": "operator", "results": {"c@x": "no"}}]
    control.answers["queue.show"] = pages(
        {**STORY, "subject": "Full", "message_id": "", "helo": "", "deliveries": rows}
    )
    assert run(control, "show", ID) == 0
    out = capsys.readouterr().out
    for words in ("no Message-ID", "subject Full", "<> (none given)", "held (operator)", "c@x: no"):
        assert words in out


def test_a_trace_is_a_timeline_with_request_ids(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.show"] = pages(STORY)
    assert run(control, "trace", ID) == 0
    came, head, line = capsys.readouterr().out.splitlines()
    assert came.startswith("2026-11-20T10:00:00Z  came from 192.0.2.5")
    assert head.split() == ["AT", "TRY", "OUTCOME", "HTTP", "CODE", "REQUEST-ID", "TEXT"]
    assert line.split()[:4] == ["2026-11-20T10:00:01Z", "1", "deferred", "429"]
    assert "r-1" in line


def test_a_trace_of_two_ways_tells_them_apart(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.show"] = pages({**STORY, "deliveries": [ROW, ROW]})
    assert run(control, "trace", ID) == 0
    assert "contoso, alerts@contoso.com" in capsys.readouterr().out


def test_a_trace_numbers_only_what_counts_as_a_try(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, Json] = {"number": 7, "outcome": "held", "text": "by an operator"}
    rows: list[Json] = [{**row, "counts": False}, {**row, "counts": True}, row]
    control.answers["queue.show"] = pages({**STORY, "attempts": rows})
    assert run(control, "trace", ID) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[-5:-3] for line in lines] == [
        ["None", "held"],
        ["7", "held"],
        ["7", "held"],
    ]


def test_a_trace_before_the_first_try(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.show"] = pages({**STORY, "attempts": []})
    assert run(control, "trace", ID) == 0
    assert "no attempt yet" in capsys.readouterr().out


def test_a_trace_of_what_was_born_held_says_by_what(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    held: dict[str, Json] = {**ROW, "state": "held", "held_by": "ErrorSendAsDenied"}
    control.answers["queue.show"] = pages({**STORY, "deliveries": [held], "attempts": []})
    assert run(control, "trace", ID) == 0
    assert "no attempt yet: held by ErrorSendAsDenied\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "keys"),
    [("show", set(STORY)), ("trace", {"id", "message_id", "deliveries", "attempts"})],
)
def test_a_story_as_json_has_the_documented_keys(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], word: str, keys: set[str]
) -> None:
    control.answers["queue.show"] = pages(STORY)
    assert run(control, "--json", word, ID) == 0
    assert set(json.loads(capsys.readouterr().out)) == keys


@pytest.mark.parametrize("word", ["show", "trace", "export"])
def test_a_message_nobody_knows_exits_with_one(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    answer = [refused(f"no such message: {ID}")]
    control.answers |= {"queue.show": answer, "queue.export": answer}
    assert run(control, word, ID) == 1
    assert capsys.readouterr().err == f"relayd: no such message: {ID}\n"


CONTENT = b"Subject: x\r\n\r\n\x1b[2J\xff\r\n"


def exported(octets: bytes) -> list[dict[str, Json]]:
    parts = [octets[:5], octets[5:], b""]
    return [dict(p) for p in pages(*({"octets": base64.b64encode(o).decode()} for o in parts))]


def test_an_export_is_the_content_octet_by_octet(
    control: ControlSocket, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    control.answers["queue.export"] = exported(CONTENT)
    assert run(control, "export", ID) == 0
    assert capfdbinary.readouterr().out == CONTENT


def test_an_export_to_a_terminal_cannot_steer_it(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.answers["queue.export"] = exported(CONTENT)
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    assert run(control, "export", ID) == 0
    assert screen.getvalue() == "Subject: x\n\n\\x1b[2J\ufffd\n\n"


# ---- changing


@pytest.mark.parametrize("word", ["retry", "hold", "release", "delete", "resend"])
def test_ids_are_changed_without_asking(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    control.answers[f"queue.{word}"] = pages(
        {"count": 0}, {"count": 2, "missing": [], "untouched": []}
    )
    assert run(control, word, ID, ID) == 0
    assert capsys.readouterr().out.endswith(": 2 messages\n")
    assert control.asked() == [{"command": f"queue.{word}", "ids": [ID, ID]}]


def test_a_move_names_where_to_and_which(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.move"] = [done({"count": 2, "refused": []})]
    assert run(control, "move", "--upstream", "acs", ID) == 0
    assert run(control, "move", "--from-upstream", "contoso", "--upstream", "acs", "--yes") == 0
    assert capsys.readouterr().out == "moved: 2 messages\n" * 2
    first, second = control.asked()
    assert first == {"command": "queue.move", "to_upstream": "acs", "ids": [ID]}
    assert (second["to_upstream"], second["upstream"]) == ("acs", "contoso")
    assert second["state"] == "waiting"


def test_a_move_needs_an_upstream_to_go_to(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(control, "move", ID) == 2
    assert "--upstream" in capsys.readouterr().err
    assert run(control, "move", "--upstream", "acs") == 2
    assert control.requests == []


def test_what_may_not_move_is_named_with_the_reason(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.move"] = [
        done({"count": 1, "refused": [{"id": ID, "why": "From header a@b is not\x1b[2J in x"}]})
    ]
    assert run(control, "move", "--upstream", "acs", "--from", "a@b", "--yes") == 1
    assert f"{ID}: not moved: From header a@b is not\\x1b[2J in x" in capsys.readouterr().err
    assert run(control, "--json", "move", "--upstream", "acs", "--from", "a@b", "--yes") == 1
    assert json.loads(capsys.readouterr().out)["refused"][0]["id"] == ID


def test_what_cannot_be_sent_again_is_named_with_the_reason(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    why = 'its content is not kept any more, [spool] keep_sent_content is "0"'
    control.answers["queue.resend"] = [
        done({"count": 0, "missing": [], "untouched": [], "refused": [{"id": ID, "why": why}]})
    ]
    assert run(control, "resend", ID) == 1
    out, err = capsys.readouterr()
    assert out == "sent again: 0 messages\n"
    assert err == f"relayd: {ID}: not sent again: {why}\n"
    control.answers["queue.resend"] = [done({"count": 0})]
    assert run(control, "resend", "--device", "ups") == 1
    assert "no message matches that was sent and whose content is kept" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "not_done"), [("release", "released"), ("retry", "tried")])
def test_what_has_no_way_out_is_named_with_the_reason(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], word: str, not_done: str
) -> None:
    control.answers[f"queue.{word}"] = [
        done({"count": 0, "refused": [{"id": ID, "why": "upstream lab not configured"}]})
    ]
    for words in ([ID], ["--device", "ups"]):
        assert run(control, word, *words) == 1
        assert f"{ID}: not {not_done}: upstream lab not" in capsys.readouterr().err


def test_a_release_says_that_another_may_go_first(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.release"] = [done({"count": 1, "probes": ["ErrorSendAsDenied"]})]
    assert run(control, "release", ID) == 0
    assert capsys.readouterr().out == (
        "released: 1 message\n"
        "ErrorSendAsDenied: the oldest it holds is tried now; if it is sent, all go\n"
    )


def test_ids_that_could_not_be_changed_are_named(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.hold"] = [done({"count": 1, "missing": ["A"], "untouched": ["B"]})]
    assert run(control, "hold", ID, "A", "B") == 1
    out, err = capsys.readouterr()
    assert out == "held: 1 message\n"
    assert "no such message: A\n" in err
    assert "B: nothing there to hold; relayd queue show B says why\n" in err


def test_a_change_as_json(control: ControlSocket, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["queue.retry"] = [done({"count": 1, "missing": [], "untouched": []})]
    assert run(control, "--json", "retry", ID) == 0
    assert json.loads(capsys.readouterr().out) == {
        "count": 1, "missing": [], "untouched": [], "refused": [], "probes": [],
    }  # fmt: skip


@pytest.mark.parametrize("word", ["retry", "hold", "release", "delete", "resend"])
def test_neither_ids_nor_a_filter_is_refused(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert run(control, word, "--yes") == 2
    assert "name messages by ID, or by a filter" in capsys.readouterr().err
    assert run(control, word, ID, "--device", "ups", "--yes") == 2
    assert control.requests == []


def test_a_filter_says_how_many_and_asks(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.delete"] = [done({"count": 3})]
    typed = Terminal("no\ny\n")
    monkeypatch.setattr("sys.stdin", typed)
    assert run(control, "delete", "--device", "ups") == 1
    out, err = capsys.readouterr()
    assert out == "delete 3 messages? [y/N] "
    assert "nothing done" in err
    assert run(control, "delete", "--device", "ups") == 0
    assert typed.read() == ""
    dry = [one.get("dry_run", False) for one in control.asked()]
    assert dry == [True, True, False]


def test_without_a_terminal_a_filter_needs_yes(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.delete"] = [done({"count": 3})]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(control, "delete", "--device", "ups") == 1
    assert "3 messages would be meant; nothing done (--yes" in capsys.readouterr().err
    assert run(control, "delete", "--device", "ups", "--yes") == 0
    assert [one.get("dry_run", False) for one in control.asked()] == [True, False]


def test_a_filter_that_matches_nothing_asks_nothing(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.hold"] = [done({"count": 0})]
    assert run(control, "hold", "--device", "nobody") == 1
    assert "no message matches that could be held; nothing done" in capsys.readouterr().err


def test_a_dry_run_only_says_how_many(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.retry"] = [done({"count": 5})]
    assert run(control, "retry", "--state", "failed", "--dry-run") == 0
    assert capsys.readouterr().out == "would retry: 5 messages\n"
    assert [one["dry_run"] for one in control.asked()] == [True]


@pytest.mark.parametrize(
    ("word", "state"), [("release", "held"), ("delete", "waiting"), ("resend", "sent")]
)
def test_a_filter_means_what_the_action_is_for(
    control: ControlSocket, word: str, state: str
) -> None:
    control.answers[f"queue.{word}"] = [done({"count": 1})]
    assert run(control, word, "--device", "ups", "--yes") == 0
    assert control.asked()[0]["state"] == state


def test_a_refusal_exits_with_its_code(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.hold"] = [refused("disk I/O error; try again", exit_code=75)]
    assert run(control, "hold", ID) == 75
    assert "try again" in capsys.readouterr().err


# ---- when nobody is there


def config_of_nobody(folder: Path) -> str:
    path = folder / "relayd.toml"
    path.write_text(
        f'[server]\nruntime_dir = "{folder}"\n[spool]\nurl = "sqlite:///{folder}/spool.db"\n'
    )
    return str(path)


@pytest.mark.parametrize("word", ["retry", "hold", "release", "delete", "resend", "export"])
def test_changes_need_the_daemon_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--config", config_of_nobody(tmp_path), "queue", word, ID])
    assert leaving.value.code == 69
    assert "/relayd.toml run\n" in capsys.readouterr().err


def test_a_daemon_that_is_silent_is_not_down(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "_WITHIN_S", 0.05)
    control.answers["queue.list"] = []
    monkeypatch.setattr("relayd.cli.offline.answers", None)
    assert run(control, "list") == 69


# ---- what the program costs to start

LEAN = """
import sys
from relayd.cli.main import main
try:
    main({words!r})
except SystemExit:
    pass
heavy = {{"gevent", "msal", "ssl", "structlog", "sqlite3", "requests", "urllib3", "argon2"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.slow(1)
@pytest.mark.parametrize("words", [["list"], ["show", ID], ["retry", ID], ["--help"]])
def test_with_the_daemon_up_nothing_heavy_is_imported(
    control: ControlSocket, words: list[str]
) -> None:
    control.answers |= {
        "queue.list": pages({"messages": [ROW]}),
        "queue.show": pages(STORY),
        "queue.retry": [done({"count": 1})],
    }
    code = LEAN.format(words=["--config", str(control.config), "queue", *words])
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_every_action_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for action in queue._ACTIONS:
        with pytest.raises(SystemExit) as leaving:
            main(["queue", action.name, "--help"])
        assert leaving.value.code == 0
        out = capsys.readouterr().out
        assert f"relayd queue {action.name}" in out.partition("examples:")[2]
        assert "exit: 0" in out
