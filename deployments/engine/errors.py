"""What can go wrong, named for what the caller can do about it. Texts are sentences for the person who reads them."""


class DokployError(Exception):
    """An answer of Dokploy's, or none. `permanent`: trying again is of no use."""

    permanent = False
    code = "DOKPLOY_ERROR"

    def __init__(self, message: str, *, evidence: str = "") -> None:
        super().__init__(message)
        self.evidence = evidence


class Unavailable(DokployError):
    """Nothing was done, because Dokploy cannot be asked just now. Wait, then try again."""

    code = "DOKPLOY_UNAVAILABLE"


class KeyExhausted(Unavailable):
    """The key was good, and then it was not: its rate limit ran out in the middle of a call, or what was asked is for
    owners and admins only. Dokploy says the same to both."""


class OutcomeUnknown(DokployError):
    """It may have been done, or not. Look before anything else."""

    code = "DOKPLOY_UNCLEAR"


class NotAllowedOrUnknown(OutcomeUnknown):
    """Dokploy says that the key may not make this, in an error that it also gives for what it has made."""

    code = "DOKPLOY_NOT_ALLOWED"


class Refused(DokployError):
    """Dokploy said no, for good; nothing was done."""

    permanent = True
    code = "DOKPLOY_REFUSED"


class KeyRefused(Refused):
    code = "DOKPLOY_KEY_REFUSED"


class NotAllowed(Refused):
    """The key is good, and may not do this."""

    code = "DOKPLOY_NOT_ALLOWED"


class NotDokploy(Refused):
    code = "DOKPLOY_ADDRESS_WRONG"


class UnknownProcedure(NotDokploy):
    """Dokploy answers, and does not know the procedure: it is another version than the portal was made for."""

    code = "DOKPLOY_TOO_OLD"


class TooLarge(Refused):
    """The answer to a question is larger than is read. It will not be smaller the next time."""


class NotFound(DokployError):
    """The object is not there (or not yet, right after it was made)."""

    code = "DOKPLOY_NOT_FOUND"


class Failure(Exception):
    """Why a phase failed, for the person and for scripts.

    code: stable, upper-case; evidence: one line of foreign text, masked; retryable: the same request may succeed later.
    """

    phase = ""
    """Which phase it was; the orchestrator fills it in."""

    def __init__(self, code: str, message: str, *, evidence: str = "", retryable: bool = True) -> None:
        super().__init__(message)
        self.code, self.message, self.evidence, self.retryable = code, message, evidence, retryable

    @classmethod
    def of(cls, error: DokployError) -> "Failure":
        return cls(error.code, str(error), evidence=error.evidence, retryable=not error.permanent)


class Interrupted(Exception):
    """Raised out of a report or right before a call: somebody wants this run to stop here, at once, writing nothing."""


class Cancelled(Interrupted):
    """The same because the person asked for it: what was made is to be undone."""
