"""Whether an upstream is up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.deliver.circuit import Circuit, State


def fail(circuit: Circuit, now: float, **more: object) -> bool:
    return circuit.failed(now, cause="dns-failed", text="t", **more)  # type: ignore[arg-type]


def test_the_first_failure_takes_it_down_and_says_so_once() -> None:
    circuit = Circuit()

    assert fail(circuit, 100.0) is True
    assert fail(circuit, 100.5) is False
    assert not circuit.is_up()
    assert (circuit.cause, circuit.text, circuit.down_since) == ("dns-failed", "t", 100.0)


def test_only_one_probes_and_not_before_its_time() -> None:
    circuit = Circuit()
    fail(circuit, 100.0)

    assert not circuit.may_probe(101.9)
    assert circuit.may_probe(102.0)
    assert not circuit.may_probe(102.1)
    assert circuit.state is State.PROBING


def test_failed_probes_go_out_ever_more_slowly() -> None:
    circuit, now, pauses = Circuit(), 0.0, []
    fail(circuit, now)
    for _ in range(7):
        pauses.append(circuit.probe_at - now)
        now = circuit.probe_at
        assert circuit.may_probe(now)
        assert fail(circuit, now) is False

    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_those_in_flight_when_it_broke_count_once() -> None:
    circuit = Circuit()
    for _ in range(50):
        fail(circuit, 100.0)

    assert circuit.probe_at == 102.0


def test_success_brings_it_back_and_forgets_the_strikes() -> None:
    circuit = Circuit()
    fail(circuit, 0.0)
    circuit.may_probe(2.0)
    fail(circuit, 2.0)

    assert circuit.succeeded() is True
    assert circuit.succeeded() is False
    assert (circuit.is_up(), circuit.cause, circuit.probe_at) == (True, "", 0.0)
    fail(circuit, 50.0)
    assert circuit.probe_at == 52.0


def test_the_servers_wish_is_kept() -> None:
    circuit = Circuit()
    fail(circuit, 0.0, retry_after_s=120.0)

    assert circuit.probe_at == 120.0


def test_a_wish_of_nothing_is_still_a_pause() -> None:
    circuit = Circuit()
    fail(circuit, 0.0, retry_after_s=0.0)

    assert circuit.probe_at == 1.0


def test_a_refused_credential_is_asked_about_once_a_minute() -> None:
    circuit = Circuit()
    fail(circuit, 0.0, by_configuration=True)
    assert circuit.probe_at == 60.0
    circuit.may_probe(60.0)
    fail(circuit, 60.0, by_configuration=True)
    assert circuit.probe_at == 120.0


def test_three_doubts_in_a_row_are_a_failure() -> None:
    circuit = Circuit()

    said = [circuit.doubt(now, cause="HTTP 504", text="") for now in (0.0, 1.0, 2.0)]

    assert said == [False, False, True]


def test_a_success_clears_doubts() -> None:
    circuit = Circuit()
    for _ in range(10):
        assert not circuit.doubt(0.0, cause="HTTP 504", text="")
        circuit.succeeded()

    assert circuit.is_up()


def test_a_doubtful_probe_is_a_failed_one() -> None:
    circuit = Circuit()
    fail(circuit, 0.0)
    circuit.may_probe(2.0)
    circuit.doubt(2.0, cause="HTTP 504", text="")

    assert circuit.state is State.DOWN
    assert circuit.probe_at == 6.0


def test_a_probe_that_found_nothing_to_send_lets_another_go() -> None:
    circuit = Circuit()
    fail(circuit, 0.0)
    circuit.may_probe(2.0)
    circuit.spare(2.5)

    assert circuit.may_probe(2.5)


def test_a_probe_that_never_reports_is_forgotten() -> None:
    circuit = Circuit()
    fail(circuit, 0.0)
    circuit.may_probe(2.0)

    assert not circuit.may_probe(301.0)
    assert circuit.may_probe(302.0)


def test_sparing_without_a_probe_changes_nothing() -> None:
    circuit = Circuit()
    circuit.spare(1.0)
    assert circuit.is_up()
    fail(circuit, 1.0)
    circuit.spare(1.5)
    assert circuit.probe_at == 3.0


@given(st.lists(st.sampled_from(["failed", "doubt", "succeeded", "probe", "spare"])))
def test_it_always_comes_back(events: list[str]) -> None:
    circuit, now = Circuit(), 0.0
    for event in events:
        now += 1.0
        if event == "failed":
            fail(circuit, now)
        elif event == "doubt":
            circuit.doubt(now, cause="c", text="")
        elif event == "succeeded":
            circuit.succeeded()
        elif event == "probe":
            circuit.may_probe(now)
        else:
            circuit.spare(now)

    assert circuit.is_up() or circuit.may_probe(max(now, circuit.probe_at))
    circuit.succeeded()
    assert circuit.is_up()
