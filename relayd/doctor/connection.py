"""From this host to Entra and Graph: name, address, proxy, TLS, clock, tenant, each a step.

A step that needs an earlier one which failed is SKIPPED and names it; `missing` is then the name
of the first that failed, "" when all is well. Nothing secret is sent.

Source: OpenID Connect Discovery 1.0 §4; RFC 9110 §6.6.1 (Date).
"""

from __future__ import annotations

import json
import re
import shlex
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from datetime import datetime
from typing import Final

from relayd.clock import SYSTEM, Clock
from relayd.config.clouds import BUILT_IN
from relayd.config.model import Cloud, Http, Upstream
from relayd.deliver.wallclock import EARLIEST
from relayd.doctor import advice
from relayd.doctor.network import (
    EXPIRED,
    NOT_YET_VALID,
    Broken,
    Certificate,
    NotTrusted,
    Place,
    Proxy,
    Refused,
    Secured,
    Way,
    dial_each,
    get,
    look_up,
    place_of,
    proxy_of,
)
from relayd.doctor.steps import Step, ok, problem, skipped, warning
from relayd.errors import TokenUnavailable
from relayd.identity import aadsts
from relayd.identity.credentials import Credential
from relayd.identity.oauth import Entra, Issued, Reply, classify
from relayd.net.http import Resolver, roots
from relayd.queueview import meaning_of, sentence
from relayd.values import frozen
from relayd.wayout import stamp

NAMES: Final = ("dns", "tcp", "proxy", "tls", "clock", "tenant")

GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ISSUERS: Final = ("digicert", "microsoft", "globalsign", "baltimore")
"""Organisations that issue certificates for Microsoft's own hosts."""

_CLOCK_PROBLEM_S: Final = 300.0
_CLOCK_WARNING_S: Final = 60.0
_SECRET_REFUSED: Final = frozenset({"7000215", "7000222"})
INSPECTION: Final = (
    "A firewall or proxy on the way opens TLS. Best: have it let Microsoft 365 through unopened, as"
    " Microsoft asks for. Else: put its root certificate, as PEM, together with the system's roots"
    " into one file and name that in [http] ca_file."
)


_CLOCK_DO: Final = "Tokens and certificates are refused, and mail may wait: set the clock."
_CLOCK_COMMANDS: Final = ("timedatectl", "timedatectl set-ntp true")
_CONDITIONAL_ACCESS: Final = (
    "# https://entra.microsoft.com > Protection > Conditional Access > Sign-in logs >",
    "# Service principal sign-ins: the policy that blocked it is named there.",
)


@frozen(kw_only=True)
class Reach:
    """What is used of the outside; tests give their own.

    fetch: asks Entra for a token; raises TokenUnavailable only.
    """

    clock: Clock = SYSTEM
    resolver: Resolver = field(default_factory=Resolver)
    fetch: Callable[[Credential], Issued] = field(default_factory=lambda: Entra().fetch)


