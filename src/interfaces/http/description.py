"""`/docs`: the OpenAPI description as one plain page, which needs nothing from any other server."""

from html import escape
from typing import Any

HEAD = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>smallgpt's API</title><link rel="stylesheet" href="/page.css"></head>
<body><main>
<h1>smallgpt's API</h1>
<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>
"""


def as_page(description: dict[str, Any]) -> str:
    """Every path, with what it takes and how it answers."""
    parts = [HEAD]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation, description["components"]["schemas"])
    return "".join([*parts, "</main></body></html>\n"])


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    parts = [f"<h2>{method.upper()} {escape(path)}</h2>\n<p>{escape(operation.get('description', ''))}</p>\n"]
    if "requestBody" in operation:
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        rows = [
            f"<tr><td><code>{escape(field)}</code></td><td>{escape(_kind(schema))}</td>"
            f"<td>{escape(schema.get('description', ''))}</td></tr>\n"
            for field, schema in schemas[name]["properties"].items()
        ]
        parts += ["<table>\n<tr><th>Field</th><th>Type</th><th>Meaning</th></tr>\n", *rows, "</table>\n"]
    answers = [f"{status}: {answer['description']}" for status, answer in operation["responses"].items()]
    items = "".join(f"<li>{escape(answer)}</li>\n" for answer in answers)
    return [*parts, f"<ul>\n{items}</ul>\n"]


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
