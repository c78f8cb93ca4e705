"""Applications."""

import json
from contextlib import suppress

from ..container_engine import EngineError
from ..server import DokployServer
from ..store import LOWER_CASE_ALPHABET, Row, new_id, now
from ..zod import Field
from .application_fields import APP_NAME, APPLICATION_COLUMNS, APPLICATION_DEFAULTS, APPLICATION_FIELDS, SOURCES
from .projects import delete_application_rows
from .registry import (
    NAME,
    NO_CONTENT,
    NULLABLE_TEXT,
    OPTIONAL_TEXT,
    PRESENT_TEXT,
    TEXT,
    Refusal,
    mutation,
    query,
    quote,
    require,
)

# Relations that are empty in the simulator.
EMPTY_LISTS = ("mounts", "redirects", "security", "ports", "previewDeployments")
EMPTY_ROWS = "gitlab github bitbucket gitea server registry buildRegistry rollbackRegistry".split()
RANDOM_WORDS = (
    ("compress", "copy", "parse", "navigate", "synthesize", "transmit", "input", "override"),
    ("digital", "neural", "online", "primary", "redundant", "solid-state", "wireless", "cross-platform"),
    ("bus", "card", "feed", "firewall", "interface", "matrix", "monitor", "port", "sensor"),
)
LARGEST_INTEGER = 2**31 - 1


@mutation(
    "application.create",
    name=NAME,
    appName=APP_NAME,
    description=NULLABLE_TEXT,
    environmentId=TEXT,
    serverId=NULLABLE_TEXT,
    sourceType=Field(presence="optional", options=SOURCES),
)
def create_application(server: DokployServer, given: Row) -> object:
    if given.get("serverId"):
        raise Refusal(401, "You are not authorized to access this server")
    require(server.store.environments.get(given["environmentId"]), "Environment")
    if "\0" in given["name"]:
        raise Refusal(400, "Error creating the application")
    name = given.get("appName") or "app-" + "-".join(words[ord(new_id(1)) % len(words)] for words in RANDOM_WORDS)
    application = {
        **dict.fromkeys(APPLICATION_COLUMNS),
        **APPLICATION_DEFAULTS,
        **given,
        "applicationId": new_id(),
        "appName": f"{name.lower()}-{new_id(6, LOWER_CASE_ALPHABET)}",
        "refreshToken": new_id(),
        "createdAt": now(),
    }
    return server.store.applications.put(application["applicationId"], application)


@query("application.one", applicationId=TEXT)
def get_application(server: DokployServer, given: Row) -> object:
    application = with_relations(server, require_application(server, given))
    return {**application, "hasGitProviderAccess": True, "unauthorizedProvider": None}


@mutation("application.update", **APPLICATION_FIELDS)
def update_application(server: DokployServer, given: Row) -> object:
    application_id = given.pop("applicationId")
    if not given:
        raise Refusal(500, "No values to set")
    if application_id not in server.store.applications:
        raise Refusal(400, "Error updating application")
    replicas = given.get("replicas", 1)
    is_out_of_range = isinstance(replicas, float) or abs(replicas) > LARGEST_INTEGER
    if is_out_of_range or given.get("environmentId") not in {None, *server.store.environments}:
        raise Refusal(500, failed_update(given, application_id))
    server.store.applications.change(application_id, **given)
    return True


@mutation(
    "application.saveDockerProvider",
    dockerImage=PRESENT_TEXT,
    applicationId=TEXT,
    username=PRESENT_TEXT,
    password=PRESENT_TEXT,
    registryUrl=PRESENT_TEXT,
)
def save_docker_provider(server: DokployServer, given: Row) -> object:
    application = require_application(server, given)
    changes = {**given, "sourceType": "docker", "applicationStatus": "idle"}
    server.store.applications.change(application["applicationId"], **changes)
    return True


@mutation(
    "application.saveEnvironment",
    applicationId=TEXT,
    env=PRESENT_TEXT,
    buildArgs=PRESENT_TEXT,
    buildSecrets=PRESENT_TEXT,
    createEnvFile=Field("boolean", "present"),
)
def save_environment(server: DokployServer, given: Row) -> object:
    server.store.applications.change(require_application(server, given)["applicationId"], **given)
    return True


@mutation("application.deploy", applicationId=TEXT, title=OPTIONAL_TEXT, description=OPTIONAL_TEXT)
def deploy(server: DokployServer, given: Row) -> object:
    return add_job(server, given, "deploy", "Manual deployment")


@mutation("application.redeploy", applicationId=TEXT, title=OPTIONAL_TEXT, description=OPTIONAL_TEXT)
def redeploy(server: DokployServer, given: Row) -> object:
    """Deploy without a pull."""
    return add_job(server, given, "redeploy", "Rebuild deployment")


def add_job(server: DokployServer, given: Row, type: str, title: str) -> object:
    application_id = require_application(server, given)["applicationId"]
    server.queue.add(application_id, given.get("title") or title, given.get("description") or "", type)
    return NO_CONTENT


@mutation("application.cleanQueues", applicationId=TEXT)
def clean_queues(server: DokployServer, given: Row) -> object:
    server.queue.clean(given["applicationId"])
    return NO_CONTENT


@mutation("application.delete", applicationId=TEXT)
def delete_application(server: DokployServer, given: Row) -> object:
    """Delete the rows first, then the service. Dokploy ignores all errors after the rows are deleted."""
    application = require_application(server, given)
    before = with_relations(server, application)
    for domain in before["domains"]:
        server.store.routes.drop(domain["domainId"])
    delete_application_rows(server, application)
    with suppress(EngineError):
        server.engine.remove(application["appName"])
    return before


def require_application(server: DokployServer, given: Row) -> Row:
    return require(server.store.applications.get(given["applicationId"]), "Application")


def with_relations(server: DokployServer, application: Row) -> Row:
    environment = server.store.environments[application["environmentId"]]
    project = server.store.projects[environment["projectId"]]
    application_id = application["applicationId"]
    return {
        **application,
        "environment": {**environment, "project": project},
        "domains": server.store.domains.where(applicationId=application_id),
        "deployments": server.store.deployments.where(applicationId=application_id),
        **{name: [] for name in EMPTY_LISTS},
        **dict.fromkeys(EMPTY_ROWS),
    }


def failed_update(given: Row, application_id: str) -> str:
    """Return drizzle's message for an update that failed: the statement and its parameters with their values."""
    changes = ", ".join(f'"{name}" = ${number}' for number, name in enumerate(given, 1))
    columns = quote(APPLICATION_COLUMNS).replace("previewCertificateType", "certificateType")
    params = ",".join(value if isinstance(value, str) else json.dumps(value) for value in given.values())
    where = f'where "application"."applicationId" = ${len(given) + 1} returning {columns}'
    parts = ('Failed query: update "application" set', changes, where)
    return " ".join(parts) + f"\nparams: {params},{application_id}"


@query(
    "application.readLogs",
    applicationId=TEXT,
    tail=Field("number", "optional", minimum=1, maximum=10000),
    since=OPTIONAL_TEXT,
)
def read_program_log(server: DokployServer, given: Row) -> object:
    """Return the last lines that the application's containers wrote, each with its time, not in order of time."""
    application = require(server.store.applications.get(given["applicationId"]), "Application")
    name = application["appName"]
    if name not in server.store.services:
        raise Refusal(500, f"No container or service found for: {name}")
    return server.engine.logs(name, given.get("tail", 100))
