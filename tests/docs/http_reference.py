"""The reference page of the HTTP API, from the OpenAPI description of the service."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from tests.docs.markdown_text import BOUNDS, HEAD, cell, number_in_words, page, plain, table, value_in_words

_METHODS: Final = ("get", "post", "patch", "delete")


def http_page(openapi: dict[str, Any]) -> str:
    schemas = openapi["components"]["schemas"]
    parts = []
    for path, methods in openapi["paths"].items():
        parts += [_operation(method, path, methods[method]) for method in _METHODS if method in methods]
    named = {**schemas, **{each["title"]: each for each in _schemas_of_bodies(openapi)}}
    objects = [_object(name, schema) for name, schema in sorted(named.items()) if "properties" in schema]
    return page(
        "HTTP API",
        "The service describes itself: `/docs` shows every route, and `/openapi.json` is the same for programs. Errors "
        "are problem documents (RFC 9457); [Errors](errors.md) lists them. `scope` is the least scope of the caller's "
        "token. A service without tokens asks nobody for one.",
        "## Routes",
        *parts,
        "## Objects",
        *objects,
    )


def _schemas_of_bodies(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that stand in a route instead of among the components."""
    routes = [route for methods in openapi["paths"].values() for route in methods.values()]
    bodies = [content for route in routes for content in route.get("requestBody", {}).get("content", {}).values()]
    return [found for each in bodies for found in _objects_in(each.get("schema", {}))]


def _objects_in(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "properties" in schema:
        yield schema
    inner = [schema["items"]] if "items" in schema else schema.get("properties", {}).values()
    for part in inner:
        yield from _objects_in(part)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    scopes = [scope for each in operation.get("security", ()) for scope in each.get("token", ())]
    body = operation.get("requestBody", {}).get("content", {})
    answers = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
    lines = [
        f"### `{method.upper()} {path}`",
        plain(operation.get("description") or operation["summary"]),
        f"- Scope: {', '.join(f'`{each}`' for each in scopes) or 'none; anybody may ask'}",
    ]
    parameters = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
    lines += [
        f"- Query `{each['name']}`: {cell(each.get('description') or each['schema'].get('description', ''))}"
        for each in parameters
    ]
    lines += [f"- Body: {_content(body)}"] if body else []
    lines += [f"- {status}: {_content(content)}" for status, content in answers.items() if status[0] == "2"]
    lines += (
        [f"- Problems: {', '.join(sorted(status for status in answers if status[0] != '2'))}"]
        if len(answers) > 1
        else []
    )
    return f"{lines[0]}\n\n{lines[1]}\n\n" + "\n".join(lines[2:])


def _content(content: dict[str, Any]) -> str:
    return ", ".join(f"{_schema(each.get('schema', {}))} as `{kind}`" for kind, each in content.items())


def _object(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (f"`{key}`", _schema(field), _json_default(key, field, required), field.get("description", ""))
        for key, field in schema["properties"].items()
    ]
    return f"### {name}\n\n{plain(schema.get('description', ''))}\n\n{table(HEAD, rows)}"


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema or "properties" in schema:
        name = schema["$ref"].rpartition("/")[2] if "$ref" in schema else schema["title"]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "bytes"
    words = {"string": "text", "boolean": "true or false", "null": "null", "object": "object"}
    bounds = (("minimum", "ge"), ("exclusiveMinimum", "gt"), ("maximum", "le"), ("exclusiveMaximum", "lt"))
    limits = [f"{BOUNDS[key]} {number_in_words(schema[name])}" for name, key in bounds if name in schema]
    kind = schema.get("type", "bytes")
    return " ".join([words.get(kind, kind), ", ".join(limits)]).strip()


def _json_default(key: str, field: dict[str, Any], required: Iterable[str]) -> str:
    if "default" in field:
        return value_in_words(field["default"])
    return "required" if key in required else ""
