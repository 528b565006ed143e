"""The arguments of `relayd sandbox`."""

from __future__ import annotations

import pytest

from relayd.cli.main import main, parser_for


@pytest.mark.parametrize("address", ["8443", ":8443", "host:", "host:x", "host:70000"])
def test_an_address_without_a_port_is_wrong_usage(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sandbox", "--listen", address])
    assert "is not ADDRESS:PORT" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sandbox", "--help"])
    assert "examples:" in capsys.readouterr().out


def test_an_ipv6_address_stands_in_brackets() -> None:
    options = parser_for("sandbox").parse_args(["sandbox", "--listen", "[::1]:0"])
    assert options.listen == ("::1", 0)
    assert options.inbox == ("127.0.0.1", 8480)
