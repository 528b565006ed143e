"""What `relayd setup` wants to know: by options, by questions on a terminal, from what is there.

    interview = Interview(site, options, say)
    answers = interview.answers()       asks what is still open
    interview.reopen(problems)          the check found them: what they are about is open again
    answers = interview.answers()       asks only that; the other answers stay

An answer is judged when it is given: its form, whether it clashes with what is there, and whether
it can be written. Options are judged before the first question, so that no answer is lost by one.

SECURITY: the client secret comes from a file, from standard input or from a prompt that does not
show it; it is never in a text of this module.
"""

from __future__ import annotations

import argparse
import enum
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import setupask, setupplan, setupsteps
from relayd.cli.setupask import Given, Wrong
from relayd.cli.setupplan import Answers, Site
from relayd.cli.tomledit import CannotEdit, Change
from relayd.doctor.advice import Names
from relayd.errors import RelaydError

WRONG_USAGE: Final = 2
LAB: Final = "lab"
_MOST_OCTETS: Final = 65_536
_ROUNDS: Final = 5

Say = Callable[..., None]


class CannotGoOn(RelaydError):
    """Setup ends here, with words."""

    def __init__(self, *texts: str, code: int = command_line.FAILED) -> None:
        super().__init__("; ".join(texts))
        self.texts = texts
        self.exit_code = code


class Question(enum.Enum):
    """What is asked, by the key it is for."""

    TENANT = "tenant"
    MAILBOX = "mailbox"
    CLOUD = "cloud"
    CLIENT_ID = "client_id"
    OBJECT_ID = "object_id"
    SECRET = "client_secret"  # noqa: S105  the key's name
    NETWORKS = "networks"
    LISTEN = "address"


_OPTIONS: Final = {
    Question.TENANT: "--tenant",
    Question.CLIENT_ID: "--client-id",
    Question.OBJECT_ID: "--object-id",
    Question.MAILBOX: "--mailbox",
    Question.CLOUD: "--cloud",
    Question.NETWORKS: "--network",
    Question.LISTEN: "--listen",
}
_ABOUT: Final = (
    (Question.SECRET, re.compile(r"\[upstream\.[^\]]+\] client_secret")),
    (Question.TENANT, re.compile(r"\[upstream\.[^\]]+\] tenant:")),
    (Question.MAILBOX, re.compile(r"\[upstream\.[^\]]+\] mailbox:")),
    (Question.CLOUD, re.compile(r"\[upstream\.[^\]]+\] cloud:")),
    (Question.CLIENT_ID, re.compile(r"\[upstream\.[^\]]+\] client_id:")),
    (Question.LISTEN, re.compile(r"\[\[listener\]\] (?:\"lan\"|#1) address:|^cannot listen on ")),
    (Question.NETWORKS, re.compile(r"/zz-lan\.toml\b.*\[\[device\]\] .* networks:")),
)
"""Which question a problem that `check` or the running relay words belongs to."""


