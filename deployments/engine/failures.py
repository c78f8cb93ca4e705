"""From a code or a foreign text to what happened, why, and what to do about it. One table: page, JSON and help read it.

The patterns are texts of Docker's daemon and registries (moby/moby, distribution/distribution) and of Dokploy v0.30.2.
"""

import re
from dataclasses import dataclass

from .errors import Failure


@dataclass(frozen=True, slots=True)
class FailureKind:
    """One kind of failure. `pattern` finds it in a deploy's log; `retryable`: the same request may succeed later.

    `operator`: what only who runs the portal can do about it, shown to them alone.
    """

    code: str
    title: str
    what: str
    causes: tuple[str, ...]
    advice: tuple[str, ...]
    pattern: str = ""
    retryable: bool = True
    operator: str = ""


FAILURES = (
    FailureKind(
        "IMAGE_NOT_FOUND",
        "The image does not exist",
        "The registry does not have this image, or does not show it without a login.",
        ("The name or the tag has a typing error.", "The image is private.", "The tag was removed from the registry."),
        ("Check name and tag in the registry.", "For a private image, ask an operator to give the template a login."),
        r"manifest unknown|manifest for .+ not found|pull access denied|repository .+ not found|name unknown",
    ),
    FailureKind(
        "REGISTRY_LOGIN_FAILED",
        "The registry refused the login",
        "The registry did not accept the credentials that this template carries.",
        ("The password or token expired.", "The account may not read this image."),
        ("Ask an operator to renew the template's registry credentials.",),
        r"❌ Login failed|unauthorized: |authentication required|denied: requested access",
        operator="Set the registry's user and password anew in the template; the next deployment takes them along.",
    ),
    FailureKind(
        "REGISTRY_LIMIT",
        "The registry asks for a pause",
        "The registry limits how often images may be pulled, and the limit is reached.",
        ("Too many pulls without a login within a few hours.",),
        ("Try again later.", "An operator can give the template a registry login, which raises the limit."),
        r"toomanyrequests|Too Many Requests|pull rate limit",
    ),
    FailureKind(
        "IMAGE_WRONG_PLATFORM",
        "The image is not made for this server",
        "The image exists, but not for the processor of the server.",
        ("It was built for another architecture (for example only for ARM).",),
        ("Use a tag that is built for this server, or build the image for several platforms.",),
        r"no matching manifest for|does not match the (?:specified|detected) platform|exec format error",
        retryable=False,
    ),
    FailureKind(
        "SERVER_DISK_FULL",
        "The server's disk is full",
        "The image could not be stored, because the server has no space left.",
        ("Old images and logs fill the disk.",),
        ("Ask an operator to free space on the Dokploy server, then try again.",),
        r"no space left on device",
        operator="Free space on the Dokploy server: docker system df shows what uses it.",
    ),
    FailureKind(
        "REGISTRY_UNREACHABLE",
        "The registry cannot be reached",
        "The server could not connect to the image's registry.",
        ("The registry's host name is wrong.", "The registry is down, or the server's network is."),
        ("Check the registry's part of the image's name.", "Try again in some minutes."),
        r"no such host|i/o timeout|connection refused|TLS handshake timeout|Client\.Timeout exceeded|x509: ",
    ),
    FailureKind(
        "ENGINE_UNAVAILABLE",
        "The container engine does not answer",
        "Dokploy is up, but the container engine behind it is not.",
        ("Docker is stopped or restarting on the server.",),
        ("Ask an operator to look at Docker on the Dokploy server, then try again.",),
        r"connect (?:ENOENT|ECONNREFUSED) .*docker|Cannot connect to the Docker daemon",
        operator="Look at Docker on the Dokploy server: systemctl status docker.",
    ),
    FailureKind(
        "ENGINE_REFUSED",
        "The container engine refused the stack",
        "The image is there, but the engine did not accept the service's settings.",
        ("A limit asks for more than the server has.", "A service of that name is left over on the server."),
        ("Show the line below to an operator.",),
        r"\(HTTP code \d{3}\)",
        operator="Compare the template's limits with the server, and look for a leftover service: docker service ls.",
    ),
    FailureKind(
        "IMAGE_PULL_FAILED",
        "The image could not be pulled",
        "Dokploy could not pull the image; the log says no more than that.",
        ("The image does not exist, is private, or the registry is down.",),
        ("Check name and tag of the image, then try again.",),
        r"❌ Pulling image failed",
    ),
    FailureKind(
        "DEPLOY_FAILED",
        "Dokploy could not deploy it",
        "Dokploy ended the deployment with an error.",
        ("The log below says why.",),
        ("Read the last lines of the log, or show them to an operator.",),
    ),
    FailureKind(
        "DEPLOY_LOST",
        "Dokploy lost the deployment",
        "Dokploy accepted the deployment several times and forgot it each time.",
        ("Dokploy was restarted again and again.",),
        ("Ask an operator to look at the Dokploy server, then try again.",),
        operator="Dokploy keeps its queue in memory: find out why it restarts, in docker service logs dokploy.",
    ),
    FailureKind(
        "HEALTH_NO_ANSWER",
        "The stack does not answer",
        "Everything was set up, but the stack itself did not answer at its address in time.",
        (
            "The program in the container ends or crashes at its start.",
            "It listens on another port than the template says.",
            "It needs longer to start than the template allows.",
        ),
        ("Read the stack's own log at Dokploy.", "Check the template's port and the time it allows for the start."),
    ),
    FailureKind(
        "NOT_REPLACED",
        "The new version did not take over",
        "The address answers, but it is still the version before: the new one did not take its place in time.",
        (
            "The program of the new version ends or crashes at its start.",
            "It needs longer to start, or the one before to stop, than the template allows.",
        ),
        ("Read the stack's own log at Dokploy.", "Check what was changed: the image, and the answers in the form."),
    ),
    FailureKind(
        "HEALTH_NO_DNS",
        "The address does not resolve",
        "The stack's host name is not known in the DNS.",
        ("There is no wildcard record for the domain.", "The record is new and not yet everywhere."),
        ("Ask an operator to add a wildcard DNS record that points to the Dokploy server.",),
        operator="Add a wildcard record for STACK_DOMAIN_SUFFIX that leads to the Dokploy server.",
    ),
    FailureKind(
        "HEALTH_NO_CONNECTION",
        "The router cannot be reached",
        "The host name resolves, but nothing accepts connections there.",
        ("The DNS record points to the wrong server.", "A firewall blocks the port.", "Traefik is down."),
        ("Ask an operator to check the DNS record, the firewall and Traefik.",),
        operator="Check the wildcard record, ports 80 and 443 of the server, and dokploy-traefik.",
    ),
    FailureKind(
        "HEALTH_NO_CERTIFICATE",
        "The certificate was not issued",
        "The router answers, but without a valid certificate for this address.",
        ("Let's Encrypt could not reach the server on port 80.", "Its rate limit is reached.", "The DNS is too new."),
        ("Try again in some minutes.", "An operator finds the reason in Traefik's log."),
        operator="Traefik's log names the reason: docker service logs dokploy-traefik.",
    ),
    FailureKind(
        "ADDRESS_REFUSED",
        "The address leads to a private network",
        "The stack's host name resolves to an address that the portal does not connect to.",
        ("The DNS points to a private, loopback or reserved address.",),
        ("An operator can name the router's address in STACK_ROUTER_ADDRESS if that is meant.",),
        retryable=False,
    ),
    FailureKind(
        "NAME_IN_USE_AT_DOKPLOY",
        "Dokploy already has a project of that name",
        "A project of this name exists at Dokploy and was not made by this portal. It was not touched.",
        ("Somebody made it by hand.", "Another portal uses the same Dokploy server."),
        ("Choose another name.",),
        retryable=False,
        operator="The project lacks this portal's mark. Rename or remove it at Dokploy to free the name.",
    ),
    FailureKind(
        "LEFTOVER_AT_DOKPLOY",
        "Dokploy still has an earlier project of that name",
        "A project of this name, which the portal made for another stack, is at Dokploy. It was not touched.",
        ("Dokploy made it long after the portal had given up on it.", "The portal's database is from a backup."),
        ("Ask an operator to remove it, then try again. Or choose another name.",),
        operator="Within minutes it is among the orphans in the admin panel: remove it there, and the name is free.",
    ),
    FailureKind(
        "CONTAINER_LEFT_AT_DOKPLOY",
        "A container was left running",
        "Dokploy has removed the application, and its container still runs.",
        ("Docker on Dokploy's host did not answer while the application was removed.",),
        ("Ask an operator to end it, then try again.",),
        operator="End it on Dokploy's host: docker service rm, and the name in the message. Then try again.",
    ),
    FailureKind(
        "HOST_IN_USE_AT_DOKPLOY",
        "Dokploy already serves this address",
        "Another application at Dokploy has this host name. It was not touched.",
        ("Somebody added the domain by hand.",),
        ("Choose another name.",),
        retryable=False,
        operator="Remove the domain from the other application at Dokploy to free the address.",
    ),
    FailureKind(
        "MARK_CHANGED_AT_DOKPLOY",
        "Its mark at Dokploy was changed",
        "What the portal made for this stack does not carry its mark any more, so it is not touched on a guess.",
        ("Somebody changed its description at Dokploy by hand.",),
        ("Ask an operator to put the mark back, or to remove it at Dokploy. Then try again.",),
        operator="Put the mark back into the description at Dokploy, or remove the object there. Then try again.",
    ),
    FailureKind(
        "DOKPLOY_UNAVAILABLE",
        "Dokploy cannot be reached",
        "The Dokploy server did not answer for so long that the portal gave up.",
        ("The server or its network is down.", "Dokploy or its database is restarting."),
        ("Try again in some minutes.", "Tell an operator if it stays so."),
        operator="manage.py check --tag dokploy says what does not answer: the network, Dokploy, or its database.",
    ),
    FailureKind(
        "DOKPLOY_UNCLEAR",
        "Dokploy's answers make no sense",
        "Dokploy answered, but so that the portal could not tell what it did, several times in a row.",
        ("A proxy in between answers in Dokploy's place.", "Dokploy has an error of its own."),
        ("Try again in some minutes.", "Show the line below to an operator."),
        operator="Look for a proxy in front of Dokploy, and into its log: docker service logs dokploy.",
    ),
    FailureKind(
        "DOKPLOY_NOT_FOUND",
        "Something vanished at Dokploy",
        "An object that this deployment made is no longer there.",
        ("Somebody deleted it at Dokploy by hand.",),
        ("Start over.",),
        operator="Somebody or something deletes at Dokploy what the portal made: its audit log or its people know.",
    ),
    FailureKind(
        "DOKPLOY_REFUSED",
        "Dokploy refused a setting",
        "Dokploy did not accept what the portal asked for.",
        ("The portal's key may not do this.", "A setting of the template does not fit this version of Dokploy."),
        ("Show the line below to an operator.",),
        retryable=False,
        operator="The line of evidence names the setting; compare it with the template.",
    ),
    FailureKind(
        "DOKPLOY_NOT_ALLOWED",
        "The portal may not do that at Dokploy",
        "Dokploy does not let the portal do this. That is not your fault, and nothing of yours is wrong.",
        ("The portal's key at Dokploy lacks a permission.",),
        ("Tell an operator: only they can give the portal a key that may.",),
        retryable=False,
        operator="Make the key as an owner or admin: a member's loses access to what it makes. Set DOKPLOY_API_KEY.",
    ),
    FailureKind(
        "DOKPLOY_TOO_OLD",
        "The Dokploy server has to be updated",
        "The Dokploy server is of a version that the portal does not work with, so nothing was made on it.",
        ("It has not been updated for a while.",),
        ("Tell an operator, and try again once it is updated.",),
        retryable=False,
        operator="Update Dokploy; manage.py check --tag dokploy names the oldest version that will do, and why.",
    ),
    FailureKind(
        "DOKPLOY_KEY_REFUSED",
        "Dokploy refuses the portal's key",
        "The portal could not sign in to Dokploy.",
        ("The key was revoked.", "The key has a rate limit, and it is used up."),
        ("An operator makes a new key at Dokploy with rateLimitEnabled:false and sets DOKPLOY_API_KEY.",),
        operator="Make a key as an owner or admin, with rateLimitEnabled:false, and set DOKPLOY_API_KEY.",
    ),
    FailureKind(
        "DOKPLOY_ADDRESS_WRONG",
        "That is not Dokploy",
        "What answers at the configured address is not Dokploy's API.",
        ("DOKPLOY_URL is wrong, or leads to a redirect.",),
        ("An operator sets DOKPLOY_URL to Dokploy's own address.",),
        retryable=False,
        operator="Set DOKPLOY_URL to Dokploy's own address; manage.py check --tag dokploy tries it.",
    ),
    FailureKind(
        "TIMEOUT",
        "It took too long",
        "A phase did not end within its limit.",
        ("A deployment hangs at Dokploy, this one or one in front of it.", "Dokploy or the registry is very slow."),
        ("Ask an operator to end what hangs at Dokploy, then try again.", "If nothing hangs there, just try again."),
        operator=(
            "What Dokploy calls “running” for so long only its restart cancels: docker service update --force dokploy. "
            "Then try again. If it is only slow, raise DOKPLOY_DEPLOY_SECONDS."
        ),
    ),
    FailureKind(
        "CANCELLED",
        "Cancelled",
        "The deployment was cancelled.",
        ("Somebody asked for it.",),
        ("Start over whenever you like.",),
    ),
    FailureKind(
        "DEPLOYMENT_FAILED",
        "The portal itself failed",
        "An error in the portal's own code ended this deployment.",
        ("This is the portal's fault, not yours.",),
        ("Try again.", "Tell an operator: the portal's log has the details."),
        operator="The portal's log has the trace; please report it.",
    ),
    FailureKind(
        "SECRET_UNREADABLE",
        "A stored secret cannot be read",
        "A secret that this deployment needs was encrypted with a key that the portal no longer has.",
        ("ENCRYPTION_KEYS was changed, and the former key was left out.",),
        ("An operator adds the former key to ENCRYPTION_KEYS.", "Or start over, and type the secrets again."),
        retryable=False,
        operator="Add the former key to ENCRYPTION_KEYS, behind the new one, then run manage.py rotate_secrets.",
    ),
    FailureKind(
        "TOO_MANY_CRASHES",
        "The portal gave up",
        "The portal was stopped in the middle of this deployment again and again.",
        ("The machine of the portal runs out of memory or restarts often.",),
        ("Tell an operator, then try again.",),
        operator="Look at the memory of the portal's machine, and at who restarts it; its log may say more.",
    ),
)
BY_CODE = {entry.code: entry for entry in FAILURES}
_IN_LOG = [(re.compile(entry.pattern, re.IGNORECASE), entry) for entry in FAILURES if entry.pattern]


def get_failure(code: str) -> FailureKind:
    """The entry of a code; an unknown code reads as a failure of the portal itself."""
    return BY_CODE.get(code, BY_CODE["DEPLOYMENT_FAILED"])


def from_log(log: str) -> Failure:
    """Why a deploy failed, read from its log. The evidence is the line that says so."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    for pattern, entry in _IN_LOG:
        for line in reversed(lines):
            if pattern.search(line):
                return Failure(entry.code, entry.what, evidence=line[:300], retryable=entry.retryable)
    entry = BY_CODE["DEPLOY_FAILED"]
    return Failure(entry.code, entry.what, evidence=lines[-1][:300] if lines else "")
