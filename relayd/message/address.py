r"""One e-mail address: parsed once, folded once, compared by `key`; and lists of them.

The domain is lower-case ASCII (IDNA A-labels) or an address literal; the local part keeps
its case for sending and is folded only for comparing, because Exchange ignores case.
`str(address)` is the form for the wire and the spool, quoted where it must be, and
`parse_path(str(a)) == a`. An Address cannot hold a control character or a non-ASCII one,
so none can carry a line break into a header or a reply; no local part that is parsed looks like
an encoded word.

    parse_path            one address, from SMTP or a setting
    parse_address_list    a From, To, Cc value as devices write it; never raises
    AddressPatterns       "a@b", "*@b", "*@*.b", "b", "*"

Source: RFC 5321 §4.1.2 (grammar), §2.4 (case), App. C (source routes), §4.5.3.1 (lengths),
RFC 5322 §3.4 and §4.4 (lists, old forms), RFC 5890 and RFC 5894 §4.2 (IDNA), RFC 6531 (what is
not taken).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from relayd.message.words import (
    encode_words,
    flat,
    is_plain_phrase,
    text_of,
    without_controls,
)
from relayd.values import frozen

MAX_LOCAL: Final = 64
MAX_DOMAIN: Final = 255
MAX_ADDRESS: Final = 254
_MAX_PATH: Final = 1024  # with a source route in front
_REMEMBERED: Final = 320  # octets of a name or a short list; a site's devices write as few to few

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_ATOM: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_LITERAL: Final = re.compile(r"\[[0-9A-Za-z:.]+\]")
_PLAIN: Final = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@({_DOMAIN.pattern})")
_QUOTED: Final = re.compile(r'"((?:[^"\\]++|\\.)*)"')
_ROUTE: Final = re.compile(r"@[^:\"]*:")
_ESCAPED: Final = re.compile(r"\\(.)")
_MUST_ESCAPE: Final = re.compile(r'(["\\])')
_UNQUOTED_LOCAL: Final = re.compile(r'[^\s"(),:;<>@\[\]\\]+')
_LENIENT_LOCAL: Final = re.compile(r'[^"<>@\\]+')
_DEVIATION: Final = re.compile("[\u00df\u1e9e\u03c2\u200c\u200d]")  # ß, its capital, ς, ZWNJ, ZWJ
_LIKE_ENCODED: Final = re.compile(r"=\?.*\?=")


class NeedsSmtputf8(ValueError):
    """The local part is not ASCII: answer 553 5.6.7, not 501."""


@frozen
class Address:
    """local: decoded, unquoted. domain: "" only for a bare local part ("postmaster").

    key:    the form to compare by: lower-case "local@domain".
    raises: ValueError - a character that no header and no reply may bear.
    """

    local: str
    domain: str
    key: str = field(init=False, repr=False, compare=False)
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # SECURITY: without this a CR in an address would write headers of its sender's choice.
        if not (self.local and self.local.isascii() and self.local.isprintable()):
            raise ValueError("local part is empty or holds controls or non-ASCII characters")
        if self.domain and not (_DOMAIN.fullmatch(self.domain) or _LITERAL.fullmatch(self.domain)):
            raise ValueError("not a domain")
        # Once for each, since parsed ones are remembered and asked ten times in a message.
        object.__setattr__(self, "key", f"{self.local}@{self.domain}".lower())
        local = self.local
        if not local.isalnum() and not _DOT_ATOM.fullmatch(local):
            local = '"' + _MUST_ESCAPE.sub(r"\\\1", local) + '"'
        object.__setattr__(self, "_text", f"{local}@{self.domain}" if self.domain else local)

    @property
    def is_literal(self) -> bool:
        """True for user@[192.0.2.1]: nobody on the internet can answer it."""
        return self.domain.startswith("[")

    def __str__(self) -> str:
        return self._text


class Mailbox(NamedTuple):
    """An address in a header. display: as found, unquoted, encoded words left alone."""

    display: str
    address: Address


def parse_path(text: str, *, lenient: bool = False) -> Address:
    """Return the address in MAIL, RCPT or a setting; O(len(text)).

    text:    what stands between < and >, with or without them; not the null path.
    lenient: a device's sender: spaces and odd characters in an unquoted local part are
             kept, and it may be as long as the whole address.
    raises:  NeedsSmtputf8 - the local part is not ASCII; ValueError - no address.
    """
    if len(text) > _MAX_PATH:
        raise ValueError("address too long")
    return _parse_path(text, lenient)


@functools.lru_cache(maxsize=2048)
def _parse_path(text: str, lenient: bool) -> Address:  # noqa: FBT001 - a keyword would slow the cache
    found = _PLAIN.fullmatch(text)
    if found is None:
        return _parse_odd_path(text, lenient=lenient)
    local, domain = found.groups()
    return _bounded(local, domain.lower(), lenient=lenient)


def _parse_odd_path(text: str, *, lenient: bool) -> Address:
    text = text.strip(" \t")
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip(" \t")
    route = _ROUTE.match(text)  # RFC 5321 App. C: ignored
    if route is not None:
        text = text[route.end() :].lstrip(" \t")
    quoted = _QUOTED.match(text)
    if quoted is not None:
        local, rest = _ESCAPED.sub(r"\1", quoted[1]), text[quoted.end() :]
    else:
        local, at, rest = text.partition("@")
        rest = at + rest
        if not (_LENIENT_LOCAL if lenient else _UNQUOTED_LOCAL).fullmatch(local):
            raise ValueError("not an address")
    if rest in ("", "@"):
        if rest:
            raise ValueError("no domain after @")
        return _bounded(local, "", lenient=lenient)
    if not rest.startswith("@"):
        raise ValueError("text after the quoted local part")
    return _bounded(local, fold_domain(rest[1:]), lenient=lenient)


def _bounded(local: str, domain: str, *, lenient: bool) -> Address:
    if not local.isascii():
        raise NeedsSmtputf8("non-ASCII local part")
    # SECURITY: RFC 2047 §5 allows none here, but readers decode it, and mail goes to a stranger.
    if "=?" in local and _LIKE_ENCODED.search(local):
        raise ValueError("an encoded word is no local part")
    address = Address(local, domain)
    if len(local) > (MAX_ADDRESS if lenient else MAX_LOCAL):
        raise ValueError("local part too long")
    if len(domain) > MAX_DOMAIN or len(str(address)) > MAX_ADDRESS:
        raise ValueError("address too long")
    return address


def fold_domain(domain: str) -> str:
    """Return a domain in the form kept: lower case, A-labels, no last dot; or a literal.

    raises: ValueError - empty or over-long labels, forbidden characters, a bad literal, or one of
            the letters that IDNA2003 and IDNA2008 read differently: its owner writes "xn--".
    """
    if domain.startswith("["):
        return _fold_literal(domain)
    if len(domain) > MAX_DOMAIN:
        raise ValueError("domain too long")
    if not domain.isascii():
        # SECURITY: the codec is IDNA2003's, and has "straße.de" as "strasse.de", another's domain.
        if _DEVIATION.search(domain):
            raise ValueError("a letter that needs the A-label of its domain (xn--...)")
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError("not an international domain name") from error
    domain = domain.lower().removesuffix(".")
    if not _DOMAIN.fullmatch(domain):  # after IDNA too: full-width "@" maps to "@"
        raise ValueError("not a domain")
    return domain


def _fold_literal(domain: str) -> str:
    if not domain.endswith("]") or len(domain) > MAX_DOMAIN:
        raise ValueError("unfinished address literal")
    text = domain[1:-1]
    text = text[5:] if text[:5].lower() == "ipv6:" else text
    ip = ip_address(text)
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            raise ValueError("a zone in an address literal")
        return f"[IPv6:{ip}]"
    return f"[{IPv4Address(ip)}]"


# ---- lists in headers -----------------------------------------------------------------------

_WORD: Final = re.compile(r'(?:[^\s"()<>,;:\[]++|\[[^\]\s<>]*+\]?)+')
_QUOTED_ADDRESS: Final = re.compile(r'"(?:[^"\\]++|\\.)*"@(?:[^\s"()<>,;:\[]++|\[[^\]\s<>]*+\]?)+')
_ONE: Final = re.compile(rf'("?)([A-Za-z0-9_ -]*+)\1 *+<({_PLAIN.pattern})>')
_ANGLE: Final = re.compile(r"<([^<>]*)>?")
_PARENTHESIS: Final = re.compile(r"[()\\]")


@dataclass(slots=True)
class _Open:
    """The mailbox being read."""

    words: list[str]
    path: str | None = None
    comment: str = ""


def parse_address_list(value: bytes) -> list[Mailbox]:
    """Return the mailboxes in a header value, in order; O(len(value)); never raises.

    Groups are opened, comments dropped (one serves as display name where there is no
    other), "@" and commas in places they may not be are taken as they were meant. What
    is no address is left out; a list without any gives [].
    """
    return list(_known_list(value)) if len(value) <= _REMEMBERED else _parse_list(value)


def _parse_list(value: bytes) -> list[Mailbox]:
    text = without_controls(text_of(value)).strip(" ")
    if (one := _ONE.fullmatch(text)) is not None and _is_ordinary(one[3]):  # most of them
        return [Mailbox(" ".join(one[2].split()), Address(one[4], one[5].lower()))]
    found: list[Mailbox] = []
    part = _Open([])
    at, end = 0, len(text)
    unclosed = ""  # openers known to have no end: plain characters from there on
    while at < end:
        sign = text[at]
        if sign in ",;":
            _close(part, found)
            part = _Open([])
            at += 1
        elif sign == ":":  # the words were a group's name
            part = _Open([])
            at += 1
        elif (angle := _ANGLE.match(text, at)) is not None:
            part.path = part.path or angle[1].strip()
            at = angle.end()
        elif sign == "(" and sign not in unclosed:
            stop = _comment_end(text, at)
            if stop is None:
                unclosed += sign
                continue
            part.comment = part.comment or text[at + 1 : stop - 1]
            at = stop
        elif sign == '"' and sign not in unclosed:
            whole = _QUOTED_ADDRESS.match(text, at) or _QUOTED.match(text, at)
            if whole is None:
                unclosed += sign
                continue
            quoted = whole.re is _QUOTED
            part.words.append(_ESCAPED.sub(r"\1", whole[1]) if quoted else whole[0])
            at = whole.end()
        else:
            word = _WORD.match(text, at)
            if word is not None:
                part.words.append(word[0])
            at = at + 1 if word is None else word.end()
    _close(part, found)
    return found


def _is_ordinary(path: str) -> bool:
    return len(path) <= MAX_ADDRESS and "=?" not in path


_known_list = functools.lru_cache(maxsize=512)(_parse_list)


def _comment_end(text: str, start: int) -> int | None:
    """Return where the comment opened at `start` ends; None: it never does."""
    depth, at = 0, start
    while (sign := _PARENTHESIS.search(text, at)) is not None:
        at = sign.end()
        if sign[0] == "\\":
            at += 1
        elif sign[0] == "(":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return at
    return None


def _close(part: _Open, found: list[Mailbox]) -> None:
    """Add the mailbox read, if it has an address."""
    words = part.words
    path = part.path
    if not path:
        # Without brackets the address is the last word that looks like one; a single
        # word is a local part ("From: root").
        place = next((n for n in range(len(words) - 1, -1, -1) if "@" in words[n]), None)
        if place is None and len(words) == 1 and _DOT_ATOM.fullmatch(words[0]):
            place = 0
        if place is None:
            return
        path = words.pop(place)
    try:
        address = parse_path(path, lenient=True)
    except ValueError:
        return
    found.append(Mailbox(flat(" ".join(words)) or part.comment.strip(), address))


def render_mailbox(display: str, address: Address) -> bytes:
    """Return a mailbox for a header: one or more words and <address>; never a bare newline.

    Encoded words stay as they are, plain ASCII is quoted where needed, anything else
    becomes encoded words. Long names are folded.
    """
    return (_known_mailbox if len(display) <= _REMEMBERED else _render_mailbox)(display, address)


def _render_mailbox(display: str, address: Address) -> bytes:
    path = str(address).encode("ascii")
    display = flat(display)
    if not display:
        return path
    return b"%s <%s>" % (_phrase(display), path)


_known_mailbox = functools.lru_cache(maxsize=2048)(_render_mailbox)


def _phrase(display: str) -> bytes:
    if is_plain_phrase(display):
        return display.encode("ascii")
    if display.isascii() and "=?" not in display and len(display) <= MAX_ADDRESS:
        return b'"' + _MUST_ESCAPE.sub(r"\\\1", display).encode("ascii") + b'"'
    return encode_words(display)


# ---- patterns in settings -------------------------------------------------------------------


@frozen
class AddressPatterns:
    """Addresses a setting names: compiled once, asked often.

    exact:      whole addresses, as `Address.key`.
    domains:    "*@domain" and "domain".
    subdomains: "*@*.domain" and "*.domain", kept as ".domain"; not the domain itself.
    anybody:    "*".
    """

    exact: frozenset[str]
    domains: frozenset[str]
    subdomains: tuple[str, ...]
    anybody: bool

    @classmethod
    def compile(cls, patterns: Iterable[str]) -> AddressPatterns:
        """Read patterns; raises ValueError, naming the first that is none."""
        exact, domains, subdomains, anybody = set(), set(), set(), False
        for pattern in patterns:
            text = pattern.strip()
            local, at, domain = text.rpartition("@")
            try:
                if text in ("*", "*@*"):
                    anybody = True
                elif at and local != "*":
                    exact.add(parse_path(text).key)
                elif domain.startswith("*."):
                    subdomains.add("." + fold_domain(domain[2:]))
                else:
                    domains.add(fold_domain(domain).lower())
            except ValueError as error:
                raise ValueError(f"{pattern!r} is no address and no pattern: {error}") from error
        return cls(frozenset(exact), frozenset(domains), tuple(sorted(subdomains)), anybody)

    def matches(self, address: Address) -> bool:
        """Tell whether `address` is named here."""
        domain = address.domain.lower()
        return (
            self.anybody
            or domain in self.domains
            or (bool(self.exact) and address.key in self.exact)
            or (bool(self.subdomains) and domain.endswith(self.subdomains))
        )


def matches(pattern: str, address: Address) -> bool:
    """Tell whether one pattern names `address`; raises ValueError for what is no pattern."""
    return AddressPatterns.compile((pattern,)).matches(address)
