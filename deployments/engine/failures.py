"""The table of failures: what happened, why, and what to do about it. Pages, the API and the help read this table.

The patterns match messages of Docker's daemon and registries (moby/moby, distribution/distribution) and of Dokploy
v0.30.2.
"""

import re
from dataclasses import dataclass

from .errors import Failure


@dataclass(frozen=True, slots=True)
class FailureKind:
    """One kind of failure.

    `text` says what happened. `advice` is for all users, `operator` is further advice for operators only. `pattern` is
    a regular expression that finds the failure in a deploy log, ignoring case. `retryable` means that the same request
    may succeed later.
    """

    code: str
    title: str
    text: str
    causes: tuple[str, ...]
    advice: tuple[str, ...]
    pattern: str = ""
    retryable: bool = True
    operator: str = ""


# The order matters: when several patterns match a log, the first of them in this table decides. Put a specific pattern
# before a general one.
FAILURES = (
    FailureKind(
        "IMAGE_NOT_FOUND",
        "The image was not found",
        "The registry does not have this image, or requires a login for it.",
        ("The image's name or tag contains a typo.", "The image is private.", "The tag was deleted from the registry."),
        (
            "Check the image's name and tag in the registry.",
            "For a private image, ask an operator to add registry credentials to the template.",
        ),
        r"manifest unknown|manifest for .+ not found|pull access denied|repository .+ not found|name unknown",
    ),
    FailureKind(
        "REGISTRY_LOGIN_FAILED",
        "The registry refused the login",
        "The registry rejected the credentials of this template.",
        ("The password or token has expired.", "The account does not have permission to pull this image."),
        ("Ask an operator to update the template's registry credentials.",),
        r"❌ Login failed|unauthorized: |authentication required|denied: requested access",
        operator="Enter the registry's user name and password in the template again. The next deployment uses them.",
    ),
    FailureKind(
        "REGISTRY_LIMIT",
        "The registry's rate limit is reached",
        "The registry limits how often images may be pulled, and this limit is reached.",
        ("Too many images were pulled without a login within a few hours.",),
        ("Try again later.", "An operator can add registry credentials to the template, which raises the limit."),
        r"toomanyrequests|Too Many Requests|pull rate limit",
    ),
    FailureKind(
        "IMAGE_WRONG_PLATFORM",
        "The image does not run on this server",
        "The image exists, but not for the server's processor architecture.",
        ("The image was built for another architecture, for example only for ARM.",),
        ("Use a tag that is built for this server, or build the image for several platforms.",),
        r"no matching manifest for|does not match the (?:specified|detected) platform|exec format error",
        retryable=False,
    ),
    FailureKind(
        "SERVER_DISK_FULL",
        "The server's disk is full",
        "The server has no space left to store the image.",
        ("Old images and logs fill the disk.",),
        ("Ask an operator to free space on the Dokploy server, then try again.",),
        r"no space left on device",
        operator="Free space on the Dokploy server. “docker system df” shows what uses it.",
    ),
    FailureKind(
        "REGISTRY_UNREACHABLE",
        "The registry cannot be reached",
        "The server could not connect to the image's registry.",
        (
            "The registry host in the image's name is wrong.",
            "The registry is down, or the server has a network problem.",
        ),
        ("Check the registry host in the image's name.", "Try again in a few minutes."),
        r"no such host|i/o timeout|connection refused|TLS handshake timeout|Client\.Timeout exceeded|x509: ",
    ),
    FailureKind(
        "ENGINE_UNAVAILABLE",
        "The container engine does not answer",
        "Dokploy is running, but its container engine does not answer.",
        ("Docker is stopped or restarting on the server.",),
        ("Ask an operator to check Docker on the Dokploy server, then try again.",),
        r"connect (?:ENOENT|ECONNREFUSED) .*docker|Cannot connect to the Docker daemon",
        operator="Check Docker on the Dokploy server: systemctl status docker.",
    ),
    FailureKind(
        "ENGINE_REFUSED",
        "The container engine refused the stack",
        "The image was pulled, but the container engine rejected the settings of the service.",
        ("A limit is higher than what the server has.", "A service of the same name was left on the server."),
        ("Copy the report and send it to an operator.",),
        r"\(HTTP code \d{3}\)",
        operator="Compare the template's limits with the server, and check for a leftover service: docker service ls.",
    ),
    FailureKind(
        "IMAGE_PULL_FAILED",
        "The image could not be pulled",
        "Dokploy could not pull the image. The log does not give a reason.",
        ("The image does not exist or is private, or the registry is down.",),
        ("Check the image's name and tag, then try again.",),
        r"❌ Pulling image failed",
    ),
    FailureKind(
        "DEPLOY_FAILED",
        "Dokploy could not deploy the stack",
        "Dokploy ended the deployment with an error.",
        ("The end of the deploy log gives the reason.",),
        ("Read the last lines of the log, or copy the report and send it to an operator.",),
    ),
    FailureKind(
        "DEPLOY_LOST",
        "Dokploy lost the deployment",
        "Dokploy accepted the deployment several times and lost it each time.",
        ("Dokploy was restarted repeatedly.",),
        ("Ask an operator to check the Dokploy server, then try again.",),
        operator="Dokploy keeps its queue in memory. Find out why it restarts: docker service logs dokploy.",
    ),
    FailureKind(
        "HEALTH_NO_ANSWER",
        "The stack does not answer",
        "Everything was set up, but the stack did not answer at its address in time.",
        (
            "The program in the container exits or crashes when it starts.",
            "The program listens on a port other than the template's.",
            "The program takes longer to start than the template allows.",
        ),
        ("Read the stack's own log in Dokploy.", "Check the template's port and its time limit for the health check."),
    ),
    FailureKind(
        "CONTAINER_CRASHED",
        "The program ended",
        "The program in the container ended repeatedly after it was started.",
        ("A setting that the program needs is missing or wrong.", "A service that the program needs does not answer."),
        ("Read the program's last lines in the phase “Checking health”.", "Check the settings in the form."),
    ),
    FailureKind(
        "ROLLED_BACK",
        "The new version did not start",
        "The new version ended soon after it was started, so Docker went back to the previous version.",
        ("A setting that the program needs is missing or wrong.", "The new image has a fault."),
        (
            "Read the program's last lines in the phase “Checking health”.",
            "Check what was changed: image and settings.",
        ),
    ),
    FailureKind(
        "NOTHING_LISTENS",
        "Nothing listens on the port",
        "The program is running, but nothing in its container listens on the template's port.",
        ("The program listens on another port.", "The program takes longer to start than the template allows."),
        ("Ask an operator to check the template's port.",),
        operator="Compare the template's port with the port on which the image's program listens.",
    ),
    FailureKind(
        "REMOVED_AT_DOKPLOY",
        "The application was removed in Dokploy",
        "The application was removed in Dokploy while its health was checked.",
        ("Somebody removed the application or its project in Dokploy.",),
        ("Deploy again.",),
        operator="Find out who removed it. A removed project leaves its containers behind: docker service ls.",
    ),
    FailureKind(
        "NOT_REPLACED",
        "The new version did not take over",
        "The previous version still answers at the address. The new version did not replace it in time.",
        (
            "The new version exits or crashes when it starts.",
            "The new version starts, or the previous version stops, more slowly than the template allows.",
        ),
        ("Read the stack's own log in Dokploy.", "Check what was changed: the image, and the settings in the form."),
    ),
    FailureKind(
        "HEALTH_NO_DNS",
        "The address does not resolve",
        "The stack's host name is not in the DNS.",
        ("The domain has no wildcard DNS record.", "The record is new and has not reached all name servers yet."),
        ("Ask an operator to add a wildcard DNS record that points to the Dokploy server.",),
        operator="Add a wildcard DNS record for STACK_DOMAIN_SUFFIX that points to the Dokploy server.",
    ),
    FailureKind(
        "HEALTH_NO_CONNECTION",
        "The router cannot be reached",
        "The host name resolves, but no server accepts connections at its address.",
        ("The DNS record points to the wrong server.", "A firewall blocks the port.", "The router (Traefik) is down."),
        ("Ask an operator to check the DNS record, the firewall and the router (Traefik).",),
        operator="Check the wildcard DNS record, ports 80 and 443 of the server, and Traefik (dokploy-traefik).",
    ),
    FailureKind(
        "HEALTH_NO_CERTIFICATE",
        "The certificate was not issued",
        "The router answers, but has no valid certificate for this address.",
        (
            "Let's Encrypt could not reach the server on port 80.",
            "The rate limit of Let's Encrypt is reached.",
            "The DNS record is too new.",
        ),
        ("Try again in a few minutes.", "If it keeps happening, ask an operator to read Traefik's log."),
        operator="Traefik's log gives the reason: docker logs dokploy-traefik.",
    ),
    FailureKind(
        "ADDRESS_REFUSED",
        "The address is in a private network",
        "The stack's host name resolves to an address that is not public, so the portal does not connect to it.",
        ("The DNS record points to a private, loopback or reserved address.",),
        ("If this is intended, ask an operator to set STACK_ROUTER_ADDRESS to the router's address.",),
        retryable=False,
    ),
    FailureKind(
        "NAME_IN_USE_AT_DOKPLOY",
        "Dokploy already has a project of this name",
        "Dokploy has a project of this name that this portal did not create. The project was not changed.",
        ("A user created the project in Dokploy.", "Another portal uses the same Dokploy server."),
        ("Choose another name.",),
        retryable=False,
        operator="The project lacks this portal's mark. Rename or remove it in Dokploy to free the name.",
    ),
    FailureKind(
        "LEFTOVER_AT_DOKPLOY",
        "Dokploy still has an earlier project of this name",
        "Dokploy has a project of this name that this portal created for another stack. The project was not changed.",
        (
            "Dokploy created the project long after the portal had stopped waiting for it.",
            "The portal's database was restored from a backup.",
        ),
        ("Ask an operator to remove the project, then try again. Or choose another name.",),
        operator="Within minutes, the admin lists the project as an orphan. Remove it there to free the name.",
    ),
    FailureKind(
        "CONTAINER_LEFT_AT_DOKPLOY",
        "A container is still running",
        "Dokploy removed the application, but its container is still running.",
        ("Docker on Dokploy's host did not answer while the application was removed.",),
        ("Ask an operator to stop the container, then try again.",),
        operator="On Dokploy's host, run “docker service rm” with the name in the message. Then try again.",
    ),
    FailureKind(
        "HOST_IN_USE_AT_DOKPLOY",
        "Dokploy already serves this address",
        "Another application at Dokploy has this host name. That application was not changed.",
        ("A user added the domain in Dokploy.",),
        ("Choose another name.",),
        retryable=False,
        operator="Remove the domain from the other application in Dokploy to free the address.",
    ),
    FailureKind(
        "MARK_CHANGED_AT_DOKPLOY",
        "The portal's mark was changed in Dokploy",
        "An object of this stack no longer carries the portal's mark, so the portal does not touch it.",
        ("A user changed the object's description in Dokploy.",),
        ("Ask an operator to restore the mark or to remove the object in Dokploy, then try again.",),
        operator="Put the mark back into the object's description in Dokploy, or remove the object. Then try again.",
    ),
    FailureKind(
        "DOKPLOY_UNAVAILABLE",
        "Dokploy cannot be reached",
        "The Dokploy server did not answer for a long time, so the portal stopped trying.",
        ("The server or its network is down.", "Dokploy or its database is restarting."),
        ("Try again in a few minutes.", "If it keeps happening, tell an operator."),
        operator="“manage.py check --tag dokploy” shows what does not answer: the network, Dokploy or its database.",
    ),
    FailureKind(
        "DOKPLOY_UNCLEAR",
        "Dokploy's answers are unclear",
        "Several times in a row, Dokploy's answer did not show whether Dokploy had made the change.",
        ("A proxy answers in place of Dokploy.", "Dokploy has an internal error."),
        ("Try again in a few minutes.", "If it keeps happening, copy the report and send it to an operator."),
        operator="Check for a proxy in front of Dokploy, and read Dokploy's log: docker service logs dokploy.",
    ),
    FailureKind(
        "DOKPLOY_NOT_FOUND",
        "An object disappeared from Dokploy",
        "An object that this deployment created no longer exists.",
        ("A user deleted the object in Dokploy.",),
        ("Deploy again.",),
        operator="A user or a program deletes the portal's objects in Dokploy. Dokploy's audit log may show who.",
    ),
    FailureKind(
        "DOKPLOY_REFUSED",
        "Dokploy rejected a setting",
        "Dokploy rejected a request of the portal.",
        ("The portal's key lacks a permission.", "A setting of the template does not fit this version of Dokploy."),
        ("Copy the report and send it to an operator.",),
        retryable=False,
        operator="The evidence names the setting. Compare it with the template.",
    ),
    FailureKind(
        "DOKPLOY_NOT_ALLOWED",
        "The portal lacks a permission in Dokploy",
        "Dokploy does not allow the portal to do this. Your settings are not the cause.",
        ("The portal's key for Dokploy lacks a permission.",),
        ("Tell an operator: only an operator can give the portal another key.",),
        retryable=False,
        operator=(
            "Create a key as an owner or admin, because a member's key loses access to the objects that it creates. "
            "Then set DOKPLOY_API_KEY."
        ),
    ),
    FailureKind(
        "DOKPLOY_TOO_OLD",
        "The Dokploy server must be updated",
        "The portal does not support this version of Dokploy.",
        ("Dokploy has not been updated for a while.",),
        ("Tell an operator, and try again after the update.",),
        retryable=False,
        operator="Update Dokploy. “manage.py check --tag dokploy” shows the oldest supported version and the reason.",
    ),
    FailureKind(
        "DOKPLOY_KEY_REFUSED",
        "Dokploy rejects the portal's key",
        "The portal could not sign in to Dokploy.",
        ("The key was revoked.", "The key has a rate limit, and the limit is reached."),
        ("Tell an operator: the portal needs a new key for Dokploy.",),
        operator="Create a key as an owner or admin, with rateLimitEnabled:false, and set DOKPLOY_API_KEY.",
    ),
    FailureKind(
        "DOKPLOY_ADDRESS_WRONG",
        "The server is not Dokploy",
        "The server at the configured address does not have Dokploy's API.",
        ("DOKPLOY_URL is wrong, or leads to a redirect.",),
        ("Tell an operator: DOKPLOY_URL must be Dokploy's own address.",),
        retryable=False,
        operator="Set DOKPLOY_URL to Dokploy's own address, and test it with “manage.py check --tag dokploy”.",
    ),
    FailureKind(
        "TIMEOUT",
        "A phase took too long",
        "A phase did not end within its time limit.",
        (
            "A deployment hangs at Dokploy: this one, or one ahead of it in the queue.",
            "Dokploy or the registry is very slow.",
        ),
        (
            "Ask an operator to end the deployment that hangs at Dokploy, then try again.",
            "If no deployment hangs there, try again.",
        ),
        operator=(
            "If a deployment hangs as “running”, only a restart of Dokploy cancels it: docker service update --force "
            "dokploy. Then try again. If Dokploy is only slow, raise DOKPLOY_DEPLOY_SECONDS."
        ),
    ),
    FailureKind(
        "CANCELLED",
        "Cancelled",
        "The deployment was cancelled.",
        ("A user cancelled it.",),
        ("Deploy again whenever you like.",),
    ),
    FailureKind(
        "DEPLOYMENT_FAILED",
        "The portal had an internal error",
        "An error in the portal's own code ended this deployment.",
        ("This is a bug in the portal. Your settings are not the cause.",),
        ("Try again.", "If it keeps happening, tell an operator: the portal's log has the details."),
        operator="The portal's log contains the traceback. Please report it.",
    ),
    FailureKind(
        "SECRET_UNREADABLE",
        "A stored secret cannot be decrypted",
        "A secret of this deployment was encrypted with a key that the portal no longer has.",
        ("ENCRYPTION_KEYS was changed, and a previous key was left out.",),
        (
            "Ask an operator to add the previous key to ENCRYPTION_KEYS.",
            "Or deploy again, and enter the secrets again.",
        ),
        retryable=False,
        operator="Add the previous key to ENCRYPTION_KEYS after the new one, then run “manage.py rotate_secrets”.",
    ),
    FailureKind(
        "TOO_MANY_CRASHES",
        "The portal stopped too often",
        "The portal stopped several times during this deployment and does not continue it.",
        ("The portal's machine runs out of memory or restarts often.",),
        ("Tell an operator, then try again.",),
        operator="Check the memory of the portal's machine, and why it restarts. The portal's log may show more.",
    ),
)
BY_CODE = {failure_kind.code: failure_kind for failure_kind in FAILURES}
_LOG_PATTERNS = [
    (re.compile(failure_kind.pattern, re.IGNORECASE), failure_kind) for failure_kind in FAILURES if failure_kind.pattern
]


def get(code: str) -> FailureKind:
    """Return the kind of failure with this code. An unknown code counts as an internal error of the portal."""
    return BY_CODE.get(code, BY_CODE["DEPLOYMENT_FAILED"])


def failure(code: str, *, phase: str = "", evidence: str = "") -> Failure:
    """Return the failure of this kind, with the table's text."""
    kind = BY_CODE[code]
    result = Failure(code, kind.text, evidence=evidence, retryable=kind.retryable)
    result.phase = phase
    return result


def from_log(log: str) -> Failure:
    """Return the failure that a deploy log describes, with the last line that matches its pattern as the evidence.

    When no pattern matches, return DEPLOY_FAILED with the last line of the log.
    """
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    for pattern, failure_kind in _LOG_PATTERNS:
        for line in reversed(lines):
            if pattern.search(line):
                return failure(failure_kind.code, evidence=line[:300])
    return failure("DEPLOY_FAILED", evidence=lines[-1][:300] if lines else "")
