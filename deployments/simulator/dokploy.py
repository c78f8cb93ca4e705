"""Dokploy's procedures: a table of name, method, fields and what each does to the rows."""

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .dotenv import UnknownReference
from .engine import LOWER, Engine, EngineError, new_id, now
from .schema import Field
from .store import Row, Store
from .switches import Settings

# A procedure that returns nothing: 200, JSON content type, no body.
NOTHING = object()
CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 404: "NOT_FOUND", 500: "INTERNAL_SERVER_ERROR"}

APPLICATION = (
    "applicationId name appName description env previewEnv watchPaths previewBuildArgs previewBuildSecrets "
    "previewLabels previewWildcard previewPort previewHttps previewPath previewCertificateType "
    "previewCustomCertResolver previewLimit isPreviewDeploymentsActive previewRequireCollaboratorPermissions "
    "rollbackActive buildArgs buildSecrets memoryReservation memoryLimit cpuReservation cpuLimit title "
    "enabled subtitle command args icon refreshToken sourceType cleanCache repository owner branch buildPath "
    "triggerType autoDeploy gitlabProjectId gitlabRepository gitlabOwner gitlabBranch gitlabBuildPath "
    "gitlabPathNamespace giteaRepository giteaOwner giteaBranch giteaBuildPath bitbucketRepository "
    "bitbucketRepositorySlug bitbucketOwner bitbucketBranch bitbucketBuildPath username password dockerImage "
    "registryUrl customGitUrl customGitBranch customGitBuildPath customGitSSHKeyId enableSubmodules "
    "dockerfile dockerContextPath dockerBuildStage dropBuildPath healthCheckSwarm restartPolicySwarm "
    "placementSwarm updateConfigSwarm rollbackConfigSwarm modeSwarm labelsSwarm networkSwarm "
    "stopGracePeriodSwarm endpointSpecSwarm ulimitsSwarm replicas applicationStatus buildType railpackVersion "
    "herokuVersion publishDirectory isStaticSpa createEnvFile createdAt registryId rollbackRegistryId "
    "environmentId githubId gitlabId giteaId bitbucketId serverId buildServerId buildRegistryId networkIds "
    "detachDokployNetwork"
).split()
APPLICATION_DEFAULTS: Row = {
    "previewPort": 3000,
    "previewHttps": False,
    "previewPath": "/",
    "previewCertificateType": "none",
    "previewLimit": 3,
    "isPreviewDeploymentsActive": False,
    "previewRequireCollaboratorPermissions": True,
    "rollbackActive": False,
    "sourceType": "github",
    "cleanCache": False,
    "buildPath": "/",
    "triggerType": "push",
    "autoDeploy": True,
    "gitlabBuildPath": "/",
    "giteaBuildPath": "/",
    "bitbucketBuildPath": "/",
    "enableSubmodules": False,
    "dockerfile": "Dockerfile",
    "replicas": 1,
    "applicationStatus": "idle",
    "buildType": "nixpacks",
    "railpackVersion": "0.15.4",
    "herokuVersion": "24",
    "createEnvFile": True,
    "networkIds": [],
    "detachDokployNetwork": False,
}
DOMAIN = (
    "domainId host https port customEntrypoint path serviceName domainType uniqueConfigKey createdAt "
    "composeId customCertResolver applicationId previewDeploymentId certificateType internalPath stripPath "
    "middlewares forwardAuthEnabled enabled"
).split()
DOMAIN_DEFAULTS: Row = {
    "https": False,
    "port": 3000,
    "path": "/",
    "domainType": "application",
    "certificateType": "none",
    "internalPath": "/",
    "stripPath": False,
    "middlewares": [],
    "forwardAuthEnabled": False,
    "enabled": True,
}
# The user who owns the one organization, and the rights that an owner has without them.
OWNER = "the-owner-of-the-simulated-dokpl"
RIGHTS = (
    "canCreateProjects canAccessToSSHKeys canCreateServices canDeleteProjects canDeleteServices canAccessToDocker "
    "canAccessToAPI canAccessToGitProviders canAccessToTraefikFiles canDeleteEnvironments canCreateEnvironments"
).split()
SERVER_SETTINGS: Row = {
    "serverIp": None,
    "certificateType": "none",
    "https": False,
    "host": None,
    "letsEncryptEmail": None,
    "sshPrivateKey": None,
    "enableDockerCleanup": True,
    "logCleanupCron": "0 0 * * *",
    "metricsConfig": {
        "server": {
            "port": 4500,
            "type": "Dokploy",
            "token": "",
            "cronJob": "",
            "thresholds": {"cpu": 0, "memory": 0},
            "refreshRate": 60,
            "urlCallback": "",
            "retentionDays": 2,
        },
        "containers": {"services": {"exclude": [], "include": []}, "refreshRate": 60},
    },
    "whitelabelingConfig": dict.fromkeys(
        (
            "appName docsUrl logoUrl customCss metaTitle faviconUrl footerText supportUrl loginLogoUrl appDescription "
            "errorPageTitle errorPageDescription"
        ).split()
    ),
    "remoteServersOnly": False,
    "buildsConcurrency": 1,
    "enforceSSO": False,
    "cleanupCacheApplications": False,
    "cleanupCacheOnPreviews": False,
    "cleanupCacheOnCompose": False,
}
# What else an environment may hold; always empty here.
OTHER_SERVICES = ("mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql")
# Relations of an application that stay empty here.
NO_LISTS = ("mounts", "redirects", "security", "ports", "previewDeployments")
NO_ROWS = "gitlab github bitbucket gitea server registry buildRegistry rollbackRegistry".split()
WORDS = (
    ("compress", "copy", "parse", "navigate", "synthesize", "transmit", "input", "override"),
    ("digital", "neural", "online", "primary", "redundant", "solid-state", "wireless", "cross-platform"),
    ("bus", "card", "feed", "firewall", "interface", "matrix", "monitor", "port", "sensor"),
)
LARGEST_INTEGER = 2**31 - 1


