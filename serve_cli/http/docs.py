"""/docs: the OpenAPI document as a page, with nothing from elsewhere and nothing to run."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: HTTP interface</title>
<link rel="icon" href="favicon.svg">
<link rel="stylesheet" href="page.css">
</head>
<body class="docs">
<main>
<h1>{title} {version}</h1>
<p>{summary} <a href=".">Draw a digit</a>, or <a href="openapi.json">read the OpenAPI document</a>.
Errors are JSON with one line in <code>error</code>.</p>
<pre>curl --data-binary @digit.png localhost:8000/predict
curl -F file=@digit.png 'localhost:8000/predict?top_k=3'</pre>
<p>Where the server has an API key, send it as <code>Authorization: Bearer KEY</code> or
<code>X-API-Key: KEY</code>.</p>
{operations}
</main>
</body>
</html>
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """The HTML page of an OpenAPI document."""
    info = document["info"]
    return PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        summary=escape(info["summary"]),
        operations="\n".join(
            "\n".join(_operation(method, path, operation))
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield "<section>"
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    about = escape(operation.get("description", ""))
    yield f"<p><strong>{escape(operation['summary'])}.</strong> {about}</p>"
    yield from _list("Query", (_parameter(item) for item in operation.get("parameters", ())))
    body = operation.get("requestBody", {}).get("content", {})
    yield from _list("Body", (f"<code>{escape(kind)}</code>" for kind in body))
    yield from _list("Answers", (_answer(*item) for item in operation["responses"].items()))
    yield "</section>"


def _list(heading: str, items: Iterator[str]) -> Iterator[str]:
    lines = [f"<li>{item}</li>" for item in items]
    if lines:
        yield f"<h3>{heading}</h3>\n<ul>\n" + "\n".join(lines) + "\n</ul>"


def _parameter(item: Mapping[str, Any]) -> str:
    default = item["schema"].get("default")
    end = "" if default is None else f" Default: <code>{escape(str(default))}</code>."
    values = ", ".join(item["schema"].get("enum", ()))
    one_of = f" One of <code>{escape(values)}</code>." if values else ""
    return f"<code>{escape(item['name'])}</code> {escape(item.get('description', ''))}{one_of}{end}"


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in answer.get("content", {}))
    return f"<code>{escape(status)}</code> {escape(answer['description'])} {kinds}".rstrip()
