"""Dokploy's responses: values, errors in REST or tRPC format, and plain text."""

import json
from typing import Any

from .http_server import Response

NOT_FOUND_PAGE = "404: This page could not be found."
ERROR_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    404: "NOT_FOUND",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_SERVER_ERROR",
}
# JSON-RPC 2.0 error numbers as tRPC assigns them to its codes.
TRPC_NUMBERS = {401: -32001, 404: -32004, 500: -32603}
JSON_HEADERS = {"Content-Type": "application/json"}


def json_response(value: Any, status: int = 200) -> Response:
    """Respond as Dokploy's procedures do: chunked, without a character set."""
    return Response(status, JSON_HEADERS, json.dumps(value, ensure_ascii=False).encode())


def empty_response() -> Response:
    """Respond as a procedure that returns nothing: a JSON content type and no body."""
    return Response(200, JSON_HEADERS)


def sized_response(content_type: str, text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Respond with a character set and a length, as Dokploy's other routes and most other servers do."""
    body = text.encode()
    framing = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(body))}
    return Response(status, {**framing, **(headers or {})}, body)


def text_response(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return sized_response("text/plain", text, status, headers)


def unauthorized() -> Response:
    """Respond to a missing or wrong key, to an exhausted rate limit, and while the database is down."""
    return sized_response("application/json", '{"message":"Unauthorized"}', 401)


def error_body(status: int, message: str, procedure: str = "", zod_error: Any = None) -> dict[str, Any]:
    """Return the body of an error. It has `data.path` only if a procedure was found."""
    code = ERROR_CODES[status]
    path = {"path": procedure} if procedure else {}
    data = {"code": code, "httpStatus": status, **path, "zodError": zod_error}
    return {"message": message, "code": code, "data": data}


def error_response(status: int, message: str, procedure: str = "") -> Response:
    return json_response(error_body(status, message, procedure), status)


def trpc_error(status: int, path: str, message: str) -> Response:
    data = {"code": ERROR_CODES[status], "httpStatus": status, "path": path, "zodError": None}
    body = {"message": message, "code": TRPC_NUMBERS[status], "data": data}
    return json_response({"error": {"json": body}}, status)
