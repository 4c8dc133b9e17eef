"""Refusals: errors as a status and a body in OpenAI's shape, or in Anthropic's."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from edgelm.errors import ContextLengthError, DoesNotFitError, EdgeLMError, UsageError


class Refusal(EdgeLMError):
    """A request that is not served.

    Args:
        status: HTTP's. code, param: OpenAI's, for programs.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @classmethod
    def of(cls, error: EdgeLMError) -> Refusal:
        """What a client is told of an error of the model's calls."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, ContextLengthError):
            return cls(400, str(error), "context_length_exceeded")
        if isinstance(error, UsageError):
            return cls(400, str(error))
        if isinstance(error, DoesNotFitError):
            return cls(503, str(error), "out_of_memory")
        return cls(500, str(error))

    def body(self, anthropic: bool = False) -> dict[str, Any]:
        """The JSON document."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else _INVALID)
        if anthropic:
            kind = "api_error" if kind == "server_error" else kind
            return {"type": "error", "error": {"type": kind, "message": str(self)}}
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self, anthropic: bool = False) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.body(anthropic), self.status, headers)


_INVALID = "invalid_request_error"
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
