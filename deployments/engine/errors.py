"""The engine's exceptions: the class says what the caller can do, the message is a sentence for the user."""


class DokployError(Exception):
    """A call to Dokploy failed.

    `code` identifies the failure kind, `permanent` means that repeating the call cannot help, and `evidence` is one
    line from Dokploy or the network library.
    """

    permanent = False
    code = "DOKPLOY_ERROR"

    def __init__(self, message: str, *, evidence: str = "") -> None:
        super().__init__(message)
        self.evidence = evidence


class Unavailable(DokployError):
    """Nothing was done, because Dokploy cannot be reached or cannot answer now. Wait, then try again."""

    code = "DOKPLOY_UNAVAILABLE"


class KeyExhausted(Unavailable):
    """The key is valid but was refused.

    Either its rate limit was reached during the call, or the procedure is for owners and admins only. Dokploy sends the
    same response for both.
    """


class OutcomeUnknown(DokployError):
    """The change may or may not have been made. Read Dokploy's state before anything else."""

    code = "DOKPLOY_UNCLEAR"


class Refused(DokployError):
    """Dokploy refused the request, and nothing was done. The same request will always be refused."""

    permanent = True
    code = "DOKPLOY_REFUSED"


class KeyRefused(Refused):
    """Dokploy refuses the key: it is invalid, or its rate limit is reached."""

    code = "DOKPLOY_KEY_REFUSED"


class NotAllowed(Refused):
    """The key is valid but lacks the permission."""

    code = "DOKPLOY_NOT_ALLOWED"


class NotDokploy(Refused):
    """The server at DOKPLOY_URL is not Dokploy."""

    code = "DOKPLOY_ADDRESS_WRONG"


class UnknownProcedure(NotDokploy):
    """Dokploy does not have the procedure: its version differs from the one that the portal was made for."""

    code = "DOKPLOY_TOO_OLD"


class TooLarge(Refused):
    """The response to a read exceeds the size limit, and would do so again."""


class NotFound(DokployError):
    """The object does not exist, or it was created so recently that Dokploy does not find it yet."""

    code = "DOKPLOY_NOT_FOUND"


class Failure(Exception):
    """The reason why a phase failed.

    `code` is stable and upper-case, for scripts. `message` is for the user. `evidence` is one line from another
    program. `retryable` means that the same request may succeed later.
    """

    phase = ""
    """The phase that failed, set by the orchestrator."""

    def __init__(self, code: str, message: str, *, evidence: str = "", retryable: bool = True) -> None:
        super().__init__(message)
        self.code, self.message, self.evidence, self.retryable = code, message, evidence, retryable

    @classmethod
    def of(cls, error: DokployError) -> "Failure":
        """Return the failure for an error of the Dokploy client."""
        return cls(error.code, str(error), evidence=error.evidence, retryable=not error.permanent)


class Interrupted(Exception):
    """The deployment must stop here, without another report or change. Raised by a report or before a change."""


class Cancelled(Interrupted):
    """A user cancelled the deployment. It must stop here, and everything that it created is to be removed."""
