"""A submission's fate: who it is, what it may, and the deliveries it becomes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.access.passwords import DUMMY_HASH
from relayd.access.plan import Plan, Planner, Refusal, let_in, may_send_to, problems, warnings
from relayd.access.users import UsersFile, path_in
from relayd.config.model import (
    Config,
    Device,
    Limits,
    Priority,
    Secret,
    Server,
    Spool,
    Submitter,
    Upstream,
    User,
)
from relayd.message.address import Address, parse_path
from relayd.message.envelope import Envelope, Origin
from relayd.spool.model import MailboxRef

UPSTREAM = Upstream(name="contoso", mailbox="Alerts@contoso.com", own_domains=("contoso.com",))
UPS = Device(name="ups", upstream="contoso", networks=("10.0.0.5/32",), priority="high")
PRINTER = User(
    name="printer", upstream="contoso", password_hash=Secret(DUMMY_HASH), allow_to=("*",)
)
CONFIG = Config(
    server=Server(state_dir="/nonexistent", default_domain="contoso.com"),
    upstream=(UPSTREAM,),
    device=(UPS,),
    user=(PRINTER,),
)
ORIGIN = Origin(
    session="s", listener="l", ip="10.0.0.5", helo="", device="", user="", protocol="SMTP"
)


def envelope(*recipients: str, sender: str = "") -> Envelope:
    return Envelope(
        sender=parse_path(sender) if sender else None,
        recipients=tuple(parse_path(one) for one in recipients),
        origin=ORIGIN,
    )


def planned(
    config: Config, submitter: Submitter, *recipients: str, header: str = "", size: int = 100
) -> Plan:
    header_from = parse_path(header) if header else None
    plan = Planner(config).plan(submitter, envelope(*recipients), header_from, size)
    assert isinstance(plan, Plan)
    return plan


def test_the_network_tells_the_device_and_the_login_wins() -> None:
    planner = Planner(CONFIG)

    assert planner.submitter_for("10.0.0.5", None) == UPS
    assert planner.submitter_for("10.0.0.6", None) is None
    assert planner.submitter_for("10.0.0.6", "printer") == PRINTER
    assert planner.submitter_for("10.0.0.5", "nobody") is None


@pytest.mark.parametrize(
    ("device", "user", "expected"), [("high", "normal", "high"), ("low", "normal", "normal")]
)
def test_a_login_takes_the_higher_priority(
    device: Priority, user: Priority, expected: Priority
) -> None:
    config = replace(
        CONFIG,
        device=(replace(UPS, priority=device),),
        user=(replace(PRINTER, priority=user),),
    )

    found = Planner(config).submitter_for("10.0.0.5", "printer")

    assert found is not None
    assert (found.name, found.priority) == ("printer", expected)


def test_mail_for_our_own_leaves_as_one_delivery() -> None:
    plan = planned(CONFIG, UPS, "it@contoso.com", "IT@contoso.com", "b@contoso.com")

    (delivery,) = plan.deliveries
    assert delivery.mailbox == MailboxRef("contoso", "alerts@contoso.com")
    assert delivery.recipients == ("it@contoso.com", "b@contoso.com")
    assert delivery.header_from == "alerts@contoso.com"
    assert (delivery.set_from, delivery.reply_to_original) == ("Alerts@contoso.com", False)
    assert (plan.priority, plan.max_age_s) == (0, 432_000.0)


def test_a_recipient_without_a_domain_is_refused_where_none_is_known() -> None:
    upstream = Upstream(name="contoso", mailbox="sender", allowed_senders=("*@contoso.com",))
    config = replace(CONFIG, server=Server(state_dir="/nonexistent"), upstream=(upstream,))

    refusal = Planner(config).check_rcpt(PRINTER, Address("root", ""))

    assert refusal is not None
    assert (refusal.code, refusal.enhanced) == (501, "5.1.3")
    assert "default_domain" in refusal.log_reason


def test_a_foreign_sender_leaves_as_the_mailbox() -> None:
    (delivery,) = planned(CONFIG, UPS, "it@contoso.com", header="ups@nas.local").deliveries

    assert (delivery.set_from, delivery.reply_to_original) == ("Alerts@contoso.com", True)


def test_a_kept_sender_is_written_as_judged() -> None:
    config = replace(CONFIG, upstream=(replace(UPSTREAM, allowed_senders=("*@contoso.com",)),))

    (delivery,) = planned(config, UPS, "it@contoso.com", header="Root").deliveries

    assert (delivery.set_from, delivery.header_from) == ("Root@contoso.com", "root@contoso.com")
    assert not delivery.reply_to_original


def test_an_object_id_is_the_mailbox_where_there_is_one() -> None:
    config = replace(CONFIG, upstream=(replace(UPSTREAM, mailbox_id="0B1C-ID"),))

    assert planned(config, UPS, "it@contoso.com").deliveries[0].mailbox.mailbox == "0b1c-id"


def test_the_senders_own_mailbox_is_sent_through() -> None:
    upstream = replace(UPSTREAM, mailbox="sender", allowed_senders=("*@contoso.com",))
    config = replace(CONFIG, upstream=(upstream,))

    (delivery,) = planned(config, UPS, "it@contoso.com", header="Erp@contoso.com").deliveries

    assert delivery.mailbox == MailboxRef("contoso", "erp@contoso.com")


@given(count=st.integers(1, 1200))
def test_no_delivery_has_more_recipients_than_exchange_takes(count: int) -> None:
    wanted = tuple(Address(f"u{n}", "contoso.com") for n in range(count))

    plan = Planner(CONFIG).plan(UPS, replace(envelope(), recipients=wanted * 2), None, 1)

    assert isinstance(plan, Plan)
    assert all(1 <= len(delivery.recipients) <= 500 for delivery in plan.deliveries)
    assert [one for delivery in plan.deliveries for one in delivery.recipients] == [
        str(one) for one in wanted
    ]


@pytest.mark.parametrize(
    ("allow_to", "own", "recipient", "allowed"),
    [
        ((), ("contoso.com",), "a@contoso.com", True),
        ((), ("contoso.com",), "a@CONTOSO.com", True),
        ((), ("contoso.com",), "a@sub.contoso.com", False),
        ((), ("contoso.com",), "a@evil.example", False),
        ((), ("contoso.com",), '"a@contoso.com"@evil.example', False),
        ((), ("contoso.com",), "a%contoso.com@evil.example", False),
        ((), ("contoso.com",), "a@[10.0.0.1]", False),
        ((), (), "a@contoso.com", True),  # the mailbox's own domain
        (("*",), ("contoso.com",), "a@evil.example", True),
        (("noc@partner.example",), ("contoso.com",), "noc@partner.example", True),
        (("noc@partner.example",), ("contoso.com",), "a@contoso.com", False),
    ],
)
def test_who_may_be_written_to(
    allow_to: tuple[str, ...],
    own: tuple[str, ...],
    recipient: str,
    allowed: bool,  # noqa: FBT001 - a table
) -> None:
    submitter, upstream = replace(UPS, allow_to=allow_to), replace(UPSTREAM, own_domains=own)
    planner = Planner(replace(CONFIG, upstream=(upstream,)))

    assert may_send_to(submitter, upstream, parse_path(recipient)) is allowed
    at_rcpt = planner.check_rcpt(submitter, parse_path(recipient))
    at_dot = planner.plan(submitter, envelope(recipient), None, 1)
    assert (at_rcpt is None) is allowed
    assert isinstance(at_dot, Plan) is allowed


def test_without_any_domain_of_our_own_nobody_is_written_to() -> None:
    upstream = replace(UPSTREAM, mailbox="sender", own_domains=())

    assert not may_send_to(UPS, upstream, Address("a", "contoso.com"))
    assert not may_send_to(UPS, upstream, Address("a", ""))


def test_a_refused_recipient_names_the_rule() -> None:
    planner = Planner(CONFIG)

    own = planner.check_rcpt(UPS, parse_path("a@evil.example"))
    listed = planner.check_rcpt(replace(PRINTER, allow_to=("x@y",)), parse_path("a@evil.example"))

    assert own == Refusal(
        code=550,
        enhanced="5.7.1",
        text="Recipient not allowed",
        log_reason="recipient a@evil.example not in own_domains of upstream 'contoso', and "
        "device 'ups' has no allow_to",
        do='Write allow_to = ["contoso.com", "a@evil.example"] into [[device]] "ups"; '
        '"*" would be anybody.',
    )
    assert listed is not None
    assert listed.log_reason == "recipient a@evil.example not in allow_to of user 'printer'"


def test_the_remedy_of_a_refused_recipient_lets_it_in_and_nobody_else() -> None:
    other = parse_path("a@evil.example")
    for submitter in (UPS, replace(PRINTER, allow_to=("x@y.example",))):
        refusal = Planner(CONFIG).check_rcpt(submitter, other)
        assert refusal is not None
        line = refusal.do.partition("allow_to = ")[2].partition("]")[0] + "]"
        mended = replace(submitter, allow_to=tuple(json.loads(line)))
        assert Planner(CONFIG).check_rcpt(mended, other) is None
        assert Planner(CONFIG).check_rcpt(mended, parse_path("b@evil.example")) is not None
    assert (
        Planner(CONFIG).check_rcpt(replace(UPS, allow_to=("contoso.com",)), parse_path("ops"))
        is None
    )


@pytest.mark.parametrize("kept", [True, False])
def test_the_remedies_of_a_refused_sender_let_it_in(*, kept: bool) -> None:
    upstream = replace(UPSTREAM, on_foreign_sender="reject")
    submitter = replace(UPS, allow_from=("x@y.example",)) if kept else UPS
    sender = parse_path("ups@nas.example")
    refusal = Planner(replace(CONFIG, upstream=(upstream,))).check_mail(submitter, sender, 0)
    assert refusal is not None
    place = 'allow_from of [[device]] "ups"' if kept else "allowed_senders of [upstream.contoso]"
    assert f'Add "ups@nas.example" to {place}' in refusal.do
    assert 'on_foreign_sender = "rewrite"' in refusal.do
    rewriting = replace(upstream, on_foreign_sender="rewrite")
    assert Planner(replace(CONFIG, upstream=(rewriting,))).check_mail(submitter, sender, 0) is None


def test_the_remedy_of_a_refused_size_names_what_limits_it() -> None:
    limited = replace(CONFIG, limits=Limits(max_message_size=1000))
    refusal = Planner(limited).check_mail(UPS, None, 1001)
    assert refusal is not None
    assert "max_message_size in [limits]" in refusal.do
    # As the loader resolves "auto": raising it would help nobody.
    auto = Limits(max_message_size=Planner(CONFIG).size_limit(UPS))
    for config in (CONFIG, replace(CONFIG, limits=auto)):
        refusal = Planner(config).check_mail(UPS, None, 999_000_000)
        assert refusal is not None
        assert "[upstream.contoso] carries no more" in refusal.do


def test_a_stranger_is_told_both_ways_in() -> None:
    assert "relayd device add 192.0.2.7 --name NAME" in let_in("192.0.2.7")
    assert "relayd user add NAME" in let_in("192.0.2.7")


def test_postmaster_is_our_own() -> None:
    without = replace(CONFIG, server=replace(CONFIG.server, default_domain=""))

    for config in (CONFIG, without):
        assert Planner(config).check_rcpt(UPS, parse_path("postmaster")) is None
        (delivery,) = planned(config, UPS, "postmaster").deliveries
        assert delivery.recipients == ("postmaster@contoso.com",)


def test_without_an_upstream_mail_waits_at_the_device() -> None:
    planner = Planner(replace(CONFIG, upstream=()))
    submitter = replace(UPS, upstream="")

    for refusal in (
        planner.check_mail(submitter, None, 0),
        planner.check_rcpt(submitter, parse_path("a@b")),
        planner.plan(submitter, envelope("a@b"), None, 1),
    ):
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.enhanced) == (451, "4.3.5")
        assert refusal.log_reason == "no [upstream.*] is configured yet"
        assert "relayd setup" in refusal.do


def test_a_user_without_upstream_takes_the_only_one() -> None:
    two = replace(CONFIG, upstream=(UPSTREAM, replace(UPSTREAM, name="fabrikam")))
    submitter = replace(UPS, upstream="")

    assert Planner(CONFIG).check_mail(submitter, None, 0) is None
    refusal = Planner(two).check_mail(submitter, None, 0)
    assert refusal is not None
    assert refusal.log_reason == "'ups' names no upstream, and there are several"
    lost = Planner(CONFIG).check_mail(replace(UPS, upstream="gone"), None, 0)
    assert lost is not None
    assert lost.log_reason == "upstream 'gone' of 'ups' is not configured"


@pytest.mark.parametrize(
    ("explicit", "large", "limit"),
    [
        (0, "refuse", 3_000_000 - 16384),
        (1_000_000, "refuse", 1_000_000),
        (50_000_000, "refuse", 3_000_000 - 16384),
        (0, "upload", 35_000_000),
        (20_000_000, "upload", 20_000_000),
    ],
)
def test_size_tells_the_truth(
    explicit: int, large: Literal["upload", "refuse"], limit: int
) -> None:
    config = replace(
        CONFIG,
        limits=Limits(max_message_size=explicit),
        upstream=(replace(UPSTREAM, large=large),),
    )
    planner = Planner(config)

    assert planner.size_limit(UPS) == planner.size_limit(None) == limit
    assert planner.check_mail(UPS, None, limit) is None
    declared = planner.check_mail(UPS, None, limit + 1)
    actual = planner.plan(UPS, envelope("a@contoso.com"), None, limit + 1)
    for refusal in (declared, actual):
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.enhanced) == (552, "5.3.4")


def test_before_the_login_the_widest_way_out_counts() -> None:
    config = replace(CONFIG, upstream=(UPSTREAM, replace(UPSTREAM, name="wide", large="upload")))

    assert Planner(config).size_limit(None) == 35_000_000
    assert Planner(config).size_limit(UPS) == 3_000_000 - 16384
    assert Planner(replace(CONFIG, upstream=())).size_limit(None) > 0


def test_a_sender_is_refused_at_mail_and_at_the_dot() -> None:
    planner = Planner(replace(CONFIG, upstream=(replace(UPSTREAM, on_foreign_sender="reject"),)))
    foreign = parse_path("ups@nas.local")

    at_mail = planner.check_mail(UPS, foreign, 0)
    at_dot = planner.plan(UPS, envelope("a@contoso.com"), foreign, 1)

    assert isinstance(at_mail, Refusal)
    assert isinstance(at_dot, Refusal)
    assert (at_mail.code, at_dot.code) == (553, 550)
    assert at_mail.enhanced == at_dot.enhanced == "5.7.1"


def test_own_lifetime_wins() -> None:
    config = replace(CONFIG, spool=Spool(max_age=100.0))

    assert planned(config, UPS, "a@contoso.com").max_age_s == 100.0
    assert planned(config, replace(UPS, max_age=5.0), "a@contoso.com").max_age_s == 5.0


def test_check_finds_what_no_rule_of_the_loader_sees(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        server=Server(state_dir=str(tmp_path)),
        device=(replace(UPS, from_="ups", allow_to=("*@",)),),
        upstream=(
            replace(UPSTREAM, mailbox="ż@contoso.com"),
            replace(UPSTREAM, name="s", mailbox="sender", mailbox_id="x", own_domains=("a b",)),
        ),
    )
    UsersFile(path_in(config)).add(PRINTER)

    places = [problem.partition(":")[0] for problem in problems(config)]

    assert places[0].startswith('[[user]] "printer" is in ')
    assert places[1:] == [
        '[[device]] "ups" from',
        '[[device]] "ups" allow_to',
        "[upstream.contoso] mailbox",
        "[upstream.s] mailbox_id",
        "[upstream.s] own_domains",
    ]
    assert problems(CONFIG) == []


def test_check_warns_of_mail_that_would_be_refused_or_held() -> None:
    by_sender = replace(UPSTREAM, mailbox="sender", allowed_senders=("*@contoso.com",))

    def places(upstream: Upstream, device: Device) -> list[str]:
        config = replace(CONFIG, upstream=(upstream,), device=(device,), user=())
        return [warning.partition(":")[0] for warning in warnings(config)]

    assert places(UPSTREAM, UPS) == []
    assert places(by_sender, UPS) == ['[[device]] "ups" default_from']
    assert places(by_sender, replace(UPS, default_from="alerts@contoso.com")) == []
    assert places(UPSTREAM, replace(UPS, from_="x@y")) == ['[[device]] "ups" from']
    assert places(UPSTREAM, replace(UPS, allow_from=("*",))) == ['[[device]] "ups" allow_from']
    assert places(UPSTREAM, replace(UPS, upstream="gone", from_="x@y")) == []
