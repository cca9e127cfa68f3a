"""Why a request is refused, and the four shapes in which TEI says so."""

from __future__ import annotations

import enum

import orjson
from starlette.responses import Response

OPENAI_PATHS = frozenset({"/v1/embeddings", "/embeddings"})


class ErrorType(enum.Enum):
    """TEI's error types, as they stand on the wire."""

    UNHEALTHY = "Unhealthy"
    BACKEND = "Backend"
    OVERLOADED = "Overloaded"
    VALIDATION = "Validation"
    TOKENIZER = "Tokenizer"
    EMPTY = "Empty"


_STATUS = {
    ErrorType.UNHEALTHY: 503,
    ErrorType.BACKEND: 424,
    ErrorType.OVERLOADED: 429,
    ErrorType.VALIDATION: 422,
    ErrorType.TOKENIZER: 422,
    ErrorType.EMPTY: 400,
}


class Refusal(Exception):
    """A request's error.

    Args:
        message: what the client reads.
        error_type: TEI's type.
        cause: the label of `te_request_failure`.
    """

    def __init__(self, message: str, error_type: ErrorType, cause: str) -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type
        self.cause = cause

    def response(self, path: str, *, is_old: bool) -> Response:
        """Renders the error as the route does."""
        error_type, status = self.error_type, _STATUS[self.error_type]
        if is_old and error_type in (ErrorType.VALIDATION, ErrorType.EMPTY):
            error_type, status = ErrorType.VALIDATION, 413
        if path in OPENAI_PATHS:
            body = {"message": self.message, "code": status, "type": error_type.value}
        else:
            body = {"error": self.message, "error_type": error_type.value}
        return Response(orjson.dumps(body), status, media_type="application/json")


class PlainRefusal(Exception):
    """A request refused before TEI's own code sees it: text/plain, or no body at all where the message is empty."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def response(self) -> Response:
        """Renders the error."""
        return Response(self.message, self.status, media_type="text/plain" if self.message else None)


def invalid(message: str) -> Refusal:
    """An input that breaks a rule."""
    return Refusal(f"Input validation error: {message}", ErrorType.VALIDATION, "validation")


def empty(message: str = "Input validation error: `inputs` cannot be empty") -> Refusal:
    """An input without a character."""
    return Refusal(message, ErrorType.EMPTY, "validation")


def overloaded() -> Refusal:
    """No permit is free."""
    return Refusal("Model is overloaded", ErrorType.OVERLOADED, "overloaded")


def backend(message: str) -> Refusal:
    """The device failed."""
    return Refusal(f"Backend error: {message}", ErrorType.BACKEND, "inference")


def batch_too_large(size: int, limit: int) -> Refusal:
    """More inputs than one request may have."""
    message = f"batch size {size} > maximum allowed batch size {limit}"
    return Refusal(message, ErrorType.VALIDATION, "batch_size")
