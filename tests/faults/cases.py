"""The deployments that are killed at every point: how each is requested, and what must exist at its end.

The code itself records the points that it passes (FAULT=record:…), so a new phase is covered automatically.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..processes import IMAGE, until
from ..users import submit
from .assertions import PortalDatabase

Act = Callable[[PortalDatabase, Sequence[str]], None]
FULL_DISK = "no space left on device"
CANCELLED_AT = "application.deploy"


@dataclass(frozen=True)
class Case:
    """One kind of deployment to kill.

    before: prepares the stack. end: the last phase and status. objects: how many of each type remain. excluded: the
    request whose points another case already covers.
    """

    ask: Act
    end: tuple[str, str]
    objects: int
    before: Act = lambda portal, names: None
    excluded: Act | None = None
    env: dict[str, str] = field(default_factory=dict)


def deploy(portal: PortalDatabase, names: Sequence[str]) -> None:
    for name in names:
        portal.request(name)


def deploy_broken(portal: PortalDatabase, names: Sequence[str]) -> None:
    for name in names:
        portal.request(name, template="broken")


def live(portal: PortalDatabase, names: Sequence[str]) -> None:
    deploy(portal, names)
    for name in names:
        assert portal.wait_until_ended(name)["status"] == "success"


def deploy_with_half_project(portal: PortalDatabase, names: Sequence[str]) -> None:
    """Deploy while Dokploy creates a project without its environment the first time."""
    portal.turn(halves=1)
    deploy(portal, names)


def deploy_and_change_by_hand(portal: PortalDatabase, names: Sequence[str]) -> None:
    """Deploy, then change the stacks' domains by hand and add others that route to the same application."""
    live(portal, names)
    for row in portal.dokploy()["domains"]:
        if row["host"].partition(".")[0] in names:
            same = {name: row[name] for name in ("host", "path", "applicationId", "domainType")}
            portal.change_by_hand("domain.create", **same, port=row["port"])
            portal.change_by_hand("domain.update", domainId=row["domainId"], host=row["host"], port=row["port"] + 1)


def remove(portal: PortalDatabase, names: Sequence[str]) -> None:
    for name in names:
        portal.request_removal(name)


def cancel(portal: PortalDatabase, names: Sequence[str]) -> None:
    """Cancel the deployments during a call to Dokploy, and record only the points after it."""
    portal.close_gate(CANCELLED_AT)
    deploy(portal, names)
    until(lambda: all(about_to_deploy(portal, name) for name in names), 60, pause=0.05)
    until(lambda: portal.switches.get("gates").json()[CANCELLED_AT] >= len(names), 10)
    for name in names:
        portal.send("POST", f"/api/deployments/{portal.newest_deployment(name)['id']}/cancel")
    forget_points(portal)
    portal.open_gate(CANCELLED_AT)


def about_to_deploy(portal: PortalDatabase, name: str) -> bool:
    query = "SELECT 1 FROM deployments_receipt WHERE kind = 'deploy' AND stack_id = ?"
    return bool(portal.rows(query, stack_id(portal, name)))


def fail_with_leftovers(portal: PortalDatabase, names: Sequence[str]) -> None:
    """Let the deployments fail, and leave what the first ones created at Dokploy."""
    portal.turn(pull_error=FULL_DISK)
    portal.fault("application.delete", "error500", times=None)
    deploy(portal, names)
    for name in names:
        assert "Left at Dokploy" in portal.wait_until_ended(name, 120)["message"]
    portal.switches.delete("faults")
    portal.turn(pull_error=None)


def retry(portal: PortalDatabase, names: Sequence[str]) -> None:
    for name in names:
        portal.send("POST", f"/api/deployments/{portal.newest_deployment(name)['id']}/retry")


