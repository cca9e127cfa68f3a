"""Why a request is refused, and the shapes of TEI's error replies."""

from __future__ import annotations

import enum

import orjson
from starlette.responses import Response

OPENAI_PATHS = frozenset({"/v1/embeddings", "/embeddings"})


class ErrorType(enum.Enum):
    """TEI's error types, as on the wire."""

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
        message: for the client.
        error_type: TEI's type.
    """

    def __init__(self, message: str, error_type: ErrorType) -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type

    def response(self, path: str) -> Response:
        """Return the error as the route replies."""
        status = _STATUS[self.error_type]
        if path in OPENAI_PATHS:
            body = {"message": self.message, "code": status, "type": self.error_type.value}
        else:
            body = {"error": self.message, "error_type": self.error_type.value}
        return Response(orjson.dumps(body), status, media_type="application/json")


class PlainRefusal(Exception):
    """A request refused before TEI's own code sees it: text/plain, or no body at all where the message is empty."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def response(self) -> Response:
        """Return the error's response."""
        return Response(self.message, self.status, media_type="text/plain" if self.message else None)


def invalid(message: str) -> Refusal:
    """Return the refusal of an input that breaks a rule."""
    return Refusal(f"Input validation error: {message}", ErrorType.VALIDATION)


def too_long(limit: int, unit: str, length: int) -> Refusal:
    """Return the refusal of a text over a limit, when it may not be truncated."""
    return invalid(f"`inputs` must have less than {limit} {unit}. Given: {length}")


def empty(message: str = "Input validation error: `inputs` cannot be empty") -> Refusal:
    """Return the refusal of an empty input."""
    return Refusal(message, ErrorType.EMPTY)


def overloaded() -> Refusal:
    """Return the refusal for lack of a free permit."""
    return Refusal("Model is overloaded", ErrorType.OVERLOADED)


def backend(message: str) -> Refusal:
    """Return the refusal after a failure of the device."""
    return Refusal(f"Backend error: {message}", ErrorType.BACKEND)


def batch_too_large(size: int, limit: int) -> Refusal:
    """Return the refusal of more inputs than one request may have."""
    message = f"batch size {size} > maximum allowed batch size {limit}"
    return Refusal(message, ErrorType.VALIDATION)
