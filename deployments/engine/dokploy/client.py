"""Dokploy's HTTP API: one method per procedure, one place where HTTP becomes decode_response (`decode_response`).

Facts are those of Dokploy v0.30.2. Every call is bounded in time and size; the key goes to one origin only.
"""

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx

from ..errors import (
    DokployError,
    KeyExhausted,
    KeyRefused,
    NotAllowed,
    NotAllowedOrUnknown,
    NotDokploy,
    NotFound,
    OutcomeUnknown,
    Refused,
    TooLarge,
    Unavailable,
    UnknownProcedure,
)
from . import log_stream
from .throttle import RateLimiter, SingleFlight

CALL_SECONDS = 8.0  # below the lease, so that a dead worker's last request is over before its successor looks
MAX_BYTES = 8 * 1024 * 1024
SECOND_TRY_SECONDS = 2.0
FOREIGN_APPLICATIONS = 100  # looked through for a host in use; each is a call
QUEUE_PAUSE_SECONDS = 0.25  # between two looks at the queue, however many runs wait in it
# How an engine that is gone, or that is in no state to run services, is worded: Node's errors and Docker's 5xx.
NO_ENGINE = re.compile(r"(connect|read|write|getaddrinfo) E|socket hang up|\(HTTP code 5")
_SECRET_FIELDS = frozenset({"env", "password", "username", "buildArgs", "buildSecrets"})
_SERVICES = ("applications", "mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql")

Json = Any
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    name: str
    description: str
    created_at: str
    application_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Application:
    id: str
    name: str
    app_name: str
    description: str
    created_at: str


@dataclass(frozen=True, slots=True)
class SavedConfig:
    """What an application would be deployed from. Of its row, which holds secrets besides, nothing else is kept."""

    source: str
    image: str
    env: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Environment:
    id: str
    is_default: bool
    applications: tuple[Application, ...]
    services: int
    """How many services of every kind it holds, applications included."""


@dataclass(frozen=True, slots=True)
class Domain:
    id: str
    host: str
    path: str
    port: int | None
    https: bool
    certificate_type: str


@dataclass(frozen=True, slots=True)
class DokployDeployment:
    """One row of deployment.all: a deploy that has started. status: running, done, error, cancelled."""

    id: str
    title: str
    status: str
    log_path: str = ""
    """The file of its log at Dokploy. A later deploy of the same application in the same second overwrites it."""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One entry of the queue: a deploy that waits or runs. state: waiting, active."""

    application_id: str | None
    title: str
    state: str
    timestamp: int
    """When it was queued, in milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    state: str
    status: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request for the run's log, secrets masked. status 0: no answer."""

    at: float
    method: str
    procedure: str
    fields: Mapping[str, Any]
    status: int
    milliseconds: int

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        fields = json.dumps(self.fields, ensure_ascii=False) if self.fields else ""
        answer = str(self.status) if self.status else "no answer"
        return f"{at} {self.method} {self.procedure} {fields} -> {answer}, {self.milliseconds} ms".replace("  ", " ")


