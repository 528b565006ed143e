"""relayd.sandbox.pages: shows what arrived, and runs none of it."""

from __future__ import annotations

import email.policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.sandbox.http import Response
from relayd.sandbox.pages import Pages
from tests.sandbox_lab import PLAIN, Asked, field_of, request, told

EVIL = "<script>alert(1)</script>"


def page(asked: Asked, path: str, method: str = "GET") -> Response:
    return Pages(asked.lab).handle(request(method, path, b"", {}))


def text(asked: Asked, path: str) -> str:
    answer = page(asked, path)
    assert answer.status == 200, answer.body
    return answer.body.decode()


def mail(**parts: str) -> bytes:
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"], message["To"] = "alerts@contoso.com", "ops@contoso.com"
    message["Subject"] = parts.get("subject", "Störung")
    message.set_content(parts.get("plain", "Seit 10 Uhr ä."))
    if "html" in parts:
        message.add_alternative(parts["html"], subtype="html")
    if "attachment" in parts:
        message.add_attachment(
            b"x" * 12_345, maintype="application", subtype="pdf", filename=parts["attachment"]
        )
    return message.as_bytes()


def test_an_empty_sandbox_lists_its_mailboxes_and_refreshes_by_itself() -> None:
    html = text(Asked(), "/")
    assert "alerts@contoso.com" in html
    assert 'http-equiv="refresh"' in html
    assert "not Microsoft 365" in html
    assert "Nothing has arrived" in text(Asked(), "/mailbox/alerts@contoso.com")


def test_mail_is_listed_by_recipient_and_by_sender() -> None:
    asked = Asked()
    assert told(asked.send(mail()))[0] == 202
    assert "Störung" in text(asked, "/")
    assert "Störung" in text(asked, "/mailbox/OPS@contoso.com")
    assert "Störung" in text(asked, "/sent/alerts@contoso.com")


def test_a_message_shows_its_fields_text_and_attachments() -> None:
    asked = Asked()
    asked.send(mail(attachment="Übersicht.pdf"))
    html = text(asked, "/message/1?to=ops@contoso.com")
    for expected in ("Seit 10 Uhr ä.", "Übersicht.pdf", "application/pdf", "12 kB", "Delivered to"):
        assert expected in html
    assert "refresh" not in html
    assert "\N{REPLACEMENT CHARACTER}" not in html


def test_bcc_is_shown_as_a_recipient_but_not_as_a_field() -> None:
    asked = Asked()
    asked.send(PLAIN.replace(b"To:", b"Bcc: secret@x.y\r\nTo:"))
    html = text(asked, "/message/1")
    assert "secret@x.y (bcc)" in html
    assert "<th>Bcc</th>" not in html


def test_nothing_in_a_message_becomes_markup() -> None:
    asked = Asked()
    asked.send(
        mail(subject=EVIL, plain=EVIL, attachment=EVIL).replace(
            b"To: ops@contoso.com", f'To: "{EVIL}" <ops@contoso.com>'.encode()
        )
    )
    for path in ("/", "/mailbox/ops@contoso.com", "/message/1", f"/mailbox/{EVIL}"):
        answer = page(asked, path)
        assert b"<script" not in answer.body
        assert "default-src 'none'" in field_of(answer, "content-security-policy")
        assert field_of(answer, "x-content-type-options") == "nosniff"


@given(st.text(max_size=50))
def test_no_mailbox_name_breaks_out_of_its_page(name: str) -> None:
    html = page(Asked(), "/mailbox/" + name.replace("?", "")).body
    assert html.count(b"<h1>") in (0, 1)
    assert b"<script" not in html


def test_html_without_text_is_shown_as_its_text() -> None:
    asked = Asked()
    octets = mail(plain="gone", html=f"<style>x{{}}</style><p>One &amp;</p><p>two</p>{EVIL}")
    asked.send(octets.replace(b"text/plain", b"text/x-none", 1))
    html = text(asked, "/message/1")
    assert "One &amp;" in html
    assert "alert(" not in html
    assert "x{" not in html


def test_an_unknown_charset_is_still_shown() -> None:
    asked = Asked()
    head = b"From: alerts@contoso.com\r\nTo: a@b.c\r\nContent-Type: text/plain; charset=klingon\r\n"
    asked.send(head + b"\r\nabc \xe4\r\n")
    assert "abc ä" in text(asked, "/message/1")


def test_content_that_was_not_kept_is_said_to_be_gone() -> None:
    asked = Asked()
    asked.send(PLAIN + b"x\r\n" * 30_000)
    assert "was not kept" in text(asked, "/message/1")
    assert "(body not kept)" in text(asked, "/message/1/raw")
    asked.lab.store._drop_content(1)
    assert "made room" in text(asked, "/message/1")
    assert page(asked, "/message/1/raw").status == 404


def test_the_source_is_text_and_has_bcc() -> None:
    asked = Asked()
    asked.send(PLAIN.replace(b"To:", b"Bcc: secret@x.y\r\nTo:"))
    answer = page(asked, "/message/1/raw")
    assert b"Bcc: secret@x.y" in answer.body
    assert field_of(answer, "content-type").startswith("text/plain")


def test_defects_are_shown() -> None:
    asked = Asked()
    asked.send(PLAIN + b"x" * 1200 + b"\r\n")
    assert "line-too-long" in text(asked, "/message/1")


def test_a_long_folder_shows_its_newest() -> None:
    asked = Asked()
    for _ in range(201):
        asked.send()
    html = text(asked, "/mailbox/ops@contoso.com")
    assert "The newest 200 of 201" in html
    assert "/message/201?" in html
    assert "/message/1?" not in html


@pytest.mark.parametrize(
    "path", ["/nothing", "/message/1", "/message/x", "/message/9/raw", "/a/b/c"]
)
def test_other_pages_do_not_exist(path: str) -> None:
    assert page(Asked(), path).status == 404


def test_only_reading_is_allowed_and_the_style_is_local() -> None:
    assert page(Asked(), "/", "POST").status == 405
    assert page(Asked(), "/", "HEAD").status == 200
    assert field_of(page(Asked(), "/style.css"), "content-type").startswith("text/css")


def test_many_recipients_and_large_sizes_are_put_short() -> None:
    asked = Asked()
    asked.send(b"To: a@x.y, b@x.y, c@x.y, d@x.y, e@x.y\r\nSubject:\r\n\r\n" + b"x\r\n" * 700_000)
    html = text(asked, "/")
    assert "and 2 more" in html
    assert "2.1 MB" in html
    assert "(no subject)" in html
