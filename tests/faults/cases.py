"""The runs that are killed at every point: how each is asked for, and what is there at its end.

The points are those that the code itself passes (FAULT=record:…): a new phase is covered without being told.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..processes import IMAGE, until
from ..users import submit
from .assertions import Books

Act = Callable[[Books, Sequence[str]], None]
FULL_DISK = "no space left on device"
CANCELLED_AT = "application.deploy"


@dataclass(frozen=True)
class Case:
    """before: what was there already. end: its last phase and status; objects: how many of each kind are there then.
    except_for: the points of another run, which are tried there.
    """

    ask: Act
    end: tuple[str, str]
    objects: int
    before: Act = lambda portal, names: None
    except_for: Act | None = None
    env: dict[str, str] = field(default_factory=dict)


def deploy(portal: Books, names: Sequence[str]) -> None:
    for name in names:
        portal.ask(name)


def deploy_broken(portal: Books, names: Sequence[str]) -> None:
    for name in names:
        portal.ask(name, template="broken")


def live(portal: Books, names: Sequence[str]) -> None:
    deploy(portal, names)
    for name in names:
        assert portal.ended(name)["status"] == "success"


def deploy_half(portal: Books, names: Sequence[str]) -> None:
    """At first Dokploy makes no more than half of its project."""
    portal.turn(halves=1)
    deploy(portal, names)


def changed_by_hand(portal: Books, names: Sequence[str]) -> None:
    """They are live, and somebody has changed their domains, and added others that are led to the same place."""
    live(portal, names)
    for row in portal.dokploy()["domains"]:
        if row["host"].partition(".")[0] in names:
            same = {name: row[name] for name in ("host", "path", "applicationId", "domainType")}
            portal.by_hand("domain.create", **same, port=row["port"])
            portal.by_hand("domain.update", domainId=row["domainId"], host=row["host"], port=row["port"] + 1)


def remove(portal: Books, names: Sequence[str]) -> None:
    for name in names:
        portal.ask_removal(name)


def cancel(portal: Books, names: Sequence[str]) -> None:
    """In the middle of a call. Only what comes after it counts."""
    portal.close_gate(CANCELLED_AT)
    deploy(portal, names)
    until(lambda: all(about_to_deploy(portal, name) for name in names), 60, pause=0.05)
    until(lambda: portal.switches.get("gates").json()[CANCELLED_AT] >= len(names), 10)
    for name in names:
        portal.send("POST", f"/api/deployments/{portal.run_of(name)['id']}/cancel")
    forget_points(portal)
    portal.open_gate(CANCELLED_AT)


def about_to_deploy(portal: Books, name: str) -> bool:
    query = "SELECT 1 FROM deployments_receipt WHERE kind = 'deploy' AND stack_id = ?"
    return bool(portal.rows(query, stack_of(portal, name)))


def fail_and_leave(portal: Books, names: Sequence[str]) -> None:
    """They fail, and what was made of the first is left at Dokploy."""
    portal.turn(pull_error=FULL_DISK)
    portal.fault("application.delete", "error500", times=None)
    deploy(portal, names)
    for name in names:
        assert "Left at Dokploy" in portal.ended(name, 120)["message"]
    portal.switches.delete("faults")
    portal.turn(pull_error=None)


def retry(portal: Books, names: Sequence[str]) -> None:
    for name in names:
        portal.send("POST", f"/api/deployments/{portal.run_of(name)['id']}/retry")


def forgotten(portal: Books, names: Sequence[str]) -> None:
    """They are live, and no book knows it any more, as after yesterday's backup; which has been found out."""
    live(portal, names)
    for name in names:
        stack = stack_of(portal, name)
        portal.write("DELETE FROM deployments_receipt WHERE stack_id = ?", stack)
        portal.write("UPDATE deployments_stack SET state = 'gone' WHERE id = ?", stack)
    portal.write("UPDATE deployments_installation SET orphans_scanned_at = NULL")
    until(lambda: all(orphan_of(portal, name) for name in names), 60)


def remove_orphan(portal: Books, names: Sequence[str]) -> None:
    with closing(portal.operator()) as operator:
        for name in names:
            assert submit(operator, f"/orphans/{orphan_of(portal, name)}/remove", {}).status_code == 302


def runs_what_ran(portal: Books, name: str) -> None:
    """The image that was asked for last with success is set at Dokploy, and is what the service is made of."""
    there: Any = portal.dokploy()
    application = next(row for row in there["applications"] if row["name"] == name)
    service = next(row for row in there["services"] if row["name"] == application["appName"])
    assert application["dockerImage"] == service["image"]
    assert service["image"].partition("@")[0] == IMAGE  # brought back, it is pinned by digest


def orphan_of(portal: Books, name: str) -> int | None:
    mark = f"%/{stack_of(portal, name)}"
    found = portal.rows("SELECT id FROM deployments_orphan WHERE kind = 'project' AND mark LIKE ?", mark)
    return found[0]["id"] if found else None


def stack_of(portal: Books, name: str) -> str:
    query = "SELECT stack.id FROM deployments_stack stack WHERE name = ? ORDER BY id LIMIT 1"
    return str(portal.rows(query, name)[0]["id"])


RUNS = {
    "deploy": Case(deploy, ("completed", "success"), 1),
    "undo": Case(deploy_broken, ("rolling_back", "failure"), 0, except_for=deploy),
    "redeploy": Case(deploy_broken, ("rolling_back", "failure"), 1, before=live, except_for=deploy),
    "removal": Case(remove, ("completed", "success"), 0, before=live),
}
ONE_BY_ONE = {
    "half": Case(deploy_half, ("completed", "success"), 1, except_for=deploy),
    "changed": Case(deploy, ("completed", "success"), 1, before=changed_by_hand, except_for=deploy),
}
ASKED_FOR_LATER = {
    "cancel": Case(cancel, ("rolling_back", "failure"), 0),
    "retry": Case(retry, ("completed", "success"), 1, before=fail_and_leave, env={"SWEEPER_SECONDS": "0"}),
    "orphan": Case(
        remove_orphan,
        ("completed", "success"),
        0,
        before=forgotten,
        env={"SWEEPER_SECONDS": "1", "ORPHANS_SECONDS": "1"},
    ),
}


def points_file(portal: Books) -> Path:
    return portal.data / "points"


def forget_points(portal: Books) -> None:
    points_file(portal).unlink(missing_ok=True)


def points_of(portal: Books, case: Case) -> list[str]:
    """What the code says: the points of a run of this kind, each once, in order."""
    spared: list[str] = []
    if case.except_for:
        case.except_for(portal, ["other"])
        portal.ended("other")
        spared = passed(portal, "other")
    case.before(portal, ["pilot"])
    forget_points(portal)
    case.ask(portal, ["pilot"])
    run = portal.ended("pilot")
    assert (run["phase"], run["status"]) == case.end
    return [point for point in passed(portal, "pilot") if point not in spared]


def most_of(points: int) -> int:
    """So many at least are passed again by a run that is asked for in the same way."""
    return points - max(min(3, points // 3), points // 10)


def passed(portal: Books, name: str) -> list[str]:
    lines = points_file(portal).read_text().splitlines()
    return list(dict.fromkeys(line.partition("/")[2] for line in lines if line.startswith(f"{name}/")))
