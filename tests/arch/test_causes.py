"""Every cause that relayd names itself is explained: what `status`, metrics and the log print.

Causes are found where they are made: the first word of TokenUnavailable, of a refusal of the cache
daemon and of catalogue.local, what `cause` and `code` are set to, and tables named _CODES.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from relayd.cli.explain import HELD, meanings
from relayd.deliver import catalogue
from relayd.identity import aadsts
from relayd.spool import moves

RELAYD = Path(__file__).parent.parent.parent / "relayd"
ROOMS = ("identity", "deliver", "cache", "quota", "net", "spool")
MODULES = [path for room in ROOMS for path in sorted((RELAYD / room).rglob("*.py"))]
MODULES += [RELAYD / "wayout.py", RELAYD / "cached.py", RELAYD / "worker.py"]
MAKERS = frozenset({"TokenUnavailable", "Refused", "refuse", "local"})
NAMED = frozenset({"cause", "code"})


def emitted(path: Path) -> set[str]:
    """Return the causes a module makes, as texts."""
    tree = ast.parse(path.read_text(), str(path))
    known = dict(constants(tree))
    return {text for one in makers(tree) for text in texts(one, known) if text}


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        value = node.value if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            yield target.id, str(value.value)


def makers(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the expressions a cause comes from."""
    for node in ast.walk(tree):
        match node:
            case ast.Call():
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                yield from node.args[:1] if name in MAKERS else []
                yield from (word.value for word in node.keywords if word.arg in NAMED)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMED:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=elts)], value=ast.Tuple(elts=values)):
                pairs = zip(elts, values, strict=False)
                yield from (v for e, v in pairs if isinstance(e, ast.Name) and e.id in NAMED)
            case ast.AnnAssign(target=ast.Name(id="_CODES"), value=ast.Dict(values=values)):
                yield from values
            case _:
                pass


def texts(one: ast.expr, known: Mapping[str, str]) -> Iterator[str]:
    """Yield what an expression may be, as far as it is written there."""
    match one:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in known:
            yield known[name]
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body, known)
            yield from texts(orelse, known)
        case ast.BoolOp(values=values):
            for value in values:
                yield from texts(value, known)
        case _:
            return


EMITTED = sorted({cause for path in MODULES for cause in emitted(path)} | {*aadsts.OWN, *HELD})


@pytest.mark.parametrize("cause", EMITTED)
def test_a_cause_of_our_own_is_explained_with_what_to_do(cause: str) -> None:
    found = meanings(cause)
    assert found, "a row in identity.aadsts (OWN), deliver.catalogue or cli.explain"
    for name, meaning, action in found:
        assert name.lower() == cause.lower()
        assert meaning
        assert action


def test_they_are_really_found_where_they_are_made() -> None:
    by_hand = {"entra-unreachable", "token-refused", "cache-unavailable", "proxy", "throttled"}
    by_hand |= {"unknown-method", "internal", "dns-failed", "no-answer", "unknown-error"}
    made = {cause for path in MODULES for cause in emitted(path)}
    assert by_hand <= made
    assert set(aadsts.OWN) <= made, "nobody says it any more"


def test_every_row_of_ours_in_the_catalogue_and_every_own_hold_is_explained_too() -> None:
    ours = {row.code for row in catalogue.ENTRIES if row.code and row.code.islower()}
    assert {"expired", "unreadable", "web-page"} <= ours
    for cause in (*ours, moves.OPERATOR, moves.CORRUPT, moves.AMBIGUOUS):
        assert all(action for _, _, action in meanings(cause)), cause
        assert meanings(cause), cause
