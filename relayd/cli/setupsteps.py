"""What an administrator does in Entra and Exchange Online before relayd can send, step by step.

The commands are those of `relayd doctor` (relayd.doctor.advice), so that both say the same; here
are only the steps that come before them: the application itself, and its secret.

Source: learn.microsoft.com/entra/identity-platform/quickstart-register-app;
        learn.microsoft.com/exchange/permissions-exo/application-rbac.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from relayd.config.clouds import BUILT_IN
from relayd.doctor import advice
from relayd.doctor.advice import Names

_PORTALS: Final = {
    "gcc-high": "https://entra.microsoft.us",
    "dod": "https://entra.microsoft.us",
    "21vianet": "https://entra.microsoftonline.cn",
}
_PORTAL: Final = "https://entra.microsoft.com"
_EXCHANGE: Final = {
    "gcc-high": "Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovGCCHigh",
    "dod": "Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovDoD",
    "21vianet": "Connect-ExchangeOnline -ExchangeEnvironmentName O365China",
}
_CONNECT: Final = "Connect-ExchangeOnline"


def is_microsoft(cloud: str) -> bool:
    """Tell whether a cloud is one of Microsoft's, so that there is a portal to go to."""
    return any(cloud == each.name for each in BUILT_IN)


def registration(tenant: str, cloud: str) -> list[str]:
    """Return how to make the application; ends with the ids that are wanted."""
    return [
        f"In Entra ({_portal(cloud)}), as an Application Administrator of {tenant}:",
        "  1. App registrations > New registration",
        '     name "relayd", this organizational directory only, no redirect URI > Register',
        "  2. its Overview shows the Application (client) ID: you are asked for it next",
        "  3. its link Managed application in local directory leads to the enterprise application;",
        "     the Object ID there (not that of the registration) is what Exchange wants",
    ]


def permission(names: Names, cloud: str) -> list[str]:
    """Return how to give the application the right to send: narrow first, then the wide way."""
    return [
        "Let it send as this one mailbox (RBAC for Applications in Exchange Online):",
        *_indented(_for_cloud(advice.rbac(names), cloud)),
        "  If Test-ServicePrincipalAuthorization is fine, do not grant Mail.Send in Entra as well:",
        "  rights add up, and that one is for every mailbox.",
        f"  {advice.PROPAGATION}",
        "",
        "Or, wider: consent in Entra. The secret can then send as EVERY mailbox of the tenant, the",
        "director's too, until an application access policy shuts the others out:",
        *_indented(_for_cloud(advice.consent(names), cloud)),
        *_indented(advice.new_access_policy(names)),
    ]


def secret(names: Names, cloud: str) -> list[str]:
    """Return how to make the secret that is asked for next."""
    return [
        "Make a secret for it:",
        *_indented(_for_cloud(advice.new_secret(names), cloud)),
    ]


def _portal(cloud: str) -> str:
    return _PORTALS.get(cloud, _PORTAL)


def _for_cloud(lines: Iterable[str], cloud: str) -> Iterator[str]:
    """Yield lines of advice with the portal and the environment of this cloud."""
    for line in lines:
        yield (
            _EXCHANGE.get(cloud, line)
            if line == _CONNECT
            else line.replace(_PORTAL, _portal(cloud))
        )


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