class Connection:
    """The way to one upstream's cloud. missing: see above; close it at the end."""

    def __init__(self, upstream: Upstream, cloud: Cloud, http: Http, reach: Reach) -> None:
        self._upstream = upstream
        self._cloud = cloud
        self._http = http
        self._reach = reach
        self._reached: dict[Place, Secured] = {}
        self.missing = ""

    def close(self) -> None:
        """Close what was opened."""
        for sock in self._reached.values():
            sock.close()
        self._reached.clear()

    def steps(self) -> Iterator[Step]:
        """Yield each step when it is done; every wait in them is bounded."""
        cloud = self._cloud
        places = tuple(dict.fromkeys((place_of(cloud.authority), place_of(cloud.graph))))
        try:
            proxy = proxy_of(self._http.proxy)
            context = roots(cloud.ca_file or self._http.ca_file)
            proxy_context = roots(self._http.ca_file) if proxy and proxy.is_tls else None
        except ValueError as error:
            yield from self._only(
                problem("proxy", f"[http] proxy cannot be used: {error}", "relayd check")
            )
            return
        except (OSError, ssl.SSLError) as error:
            told = getattr(error, "strerror", None) or error
            do = "Correct ca_file (relayd check), or: apt install --reinstall ca-certificates"
            yield from self._only(problem("tls", f"the trusted roots cannot be read: {told}", do))
            return
        way = Way(
            proxy,
            resolver=self._reach.resolver,
            timeout_s=self._http.connect_timeout,
            proxy_roots=proxy_context,
            clock=self._reach.clock,
        )
        first = (proxy.place,) if proxy else places
        yield self._look_up(first, proxy)
        yield self._dial(first, proxy)
        yield self._tunnel(way, places)
        yield self._handshakes(way, places, context)
        yield from self._ask_entra(places)

    def _only(self, step: Step) -> Iterator[Step]:
        """Yield the one step that keeps all the others from being tried."""
        self.missing = step.name
        for name in NAMES:
            yield step if name == step.name else skipped(name, f"{step.name} comes first")

    def _look_up(self, places: Iterable[Place], proxy: Proxy | None) -> Step:
        name, told, failed = "dns", [], []
        for place in places:
            try:
                found = look_up(
                    place, resolver=self._reach.resolver, timeout_s=self._http.connect_timeout
                )
            except Broken as error:
                failed.append(f"{place.host}: {error}")
            else:
                some = ", ".join(dict.fromkeys(str(one.where[0]) for one in found[:4]))
                some = "an address" if some == place.host else some
                told.append(f"{place.host} is {some}{', …' if len(found) > 4 else ''}")
        if not failed:
            return ok(name, "; ".join(told))
        self.missing = name
        whose = " of the proxy" if proxy else ""
        return problem(
            name,
            f"the name{whose} cannot be looked up: {'; '.join(failed)}",
            "Check the name servers this host asks (/etc/resolv.conf), and that they answer.",
            [f"getent ahosts {shlex.quote(place.host)}" for place in places],
        )

    def _dial(self, places: Sequence[Place], proxy: Proxy | None) -> Step:
        name, told, failed = "tcp", [], []
        for place in places:
            try:
                addresses = look_up(
                    place, resolver=self._reach.resolver, timeout_s=self._http.connect_timeout
                )
            except Broken:
                continue  # told by the step before
            found = dial_each(
                addresses, timeout_s=self._http.connect_timeout, clock=self._reach.clock
            )
            silent = "; ".join(f"{where}: {why}" for where, why in found.silent[:6])
            if not found.answered:
                failed.append(f"{place.host} port {place.port} ({silent or 'no address'})")
            else:
                also = f", not {silent}" if silent else ""
                count = len(found.answered)
                told.append(f"{place} answers at {count} address{'' if count == 1 else 'es'}{also}")
        if not told and not failed:
            return skipped(name, "dns comes first")
        if not failed:
            return ok(name, "; ".join(told))
        self.missing = self.missing or name
        what = "the proxy" if proxy else "Microsoft 365"
        return problem(
            name,
            f"nobody answers at {'; '.join(failed)}",
            f"Let this host through to {what} (firewall, route), or name a proxy in [http] proxy.",
            [f"curl -v --max-time 10 https://{place}/" for place in places if not proxy],
        )

    def _tunnel(self, way: Way, places: Sequence[Place]) -> Step:
        name = "proxy"
        if way.proxy is None:
            return skipped(name, "none is configured")
        if self.missing:
            return skipped(name, f"{self.missing} comes first")
        for place in places:
            try:
                way.connect(place).close()
            except Refused as error:
                self.missing = name
                do = "Have the proxy allow CONNECT to these hosts on port 443."
                if error.status == 407:
                    do = "Put user and password into [http] proxy, or have it let this host in."
                return problem(
                    name,
                    f"{way.proxy.place} does not open the way to {place}: {error}",
                    do,
                    [f"# {one.host}:{one.port}" for one in places],
                )
            except Broken as error:
                self.missing = name
                return problem(name, f"{way.proxy.place}: {error}", "Check [http] proxy.")
        hosts = " and ".join(str(place) for place in places)
        return ok(name, f"{way.proxy.place} opens the way to {hosts}")

    def _handshakes(self, way: Way, places: Sequence[Place], context: ssl.SSLContext) -> Step:
        name = "tls"
        if self.missing in ("dns", "tcp", "proxy"):
            return skipped(name, f"{self.missing} comes first")
        told, opened = [], ""
        for place in places:
            try:
                sock, shown = way.secure(place, context)
            except NotTrusted as error:
                self.missing = name
                return self._distrusted(place, error)
            except Broken as error:
                self.missing = name
                return problem(
                    name,
                    f"{place}: {error}",
                    "Something on the way answers in Microsoft's place, or cuts TLS off: a"
                    " firewall, a proxy that is not configured here, a portal that wants a login.",
                )
            self._reached[place] = sock
            told.append(
                f"{place}: certificate by {_issuer(shown)}, until {shown.not_after:%Y-%m-%d}"
            )
            opened = opened or (_issuer(shown) if _is_inspected(place, shown) else "")
        if opened:
            return warning(
                name,
                f"a firewall or proxy on the way opens TLS (its certificate is by {opened});"
                " relayd trusts it",
                "It sees the client secret and all mail. Better: have it let Microsoft 365 through"
                " unopened.",
            )
        return ok(name, "; ".join(told))

    def _distrusted(self, place: Place, error: NotTrusted) -> Step:
        name, shown, cloud = "tls", error.certificate, self._cloud
        by = f"; its certificate is by {_issuer(shown)}" if shown else ""
        if error.code in (NOT_YET_VALID, EXPIRED):
            now = stamp(self._reach.clock.utcnow())
            times = (
                f", good {shown.not_before:%Y-%m-%d} to {shown.not_after:%Y-%m-%d}" if shown else ""
            )
            return problem(
                name,
                f"{place}: {error}{by}{times}; this host's clock shows {now}",
                "If the clock is wrong, set it; else the server's certificate has run out.",
                _CLOCK_COMMANDS,
            )
        if shown is not None and _is_inspected(place, shown):
            return problem(
                name,
                f"{place} is answered by somebody else: {error}{by}",
                INSPECTION,
                _inspection_commands(place, way_out=self._http.proxy != ""),
            )
        file = cloud.ca_file or self._http.ca_file
        if file:
            key = f"[cloud.{cloud.name}] ca_file" if cloud.ca_file else "[http] ca_file"
            do = f"{key} ({file}) replaces the system's roots: it must hold the one of this issuer."
            return problem(name, f"{place} is not trusted: {error}{by}", do)
        return problem(
            name,
            f"{place} is not trusted: {error}{by}",
            "The system's roots are missing or old; a root of your own goes into [http] ca_file.",
            ("apt install --reinstall ca-certificates", "update-ca-certificates"),
        )

    def _ask_entra(self, places: Sequence[Place]) -> Iterator[Step]:
        """Ask for the tenant's public description: it tells the server's clock too."""
        entra = places[0]
        sock = self._reached.get(entra)
        if sock is None:
            yield self._clock_alone()
            yield skipped("tenant", f"{self.missing or 'tls'} comes first")
            return
        path = f"/{self._upstream.tenant}/v2.0/.well-known/openid-configuration"
        if not re.fullmatch(r"[A-Za-z0-9./_-]+", path):
            yield self._clock_alone()
            yield problem("tenant", "it is neither a domain nor a GUID", "Correct `tenant`.")
            self.missing = "tenant"
            return
        try:
            found = get(
                sock, entra, path, timeout_s=self._http.token_timeout, clock=self._reach.clock
            )
        except Broken as error:
            yield self._clock_alone()
            yield problem("tenant", f"{entra} gives no answer: {error}", "Try again.")
            self.missing = "tenant"
            return
        yield self._compare(found.date, found.at, entra)
        yield self._tenant(Reply(found.status, {}, found.body.decode("utf-8", "replace")), entra)

    def _clock_alone(self) -> Step:
        now = self._reach.clock.utcnow()
        if now < EARLIEST:
            return problem("clock", _impossible(now), _CLOCK_DO, _CLOCK_COMMANDS)
        return skipped("clock", f"no server could be asked for the time; it shows {stamp(now)}")

    def _compare(self, server: datetime | None, here: datetime, place: Place) -> Step:
        name = "clock"
        if here < EARLIEST:
            return problem(name, _impossible(here), _CLOCK_DO, _CLOCK_COMMANDS)
        if server is None:
            return skipped(name, f"{place} tells no time; this host's clock shows {stamp(here)}")
        ahead_s = (here - server).total_seconds()
        word = "ahead of" if ahead_s > 0 else "behind"
        text = f"this host's clock is {round(abs(ahead_s))} s {word} that of {place}"
        if abs(ahead_s) >= _CLOCK_PROBLEM_S:
            return problem(name, text, _CLOCK_DO, _CLOCK_COMMANDS)
        if abs(ahead_s) >= _CLOCK_WARNING_S:
            return warning(name, text, "Let the host keep its time by NTP.", _CLOCK_COMMANDS)
        return ok(name, f"right to {max(1, round(abs(ahead_s)))} s")

    def _tenant(self, reply: Reply, entra: Place) -> Step:
        name, upstream = "tenant", self._upstream
        try:
            members = json.loads(reply.text)
        except (ValueError, RecursionError):
            members = None
        issuer = members.get("issuer") if isinstance(members, dict) else None
        if reply.status_code == 200 and isinstance(issuer, str):
            found = GUID.search(issuer)
            return ok(name, f"{upstream.tenant} is there" + (f" ({found[0]})" if found else ""))
        self.missing = name
        if not isinstance(members, dict):
            return problem(
                name,
                f"{entra} answered HTTP {reply.status_code} with something that is not Entra's",
                "Is a proxy or a captive portal in the way?",
                (f"curl -v --max-time 10 https://{entra}/",),
            )
        names = advice.Names(app_id=self._upstream.client_id)
        return token_problem(name, classify(reply, str(entra)), names)