class Dokploy:
    """A client with one shared pool. `for_run` gives a run its own view on the same pool."""

    def __init__(self, url: str, key: str, *, connections: int = 20, calls_per_second: float = 0) -> None:
        """calls_per_second: the key's budget, which all clients of a process with this key share; 0 for none."""
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._http = httpx.AsyncClient(
            verify=self._tls,
            base_url=url.rstrip("/"),
            headers={"x-api-key": key, "accept": "application/json", "accept-encoding": "identity"},
            # Half of it for getting a connection: that must end before the whole does, for then nothing was sent.
            timeout=httpx.Timeout(CALL_SECONDS, connect=CALL_SECONDS / 2, pool=CALL_SECONDS / 2),
            # Dokploy closes an idle connection after five seconds: do not reuse one that is about to be closed.
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=3.0),
            follow_redirects=False,
            trust_env=False,
        )
        self._key = key
        # Waiting for a turn here, and not for a connection in the pool: a call's time begins when it can be sent, and
        # the pool's work grows with the square of what waits in it.
        self._turns = asyncio.Semaphore(connections)
        self._budget = RateLimiter.of_key(url, key, calls_per_second)
        self._single_flights: dict[str, SingleFlight[tuple[Any, DokployError | None, list[Exchange]]]] = {}
        self._queue_pause = QUEUE_PAUSE_SECONDS
        self._guard: Callable[[str], None] = lambda procedure: None
        self._record: Callable[[Exchange], None] = lambda exchange: None

    async def aclose(self) -> None:
        for single_flight in self._single_flights.values():
            single_flight.close()
        await self._http.aclose()

    def for_run(self, guard: Callable[[str], None], record: Callable[[Exchange], None]) -> "Dokploy":
        """The same client, calling `guard` with the procedure right before each call that changes something (it may
        raise Interrupted) and `record` after each exchange."""
        view = copy.copy(self)
        view._guard, view._record = guard, record
        return view

    # -- procedures ------------------------------------------------------------------------------------------------

    async def healthy(self) -> bool:
        """Whether Dokploy and its database answer; needs no key."""
        try:
            status, _ = await self._exchange("GET", "trpc/settings.health", {})
        except DokployError:
            return False
        return status == 200

    async def version(self) -> str:
        return _text({"version": await self._query_for_all("settings.getDokployVersion")}, "version")

    async def hosts_of_others(self, own: str) -> frozenset[str]:
        """The hosts, in lower case, of what is in projects whose description does not begin with `own`: of
        FOREIGN_APPLICATIONS at most, for each is a call. However many runs ask at a time, it is found out once."""

        async def find(alone: Dokploy) -> frozenset[str]:
            others = [one for one in await alone.projects() if not one.description.startswith(own)]
            ids = [id for project in others for id in project.application_ids][:FOREIGN_APPLICATIONS]
            found = await asyncio.gather(*(alone.domains(id) for id in ids))
            return frozenset(domain.host.lower() for domains in found for domain in domains)

        return await self._once_for_all(f"hosts besides {own}", find)

    async def projects(self) -> list[Project]:
        return [_project(row) for row in _rows(await self._query_for_all("project.all"))]

    async def create_project(self, name: str, description: str) -> Project:
        answer = await self._change("project.create", name=name, description=description)
        return _created(lambda: _project(_object(_object(answer)["project"])))

    async def remove_project(self, project_id: str) -> None:
        """Removes rows only: services keep running. Remove every service first."""
        await self._change("project.remove", projectId=project_id)

    async def environments(self, project_id: str) -> list[Environment]:
        """Oldest first, with their services. Empty for an unknown project."""
        return [_environment(row) for row in _rows(await self._query("environment.byProjectId", projectId=project_id))]

    async def create_application(self, environment_id: str, name: str, description: str) -> Application:
        """Makes an application of an image (not of a repository, which is Dokploy's default)."""
        answer = await self._change(
            "application.create",
            name=name,
            appName=name,
            environmentId=environment_id,
            description=description,
            sourceType="docker",
        )
        return _created(lambda: _application(_object(answer)))

    async def save_image(
        self, application_id: str, image: str, registry: str = "", username: str = "", password: str = ""
    ) -> None:
        await self._save(
            "application.saveDockerProvider",
            applicationId=application_id,
            dockerImage=image,
            username=username or None,
            password=password or None,
            registryUrl=registry or None,
        )

    async def save_environment(self, application_id: str, env: str) -> None:
        """Replaces the whole text of environment variables."""
        await self._save(
            "application.saveEnvironment",
            applicationId=application_id,
            env=env,
            buildArgs=None,
            buildSecrets=None,
            createEnvFile=False,
        )

    async def save_limits(self, application_id: str, memory_bytes: int | None, cpus: float | None) -> None:
        await self._save(
            "application.update",
            applicationId=application_id,
            memoryLimit=None if memory_bytes is None else str(memory_bytes),
            cpuLimit=None if cpus is None else str(int(cpus * 1_000_000_000)),
        )

    async def saved(self, application_id: str) -> SavedConfig:
        """What was saved last; what runs may be older."""
        row = _object(await self._query("application.one", applicationId=application_id))
        return SavedConfig(*(_optional_str(row, key) or "" for key in ("sourceType", "dockerImage", "env")))

    async def deploy(self, application_id: str, title: str) -> None:
        """Puts a deploy into Dokploy's queue. No id comes back: the title is the only handle."""
        await self._change("application.deploy", applicationId=application_id, title=title)

    async def dokploy_deployments(self, application_id: str) -> list[DokployDeployment]:
        """The deploys that have started, newest first, at most eleven. Empty for an unknown application."""
        rows = _rows(await self._query("deployment.all", applicationId=application_id))
        return [
            DokployDeployment(
                _text(row, "deploymentId"),
                _text(row, "title"),
                _text(row, "status"),
                _optional_str(row, "logPath") or "",
            )
            for row in rows
        ]

    async def queue(self) -> list[QueueEntry]:
        """All waiting and active jobs of the instance, other people's too: show a count, never a title."""
        jobs = []
        for row in _rows(await self._query_for_all("deployment.queueList")):
            data = _object(row.get("data"))
            at = row.get("timestamp")
            job = QueueEntry(
                _optional_str(data, "applicationId"), _optional_str(data, "titleLog") or "", _text(row, "state"), 0
            )
            jobs.append(replace(job, timestamp=at) if isinstance(at, int) else job)
        return jobs

    async def read_deploy_log(self, deployment_id: str, tail: int = 10_000) -> str:
        """The last `tail` lines of a deploy's log, also while it runs. Raises TooLarge where they are."""
        try:
            text = await self._call("GET", "deployment.readLogs", {"deploymentId": deployment_id, "tail": tail})
        except OutcomeUnknown as error:
            raise Unavailable(str(error), evidence=error.evidence) from None
        if not isinstance(text, str):
            raise Unavailable("Dokploy's log cannot be read: its answer is no text.")
        return text

    def follow_log(self, log_path: str) -> AsyncGenerator[str, None]:
        """The text of a log from its start on, as it is written. However that ends, it raises Unavailable."""
        return log_stream.follow(
            self._http.base_url, self._key, log_path, tls=self._tls, seconds=CALL_SECONDS, most=MAX_BYTES
        )

    async def is_there(self, kind: str, id: str) -> bool:
        """Whether a project or an application is there, asked by its id. Lists leave out what the key may not see;
        asked by its id, Dokploy says so (NotAllowed)."""
        try:
            await self._query(f"{kind}.one", **{f"{kind}Id": id})
        except NotFound:
            return False
        return True

    async def clean_queue(self, application_id: str) -> None:
        """Drops the waiting jobs of this application; a running one goes on."""
        await self._change("application.cleanQueues", applicationId=application_id)

    async def containers(self, app_name: str) -> list[Container]:
        """Empty when there are none and also when the engine could not be asked.

        Dokploy goes by how the name begins, which may be another's too: Docker calls a task <service>.<slot>.<id>.
        """
        rows = _rows(await self._query("docker.getContainersByAppNameMatch", appName=app_name))
        found = (
            Container(
                _optional_str(row, "name") or "", _optional_str(row, "state") or "", _optional_str(row, "status") or ""
            )
            for row in rows
        )
        return [container for container in found if container.name.startswith(f"{app_name}.")]

    async def create_domain(
        self, application_id: str, host: str, port: int, *, https: bool, certificate_type: str
    ) -> Domain:
        """All fields are sent: the port would default to 3000, and without domainType access is not checked."""
        answer = await self._change(
            "domain.create",
            applicationId=application_id,
            host=host,
            path="/",
            port=port,
            https=https,
            certificateType=certificate_type,
            domainType="application",
        )
        return _created(lambda: _domain(_object(answer)))

    async def update_domain(self, domain_id: str, host: str, port: int, *, https: bool, certificate_type: str) -> None:
        await self._save(
            "domain.update", domainId=domain_id, host=host, port=port, https=https, certificateType=certificate_type
        )

    async def domains(self, application_id: str) -> list[Domain]:
        rows = _rows(await self._query("domain.byApplicationId", applicationId=application_id))
        return [_domain(row) for row in rows]

    async def delete_domain(self, domain_id: str) -> None:
        await self._change("domain.delete", domainId=domain_id)

    async def delete_application(self, application_id: str) -> None:
        """Answers well even if the clean-up failed; never to be called while a deploy of it runs."""
        await self._change("application.delete", applicationId=application_id)

    async def verify_key(self) -> None:
        """Raises unless it is Dokploy that answers, with or without its database; needs no key."""
        status, body = await self._exchange("GET", "health", {})
        if 300 <= status < 400 or status >= 500:
            decode_response("health", status, body)
        elif status != 200 or _error_body(body).get("ok") is not True:
            raise NotDokploy("What answers at DOKPLOY_URL is not Dokploy.")

    async def roles(self) -> frozenset[str]:
        """What the key's user is in its organizations: owner, admin, member, or a role that somebody named. In which of
        them the key acts is not said."""
        organizations = _rows(await self._query("organization.all"))
        return frozenset(_text(row, "role") for one in organizations for row in _rows(one.get("members")))

    async def builds_concurrency(self) -> int | None:
        """How many deploys run at a time; None where Dokploy does not say. The answer holds private keys besides, so
        that nothing else of it is kept."""
        value = _object(await self._query("settings.getWebServerSettings")).get("buildsConcurrency")
        return value if type(value) is int else None

    async def engine_error(self) -> str:
        """What is wrong with Dokploy's container engine, as far as Dokploy says with this key and in this version."""
        try:
            said = (await self.infrastructure())["traefik"]
        except (KeyExhausted, Refused):
            return ""
        return said if NO_ENGINE.match(said) else ""

    async def infrastructure(self) -> dict[str, str]:
        """What is wrong with Dokploy's own postgres and traefik, as the engine tells it; "" for what is well. It is for
        owners and admins (KeyExhausted), and not known to Dokploy before 0.29 (NotDokploy)."""
        answer = _object(await self._query("settings.checkInfrastructureHealth"))
        parts = {name: _object(answer.get(name)) for name in ("postgres", "traefik")}
        return {
            name: "" if _text(part, "status") == "healthy" else _one_line(_optional_str(part, "message") or "unhealthy")
            for name, part in parts.items()
        }

    # -- the wire --------------------------------------------------------------------------------------------------

    async def _query(self, procedure: str, **fields: Any) -> Json:
        try:
            return await self._call("GET", procedure, fields)
        except (OutcomeUnknown, TooLarge) as error:  # a question leaves nothing behind: ask again
            raise Unavailable(str(error), evidence=error.evidence) from None

    async def _query_for_all(self, procedure: str) -> Json:
        """A question without fields: however many runs ask it at a time, it is asked once."""
        pause = self._queue_pause if procedure == "deployment.queueList" else 0.0
        return await self._once_for_all(procedure, lambda alone: alone._query(procedure), pause)

    async def _once_for_all(
        self, what: str, ask: Callable[["Dokploy"], Coroutine[Any, Any, T]], pause: float = 0.0
    ) -> T:
        if what not in self._single_flights:
            nobodys = self.for_run(lambda procedure: None, lambda exchange: None)
            self._single_flights[what] = SingleFlight(lambda: nobodys._ask(ask), pause)
        value: T
        value, error, exchanges = await self._single_flights[what].answer()
        for exchange in exchanges:
            self._record(exchange)
        if error is not None:
            raise copy.copy(error)
        return value

    async def _ask(
        self, ask: Callable[["Dokploy"], Coroutine[Any, Any, T]]
    ) -> tuple[T | None, DokployError | None, list[Exchange]]:
        exchanges: list[Exchange] = []
        try:
            return await ask(self.for_run(self._guard, exchanges.append)), None, exchanges
        except DokployError as error:
            return None, error, exchanges

    async def _change(self, procedure: str, **fields: Any) -> Json:
        return await self._call("POST", procedure, fields)

    async def _save(self, procedure: str, **fields: Any) -> None:
        """A change that says `true`, or what it changed. Nothing at all is a proxy's word."""
        if await self._change(procedure, **fields) is None:
            raise OutcomeUnknown("Dokploy answered without saying that it saved.")

    async def _call(self, method: str, procedure: str, fields: dict[str, Any]) -> Json:
        status, body = await self._exchange(method, procedure, fields)
        if _is_bare_401(status, body):
            # A wrong key, a used-up rate limit and a database that is down look the same; the change was not made.
            if not await self.healthy():
                raise Unavailable("Dokploy answers, but its database does not.")
            await asyncio.sleep(SECOND_TRY_SECONDS)
            status, body = await self._exchange(method, procedure, fields)
        try:
            return decode_response(procedure, status, body.replace(self._key.encode(), b"***") if self._key else body)
        except DokployError as error:
            if any(fields.get(name) for name in _SECRET_FIELDS):  # an error may repeat what was sent
                error.evidence = ""
            raise

    async def _exchange(self, method: str, procedure: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """Send one request and read its whole answer.

        Raise Unavailable when it was not sent, OutcomeUnknown when it may have been.
        """
        async with self._turns:
            await self._budget.spend()
            sending = self._send(method, procedure, fields)
            return await (_uninterrupted(sending) if method == "POST" else sending)

    async def _send(self, method: str, procedure: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        change = method == "POST"
        if change:
            self._guard(procedure)
        began, status = time.monotonic(), 0
        try:
            async with asyncio.timeout(CALL_SECONDS):
                request = self._http.build_request(
                    method,
                    f"/api/{procedure}",
                    params=None if change else fields,
                    json=fields if change else None,
                )
                response = await self._http.send(request, stream=True)
                try:
                    body = bytearray()
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > MAX_BYTES:
                            raise (OutcomeUnknown if change else TooLarge)("Dokploy's answer is too large to be one.")
                    status = response.status_code
                    return status, bytes(body)
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unavailable("Dokploy cannot be reached.", evidence=_one_line(error)) from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):  # its text may quote the key
            raise NotDokploy("The request cannot be sent: check DOKPLOY_URL and DOKPLOY_API_KEY.") from None
        except (httpx.HTTPError, TimeoutError) as error:
            slow = isinstance(error, (TimeoutError, httpx.TimeoutException))
            text = f"Dokploy did not answer within {CALL_SECONDS:.0f} s." if slow else "Dokploy broke off its answer."
            raise OutcomeUnknown(text, evidence=_one_line(error)) from None
        finally:
            masked = {key: "***" if key in _SECRET_FIELDS and value else value for key, value in fields.items()}
            took = round((time.monotonic() - began) * 1000)
            self._record(Exchange(time.time(), method, procedure, masked, status, took))


async def _uninterrupted(act: Coroutine[Any, Any, T]) -> T:
    """Awaits it. Who is cancelled meanwhile goes on when it has ended: a look after that sees what it did."""
    task = asyncio.ensure_future(act)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)


