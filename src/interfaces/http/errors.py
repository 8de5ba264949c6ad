"""What a request is told when it cannot be answered, in the form that OpenAI's clients read."""

from collections.abc import Mapping
from json import dumps
from typing import Any

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error for the client's eyes: a status, and a message with the value and the remedy."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}"""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The body as JSON."""
        return dumps(self.body).encode()


def busy(waiting: int, seconds: int) -> ApiError:
    """429: the queue has no place for another one of this client."""
    return ApiError(
        429,
        f"{waiting} requests are waiting already; try again in {seconds} s",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def stopping() -> ApiError:
    """503: the server ends."""
    return ApiError(
        503, "the server is stopping; try again in a moment", code="stopping", headers={"Retry-After": "10"}
    )


def broken() -> ApiError:
    """503: the model cannot go on."""
    return ApiError(503, "the model cannot go on, so the server ends; it must be started again", code="engine_dead")


def unread() -> ApiError:
    """429: what was written was not fetched."""
    return ApiError(429, "the answer came faster than it was read, and was ended; read it faster", code="not_read")


def late(seconds: float) -> ApiError:
    """503: nothing could be written in a request's time."""
    words = f"no stream became free within {seconds:g} s; try again later"
    return ApiError(503, words, code="timeout", headers={"Retry-After": "10"})