def delete_records(portal: PortalDatabase, names: Sequence[str]) -> None:
    """Deploy, then delete the records as if an older backup had been restored, and wait for the orphan report."""
    live(portal, names)
    for name in names:
        stack = stack_id(portal, name)
        portal.write("DELETE FROM deployments_receipt WHERE stack_id = ?", stack)
        portal.write("UPDATE deployments_stack SET state = 'gone' WHERE id = ?", stack)
    portal.write("UPDATE deployments_installation SET looked_for_orphans_at = NULL")
    until(lambda: all(orphan_id(portal, name) for name in names), 60)


def remove_orphan(portal: PortalDatabase, names: Sequence[str]) -> None:
    with closing(portal.operator()) as operator:
        for name in names:
            assert submit(operator, f"/orphans/{orphan_id(portal, name)}/remove", {}).status_code == 302


def assert_runs_configured_image(portal: PortalDatabase, name: str) -> None:
    """Assert that the image of the last success is set at Dokploy and that the service runs it."""
    there: Any = portal.dokploy()
    application = next(row for row in there["applications"] if row["name"] == name)
    service = next(row for row in there["services"] if row["name"] == application["appName"])
    assert application["dockerImage"] == service["image"]
    assert service["image"].partition("@")[0] == IMAGE  # a restored image is pinned by digest


def orphan_id(portal: PortalDatabase, name: str) -> int | None:
    mark = f"%/{stack_id(portal, name)}"
    found = portal.rows("SELECT id FROM deployments_orphan WHERE kind = 'project' AND mark LIKE ?", mark)
    return found[0]["id"] if found else None


def stack_id(portal: PortalDatabase, name: str) -> str:
    query = "SELECT stack.id FROM deployments_stack stack WHERE name = ? ORDER BY id LIMIT 1"
    return str(portal.rows(query, name)[0]["id"])


COMMON = {
    "deploy": Case(deploy, ("completed", "success"), 1),
    "undo": Case(deploy_broken, ("rolling_back", "failure"), 0, excluded=deploy),
    "redeploy": Case(deploy_broken, ("rolling_back", "failure"), 1, before=live, excluded=deploy),
    "removal": Case(remove, ("completed", "success"), 0, before=live),
}
ONE_MACHINE_ONLY = {
    "half": Case(deploy_with_half_project, ("completed", "success"), 1, excluded=deploy),
    "changed": Case(deploy, ("completed", "success"), 1, before=deploy_and_change_by_hand, excluded=deploy),
}
SCALED_OUT_ONLY = {
    "cancel": Case(cancel, ("rolling_back", "failure"), 0),
    "retry": Case(retry, ("completed", "success"), 1, before=fail_with_leftovers, env={"SWEEPER_SECONDS": "0"}),
    "orphan": Case(
        remove_orphan,
        ("completed", "success"),
        0,
        before=delete_records,
        env={"SWEEPER_SECONDS": "1", "ORPHANS_SECONDS": "1"},
    ),
}


def points_file(portal: PortalDatabase) -> Path:
    return portal.data / "points"


def forget_points(portal: PortalDatabase) -> None:
    points_file(portal).unlink(missing_ok=True)


def record_points(portal: PortalDatabase, case: Case) -> list[str]:
    """Return the points that a deployment of this kind passes, each once, in order."""
    spared: list[str] = []
    if case.excluded:
        case.excluded(portal, ["other"])
        portal.wait_until_ended("other")
        spared = passed(portal, "other")
    case.before(portal, ["pilot"])
    forget_points(portal)
    case.ask(portal, ["pilot"])
    deployment = portal.wait_until_ended("pilot")
    assert (deployment["phase"], deployment["status"]) == case.end
    return [point for point in passed(portal, "pilot") if point not in spared]


def required_passes(points: int) -> int:
    """Return the least number of the recorded points that a second deployment must pass again."""
    return points - max(min(3, points // 3), points // 10)


def passed(portal: PortalDatabase, name: str) -> list[str]:
    lines = points_file(portal).read_text().splitlines()
    return list(dict.fromkeys(line.partition("/")[2] for line in lines if line.startswith(f"{name}/")))
