"""Where Microsoft 365 answers, cloud by cloud; [cloud.NAME] adds more or overrides a part.

Source: https://learn.microsoft.com/graph/deployments (authorities, Graph hosts);
        https://learn.microsoft.com/exchange/clients-and-mobile-in-exchange-online/authenticated-client-smtp-submission
"""

from __future__ import annotations

from typing import Final

from relayd.config.model import Cloud, Config, Upstream

BUILT_IN: Final[tuple[Cloud, ...]] = (
    Cloud(
        name="global",  # GCC too
        authority="https://login.microsoftonline.com",
        graph="https://graph.microsoft.com/v1.0",
        graph_scope="https://graph.microsoft.com/.default",
        smtp="smtp.office365.com:587",
        smtp_scope="https://outlook.office365.com/.default",
    ),
    Cloud(
        name="gcc-high",
        authority="https://login.microsoftonline.us",
        graph="https://graph.microsoft.us/v1.0",
        graph_scope="https://graph.microsoft.us/.default",
        smtp="smtp.office365.us:587",
        smtp_scope="https://outlook.office365.us/.default",
    ),
    Cloud(
        name="dod",
        authority="https://login.microsoftonline.us",
        graph="https://dod-graph.microsoft.us/v1.0",
        graph_scope="https://dod-graph.microsoft.us/.default",
        smtp="outlook-dod.office365.us:587",
        smtp_scope="https://outlook-dod.office365.us/.default",
    ),
    Cloud(
        name="21vianet",
        authority="https://login.partner.microsoftonline.cn",
        graph="https://microsoftgraph.chinacloudapi.cn/v1.0",
        graph_scope="https://microsoftgraph.chinacloudapi.cn/.default",
        smtp="smtp.partner.outlook.cn:587",
        smtp_scope="https://partner.outlook.cn/.default",
    ),
)


def endpoints(config: Config, upstream: Upstream) -> Cloud:
    """Return where `upstream` is reached.

    raises: LookupError - no such cloud; `check` has refused that before.
    """
    for cloud in (*config.cloud, *BUILT_IN):
        if cloud.name == upstream.cloud:
            return cloud
    raise LookupError(f"[upstream.{upstream.name}] cloud {upstream.cloud!r} is not configured")
