"""Projects and environments."""

from ..initial_data import ORGANIZATION_ID
from ..server import DokployServer
from ..store import Row, new_id, now, pick
from .registry import NAME, NULLABLE_TEXT, OPTIONAL_NAME, OPTIONAL_TEXT, TEXT, Refusal, mutation, query, require

# The other kinds of services that an environment can have. The simulator has none of them.
OTHER_SERVICES = ("mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql")


@mutation("project.create", name=NAME, description=NULLABLE_TEXT, env=OPTIONAL_TEXT)
def create_project(server: DokployServer, given: Row) -> object:
    if "\0" in given["name"]:
        raise Refusal(400, 'Error creating the project: Failed query: insert into "project"')
    project = {
        "projectId": new_id(),
        "name": given["name"],
        "description": given.get("description"),
        "createdAt": now(),
        "organizationId": ORGANIZATION_ID,
        "env": given.get("env", ""),
    }
    server.store.projects.put(project["projectId"], project)
    if server.settings.halves:
        server.settings.halves -= 1
        raise Refusal(400, 'Error creating the project: Failed query: insert into "environment"')
    environment: Row = {
        "environmentId": new_id(),
        "name": "production",
        "description": "Production environment",
        "createdAt": now(),
        "env": "",
        "projectId": project["projectId"],
        "isDefault": True,
    }
    server.store.environments.put(environment["environmentId"], environment)
    return {"project": project, "environment": environment}


@query("project.all")
def list_projects(server: DokployServer, given: Row) -> object:
    """Return the projects, newest first, with a few columns of each application."""
    return [
        {**project, "environments": list_small_environments(server, project), "projectTags": []}
        for project in reversed(server.store.projects.values())
    ]


def list_small_environments(server: DokployServer, project: Row) -> list[Row]:
    columns = ("applicationId", "name", "applicationStatus")
    return [
        {
            **pick(environment, "name", "environmentId", "isDefault"),
            "applications": [pick(application, *columns) for application in applications_of(server, environment)],
            **{kind: [] for kind in OTHER_SERVICES},
        }
        for environment in environments_of(server, project)
    ]


@query("project.one", projectId=TEXT)
def get_project(server: DokployServer, given: Row) -> object:
    project = require_project(server, given)
    environments = [
        {**environment, **list_services(server, environment)} for environment in environments_of(server, project)
    ]
    return {**project, "environments": environments, "projectTags": []}


@mutation("project.update", projectId=TEXT, name=OPTIONAL_NAME, description=NULLABLE_TEXT, env=OPTIONAL_TEXT)
def update_project(server: DokployServer, given: Row) -> object:
    project = require_project(server, given)
    return server.store.projects.put(project["projectId"], {**project, **given})


@mutation("project.remove", projectId=TEXT)
def remove_project(server: DokployServer, given: Row) -> object:
    """Delete the rows only: services continue to run, and the router keeps its routes."""
    project = require_project(server, given)
    for environment in environments_of(server, project):
        for application in applications_of(server, environment):
            delete_application_rows(server, application)
        server.store.environments.drop(environment["environmentId"])
    return server.store.projects.drop(project["projectId"])


@query("environment.byProjectId", projectId=TEXT)
def list_environments(server: DokployServer, given: Row) -> object:
    project = server.store.projects.get(given["projectId"])
    if project is None:
        return []
    columns = ("name", "description", "environmentId", "isDefault")
    return [
        {**pick(environment, *columns), **list_services(server, environment), "project": project}
        for environment in environments_of(server, project)
    ]


@mutation("environment.update", environmentId=TEXT, name=OPTIONAL_NAME, description=NULLABLE_TEXT, env=OPTIONAL_TEXT)
def update_environment(server: DokployServer, given: Row) -> object:
    environment = require(server.store.environments.get(given["environmentId"]), "Environment")
    return server.store.environments.put(environment["environmentId"], {**environment, **given})


def require_project(server: DokployServer, given: Row) -> Row:
    return require(server.store.projects.get(given["projectId"]), "Project")


def environments_of(server: DokployServer, project: Row) -> list[Row]:
    return server.store.environments.where(projectId=project["projectId"])


def applications_of(server: DokployServer, environment: Row) -> list[Row]:
    return server.store.applications.where(environmentId=environment["environmentId"])


def list_services(server: DokployServer, environment: Row) -> Row:
    columns = "name description appName createdAt serverId applicationStatus applicationId icon".split()
    applications = [
        {**pick(application, *columns), "server": None} for application in applications_of(server, environment)
    ]
    return {"applications": applications, **{kind: [] for kind in OTHER_SERVICES}}


def delete_application_rows(server: DokployServer, application: Row) -> None:
    """Delete an application with its deployments, logs and domains."""
    application_id = application["applicationId"]
    for row in server.store.deployments.where(applicationId=application_id):
        server.store.deployments.drop(row["deploymentId"])
        server.store.logs.drop(row["deploymentId"])
    for row in server.store.domains.where(applicationId=application_id):
        server.store.domains.drop(row["domainId"])
    server.store.applications.drop(application_id)
