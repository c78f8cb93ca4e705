"""Organizations."""

from ..initial_data import ORGANIZATION_ID, OWNER_ID
from ..server import DokployServer
from ..store import Row
from .registry import query

# These columns are false in the owner's row, although an owner has all permissions.
PERMISSION_COLUMNS = (
    "canCreateProjects canAccessToSSHKeys canCreateServices canDeleteProjects canDeleteServices canAccessToDocker "
    "canAccessToAPI canAccessToGitProviders canAccessToTraefikFiles canDeleteEnvironments canCreateEnvironments"
).split()


@query("organization.all")
def list_organizations(server: DokployServer, given: Row) -> object:
    """Return the one organization, with the membership of the key's user."""
    created = server.store.settings["server"]["createdAt"]
    membership = {
        "id": "membership-in-simulat",
        "organizationId": ORGANIZATION_ID,
        "userId": OWNER_ID,
        "role": server.role,
        "createdAt": created,
        "teamId": None,
        "isDefault": True,
        **dict.fromkeys(PERMISSION_COLUMNS, False),
        "accessedProjects": list(server.store.projects),
        "accessedEnvironments": list(server.store.environments),
        "accessedServices": list(server.store.applications),
        "accessedGitProviders": [],
        "accessedServers": [],
    }
    organization = {
        "id": ORGANIZATION_ID,
        "name": "My Organization",
        "slug": None,
        "logo": None,
        "createdAt": created,
        "metadata": None,
        "defaultRole": None,
        "ownerId": OWNER_ID,
        "members": [membership],
    }
    return [organization]
