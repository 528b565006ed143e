"""Endpoints: the built-in clouds, and own ones before them."""

from __future__ import annotations

import pytest

from relayd.config import rules
from relayd.config.clouds import BUILT_IN, endpoints
from relayd.config.model import Cloud, Config, Upstream


@pytest.mark.parametrize("cloud", BUILT_IN, ids=lambda cloud: cloud.name)
def test_a_built_in_cloud_obeys_the_rules_of_a_configured_one(cloud: Cloud) -> None:
    for name in ("authority", "graph", "graph_scope", "smtp_scope"):
        assert rules.https(getattr(cloud, name)) is None
    assert rules.peer_port(cloud.smtp) is None
    assert cloud.graph.endswith("/v1.0")
    assert cloud.graph_scope == cloud.graph.removesuffix("v1.0") + ".default"


def test_the_four_clouds_are_there() -> None:
    assert [each.name for each in BUILT_IN] == ["global", "gcc-high", "dod", "21vianet"]


def test_a_configured_cloud_goes_before_a_built_in_one() -> None:
    lab = Cloud(name="global", authority="https://127.0.0.1", graph="https://127.0.0.1/v1.0")
    upstream = Upstream(name="contoso")
    assert endpoints(Config(), upstream).graph == "https://graph.microsoft.com/v1.0"
    assert endpoints(Config(cloud=(lab,)), upstream) is lab


def test_an_unknown_cloud_is_an_error() -> None:
    with pytest.raises(LookupError, match="azure"):
        endpoints(Config(), Upstream(name="contoso", cloud="azure"))