class Refusal(Exception):
    """A procedure's error: its HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Dokploy:
    def __init__(self, store: Store, engine: Engine, settings: Settings) -> None:
        self._store = store
        self._engine = engine
        self._settings = settings
        self._organization = "simulated-organizatio"
        if "server" not in store.settings:
            row = {"id": str(uuid.uuid4()), **SERVER_SETTINGS, "createdAt": now(), "updatedAt": now()}
            store.settings.put("server", row)
        self._domains = max((row["uniqueConfigKey"] for row in store.domains.values()), default=0)

    # Projects and environments.

    def create_project(self, given: Row) -> object:
        if "\0" in given["name"]:
            raise Refusal(400, 'Error creating the project: Failed query: insert into "project"')
        project = {
            "projectId": new_id(),
            "name": given["name"],
            "description": given.get("description"),
            "createdAt": now(),
            "organizationId": self._organization,
            "env": given.get("env", ""),
        }
        self._store.projects.put(project["projectId"], project)
        if self._settings.halves:
            self._settings.halves -= 1
            raise Refusal(400, 'Error creating the project: Failed query: insert into "environment"')
        environment = self._new_environment(project["projectId"], "production", "Production environment", default=True)
        return {"project": project, "environment": environment}

    def all_projects(self, given: Row) -> object:
        """Newest first, with little of each application."""
        return [
            {
                **project,
                "environments": [
                    {
                        **pick(environment, "name", "environmentId", "isDefault"),
                        "applications": [
                            pick(application, "applicationId", "name", "applicationStatus")
                            for application in self._applications(environment)
                        ],
                        **{kind: [] for kind in OTHER_SERVICES},
                    }
                    for environment in self._environments(project)
                ],
                "projectTags": [],
            }
            for project in reversed(self._store.projects.values())
        ]

    def one_project(self, given: Row) -> object:
        project = self._project(given)
        environments = [{**environment, **self._services(environment)} for environment in self._environments(project)]
        return {**project, "environments": environments, "projectTags": []}

    def update_project(self, given: Row) -> object:
        project = self._project(given)
        return self._store.projects.put(project["projectId"], {**project, **given})

    def remove_project(self, given: Row) -> object:
        """Deletes rows and nothing else: services run on, and the router keeps its routes."""
        project = self._project(given)
        for environment in self._environments(project):
            for application in self._applications(environment):
                self._drop_application(application)
            self._store.environments.drop(environment["environmentId"])
        return self._store.projects.drop(project["projectId"])

    def create_environment(self, given: Row) -> object:
        if given["name"] == "production":
            raise Refusal(400, "You cannot create a environment with the name 'production'")
        if given["projectId"] not in self._store.projects:
            columns = ["environmentId", "name", "description", "createdAt", "env", "projectId", "isDefault"]
            values = {"environmentId": new_id(), "createdAt": now(), **given}
            text = failed_insert("environment", columns, values)
            raise Refusal(400, f"Error creating the environment: {text}")
        return self._new_environment(given["projectId"], given["name"], given.get("description"))

    def environments_of_project(self, given: Row) -> object:
        project = self._store.projects.get(given["projectId"])
        if project is None:
            return []
        names = ("name", "description", "environmentId", "isDefault")
        return [
            {**pick(environment, *names), **self._services(environment), "project": project}
            for environment in self._environments(project)
        ]

    def one_environment(self, given: Row) -> object:
        environment = self._environment(given)
        names = ("name", "description", "environmentId", "isDefault", "projectId", "env")
        services = self._services(environment)
        for application in services["applications"]:
            del application["appName"]
        project = self._store.projects[environment["projectId"]]
        return {**pick(environment, *names), **services, "project": project}

    def update_environment(self, given: Row) -> object:
        environment = self._environment(given)
        return self._store.environments.put(environment["environmentId"], {**environment, **given})

    def remove_environment(self, given: Row) -> object:
        environment = self._environment(given)
        if environment["isDefault"]:
            raise Refusal(400, "You cannot delete the default environment")
        if self._applications(environment):
            raise Refusal(400, "Cannot delete environment: it has active services. Delete all services first.")
        return self._store.environments.drop(environment["environmentId"])

    # Applications.

    def create_application(self, given: Row) -> object:
        if given.get("serverId"):
            raise Refusal(401, "You are not authorized to access this server")
        self._environment(given)
        if "\0" in given["name"]:
            raise Refusal(400, "Error creating the application")
        name = given.get("appName") or "app-" + "-".join(words[ord(new_id(1)) % len(words)] for words in WORDS)
        application = {
            **dict.fromkeys(APPLICATION),
            **APPLICATION_DEFAULTS,
            **given,
            "applicationId": new_id(),
            "appName": f"{name.lower()}-{new_id(6, LOWER)}",
            "refreshToken": new_id(),
            "createdAt": now(),
        }
        return self._store.applications.put(application["applicationId"], application)

    def one_application(self, given: Row) -> object:
        application = self._with_relations(self._application(given))
        return {**application, "hasGitProviderAccess": True, "unauthorizedProvider": None}

    def update_application(self, given: Row) -> object:
        application_id = given.pop("applicationId")
        if not given:
            raise Refusal(500, "No values to set")
        if application_id not in self._store.applications:
            raise Refusal(400, "Error updating application")
        replicas = given.get("replicas", 1)
        impossible = isinstance(replicas, float) or abs(replicas) > LARGEST_INTEGER
        if impossible or given.get("environmentId", None) not in {None, *self._store.environments}:
            raise Refusal(500, failed_update(given, application_id))
        self._store.applications.change(application_id, **given)
        return True

    def save_docker_provider(self, given: Row) -> object:
        application = self._application(given)
        changes = {**given, "sourceType": "docker", "applicationStatus": "idle"}
        self._store.applications.change(application["applicationId"], **changes)
        return True

    def save_environment(self, given: Row) -> object:
        self._store.applications.change(self._application(given)["applicationId"], **given)
        return True

    def deploy(self, given: Row) -> object:
        return self._enqueue(given, "deploy", "Manual deployment")

    def redeploy(self, given: Row) -> object:
        return self._enqueue(given, "redeploy", "Rebuild deployment")

    def stop(self, given: Row) -> object:
        """200 even without a service or an engine; the row is answered as it was before."""
        application = self._application(given)
        before = self._with_relations(application)
        with suppress(EngineError):
            self._engine.scale(application["appName"], 0)
        self._store.applications.change(application["applicationId"], applicationStatus="idle")
        return before

    def start(self, given: Row) -> object:
        """Scales to one, whatever `replicas` says."""
        application = self._application(given)
        before = self._with_relations(application)
        name = application["appName"]
        try:
            self._engine.scale(name, 1)
        except EngineError as error:
            command = f"docker service scale {name}=1 "
            raise Refusal(500, f"Command execution failed: Command failed: {command}\n{error}\n") from error
        self._store.applications.change(application["applicationId"], applicationStatus="done")
        return before

    def reload(self, given: Row) -> object:
        application = self._application(given)
        application_id = application["applicationId"]
        try:
            self._engine.apply(application)
        except (EngineError, UnknownReference) as error:
            self._store.applications.change(application_id, applicationStatus="error")
            raise Refusal(500, "Error reloading application") from error
        self._store.applications.change(application_id, applicationStatus="done")
        return True

    def delete_application(self, given: Row) -> object:
        """The row goes first and every error of the clean-up is swallowed."""
        application = self._application(given)
        before = self._with_relations(application)
        for domain in before["domains"]:
            self._store.routes.drop(domain["domainId"])
        self._drop_application(application)
        with suppress(EngineError):
            self._engine.remove(application["appName"])
        return before

    def clean_queues(self, given: Row) -> object:
        self._engine.clean(given["applicationId"])
        return NOTHING

    def cancel_deployment(self, given: Row) -> object:
        self._application(given)
        raise Refusal(400, "Deployment cancellation only available in cloud version")

    def kill_build(self, given: Row) -> object:
        """Signals `docker build` processes; there are none."""
        return NOTHING

    # Deployments.

    def all_deployments(self, given: Row) -> object:
        return self._deployments(given["applicationId"])

    def deployments_by_type(self, given: Row) -> object:
        rows = self._deployments(given["id"]) if given["type"] == "application" else []
        return [{**row, "rollback": None} for row in rows]

    def queue_list(self, given: Row) -> object:
        return self._engine.queue_list()

    def read_logs(self, given: Row) -> object:
        deployment = self._deployment(given)
        lines = self._store.logs[deployment["deploymentId"]]["text"].splitlines(keepends=True)
        return "".join(lines[-given.get("tail", 100) :])

    def remove_deployment(self, given: Row) -> object:
        deployment = self._deployment(given)
        self._store.logs.drop(deployment["deploymentId"])
        return self._store.deployments.drop(deployment["deploymentId"])

    def kill_process(self, given: Row) -> object:
        self._deployment(given)
        raise Refusal(400, "Deployment is not running")

    # Domains. A route is written at once, and never looked at again when rows change elsewhere.

    def create_domain(self, given: Row) -> object:
        values: Row = {"domainId": new_id(), "createdAt": now(), **given}
        application_id = given.get("applicationId")
        if application_id is not None and application_id not in self._store.applications:
            raise Refusal(400, failed_insert("domain", DOMAIN, values))
        self._domains += 1
        domain = {
            **dict.fromkeys(DOMAIN),
            **DOMAIN_DEFAULTS,
            **values,
            "uniqueConfigKey": self._domains,
        }
        self._store.domains.put(domain["domainId"], domain)
        self._write_route(domain)
        return domain

    def domains_of_application(self, given: Row) -> object:
        rows = self._store.domains.where(applicationId=given["applicationId"])
        return [self._with_application(row) for row in rows]

    def one_domain(self, given: Row) -> object:
        return self._with_application(self._domain(given))

    def update_domain(self, given: Row) -> object:
        domain = self._store.domains.put(given["domainId"], {**self._domain(given), **given})
        self._write_route(domain)
        return domain

    def toggle_domain(self, given: Row) -> object:
        domain = self._domain(given)
        domain = self._store.domains.put(given["domainId"], {**domain, "enabled": not domain["enabled"]})
        self._write_route(domain)
        return {**domain, "requiresRedeploy": False}

    def delete_domain(self, given: Row) -> object:
        domain = self._domain(given)
        self._store.routes.drop(domain["domainId"])
        return self._store.domains.drop(domain["domainId"])

    # Containers and the server itself.

    def containers_by_name(self, given: Row) -> object:
        found = self._engine.containers(given["appName"])
        return [self._engine.container_row(*container) for container in found]

    def tasks_by_name(self, given: Row) -> object:
        found = self._engine.containers(given["appName"])
        return [self._engine.task_row(*container) for container in found if container[0]["name"] == given["appName"]]

    def version(self, given: Row) -> object:
        return self._settings.version

    def is_cloud(self, given: Row) -> object:
        return False

    def health(self, given: Row) -> object:
        return {"status": "ok"}

    def server_settings(self, given: Row) -> object:
        return self._store.settings["server"]

    def update_concurrency(self, given: Row) -> object:
        """Its answer was read in Dokploy's source, not recorded."""
        self._store.settings.change("server", **given, updatedAt=now())
        return True

    def infrastructure(self, given: Row) -> object:
        return {name: self._engine.health(f"dokploy-{name}") for name in ("postgres", "traefik")}

    def organizations(self, given: Row) -> object:
        """With the membership of the key's user alone. It is the owner's; for a member's key see members.visible."""
        created = self._store.settings["server"]["createdAt"]
        membership = {
            "id": "membership-in-simulat",
            "organizationId": self._organization,
            "userId": OWNER,
            "role": "owner",
            "createdAt": created,
            "teamId": None,
            "isDefault": True,
            **dict.fromkeys(RIGHTS, False),
            "accessedProjects": list(self._store.projects),
            "accessedEnvironments": list(self._store.environments),
            "accessedServices": list(self._store.applications),
            "accessedGitProviders": [],
            "accessedServers": [],
        }
        organization = {
            "id": self._organization,
            "name": "My Organization",
            "slug": None,
            "logo": None,
            "createdAt": created,
            "metadata": None,
            "defaultRole": None,
            "ownerId": OWNER,
            "members": [membership],
        }
        return [organization]

    # Shared by the procedures above.

    def parent(self, field: str, given: Row) -> str | None:
        """The application, environment or project that a call is about, if it names it or something of it."""
        if field == "applicationId" and "deploymentId" in given:
            given = self._store.deployments.get(given["deploymentId"], {})
        elif field == "applicationId" and "domainId" in given:
            given = self._store.domains.get(given["domainId"], {})
        wanted: str | None = given.get(field)
        return wanted

    def log_of(self, path: str) -> str | None:
        """The id of the deployment whose log is kept under this name; of two in one second the later one's."""
        ids = [row["deploymentId"] for row in self._store.deployments.where(logPath=path)]
        return ids[-1] if ids else None

    async def follow(self, deployment_id: str) -> AsyncIterator[str]:
        """A log from its start, then whatever is written. It never ends by itself, as `tail -f` does not."""
        sent = 0
        while True:
            written = self._engine.written
            text = self._store.logs.get(deployment_id, {"text": ""})["text"][sent:]
            if text:
                yield text
            sent += len(text)
            await written.wait()

    def _enqueue(self, given: Row, kind: str, title: str) -> object:
        application_id = self._application(given)["applicationId"]
        self._engine.enqueue(application_id, given.get("title") or title, given.get("description") or "", kind)
        return NOTHING

    def _new_environment(self, project_id: str, name: str, description: str | None, *, default: bool = False) -> Row:
        environment: Row = {
            "environmentId": new_id(),
            "name": name,
            "description": description,
            "createdAt": now(),
            "env": "",
            "projectId": project_id,
            "isDefault": default,
        }
        return self._store.environments.put(environment["environmentId"], environment)

    def _drop_application(self, application: Row) -> None:
        application_id = application["applicationId"]
        for row in self._store.deployments.where(applicationId=application_id):
            self._store.deployments.drop(row["deploymentId"])
            self._store.logs.drop(row["deploymentId"])
        for row in self._store.domains.where(applicationId=application_id):
            self._store.domains.drop(row["domainId"])
        self._store.applications.drop(application_id)

    def _write_route(self, domain: Row) -> None:
        application = self._store.applications.get(domain["applicationId"] or "")
        if application is None or not domain["enabled"]:
            self._store.routes.drop(domain["domainId"])
            return
        route = {**pick(domain, "domainId", "host", "path"), "appName": application["appName"]}
        self._store.routes.put(domain["domainId"], {**route, "path": domain["path"] or "/"})

    def _project(self, given: Row) -> Row:
        return found(self._store.projects.get(given["projectId"]), "Project")

    def _environment(self, given: Row) -> Row:
        return found(self._store.environments.get(given["environmentId"]), "Environment")

    def _application(self, given: Row) -> Row:
        return found(self._store.applications.get(given["applicationId"]), "Application")

    def _deployment(self, given: Row) -> Row:
        return found(self._store.deployments.get(given["deploymentId"]), "Deployment")

    def _domain(self, given: Row) -> Row:
        return found(self._store.domains.get(given["domainId"]), "Domain")

    def _environments(self, project: Row) -> list[Row]:
        return self._store.environments.where(projectId=project["projectId"])

    def _applications(self, environment: Row) -> list[Row]:
        return self._store.applications.where(environmentId=environment["environmentId"])

    def _deployments(self, application_id: str) -> list[Row]:
        """Newest first."""
        return self._store.deployments.where(applicationId=application_id)[::-1]

    def _services(self, environment: Row) -> Row:
        names = "name description appName createdAt serverId applicationStatus applicationId icon".split()
        applications = [
            {**pick(application, *names), "server": None} for application in self._applications(environment)
        ]
        return {"applications": applications, **{kind: [] for kind in OTHER_SERVICES}}

    def _with_relations(self, application: Row) -> Row:
        environment = self._store.environments[application["environmentId"]]
        project = self._store.projects[environment["projectId"]]
        application_id = application["applicationId"]
        return {
            **application,
            "environment": {**environment, "project": project},
            "domains": self._store.domains.where(applicationId=application_id),
            "deployments": self._store.deployments.where(applicationId=application_id),
            **{name: [] for name in NO_LISTS},
            **dict.fromkeys(NO_ROWS),
        }

    def _with_application(self, domain: Row) -> Row:
        application = self._store.applications.get(domain["applicationId"] or "")
        names = ("applicationId", "appName", "name")
        return {**domain, "application": pick(application, *names) if application else None}


