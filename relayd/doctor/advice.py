"""The commands and clicks that mend Entra and Exchange Online, with the real ids filled in.

Least privilege first: RBAC for Applications lets the application send through the mailboxes of a
scope and no other. The older application access policy comes second: Microsoft wants no new ones.
docs/permissions.md explains the same lines; a test keeps the two equal.

SECURITY: lines are meant to be pasted into an administrator's shell. Ids come from a token and
from the configuration, so only what looks like a GUID or an address is put into them.

Source: learn.microsoft.com/exchange/permissions-exo/application-rbac;
        powershell/module/exchange/new-applicationaccesspolicy.
"""

from __future__ import annotations

import re
from typing import Final

from relayd.values import frozen

_GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._%+'/=?^{}~!#$&*-]{1,64}@[A-Za-z0-9.-]{1,253}")
_UNSAFE: Final = re.compile(r"[$`;|<>&(){}]")

NEEDED: Final = "Mail.Send"
SOON: Final = frozenset({"Mail.ReadWrite"})
"""Permissions that features of relayd want besides: large mail, and reading what bounced."""

PROPAGATION: Final = (
    "A change takes 30 minutes to 2 hours, and each try before then prolongs the refusal:"
    " leave it alone for half an hour."
)


@frozen(kw_only=True)
class Names:
    """Whom the commands are about; unknown or unusable ones become a word in angle brackets."""

    app_id: str = ""
    object_id: str = ""
    mailbox: str = ""
    tenant: str = ""

    @property
    def app(self) -> str:
        """The application (client) id."""
        return _guid(self.app_id, "<application id>")

    @property
    def principal(self) -> str:
        """The object id of the enterprise application."""
        return _guid(self.object_id, "<object id of the enterprise application>")

    @property
    def box(self) -> str:
        """The mailbox, fit for PowerShell."""
        usable = _ADDRESS.fullmatch(self.mailbox) and not _UNSAFE.search(self.mailbox)
        return self.mailbox if usable or _GUID.fullmatch(self.mailbox) else "<mailbox>"


def _guid(text: str, otherwise: str) -> str:
    return text if _GUID.fullmatch(text) else otherwise


def _quoted(text: str) -> str:
    """Return text for inside single quotes inside double ones, as a filter wants it."""
    return text.replace("'", "''")


def _argument(text: str) -> str:
    """Return text as one argument of PowerShell."""
    return f"'{_quoted(text)}'" if "'" in text or text.startswith("<") else text


def rbac(names: Names) -> tuple[str, ...]:
    """Return how to let the application send through this mailbox and no other."""
    app, principal, box = _argument(names.app), _argument(names.principal), names.box
    return (
        "# Exchange Online PowerShell, as an Organization Management administrator:",
        "Connect-ExchangeOnline",
        f"New-ServicePrincipal -AppId {app} -ObjectId {principal} -DisplayName relayd",
        (
            "New-ManagementScope -Name relayd-scope"
            f" -RecipientRestrictionFilter \"PrimarySmtpAddress -eq '{_quoted(box)}'\""
        ),
        (
            f"New-ManagementRoleAssignment -Name relayd-send -App {principal}"
            ' -Role "Application Mail.Send" -CustomResourceScope relayd-scope'
        ),
        test_rbac(names),
        "# InScope must be True there.",
    )


def test_rbac(names: Names) -> str:
    """Return the command that shows what Exchange grants; it bypasses Exchange's cache."""
    return (
        f"Test-ServicePrincipalAuthorization -Identity {_argument(names.principal)}"
        f" -Resource {_argument(names.box)} | Format-Table"
    )


def widen(names: Names) -> tuple[str, ...]:
    """Return how to let one more mailbox into a scope that is there already."""
    return (
        "# A scope that is there already (New-ManagementScope fails) is changed, not made anew;",
        "# keep what its filter says of other mailboxes:",
        "Get-ManagementScope relayd-scope | Format-List RecipientFilter",
        (
            "Set-ManagementScope -Identity relayd-scope"
            f" -RecipientRestrictionFilter \"PrimarySmtpAddress -eq '{_quoted(names.box)}'\""
        ),
    )


def access_policy(names: Names) -> tuple[str, ...]:
    """Return how to see and widen an application access policy, the older way."""
    return (
        "# An application access policy (the older way) may shut the mailbox out:",
        (
            f"Test-ApplicationAccessPolicy -AppId {_argument(names.app)}"
            f" -Identity {_argument(names.box)}"
        ),
        "Get-ApplicationAccessPolicy | Format-List AppId, ScopeName, AccessRight",
        "# Denied: put the mailbox into the policy's group (ScopeName):",
        (
            "Add-DistributionGroupMember -Identity '<group of the policy>'"
            f" -Member {_argument(names.box)}"
        ),
    )


def new_access_policy(names: Names) -> tuple[str, ...]:
    """Return how to narrow a consent given in Entra by a policy: second choice."""
    return (
        "# Second choice, where RBAC for Applications cannot be had: consent to Mail.Send in",
        "# Entra, then shut the other mailboxes out:",
        (
            f"New-ApplicationAccessPolicy -AppId {_argument(names.app)}"
            " -PolicyScopeGroupId '<mail-enabled security group>' -AccessRight RestrictAccess"
            " -Description relayd"
        ),
    )


def consent(names: Names) -> tuple[str, ...]:
    """Return how to consent for the whole tenant: every mailbox, unless a policy narrows it."""
    return (
        "# https://entra.microsoft.com > App registrations > All applications > " + names.app,
        "# > API permissions > Add a permission > Microsoft Graph > Application permissions",
        "# > Mail.Send > Add permissions > Grant admin consent.",
    )


def narrow(names: Names) -> tuple[str, ...]:
    """Return how to go from a consent for every mailbox to a scope of some."""
    return (
        *rbac(names),
        *widen(names),
        "# Then take the consent back, or the scope is without meaning (rights add up):",
        *remove(names, (NEEDED,)),
    )


def remove(names: Names, roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return how to take permissions back."""
    return (
        "# https://entra.microsoft.com > App registrations > All applications > " + names.app,
        f"# > API permissions > {', '.join(roles)} > Revoke admin consent, then Remove permission.",
    )


def mailbox(names: Names) -> tuple[str, ...]:
    """Return how to see whether the mailbox is there, and under which name."""
    box = _argument(names.box)
    return (
        "Connect-ExchangeOnline",
        f"Get-EXORecipient -Identity {box} | Format-List RecipientTypeDetails, PrimarySmtpAddress",
        (
            f"Get-EXOMailbox -Identity {box}"
            " | Format-List UserPrincipalName, ExternalDirectoryObjectId, PrimarySmtpAddress"
        ),
    )


def send_as(names: Names, sender: str) -> tuple[str, ...]:
    """Return how to let the mailbox use another From."""
    other = Names(mailbox=sender).box
    return (
        "Connect-ExchangeOnline",
        (
            f"Add-RecipientPermission -Identity {_argument(other)} -Trustee {_argument(names.box)}"
            " -AccessRights SendAs -Confirm:$false"
        ),
    )


def new_secret(names: Names) -> tuple[str, ...]:
    """Return how to make a client secret without destroying the others."""
    return (
        "# https://entra.microsoft.com > App registrations > All applications > " + names.app,
        "# > Certificates & secrets > New client secret; copy its Value, not its Secret ID.",
        "# With the Azure CLI (without --append it deletes every other secret):",
        f"az ad app credential reset --id {_argument(names.app)} --append --display-name relayd",
    )
