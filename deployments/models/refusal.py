class Refusal(Exception):
    """A refused request, with a sentence for the user and a code for scripts.

    field: the form field or parameter at fault. retry_after: seconds until the same request may be accepted.
    """

    STATUS = {
        "INVALID_NAME": 400,
        "INVALID_JSON": 400,
        "INVALID_PARAMETER": 400,
        "NOT_SIGNED_IN": 401,
        "FORBIDDEN": 403,
        "NOT_FOUND": 404,
        "NAME_TAKEN": 409,
        "BUSY": 409,
        "CONFLICT": 409,
        "TOO_LARGE": 413,
        "UNSUPPORTED": 415,
        "QUOTA": 429,
        "PAUSED": 503,
    }

    def __init__(self, code: str, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field, self.retry_after = code, message, field, retry_after

    @property
    def status(self) -> int:
        return self.STATUS[self.code]
