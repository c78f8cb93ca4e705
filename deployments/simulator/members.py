"""What a member's key may do: permissions by procedure, access by id, lists cut to what it may see."""

from collections.abc import Iterator
from typing import Any

from .dokploy import Dokploy, Refusal
from .keys import Key
from .store import Row

# The resource that a procedure needs a permission for. project.create wraps the refusal in its own error.
PERMISSIONS = {
    "project.create": (400, "project", "Error creating the project: "),
    "application.delete": (401, "service", ""),
    "docker.getServiceContainersByAppName": (401, "docker", ""),
}
# For owners and admins only; tRPC's refusal without a word of its own (read in Dokploy's source, not recorded).
ADMINS_ONLY = ("settings.checkInfrastructureHealth", "settings.updateBuildsConcurrency")
MEMBER = "a-member-of-the-simulated-dokplo"
KINDS = {"applicationId": "service", "environmentId": "environment", "projectId": "project"}
# Which lists are cut, and by which id of their rows.
CUT = {
    "project.all": "projectId",
    "environment.byProjectId": "environmentId",
    "environments": "environmentId",
    "applications": "applicationId",
}
CREATES = ("project.create", "environment.create", "application.create")


def check_access(dokploy: Dokploy, key: Key, name: str, values: Row) -> None:
    status, resource, lead = PERMISSIONS.get(name, (0, "", ""))
    if resource and resource not in (key.permissions or ()):
        raise Refusal(status, f'{lead}unauthorized to access resource "{resource}"')
    if name in ADMINS_ONLY:
        raise Refusal(401, "UNAUTHORIZED")
    if name == "domain.create" and not values.get("domainType"):
        return  # a hole in Dokploy: it looks only if the type is given
    for field, kind in KINDS.items():
        wanted = dokploy.parent(field, values)
        if wanted is not None and wanted not in key.reach:
            raise Refusal(401, f"You don't have access to this {kind}")


def visible(key: Key, name: str, value: Any) -> Any:
    if name == "members":
        return [membership(key, row) for row in value]
    if isinstance(value, dict):
        return {field: visible(key, field, part) for field, part in value.items()}
    if isinstance(value, list):
        kept = [row for row in value if name not in CUT or row[CUT[name]] in key.reach]
        return [visible(key, "", row) for row in kept]
    return value


def membership(key: Key, owner: Row) -> Row:
    """The member's own, in the place of the owner's."""
    reach = {name: [id for id in ids if id in key.reach] for name, ids in owner.items() if name.startswith("accessed")}
    return {**owner, "userId": MEMBER, "role": "member", **reach}


def made(value: Any) -> Iterator[str]:
    """The ids of what a create answered."""
    for field, part in value.items():
        if isinstance(part, dict):
            yield from made(part)
        elif field in KINDS:
            yield part
