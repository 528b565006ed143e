"""The model's values: frozen, and a secret that does not show itself."""

from __future__ import annotations

import dataclasses

from relayd.config.model import Config, Secret


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("geheim")
    assert secret.reveal() == "geheim"
    for shown in (repr(secret), str(secret), f"{secret}", repr(dataclasses.replace(secret))):
        assert "geheim" not in shown
    assert repr(Secret()) == "Secret()"
    assert secret
    assert not Secret()


def test_the_defaults_make_a_whole_configuration() -> None:
    assert Config() == Config()
    assert Config().server.reply == "queued"