def decode_response(procedure: str, status: int, body: bytes) -> Json:
    """What an answer means: the value, or one of the errors. The one place that knows Dokploy's statuses."""
    if 200 <= status < 300:
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):  # its text stays out of it: rows hold variables
            raise OutcomeUnknown("Dokploy's answer cannot be read.") from None
    if 300 <= status < 400:
        raise NotDokploy("The address of Dokploy leads elsewhere (a redirect). Give its final address in DOKPLOY_URL.")
    said = _error_body(body)
    text = said.get("message") if isinstance(said.get("message"), str) else ""
    data = said.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    evidence = "" if "Failed query" in str(text) else _one_line(str(text))  # SQL with values: for nobody's eyes
    if status == 401 and not path:
        raise KeyRefused(
            "Dokploy refuses the portal's key, or the key is rate-limited. Make one with rateLimitEnabled:false."
        )
    if status == 401 and text == "UNAUTHORIZED":
        raise KeyExhausted("The portal's key at Dokploy ran into its rate limit.")
    if status in (401, 403):
        raise NotAllowed(f"The portal's key may not do this at Dokploy ({procedure}).", evidence=evidence)
    if status == 404 and said.get("code") == "NOT_FOUND" and not path:
        raise UnknownProcedure(f"This Dokploy does not know {procedure}, which the portal needs.", evidence=procedure)
    if status == 404 and not path:
        raise NotDokploy("What answers at DOKPLOY_URL does not know Dokploy's procedures.", evidence=procedure)
    if status == 404:
        raise NotFound(f"Dokploy does not find what {procedure} asks for.", evidence=evidence)
    if status == 400 and (said.get("issues") or body.strip() == b"Invalid JSON"):
        raise Refused("Dokploy does not accept a setting of this stack.", evidence=_issue(said) or evidence)
    if status in (413, 415):
        raise Refused("Dokploy does not accept the request.", evidence=evidence)
    if status == 429:
        raise Unavailable("Dokploy asks for a pause (too many requests).")
    if status == 400 and "unauthorized" in str(text):
        raise NotAllowedOrUnknown(
            f"Dokploy says that the portal's key may not do this ({procedure}).", evidence=evidence
        )
    # Any other 4xx or 5xx may have been answered after the work was done (project.create wraps every error in a 400).
    raise OutcomeUnknown(f"Dokploy answered {status} to {procedure}.", evidence=evidence)