def found(row: Row | None, what: str) -> Row:
    if row is None:
        raise Refusal(404, f"{what} not found")
    return row


def pick(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def failed_insert(table: str, columns: list[str], given: Row) -> str:
    """drizzle's message: the statement and its parameters, values included."""
    sent = [name for name in columns if name in given]
    values = ", ".join(f"${sent.index(name) + 1}" if name in given else "default" for name in columns)
    params = ",".join(str(given[name]) for name in sent)
    parts = ("Failed query: insert into", f'"{table}"', f"({quoted(columns)}) values ({values}) returning")
    return " ".join((*parts, f"{quoted(columns)}\nparams: {params}"))


def failed_update(given: Row, application_id: str) -> str:
    changes = ", ".join(f'"{name}" = ${number}' for number, name in enumerate(given, 1))
    columns = quoted(APPLICATION).replace("previewCertificateType", "certificateType")
    params = ",".join(value if isinstance(value, str) else json.dumps(value) for value in given.values())
    where = f'where "application"."applicationId" = ${len(given) + 1} returning {columns}'
    parts = ('Failed query: update "application" set', changes, where)
    return " ".join(parts) + f"\nparams: {params},{application_id}"


LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def host_complaint(host: str) -> str | None:
    if not host:
        return None
    if host != host.strip():
        return "Domain name cannot have leading or trailing spaces"
    if not re.fullmatch(rf"{LABEL}(\.{LABEL})*", host):
        return (
            "Invalid domain name. Use only letters, numbers, hyphens and dots (e.g. example.com)."
            " Underscores are not allowed."
        )
    return None


TEXT = Field()
NAME = Field(least=1)
OPTIONAL_TEXT = Field(presence="optional")
NULLABLE_TEXT = Field(presence="optional", nullable=True)
PRESENT_TEXT = Field(presence="present", nullable=True)
OPTIONAL_FLAG = Field("boolean", presence="optional", nullable=True)
SOURCES = ("github", "docker", "git", "gitlab", "bitbucket", "gitea", "drop")
STATUSES = ("idle", "running", "done", "error")
HEALTH_CHECK = {
    "Test": Field("any", presence="optional"),
    **dict.fromkeys(("Interval", "Timeout", "StartPeriod", "Retries"), Field("number", "optional")),
}
UPDATE_CONFIG = {
    "Parallelism": Field("number"),
    "Delay": Field("number", "optional"),
    "FailureAction": OPTIONAL_TEXT,
    "Monitor": Field("number", "optional"),
    "MaxFailureRatio": Field("number", "optional"),
    "Order": TEXT,
}
APPLICATION_FIELDS: dict[str, Field] = {
    **{name: NULLABLE_TEXT for name in APPLICATION if not name.endswith("Swarm")},
    **{name: OPTIONAL_FLAG for name, value in APPLICATION_DEFAULTS.items() if isinstance(value, bool)},
    **{
        name: Field("any", "optional", nullable=True)
        for name in (*(column for column in APPLICATION if column.endswith("Swarm")), "args", "networkIds")
    },
    "watchPaths": Field("any", "optional", nullable=True),
    "previewLabels": Field("any", "optional", nullable=True),
    "enabled": OPTIONAL_FLAG,
    "isStaticSpa": OPTIONAL_FLAG,
    "replicas": Field("number", "optional"),
    "previewPort": Field("number", "optional"),
    "previewLimit": Field("number", "optional"),
    "gitlabProjectId": Field("number", "optional", nullable=True),
    "healthCheckSwarm": Field("object", "optional", nullable=True, shape=HEALTH_CHECK),
    "updateConfigSwarm": Field("object", "optional", nullable=True, shape=UPDATE_CONFIG),
    "rollbackConfigSwarm": Field("object", "optional", nullable=True, shape=UPDATE_CONFIG),
    "labelsSwarm": Field("record", "optional", nullable=True),
    "sourceType": Field(presence="optional", options=SOURCES),
    "applicationStatus": Field(presence="optional", options=STATUSES),
    "name": Field(presence="optional", least=1),
    "environmentId": OPTIONAL_TEXT,
    "applicationId": TEXT,
}
del APPLICATION_FIELDS["appName"], APPLICATION_FIELDS["createdAt"]
DOMAIN_FIELDS: dict[str, Field] = {
    "host": Field(least=1, rule=host_complaint, messages={"too_small": "Add a hostname"}),
    "applicationId": NULLABLE_TEXT,
    "composeId": NULLABLE_TEXT,
    "serviceName": NULLABLE_TEXT,
    "domainType": Field(presence="optional", nullable=True, options=("compose", "application", "preview")),
    "https": Field("boolean", "optional"),
    "certificateType": Field(presence="optional", options=("letsencrypt", "none", "custom")),
    "port": Field(
        "number",
        "optional",
        least=1,
        most=65535,
        messages={"too_small": "Port must be at least 1", "too_big": "Port must be 65535 or below"},
    ),
    "path": OPTIONAL_TEXT,
    "internalPath": NULLABLE_TEXT,
    "stripPath": Field("boolean", "optional"),
    "middlewares": Field("any", "optional"),
    "customCertResolver": NULLABLE_TEXT,
    "customEntrypoint": NULLABLE_TEXT,
    "enabled": Field("boolean", "optional"),
}
APP_NAME = Field(
    presence="optional",
    least=1,
    most=63,
    pattern="[a-zA-Z0-9._-]+",
    messages={"invalid_format": "App name can only contain letters, numbers, dots, underscores and hyphens"},
)
TYPES = ["application", "compose", "server", "schedule", "previewDeployment", "backup", "volumeBackup"]
PROJECT_ID = {"projectId": TEXT}
ENVIRONMENT_ID = {"environmentId": TEXT}
APPLICATION_ID = {"applicationId": TEXT}
DEPLOYMENT_ID = {"deploymentId": TEXT}
DOMAIN_ID = {"domainId": TEXT}
DEPLOY_FIELDS = {"applicationId": TEXT, "title": OPTIONAL_TEXT, "description": OPTIONAL_TEXT}


@dataclass(frozen=True)
class Procedure:
    method: str
    run: Callable[[Dokploy, Row], object]
    fields: Mapping[str, Field]


def query(run: Callable[[Dokploy, Row], object], **fields: Field) -> Procedure:
    return Procedure("GET", run, fields)


def mutation(run: Callable[[Dokploy, Row], object], **fields: Field) -> Procedure:
    return Procedure("POST", run, fields)


PROCEDURES: dict[str, Procedure] = {
    "project.create": mutation(Dokploy.create_project, name=NAME, description=NULLABLE_TEXT, env=OPTIONAL_TEXT),
    "project.all": query(Dokploy.all_projects),
    "project.one": query(Dokploy.one_project, **PROJECT_ID),
    "project.update": mutation(
        Dokploy.update_project,
        **PROJECT_ID,
        name=Field(presence="optional", least=1),
        description=NULLABLE_TEXT,
        env=OPTIONAL_TEXT,
    ),
    "project.remove": mutation(Dokploy.remove_project, **PROJECT_ID),
    "environment.create": mutation(Dokploy.create_environment, **PROJECT_ID, name=NAME, description=OPTIONAL_TEXT),
    "environment.byProjectId": query(Dokploy.environments_of_project, **PROJECT_ID),
    "environment.one": query(Dokploy.one_environment, **ENVIRONMENT_ID),
    "environment.update": mutation(
        Dokploy.update_environment,
        **ENVIRONMENT_ID,
        name=Field(presence="optional", least=1),
        description=NULLABLE_TEXT,
        env=OPTIONAL_TEXT,
    ),
    "environment.remove": mutation(Dokploy.remove_environment, **ENVIRONMENT_ID),
    "application.create": mutation(
        Dokploy.create_application,
        name=NAME,
        appName=APP_NAME,
        description=NULLABLE_TEXT,
        environmentId=TEXT,
        serverId=NULLABLE_TEXT,
        sourceType=Field(presence="optional", options=SOURCES),
    ),
    "application.one": query(Dokploy.one_application, **APPLICATION_ID),
    "application.update": mutation(Dokploy.update_application, **APPLICATION_FIELDS),
    "application.saveDockerProvider": mutation(
        Dokploy.save_docker_provider,
        dockerImage=PRESENT_TEXT,
        **APPLICATION_ID,
        username=PRESENT_TEXT,
        password=PRESENT_TEXT,
        registryUrl=PRESENT_TEXT,
    ),
    "application.saveEnvironment": mutation(
        Dokploy.save_environment,
        **APPLICATION_ID,
        env=PRESENT_TEXT,
        buildArgs=PRESENT_TEXT,
        buildSecrets=PRESENT_TEXT,
        createEnvFile=Field("boolean", "present"),
    ),
    "application.deploy": mutation(Dokploy.deploy, **DEPLOY_FIELDS),
    "application.redeploy": mutation(Dokploy.redeploy, **DEPLOY_FIELDS),
    "application.stop": mutation(Dokploy.stop, **APPLICATION_ID),
    "application.start": mutation(Dokploy.start, **APPLICATION_ID),
    "application.reload": mutation(Dokploy.reload, appName=Field(presence="present"), **APPLICATION_ID),
    "application.delete": mutation(Dokploy.delete_application, **APPLICATION_ID),
    "application.cleanQueues": mutation(Dokploy.clean_queues, **APPLICATION_ID),
    "application.cancelDeployment": mutation(Dokploy.cancel_deployment, **APPLICATION_ID),
    "application.killBuild": mutation(Dokploy.kill_build, **APPLICATION_ID),
    "deployment.all": query(Dokploy.all_deployments, **APPLICATION_ID),
    "deployment.allByType": query(Dokploy.deployments_by_type, id=TEXT, type=Field(options=tuple(TYPES))),
    "deployment.queueList": query(Dokploy.queue_list),
    "deployment.readLogs": query(
        Dokploy.read_logs, **DEPLOYMENT_ID, tail=Field("number", "optional", least=1, most=10000)
    ),
    "deployment.removeDeployment": mutation(Dokploy.remove_deployment, **DEPLOYMENT_ID),
    "deployment.killProcess": mutation(Dokploy.kill_process, **DEPLOYMENT_ID),
    "domain.create": mutation(Dokploy.create_domain, **DOMAIN_FIELDS),
    "domain.byApplicationId": query(Dokploy.domains_of_application, **APPLICATION_ID),
    "domain.one": query(Dokploy.one_domain, **DOMAIN_ID),
    "domain.update": mutation(Dokploy.update_domain, **DOMAIN_ID, **DOMAIN_FIELDS),
    "domain.toggleEnable": mutation(Dokploy.toggle_domain, **DOMAIN_ID),
    "domain.delete": mutation(Dokploy.delete_domain, **DOMAIN_ID),
    "docker.getContainersByAppNameMatch": query(Dokploy.containers_by_name, appName=TEXT),
    "docker.getServiceContainersByAppName": query(Dokploy.tasks_by_name, appName=TEXT),
    "settings.getDokployVersion": query(Dokploy.version),
    "settings.isCloud": query(Dokploy.is_cloud),
    "settings.health": query(Dokploy.health),
    "settings.getWebServerSettings": query(Dokploy.server_settings),
    "settings.updateBuildsConcurrency": mutation(
        Dokploy.update_concurrency, buildsConcurrency=Field("number", least=1, most=100)
    ),
    "settings.checkInfrastructureHealth": query(Dokploy.infrastructure),
    "organization.all": query(Dokploy.organizations),
}


def state(store: Store, engine: Engine) -> dict[str, Any]:
    """Everything there is, for tests to look at."""
    services = [
        {**pick(row, "name", "image", "env", "replicas"), "up": engine.serving(row["name"]) is not None}
        for row in store.services.values()
    ]
    tables = ("projects", "environments", "applications", "domains", "deployments", "routes")
    return {
        **{name: list(getattr(store, name).values()) for name in tables},
        "services": services,
        "queue": engine.queue_list(),
    }
