"""Domains. A route is written only when its domain changes, not when other rows change later."""

import re

from ..server import DokployServer
from ..store import Row, new_id, now, pick
from ..zod import Field
from .registry import (
    NULLABLE_TEXT,
    OPTIONAL_FLAG,
    OPTIONAL_TEXT,
    TEXT,
    Refusal,
    failed_insert,
    mutation,
    query,
    require,
)

DOMAIN_COLUMNS = (
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
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def host_error(host: str) -> str | None:
    """Return Dokploy's message if a host name is not valid."""
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


DOMAIN_FIELDS: dict[str, Field] = {
    "host": Field(minimum=1, rule=host_error, messages={"too_small": "Add a hostname"}),
    "applicationId": NULLABLE_TEXT,
    "composeId": NULLABLE_TEXT,
    "serviceName": NULLABLE_TEXT,
    "domainType": Field(presence="optional", nullable=True, options=("compose", "application", "preview")),
    "https": OPTIONAL_FLAG,
    "certificateType": Field(presence="optional", options=("letsencrypt", "none", "custom")),
    "port": Field(
        "number",
        "optional",
        minimum=1,
        maximum=65535,
        messages={"too_small": "Port must be at least 1", "too_big": "Port must be 65535 or below"},
    ),
    "path": OPTIONAL_TEXT,
    "internalPath": NULLABLE_TEXT,
    "stripPath": OPTIONAL_FLAG,
    "middlewares": Field("any", "optional"),
    "customCertResolver": NULLABLE_TEXT,
    "customEntrypoint": NULLABLE_TEXT,
    "enabled": OPTIONAL_FLAG,
}


@mutation("domain.create", **DOMAIN_FIELDS)
def create_domain(server: DokployServer, given: Row) -> object:
    values: Row = {"domainId": new_id(), "createdAt": now(), **given}
    application_id = given.get("applicationId")
    if application_id is not None and application_id not in server.store.applications:
        raise Refusal(400, failed_insert("domain", DOMAIN_COLUMNS, values))
    domain = {
        **dict.fromkeys(DOMAIN_COLUMNS),
        **DOMAIN_DEFAULTS,
        **values,
        "uniqueConfigKey": server.store.next_config_key(),
    }
    server.store.domains.put(domain["domainId"], domain)
    write_route(server, domain)
    return domain


@query("domain.byApplicationId", applicationId=TEXT)
def list_domains(server: DokployServer, given: Row) -> object:
    rows = server.store.domains.where(applicationId=given["applicationId"])
    return [with_application(server, row) for row in rows]


@mutation("domain.update", domainId=TEXT, **DOMAIN_FIELDS)
def update_domain(server: DokployServer, given: Row) -> object:
    domain = server.store.domains.put(given["domainId"], {**require_domain(server, given), **given})
    write_route(server, domain)
    return domain


@mutation("domain.delete", domainId=TEXT)
def delete_domain(server: DokployServer, given: Row) -> object:
    domain = require_domain(server, given)
    server.store.routes.drop(domain["domainId"])
    return server.store.domains.drop(domain["domainId"])


def require_domain(server: DokployServer, given: Row) -> Row:
    return require(server.store.domains.get(given["domainId"]), "Domain")


def with_application(server: DokployServer, domain: Row) -> Row:
    application = server.store.applications.get(domain["applicationId"] or "")
    columns = ("applicationId", "appName", "name")
    return {**domain, "application": pick(application, *columns) if application else None}


def write_route(server: DokployServer, domain: Row) -> None:
    application = server.store.applications.get(domain["applicationId"] or "")
    if application is None or not domain["enabled"]:
        server.store.routes.drop(domain["domainId"])
        return
    route = {**pick(domain, "domainId", "host", "path"), "appName": application["appName"]}
    server.store.routes.put(domain["domainId"], {**route, "path": domain["path"] or "/"})
