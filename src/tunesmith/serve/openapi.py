"""The OpenAPI document of the routes, written by hand after ``shapes``."""

from __future__ import annotations

from typing import Any

from tunesmith import __version__
from tunesmith.serve.plan import Limits
from tunesmith.serve.shapes import LONGEST_STOP, MOST_LIKELIEST, MOST_MESSAGES, MOST_STOPS

Schema = dict[str, Any]
_EVENT: Schema = {
    "description": "one event of the stream; its data is JSON, that of the last one [DONE]",
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
_ERRORS = {
    400: "the request asks for what cannot be done",
    401: "no key, or a wrong one",
    404: "no such model",
    408: "the body took too long",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests wait",
    500: "something went wrong",
    503: "out of memory, or being stopped",
    504: "the answer took too long",
}


def document(models: list[str], limits: Limits, vocabulary: int) -> Schema:
    """Return the document for the models that are served."""
    text = _text(models, limits, vocabulary)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tunesmith", "version": __version__},
        "security": [{"key": []}],
        "paths": {
            "/v1/models": {"get": _get("models", "Models that are served.")},
            "/v1/models/{model}": {
                "get": {
                    **_get("model", "One model."),
                    "parameters": [
                        {"name": "model", "in": "path", "required": True,
                         "schema": {"type": "string", "enum": models}}
                    ],
                }
            },
            "/v1/chat/completions": {
                "post": _post("chat", "Answer a conversation.", _chat(models, limits))
            },
            "/v1/completions": {
                "post": _post("completions", "Go on with a text.", text)
            },
            "/health": {"get": _get("health", "Whether the server can answer.")},
            "/metrics": {"get": _get("metrics", "Counters for Prometheus.", "text/plain")},
            "/openapi.json": {"get": _get("openapi", "This document.")},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _error()},
        },
    }  # fmt: skip


def _get(name: str, summary: str, kind: str = "application/json") -> Schema:
    schema = {"type": "string"} if kind == "text/plain" else {"type": "object"}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": schema}}},
            **_failures(401, 404, 500, 503),
        },
    }


def _post(name: str, summary: str, body: Schema) -> Schema:
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "done",
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/event-stream": {"schema": _EVENT},
                },
            },
            **_failures(*_ERRORS),
        },
    }


def _failures(*statuses: int) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(s): {"description": _ERRORS[s], "content": content} for s in statuses}


def _error() -> Schema:
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": text,
                    "code": text,
                },
            }
        },
    }


def _number(kind: str = "integer", **bounds: float) -> Schema:
    return {"type": [kind, "null"], **bounds}


def _shared(models: list[str], limits: Limits) -> Schema:
    stop = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
    options = {"include_usage": {"type": ["boolean", "null"]}}
    return {
        "model": {"type": "string", "enum": models},
        "temperature": _number("number", minimum=0, maximum=2),
        "top_p": _number("number", exclusiveMinimum=0, maximum=1),
        "top_k": _number(minimum=0, maximum=2**31 - 1),
        "min_p": _number("number", minimum=0, exclusiveMaximum=1),
        "n": _number(minimum=1, maximum=limits.choices),
        "seed": _number(minimum=-(2**63), maximum=2**63 - 1),
        "stop": {
            "anyOf": [stop, {"type": "array", "items": stop, "maxItems": MOST_STOPS},
                      {"type": "null"}]
        },
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "type": ["object", "null"], "properties": options, "additionalProperties": False
        },
        "user": {"type": ["string", "null"], "maxLength": 256},
    }  # fmt: skip


def _chat(models: list[str], limits: Limits) -> Schema:
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "additionalProperties": False,
    }
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": part, "minItems": 1}]
            },
        },
        "additionalProperties": False,
    }
    limit = _number(minimum=1, maximum=limits.max_new_tokens)
    return {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            **_shared(models, limits),
            "messages": {
                "type": "array", "items": message, "minItems": 1, "maxItems": MOST_MESSAGES
            },
            "max_tokens": limit,
            "max_completion_tokens": limit,
            "logprobs": {"type": ["boolean", "null"]},
            "top_logprobs": _number(minimum=0, maximum=MOST_LIKELIEST),
        },
        "additionalProperties": False,
        "allOf": [
            _STREAMED,
            {"anyOf": [_null("max_tokens"), _null("max_completion_tokens")]},
            {"anyOf": [_null("top_logprobs"), _true("logprobs")]},
        ],
    }  # fmt: skip


def _text(models: list[str], limits: Limits, vocabulary: int) -> Schema:
    token = {"type": "integer", "minimum": 0, "maximum": vocabulary - 1}
    ids = {"type": "array", "items": token, "minItems": 1}
    text = {"type": "string", "minLength": 1}
    several = {"type": "array", "items": {"anyOf": [text, ids]}, "minItems": 1,
               "maxItems": limits.choices}  # fmt: skip
    return {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            **_shared(models, limits),
            "prompt": {"anyOf": [text, ids, several]},
            "max_tokens": _number(minimum=0, maximum=limits.max_new_tokens),
            "echo": {"type": ["boolean", "null"]},
            "logprobs": _number(minimum=0, maximum=MOST_LIKELIEST),
        },
        "additionalProperties": False,
        "allOf": [
            _STREAMED,
            {"anyOf": [{"properties": {"max_tokens": _number(minimum=1)}}, _true("echo")]},
            {"anyOf": [_not_true("echo"), _null("logprobs"), _not_true("stream")]},
            {"anyOf": [{"properties": {"prompt": {"anyOf": [text, ids]}}}, _null("n")]},
        ],
    }


def _null(name: str) -> Schema:
    return {"properties": {name: {"type": "null"}}}


def _true(name: str) -> Schema:
    return {"properties": {name: {"const": True}}, "required": [name]}


def _not_true(name: str) -> Schema:
    return {"properties": {name: {"enum": [False, None]}}}


_STREAMED = {"anyOf": [_null("stream_options"), _true("stream")]}