def _is_bare_401(status: int, body: bytes) -> bool:
    return status == 401 and "data" not in _error_body(body)


def _error_body(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _issue(said: dict[str, Any]) -> str:
    """The first version_error of a validation error, with its field."""
    issues = said.get("issues")
    first = issues[0] if isinstance(issues, list) and issues else None
    if not isinstance(first, dict):
        return ""
    path = first.get("path")
    field = ".".join(str(part) for part in path) if isinstance(path, list) else ""
    return _one_line(f"{field}: {first.get('message', '')}")


def _one_line(text: object, limit: int = 200) -> str:
    return " ".join(str(text).split())[:limit]


# -- answers, checked where they enter ---------------------------------------------------------------------------------


def _created(parse: Callable[[], T]) -> T:
    """A create that was answered well but without what was made: whether it was made is unclear."""
    try:
        return parse()
    except (Unavailable, KeyError):
        raise OutcomeUnknown("Dokploy answered without saying what it made.") from None


def _object(value: Json) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unavailable("Dokploy's answer has an unexpected shape.")
    return value


def _rows(value: Json) -> Iterable[dict[str, Any]]:
    if not isinstance(value, list):
        raise Unavailable("Dokploy's answer has an unexpected shape.")
    return [_object(row) for row in value]


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise Unavailable(f"Dokploy's answer lacks {key}.")
    return value


def _optional_str(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    return value if isinstance(value, str) else None


def _project(row: dict[str, Any]) -> Project:
    environments = row.get("environments") or []
    applications = [app for environment in _rows(environments) for app in _rows(environment.get("applications") or [])]
    return Project(
        _text(row, "projectId"),
        _text(row, "name"),
        _optional_str(row, "description") or "",
        _optional_str(row, "createdAt") or "",
        tuple(_text(application, "applicationId") for application in applications),
    )


def _application(row: dict[str, Any]) -> Application:
    return Application(
        _text(row, "applicationId"),
        _text(row, "name"),
        _text(row, "appName"),
        _optional_str(row, "description") or "",
        _optional_str(row, "createdAt") or "",
    )


def _environment(row: dict[str, Any]) -> Environment:
    services = [service for kind in _SERVICES for service in _rows(row.get(kind) or [])]
    return Environment(
        _text(row, "environmentId"),
        row.get("isDefault") is True,
        tuple(_application(entry) for entry in _rows(row.get("applications") or [])),
        len(services),
    )


def _domain(row: dict[str, Any]) -> Domain:
    port = row.get("port")
    return Domain(
        _text(row, "domainId"),
        _text(row, "host"),
        _optional_str(row, "path") or "/",
        port if isinstance(port, int) else None,
        row.get("https") is True,
        _optional_str(row, "certificateType") or "none",
    )