class Interview:
    """The questions of one run. say: prints lines. is_asking: somebody is there to answer.

    is_new: the upstream is, so there is something to do at Microsoft.
    raises: CannotGoOn - options that are wrong or missing, all of them at once.
    """

    def __init__(self, site: Site, options: argparse.Namespace, say: Say) -> None:
        self.is_asking = sys.stdin.isatty() and not (
            options.no_input or options.json or options.secret_stdin
        )
        self._site = site
        self._options = options
        self._say = say
        self._given, self._name = self._judged_options()
        self._secret = self._given_secret()
        self.is_new = not site.text("upstream", self._name, "client_id")
        # What was answered, as it was typed; an option is an answer that was there at once.
        self._texts = {each: text for each, text in self._by_options() if text}
        self._open = set(Question) - set(self._texts)
        if self._secret is not None:
            self._open.discard(Question.SECRET)
        self._rounds = 0
        self._shown: set[tuple[str, ...]] = set()

    def answers(self) -> Answers:
        """Ask what is open. raises: GivenUp, KeyboardInterrupt."""
        if self.is_asking and not self._rounds:
            self._say(
                f"This writes {self._site.config}. Enter takes what stands in [brackets];",
                "Ctrl-C leaves everything as it was.", "", "1. Microsoft 365", "",
            )  # fmt: skip
        known = ("upstream", self._name)
        there = self._site.text(*known, "tenant")
        tenant = self._one(Question.TENANT, "Tenant", setupask.tenant, there)
        there = self._site.text(*known, "mailbox")
        words = "Mailbox that sends everything"
        mailbox = self._one(Question.MAILBOX, words, setupask.mailbox, there)
        cloud = self._cloud(self._site.text(*known, "cloud") or "global")
        name = self._name or name_for(tenant, mailbox)
        self._explain_registration(tenant, cloud)
        there = self._site.text(*known, "client_id")
        words = "Application (client) ID"
        client_id = self._one(Question.CLIENT_ID, words, _client_id_beside(tenant), there)
        self._explain_permission(tenant, client_id, mailbox, cloud)
        self._ask_secret(name)
        networks, listen = self._who()
        self._open.clear()
        return Answers(
            name=name, tenant=tenant, client_id=client_id, mailbox=mailbox, cloud=cloud,
            authority=self._given.authority, graph=self._given.graph, ca_file=self._given.ca_file,
            networks=networks, listen=listen, secret=self._secret,
        )  # fmt: skip

    def reopen(self, problems: Iterable[str]) -> bool:
        """Have asked again what these problems are about, each in the words of `relayd check`.

        returns: False where they belong to no question, nobody answers, or it was too often.
        """
        found = {about for text in problems if (about := question_of(text)) is not None}
        self._rounds += 1
        if not self.is_asking or not found or self._rounds > _ROUNDS:
            return False
        self._open |= found
        return True

    def again(self) -> str:
        """Return the command that has the answers given so far, but for the secret; "" for none."""
        asked = [
            f"{option} {shlex.quote(text)}"
            for question, option in _OPTIONS.items()
            for text in self._texts.get(question, "").split()
        ]
        if not asked or not self.is_asking:
            return ""
        given = [
            f"--{name.replace('_', '-')} {shlex.quote(text)}"
            for name in ("name", "authority", "graph", "ca_file", "secret_file", "test_to")
            if (text := getattr(self._options, name))
        ]
        return " ".join([command_line.itself(self._options.config), "setup", *asked, *given])

    def others(self, problems: Iterable[str]) -> list[str]:
        """Return the problems that nothing mends which is asked or given by an option."""
        is_cloud_given = self._given.authority or self._given.graph or self._given.ca_file
        return [
            text
            for text in problems
            if question_of(text) is None and not (is_cloud_given and "[cloud." in text)
        ]

    # ---- options

    def _judged_options(self) -> tuple[Given, str]:
        """Return the options, and the upstream that is meant, "" for a new one."""
        site, given = self._site, Given(self._options)
        wrong = list(given.wrong)
        names = site.names("upstream")
        if not given.name and len(names) > 1:
            wrong.append(f"--name: there are several upstreams, {', '.join(names)}; say which")
        name = given.name or (names[0] if names else "")
        wrong += self._name_clashes(given.name, names)
        if given.ca_file and (problem := _ca_problem(site, given.ca_file)):
            wrong.append(f"--ca-file: {problem}")
        if given.cloud and not given.authority and given.cloud not in self._clouds():
            known = ", ".join(self._clouds())
            wrong.append(f"--cloud {given.cloud}: no cloud; choose {known}, or add --authority")
        if problem := setupplan.address_clash(site, given.listen or ()):
            wrong.append(f"--listen: {problem}")
        if not self.is_asking:
            wrong += [f"{each}: is missing" for each in self._missing(name)]
        if wrong:
            raise CannotGoOn(
                "these options are missing or cannot be used:", *wrong, code=WRONG_USAGE
            )
        try:
            setupplan.look_at(site, given.networks, given.listen)
        except CannotEdit as error:
            raise CannotGoOn(str(error)) from error
        return given, name

    def _name_clashes(self, name: str, names: list[str]) -> Iterator[str]:
        if not name or not names or name in names:
            return
        if name.lower() in map(str.lower, names):
            yield f"--name {name}: there is {', '.join(names)}; they differ in case only"
        elif without := setupplan.without_upstream(self._site):
            yield (
                f"--name {name}: with a second upstream each device and user must name its own;"
                f' first write upstream = "{names[0]}" into: {", ".join(without)}'
            )

    def _missing(self, name: str) -> Iterator[str]:
        options, site = self._options, self._site
        for key in ("tenant", "client_id", "mailbox"):
            if not getattr(options, key) and not site.text("upstream", name, key):
                yield f"--{key.replace('_', '-')}"
        is_given = options.secret_file or options.secret_stdin
        if not is_given and not (name and site.has_secret(name)):
            yield "--secret-file or --secret-stdin"
        cloud = options.cloud or LAB
        if options.authority and not options.graph and not site.text("cloud", cloud, "graph"):
            yield "--graph"

    def _given_secret(self) -> str | None:
        """Return the client secret an option leads to; None for none."""
        options = self._options
        is_given = options.secret_file or options.secret_stdin
        obstacle = setupplan.secret_obstacle(self._site, self._name) if self._name else ""
        if obstacle and (is_given or not self._site.has_secret(self._name)):
            raise CannotGoOn(obstacle)
        if options.secret_stdin:
            return _read_secret(sys.stdin.buffer.read(_MOST_OCTETS), "standard input")
        if options.secret_file:
            with open(options.secret_file, "rb") as file:
                return _read_secret(file.read(_MOST_OCTETS), options.secret_file)
        return None

    def _by_options(self) -> Iterator[tuple[Question, str]]:
        given = self._given
        yield Question.TENANT, given.tenant
        yield Question.MAILBOX, given.mailbox
        yield Question.CLOUD, self._given_cloud()
        yield Question.CLIENT_ID, given.client_id
        yield Question.OBJECT_ID, given.object_id
        if given.networks is not None:
            yield Question.NETWORKS, " ".join(given.networks) or setupask.NONE
        yield Question.LISTEN, " ".join(given.listen or ())

    def _given_cloud(self) -> str:
        if self._given.cloud or not self._given.authority:
            return self._given.cloud
        there = self._site.text("upstream", self._name, "cloud")
        return there if there in self._site.names("cloud") else LAB

    # ---- asking

    def _one(self, question: Question, words: str, kind: Callable[[str], str], there: str) -> str:
        """Return what was answered or is there; asks where it is open."""
        if not self.is_asking or question not in self._open:
            return self._texts.get(question) or there

        def judged(text: str) -> str:
            # What stands there stays possible, also what setup itself would not write.
            return text if there and text == there else self._writable(question, kind(text))

        text = setupask.ask(words, judged, self._texts.get(question) or there)
        self._texts[question] = text
        return text

    def _writable(self, question: Question, value: str) -> str:
        change = Change(("upstream", self._name or "contoso"), question.value, value)
        if obstacle := setupplan.obstacle(self._site, change):
            raise Wrong(obstacle)
        return value

    def _clouds(self) -> list[str]:
        return [*setupask.clouds(), *self._site.names("cloud")]

    def _cloud(self, there: str) -> str:
        known = self._clouds()

        def one_of(text: str) -> str:
            if text not in known:
                raise Wrong(f"no cloud; choose {', '.join(known)}")
            return text

        words = f"Cloud ({', '.join(known)}; GCC is global)"
        return self._one(Question.CLOUD, words, one_of, there)

    def _ask_secret(self, name: str) -> None:
        """Ask for the client secret; None stays for the one that is there."""
        if not self.is_asking or Question.SECRET not in self._open:
            return
        has_one = self._site.has_secret(name)
        if has_one and (obstacle := setupplan.secret_obstacle(self._site, name)):
            self._say(f"The client secret stays as it is; to change it here: {obstacle}")
            return

        def kind(text: str) -> str | None:
            return None if not text and has_one else setupask.secret(text)

        keep = "; Enter keeps the one there is" if has_one else ""
        self._secret = setupask.ask_secret(f"Client secret, its Value{keep}", kind)

    def _who(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """Return networks of devices, and addresses to listen on; None: as they are."""
        is_asked = self.is_asking and {Question.NETWORKS, Question.LISTEN} & self._open
        if is_asked and not self._rounds:
            self._say("", "2. Devices", "")
        networks = self._networks()
        proposed = setupplan.listen_for(self._site, networks or ())
        if is_asked and Question.LISTEN in self._open and proposed:
            default = self._texts.get(Question.LISTEN) or " ".join(proposed)
            listen = setupask.ask("Listen on", self._addresses, default)
            self._texts[Question.LISTEN] = " ".join(listen)
            self._say(*(f"  note: {each}" for each in _held(listen)))
            return networks, listen
        text = self._texts.get(Question.LISTEN)
        return networks, setupask.addresses(text) if text else proposed or None

    def _networks(self) -> tuple[str, ...] | None:
        text = self._texts.get(Question.NETWORKS)
        is_wanted = text is not None or not self._site.rows("device")
        if self.is_asking and Question.NETWORKS in self._open and is_wanted:
            words = "Networks whose devices may send without a password, or none"
            default = text or " ".join(setupask.own_networks()) or setupask.NONE
            networks = setupask.ask(words, setupask.networks, default)
            self._texts[Question.NETWORKS] = " ".join(networks) or setupask.NONE
            return networks
        return setupask.networks(text) if text is not None else None

    def _addresses(self, text: str) -> tuple[str, ...]:
        found = setupask.addresses(text)
        if clash := setupplan.address_clash(self._site, found):
            raise Wrong(clash)
        return found

    # ---- what is to be done at Microsoft

    def _explain_registration(self, tenant: str, cloud: str) -> None:
        is_wanted = self.is_asking and self.is_new and setupsteps.is_microsoft(cloud)
        if is_wanted and self._is_news("registration", tenant, cloud):
            self._say("", *setupsteps.registration(tenant, cloud), "")

    def _explain_permission(self, tenant: str, client_id: str, mailbox: str, cloud: str) -> None:
        if not self.is_asking or not self.is_new or not setupsteps.is_microsoft(cloud):
            return
        if Question.OBJECT_ID in self._open:
            words = "Object ID of the enterprise application (Enter: fill it in yourself)"
            others = {tenant.lower(): "tenant", client_id: "application's own (client)"}
            self._texts[Question.OBJECT_ID] = setupask.ask(words, _not_any_of(others))
        object_id = self._texts.get(Question.OBJECT_ID, "")
        if self._is_news("permission", client_id, object_id, mailbox, cloud):
            names = Names(app_id=client_id, object_id=object_id, mailbox=mailbox)
            lines = [*setupsteps.permission(names, cloud), "", *setupsteps.secret(names, cloud)]
            self._say("", *lines, "")

    def _is_news(self, *what: str) -> bool:
        """Tell whether this was not said yet; another answer makes it news again."""
        is_news = what not in self._shown
        self._shown.add(what)
        return is_news


# ---- small ones


def question_of(problem: str) -> Question | None:
    """Return the question that a problem belongs to, worded by `relayd check` or by the relay."""
    return next((each for each, about in _ABOUT if about.search(problem)), None)


def name_for(tenant: str, mailbox: str) -> str:
    """Return what to call an upstream: by its tenant's name, else by the mailbox's domain."""
    is_named = "." in tenant
    first = (tenant if is_named else mailbox.rpartition("@")[2]).partition(".")[0].lower()
    return re.sub(r"[^a-z0-9_-]", "-", first) or "microsoft365"


def _client_id_beside(tenant: str) -> Callable[[str], str]:
    """Return the kind of answer: an application's id, which is not the tenant's."""

    def kind(text: str) -> str:
        if text and text.lower() == tenant.lower():
            raise Wrong("that is the tenant ID; the Application (client) ID stands beside it")
        return setupask.client_id(text)

    return kind


def _not_any_of(others: dict[str, str]) -> Callable[[str], str]:
    """Return the kind of answer: an object id, which is no other id."""

    def kind(text: str) -> str:
        if whose := others.get(text.lower()):
            raise Wrong(f"that is the {whose} ID; step 3 above leads to the Object ID")
        return setupask.object_id(text)

    return kind


def _held(listen: Iterable[str]) -> Iterator[str]:
    """Yield who else holds an address; the relay itself may."""
    from relayd.cli import takeover  # noqa: PLC0415

    for text in takeover.in_the_way([*listen]):
        if "held by relayd" not in text:
            yield text


def _ca_problem(site: Site, file: str) -> str:
    """Return why the relay, not we, could not trust the certificates in a file; or ""."""
    from relayd.check import ca_problem, relay_user  # noqa: PLC0415  not for `relayd --help`
    from relayd.config.model import Server  # noqa: PLC0415

    state_dir = site.text("server", "state_dir") or Server().state_dir
    return ca_problem(file, site.config, relay_user(site.config, state_dir))


def _read_secret(octets: bytes, source: str) -> str:
    """Return the secret in a file or pipe; raises CannotGoOn, never with any of it."""
    try:
        return setupask.secret(octets.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError:
        raise CannotGoOn(f"{source}: no text", code=WRONG_USAGE) from None
    except Wrong as wrong:
        raise CannotGoOn(f"{source}: {wrong}", code=WRONG_USAGE) from None
