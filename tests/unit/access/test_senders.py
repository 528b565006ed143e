"""Who mail is from on the way out: every rule as one row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.access.senders import Judgement, Keep, Refuse, SetFrom, judge, judge_envelope
from relayd.config.model import Submitter, Upstream
from relayd.message.address import parse_path

REWRITE = Upstream(
    name="contoso",
    mailbox="Alerts@contoso.com",
    allowed_senders=("erp@contoso.com", "*@shop.contoso.com"),
    own_domains=("contoso.com",),
)
REJECT = replace(REWRITE, on_foreign_sender="reject")
BY_SENDER = replace(REWRITE, mailbox="sender", allowed_senders=("*@contoso.com",))
STRICT_BY_SENDER = replace(BY_SENDER, on_foreign_sender="reject")

UPS = Submitter(name="ups")
FIXED = Submitter(name="ups", from_="fixed@contoso.com")
NAMED = Submitter(name="ups", default_from="ups@contoso.com")
LISTED = Submitter(name="ups", allow_from=("*@fabrikam.com",))


def judged(
    submitter: Submitter, upstream: Upstream, envelope: str, header: str, domain: str = ""
) -> Judgement:
    return judge(
        submitter,
        upstream,
        envelope_sender=parse_path(envelope, lenient=True) if envelope else None,
        header_from=parse_path(header, lenient=True) if header else None,
        default_domain=domain,
    )


def words(judgement: Judgement) -> str:
    match judgement:
        case Keep(address=address):
            return f"keep {address}"
        case SetFrom(address=address, reply_to_original=True):
            return f"set {address}, reply to original"
        case SetFrom(address=address):
            return f"set {address}"
        case Refuse(code=code):
            return f"refuse {code}"


@pytest.mark.parametrize(
    ("submitter", "upstream", "envelope", "header", "expected"),
    [
        # what the upstream carries is kept
        (UPS, REWRITE, "x@y", "alerts@contoso.com", "keep alerts@contoso.com"),
        (UPS, REWRITE, "", "ERP@contoso.com", "keep ERP@contoso.com"),
        (UPS, REWRITE, "", "a@shop.contoso.com", "keep a@shop.contoso.com"),
        (UPS, REWRITE, "erp@contoso.com", "", "keep erp@contoso.com"),
        (NAMED, REWRITE, "", "UPS@contoso.com", "keep UPS@contoso.com"),
        # anything else gets through as the mailbox, not refused
        (
            UPS,
            REWRITE,
            "ups@nas.local",
            "ups@nas.local",
            "set Alerts@contoso.com, reply to original",
        ),
        (NAMED, REWRITE, "", "ups@nas.local", "set Alerts@contoso.com, reply to original"),
        (UPS, REWRITE, "ups@nas.local", "", "set Alerts@contoso.com, reply to original"),
        # nothing, or nothing possible
        (UPS, REWRITE, "", "", "set Alerts@contoso.com"),
        (NAMED, REWRITE, "", "", "set ups@contoso.com"),
        (NAMED, REWRITE, "", "root", "set ups@contoso.com"),
        (NAMED, REWRITE, "ups@[10.0.0.5]", "", "set ups@contoso.com"),
        (NAMED, REJECT, "root", "root", "set ups@contoso.com"),
        (UPS, REJECT, "", "", "set Alerts@contoso.com"),
        # `from` replaces always, and nothing is judged
        (FIXED, REWRITE, "ups@nas.local", "ups@nas.local", "set fixed@contoso.com"),
        (FIXED, REJECT, "ups@nas.local", "ups@nas.local", "set fixed@contoso.com"),
        (FIXED, REJECT, "", "Fixed@contoso.com", "keep fixed@contoso.com"),
        (FIXED, REJECT, "", "", "set fixed@contoso.com"),
        (replace(FIXED, allow_from=("x@y",)), REJECT, "", "a@b", "set fixed@contoso.com"),
        # reject
        (UPS, REJECT, "", "ups@nas.local", "refuse 550"),
        (UPS, REJECT, "ups@nas.local", "", "refuse 553"),
        (UPS, REJECT, "ups@nas.local", "alerts@contoso.com", "refuse 553"),
        (UPS, REJECT, "erp@contoso.com", "alerts@contoso.com", "keep alerts@contoso.com"),
        # allow_from
        (LISTED, REWRITE, "", "a@fabrikam.com", "keep a@fabrikam.com"),
        (LISTED, REWRITE, "", "erp@contoso.com", "set Alerts@contoso.com, reply to original"),
        (LISTED, REWRITE, "a@evil", "a@fabrikam.com", "keep a@fabrikam.com"),
        (LISTED, REJECT, "a@fabrikam.com", "a@fabrikam.com", "keep a@fabrikam.com"),
        (LISTED, REJECT, "a@fabrikam.com", "a@evil", "refuse 550"),
        (LISTED, REJECT, "a@evil", "a@fabrikam.com", "refuse 553"),
        # through the sender's own mailbox
        (UPS, BY_SENDER, "x@y", "erp@contoso.com", "keep erp@contoso.com"),
        (UPS, BY_SENDER, "erp@contoso.com", "", "keep erp@contoso.com"),
        (NAMED, BY_SENDER, "", "a@fabrikam.com", "set ups@contoso.com, reply to original"),
        (UPS, BY_SENDER, "", "a@fabrikam.com", "refuse 550"),
        (UPS, BY_SENDER, "", "", "refuse 550"),
        (NAMED, STRICT_BY_SENDER, "", "a@fabrikam.com", "refuse 550"),
        (LISTED, BY_SENDER, "", "a@fabrikam.com", "refuse 550"),
        (LISTED, BY_SENDER, "", "erp@contoso.com", "refuse 550"),
    ],
)
def test_the_rules(
    submitter: Submitter, upstream: Upstream, envelope: str, header: str, expected: str
) -> None:
    assert words(judged(submitter, upstream, envelope, header)) == expected


def test_a_local_part_is_completed_before_it_is_judged() -> None:
    assert words(judged(UPS, REWRITE, "", "erp", "contoso.com")) == "keep erp@contoso.com"
    assert (
        words(judged(UPS, REWRITE, "", "root", "contoso.com"))
        == "set Alerts@contoso.com, reply to original"
    )


@pytest.mark.parametrize(
    ("submitter", "upstream", "sender", "code"),
    [
        (UPS, REJECT, "ups@nas.local", 553),
        (UPS, REJECT, "alerts@contoso.com", None),
        (UPS, REJECT, "root", None),
        (UPS, REJECT, "", None),
        (UPS, REWRITE, "ups@nas.local", None),
        (FIXED, REJECT, "ups@nas.local", None),
        (LISTED, REJECT, "erp@contoso.com", 553),
    ],
)
def test_mail_from_is_judged_early_only_where_nothing_could_save_it(
    submitter: Submitter, upstream: Upstream, sender: str, code: int | None
) -> None:
    refusal = judge_envelope(submitter, upstream, parse_path(sender) if sender else None)

    assert (refusal.code if refusal else None) == code


def test_a_refusal_names_the_rule_for_the_log_only() -> None:
    refusal = judged(LISTED, REJECT, "", "a@evil")

    assert isinstance(refusal, Refuse)
    assert refusal.text == "Sender address not allowed"
    assert refusal.log_reason == (
        "From header a@evil is not in allow_from of 'ups', and on_foreign_sender is \"reject\""
    )
