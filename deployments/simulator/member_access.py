"""The access of a member's key: permissions by procedure, access by id, lists limited to accessible rows."""

from collections.abc import Iterator
from typing import Any

from .api_keys import ApiKey
from .procedures.registry import Refusal
from .store import Row, Store

# By procedure, the permission that it requires: the status of a refusal, the resource, the start of the message.
# project.create wraps the refusal in an error of its own.
PERMISSIONS = {
    "project.create": (400, "project", "Error creating the project: "),
    "application.delete": (401, "service", ""),
}
# For owners and admins only. tRPC's refusal has no message of its own (from Dokploy's source, not recorded).
ADMIN_PROCEDURES = ("settings.checkInfrastructureHealth", "settings.updateBuildsConcurrency")
MEMBER_ID = "a-member-of-the-simulated-dokplo"
RESOURCES = {"applicationId": "service", "environmentId": "environment", "projectId": "project"}
# The lists that are limited, and the id by which their rows are selected.
LIMITED_LISTS = {
    "project.all": "projectId",
    "environment.byProjectId": "environmentId",
    "environments": "environmentId",
    "applications": "applicationId",
}
CREATE_PROCEDURES = ("project.create", "application.create")


def require_access(store: Store, key: ApiKey, procedure: str, values: Row) -> None:
    """Raise Refusal if a member's key may not make this call."""
    status, resource, prefix = PERMISSIONS.get(procedure, (0, "", ""))
    if resource and resource not in (key.permissions or ()):
        raise Refusal(status, f'{prefix}unauthorized to access resource "{resource}"')
    if procedure in ADMIN_PROCEDURES:
        raise Refusal(401, "UNAUTHORIZED")
    if procedure == "domain.create" and not values.get("domainType"):
        return  # Dokploy verifies the access only if the type is given.
    for field, kind in RESOURCES.items():
        target = find_target(store, field, values)
        if target is not None and target not in key.reach:
            raise Refusal(401, f"You don't have access to this {kind}")


def find_target(store: Store, field: str, values: Row) -> str | None:
    """Return the id of the application, environment or project to which a call refers, if it refers to one."""
    if field == "applicationId" and "deploymentId" in values:
        values = store.deployments.get(values["deploymentId"], {})
    elif field == "applicationId" and "domainId" in values:
        values = store.domains.get(values["domainId"], {})
    target: str | None = values.get(field)
    return target


def limit_to_visible(key: ApiKey, name: str, value: Any) -> Any:
    """Return a procedure's result, or the part in its field `name`, without what the member may not see."""
    if name == "members":
        return [membership(key, row) for row in value]
    if isinstance(value, dict):
        return {field: limit_to_visible(key, field, part) for field, part in value.items()}
    if isinstance(value, list):
        kept = [row for row in value if name not in LIMITED_LISTS or row[LIMITED_LISTS[name]] in key.reach]
        return [limit_to_visible(key, "", row) for row in kept]
    return value


def membership(key: ApiKey, owner: Row) -> Row:
    """Return the member's membership, derived from the owner's row."""
    reach = {name: [id for id in ids if id in key.reach] for name, ids in owner.items() if name.startswith("accessed")}
    return {**owner, "userId": MEMBER_ID, "role": "member", **reach}


def created_ids(value: Any) -> Iterator[str]:
    """Yield the ids in the result of a create procedure."""
    for field, part in value.items():
        if isinstance(part, dict):
            yield from created_ids(part)
        elif field in RESOURCES:
            yield part
