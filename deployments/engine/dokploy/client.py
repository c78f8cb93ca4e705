"""Dokploy's API as the portal uses it: one method for each procedure."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from ..errors import DokployError, KeyExhausted, NotAllowed, NotDokploy, NotFound, OutcomeUnknown, Refused, Unavailable
from .responses import (
    decode_error,
    decode_response,
    is_engine_error,
    parse_application,
    parse_container,
    parse_dokploy_deployment,
    parse_domain,
    parse_environment,
    parse_infrastructure_error,
    parse_project,
    parse_queue_entry,
    parse_saved_config,
    parse_service,
    require_created,
    require_object,
    require_rows,
    require_str,
)
from .throttle import SingleFlight
from .transport import BeforeChange, Exchange, RecordExchange, Transport
from .types import (
    Application,
    Container,
    DokployDeployment,
    Domain,
    Environment,
    Json,
    Project,
    QueueEntry,
    SavedConfig,
    Service,
)

QUEUE_PAUSE_SECONDS = 0.25  # between two reads of the queue, however many deployments wait in it
ADMIN_ROLES = frozenset({"owner", "admin"})
MAX_FOREIGN_APPLICATIONS = 100  # reading the domains of each takes one call

T = TypeVar("T")
SharedResult = tuple[Any, DokployError | None, list[Exchange]]


class Dokploy:
    """A client for one Dokploy server. `for_deployment` returns a view of it for one deployment.

    A method that fails raises a subclass of DokployError. Methods that change nothing raise Unavailable where the
    others raise OutcomeUnknown.
    """

    def __init__(self, url: str, key: str, *, connections: int = 20, calls_per_second: float = 0) -> None:
        """Create a client. Close it with `aclose`.

        `connections` limits the calls that are made at the same time. `calls_per_second` limits the calls of all
        clients of this process with this key; 0 means no limit.
        """
        self._transport = Transport(url, key, connections=connections, calls_per_second=calls_per_second)
        self._single_flights: dict[str, SingleFlight[SharedResult]] = {}
        self._queue_pause = QUEUE_PAUSE_SECONDS
        self._is_admin = asyncio.Event()

    async def aclose(self) -> None:
        """Cancel the shared calls and close all connections."""
        for single_flight in self._single_flights.values():
            single_flight.close()
        await self._transport.aclose()

    def for_deployment(self, before_change: BeforeChange, record_exchange: RecordExchange) -> "Dokploy":
        """Return a view of this client for one deployment. It shares the connections, the rate limit and the reads.

        `before_change` is called with the procedure right before each call that changes something, and may raise
        Interrupted to prevent it. `record_exchange` is called after each exchange.
        """
        view = copy.copy(self)
        view._transport = self._transport.with_hooks(before_change, record_exchange)
        return view

    # -- projects and environments -------------------------------------------------------------------------------------

    async def projects(self) -> list[Project]:
        """Return all projects that the key may see (project.all)."""
        return [parse_project(row) for row in require_rows(await self._shared_query("project.all"))]

    async def create_project(self, name: str, description: str) -> Project:
        """Create a project and return it (project.create)."""
        response = await self._transport.change("project.create", name=name, description=description)
        return require_created(lambda: parse_project(require_object(require_object(response)["project"])))

    async def remove_project(self, project_id: str) -> None:
        """Delete a project (project.remove).

        Dokploy deletes only database rows: Docker services go on running. Delete the project's services first.
        """
        await self._transport.change("project.remove", projectId=project_id)

    async def environments(self, project_id: str) -> list[Environment]:
        """Return the environments of a project, the oldest first (environment.byProjectId).

        The list is empty for an unknown project.
        """
        rows = require_rows(await self._transport.query("environment.byProjectId", projectId=project_id))
        return [parse_environment(row) for row in rows]

    async def exists(self, resource_type: str, id: str) -> bool:
        """Return whether a project or an application exists (project.one, application.one).

        `resource_type` is “project” or “application”. Raise NotAllowed when the key may not see the object; lists omit
        such an object.
        """
        try:
            await self._transport.query(f"{resource_type}.one", **{f"{resource_type}Id": id})
        except NotFound:
            return False
        return True

    # -- applications --------------------------------------------------------------------------------------------------

    async def create_application(self, environment_id: str, name: str, description: str) -> Application:
        """Create an application that runs an image, and return it (application.create).

        Without sourceType, Dokploy would create an application that is built from a Git repository.
        """
        response = await self._transport.change(
            "application.create",
            name=name,
            appName=name,
            environmentId=environment_id,
            description=description,
            sourceType="docker",
        )
        return require_created(lambda: parse_application(require_object(response)))

    async def save_image(
        self, application_id: str, image: str, registry: str = "", username: str = "", password: str = ""
    ) -> None:
        """Save the image and the registry's credentials (application.saveDockerProvider)."""
        await self._transport.save(
            "application.saveDockerProvider",
            applicationId=application_id,
            dockerImage=image,
            username=username or None,
            password=password or None,
            registryUrl=registry or None,
        )

    async def save_environment(self, application_id: str, env: str) -> None:
        """Replace all environment variables with the dotenv text (application.saveEnvironment)."""
        await self._transport.save(
            "application.saveEnvironment",
            applicationId=application_id,
            env=env,
            buildArgs=None,
            buildSecrets=None,
            createEnvFile=False,
        )

    async def save_limits(self, application_id: str, memory_bytes: int | None, cpus: float | None) -> None:
        """Save the memory and CPU limits; None means no limit (application.update)."""
        await self._transport.save(
            "application.update",
            applicationId=application_id,
            memoryLimit=None if memory_bytes is None else str(memory_bytes),
            cpuLimit=None if cpus is None else str(int(cpus * 1_000_000_000)),
        )

    async def saved_config(self, application_id: str) -> SavedConfig:
        """Return the configuration that was saved last (application.one). The running container may be older."""
        row = require_object(await self._transport.query("application.one", applicationId=application_id))
        return parse_saved_config(row)

    async def delete_application(self, application_id: str) -> None:
        """Delete an application (application.delete). Do not call this while a deployment of the application runs.

        Dokploy responds with success even if it could not remove the Docker service.
        """
        await self._transport.change("application.delete", applicationId=application_id)

    async def containers(self, app_name: str) -> list[Container]:
        """Return the containers of an application, ended ones included (docker.getContainersByAppNameMatch).

        The list is also empty when Dokploy's container engine did not answer.
        """
        rows = require_rows(await self._transport.query("docker.getContainersByAppNameMatch", appName=app_name))
        # Dokploy matches every name that begins with app_name, even one of another application. Docker names a
        # service's container <service>.<slot>.<id>.
        return [container for container in map(parse_container, rows) if container.name.startswith(f"{app_name}.")]

    async def service(self, app_name: str) -> Service | None:
        """Return the Docker service of an application (docker.getConfig).

        None if there is none, or if the container engine does not answer.
        The response also contains the environment, which is not kept.
        """
        response = await self._transport.query("docker.getConfig", containerId=app_name)
        return parse_service(require_object(response)) if response else None

    async def read_program_log(self, application_id: str, tail: int) -> str:
        """Return the last `tail` lines that an application's containers wrote, in order of time (application.readLogs).

        Dokploy puts Docker's time stamp before each line, and the lines of the newest container first.
        """
        text = await self._transport.query("application.readLogs", applicationId=application_id, tail=tail)
        lines = text.splitlines() if isinstance(text, str) else []
        return "".join(f"{line.partition(' ')[2]}\n" for line in sorted(lines)[-tail:])

    # -- domains -------------------------------------------------------------------------------------------------------

    async def domains(self, application_id: str) -> list[Domain]:
        """Return the domains of an application (domain.byApplicationId)."""
        rows = require_rows(await self._transport.query("domain.byApplicationId", applicationId=application_id))
        return [parse_domain(row) for row in rows]

    async def create_domain(
        self, application_id: str, host: str, port: int, *, https: bool, certificate_type: str
    ) -> Domain:
        """Create a domain and return it (domain.create).

        Every field is sent: Dokploy's default port is 3000, and without domainType it does not check permissions.
        """
        response = await self._transport.change(
            "domain.create",
            applicationId=application_id,
            host=host,
            path="/",
            port=port,
            https=https,
            certificateType=certificate_type,
            domainType="application",
        )
        return require_created(lambda: parse_domain(require_object(response)))

    async def update_domain(self, domain_id: str, host: str, port: int, *, https: bool, certificate_type: str) -> None:
        """Change a domain (domain.update)."""
        await self._transport.save(
            "domain.update", domainId=domain_id, host=host, port=port, https=https, certificateType=certificate_type
        )

    async def delete_domain(self, domain_id: str) -> None:
        """Delete a domain (domain.delete)."""
        await self._transport.change("domain.delete", domainId=domain_id)

    async def foreign_hosts(self, mark: str) -> frozenset[str]:
        """Return the hosts, in lower case, of all projects whose description does not begin with `mark`.

        Dokploy has no procedure for this, so the domains of each application are read, but of no more than
        MAX_FOREIGN_APPLICATIONS. Deployments that ask at the same time share one result.
        """

        async def read(view: Dokploy) -> frozenset[str]:
            foreign = [project for project in await view.projects() if not project.description.startswith(mark)]
            ids = [id for project in foreign for id in project.application_ids][:MAX_FOREIGN_APPLICATIONS]
            domain_lists = await asyncio.gather(*(view.domains(id) for id in ids))
            return frozenset(domain.host.lower() for domains in domain_lists for domain in domains)

        return await self._share(f"foreign hosts {mark}", read)

    # -- deployments ---------------------------------------------------------------------------------------------------

    async def deploy(self, application_id: str, title: str) -> None:
        """Queue a deployment of an application (application.deploy).

        Dokploy returns no id, so the title is the only way to recognize the deployment.
        """
        await self._transport.change("application.deploy", applicationId=application_id, title=title)

    async def dokploy_deployments(self, application_id: str) -> list[DokployDeployment]:
        """Return an application's started deployments, the newest first (deployment.all).

        Dokploy keeps at most eleven. The list is empty for an unknown application.
        """
        rows = require_rows(await self._transport.query("deployment.all", applicationId=application_id))
        return [parse_dokploy_deployment(row) for row in rows]

    async def queue(self) -> list[QueueEntry]:
        """Return all waiting and active entries of Dokploy's queue, the newest first (deployment.queueList).

        It contains the deployments of other users: never show their titles.
        """
        rows = require_rows(await self._shared_query("deployment.queueList", self._queue_pause))
        return [parse_queue_entry(row) for row in rows]

    async def clean_queue(self, application_id: str) -> None:
        """Drop an application's waiting deployments (application.cleanQueues). A running one continues."""
        await self._transport.change("application.cleanQueues", applicationId=application_id)

    async def read_deploy_log(self, dokploy_deployment_id: str, tail: int = 10_000) -> str:
        """Return the last `tail` lines of a deployment's log, even while the deployment runs (deployment.readLogs).

        Raise TooLarge when the lines exceed the size limit of a response.
        """
        fields = {"deploymentId": dokploy_deployment_id, "tail": tail}
        try:
            text = await self._transport.call("GET", "deployment.readLogs", fields)
        except OutcomeUnknown as error:
            raise Unavailable(str(error), evidence=error.evidence) from None
        if not isinstance(text, str):
            raise Unavailable("Dokploy's response contains no log.")
        return text

    def follow_log(self, log_path: str) -> AsyncGenerator[str, None]:
        """Yield the text of a deployment's log from its beginning, as it is written (WebSocket /listen-deployment).

        Raise Unavailable when the connection ends, for any reason.
        """
        return self._transport.follow_log(log_path)

    # -- the server ----------------------------------------------------------------------------------------------------

    async def healthy(self) -> bool:
        """Return whether Dokploy and its database answer (trpc/settings.health). The key is not needed."""
        return await self._transport.healthy()

    async def require_dokploy(self) -> None:
        """Raise NotDokploy unless the server is Dokploy (health). The key and the database are not needed.

        Raise another DokployError when the server does not answer as it should.
        """
        status, body = await self._transport.exchange("GET", "health", {})
        if 300 <= status < 400 or status >= 500:
            decode_response("health", status, body)
        elif status != 200 or decode_error(body).get("ok") is not True:
            raise NotDokploy("The server at DOKPLOY_URL is not Dokploy.")

    async def version(self) -> str:
        """Return Dokploy's version, such as “v0.30.2” (settings.getDokployVersion)."""
        return require_str({"version": await self._shared_query("settings.getDokployVersion")}, "version")

    async def roles(self) -> frozenset[str]:
        """Return the roles of the key's user in all of its organizations (organization.all).

        A role is owner, admin, member or the name of a custom role. Dokploy does not tell to which organization the key
        belongs.
        """
        organizations = require_rows(await self._transport.query("organization.all"))
        return frozenset(
            require_str(member, "role")
            for organization in organizations
            for member in require_rows(organization.get("members"))
        )

    async def require_admin(self) -> None:
        """Raise NotAllowed unless the key acts as an owner or an admin.

        Dokploy's lists leave out what a user with another role may not see, so the portal could neither find nor remove
        its own objects. Once Dokploy has confirmed the role, this makes no call.
        """
        if self._is_admin.is_set():
            return
        roles = await self._share("roles", Dokploy.roles)
        if not (roles <= ADMIN_ROLES or (roles & ADMIN_ROLES and await self._has_admin_procedures())):
            names = ", ".join(sorted(roles)) or "none"
            raise NotAllowed(f"The API key must be an owner's or an admin's. The roles of its user: {names}.")
        self._is_admin.set()

    async def _has_admin_procedures(self) -> bool:
        """Return whether Dokploy lets the key call a procedure that is for owners and admins only."""
        try:
            await self.infrastructure_errors()
        except (KeyExhausted, Refused):
            return False
        return True

    async def builds_concurrency(self) -> int | None:
        """Return how many deployments Dokploy runs at the same time (settings.getWebServerSettings).

        None when Dokploy does not report it. The response also contains private keys, which are not kept.
        """
        settings = require_object(await self._transport.query("settings.getWebServerSettings"))
        value = settings.get("buildsConcurrency")
        return value if type(value) is int else None

    async def infrastructure_errors(self) -> dict[str, str]:
        """Return the errors of Dokploy's own parts, postgres and traefik (settings.checkInfrastructureHealth).

        The error of a healthy part is empty. Raise KeyExhausted when the key's user is not an owner or admin: Dokploy
        then sends the same error as for an exhausted rate limit. Raise UnknownProcedure before Dokploy 0.29.
        """
        response = require_object(await self._transport.query("settings.checkInfrastructureHealth"))
        return {
            name: parse_infrastructure_error(require_object(response.get(name))) for name in ("postgres", "traefik")
        }

    async def engine_error(self) -> str:
        """Return the error of Dokploy's container engine. Empty when there is none or Dokploy does not report it.

        Dokploy checks Traefik by asking the engine, so an error of the engine appears as an error of Traefik.
        """
        try:
            error = (await self.infrastructure_errors())["traefik"]
        except (KeyExhausted, Refused):
            return ""
        return error if is_engine_error(error) else ""

    # -- shared reads --------------------------------------------------------------------------------------------------

    async def _shared_query(self, procedure: str, pause: float = 0.0) -> Json:
        """Return the result of a procedure without fields, called once for all deployments that wait for it."""
        return await self._share(procedure, lambda view: view._transport.query(procedure), pause)

    async def _share(self, name: str, read: Callable[["Dokploy"], Coroutine[Any, Any, T]], pause: float = 0.0) -> T:
        """Return the result of a read that concurrent callers share by its name.

        Each caller records the exchanges of the shared read, and raises its own copy of its error.
        """
        if name not in self._single_flights:
            view = self.for_deployment(lambda procedure: None, lambda exchange: None)
            self._single_flights[name] = SingleFlight(lambda: view._capture(read), pause)
        value: T
        value, error, exchanges = await self._single_flights[name].call()
        for exchange in exchanges:
            self._transport.record_exchange(exchange)
        if error is not None:
            raise copy.copy(error)
        return value

    async def _capture(self, read: Callable[["Dokploy"], Coroutine[Any, Any, T]]) -> SharedResult:
        """Return the result of a read or its error, and the exchanges that the read made."""
        exchanges: list[Exchange] = []
        view = self.for_deployment(lambda procedure: None, exchanges.append)
        try:
            return await read(view), None, exchanges
        except DokployError as error:
            return None, error, exchanges