def token_problem(name: str, why: TokenUnavailable, names: advice.Names) -> Step:
    """Return why Entra gives no token, with what mends it."""
    own = aadsts.OWN.get(why.cause)
    if own is not None:
        return problem(name, why.text, sentence(own.action))
    meaning = meaning_of(why.cause)
    label = f" (AADSTS{why.cause})" if why.cause.isdecimal() else ""
    if not meaning:
        return problem(name, why.text)
    text, _, action = why.text.partition(": ")
    do = action.partition(" (Entra trace")[0]
    commands: Sequence[str] = ()
    if why.cause in _SECRET_REFUSED:
        commands = advice.new_secret(names)
        do = f"{do} (relayd secret set NAME), then relayd reload"
    elif why.cause == "53003":
        commands = _CONDITIONAL_ACCESS
    trace = re.search(r"\(Entra trace [^)]*\)", why.text)
    told = f"{text}{label}" + (f" {trace[0]}" if trace else "")
    return problem(name, told, sentence(do), commands)


def _issuer(shown: Certificate | None) -> str:
    if shown is None:
        return "nobody that is known"
    organisation = shown.organisation
    if not organisation or organisation in shown.issuer:
        return shown.issuer
    return f"{organisation} ({shown.issuer})"


def _is_inspected(place: Place, shown: Certificate) -> bool:
    """Tell whether a host of Microsoft's shows a certificate that Microsoft would not."""
    hosts = {place_of(url).host for one in BUILT_IN for url in (one.authority, one.graph)}
    names = f"{shown.organisation} {shown.issuer}".lower()
    return place.host in hosts and not any(name in names for name in _ISSUERS)


def _inspection_commands(place: Place, *, way_out: bool) -> tuple[str, ...]:
    show = (
        f"openssl s_client -connect {place.host}:{place.port} -servername {place.host} -showcerts"
    )
    return (
        "# Whose certificate it is"
        + (" (through your proxy: add -proxy HOST:PORT):" if way_out else ":"),
        f"{show} </dev/null",
    )


def _impossible(now: datetime) -> str:
    return f"this host's clock shows {stamp(now)}, which cannot be"
