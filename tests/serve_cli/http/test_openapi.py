"""/openapi.json and /docs: the document is valid and complete, and the server does as it says."""

import re
from collections.abc import Iterator
from html import unescape
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_cli.http.guard import OPEN
from tests.serve_cli.http.serving import Served, png

schemathesis = pytest.importorskip("schemathesis")
requests = pytest.importorskip("requests")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

GenerationMode = schemathesis.GenerationMode

CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.status_code_conformance,
]
"""What must hold of each answer: no failure of ours, and nothing that the document does not say."""

PATHS = {
    "/predict": "post",
    "/v2": "get",
    "/v2/health/live": "get",
    "/v2/health/ready": "get",
    "/v2/models/mnist": "get",
    "/v2/models/mnist/versions/1": "get",
    "/v2/models/mnist/ready": "get",
    "/v2/models/mnist/versions/1/ready": "get",
    "/v2/models/mnist/infer": "post",
    "/v2/models/mnist/versions/1/infer": "post",
    "/metrics": "get",
}
"""The whole interface: each path, and the one method that it has."""

QUERY = {"top_k", "min_confidence", "preprocess", "pixels"}


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    reply = served.ask("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = reply.json
    return found


@pytest.fixture(scope="module")
def api_schema(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    with requests.Session() as session:
        yield session


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(value: Any) -> Iterator[str]:
    """All $ref of a document."""
    if isinstance(value, dict):
        yield from (found for name, found in value.items() if name == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        document = document[name.replace("~1", "/").replace("~0", "~")]
    return document


# The document


def test_it_is_valid_openapi(document: dict[str, Any], api_schema: Any) -> None:
    assert document["openapi"].startswith("3.1.")
    api_schema.validate()


def test_it_has_all_paths_and_no_others(document: dict[str, Any]) -> None:
    assert {path: "/".join(methods) for path, methods in document["paths"].items()} == PATHS


def test_what_it_refers_to_is_in_it(document: dict[str, Any]) -> None:
    for reference in references(document):
        assert reference.startswith("#/")
        assert resolve(document, reference)


def test_every_operation_says_what_it_is(document: dict[str, Any]) -> None:
    names = []
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["tags"], name
        assert "200" in operation["responses"], name
        names.append(operation["operationId"])
    assert len(set(names)) == len(names)


def test_operations_with_a_body_say_how_they_refuse(document: dict[str, Any]) -> None:
    found = [(name, operation) for name, operation in operations(document) if name.startswith("POST")]
    assert len(found) == 3
    for name, operation in found:
        assert operation["requestBody"]["required"] is True, name
        assert set(operation["responses"]) == {"200", "4XX", "503"}, name
        for status in ("4XX", "503"):
            answer = operation["responses"][status]["content"]["application/json"]["schema"]
            assert answer["required"] == ["error"], name


def test_every_query_parameter_is_described(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/predict"]["post"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == QUERY
    for parameter in parameters:
        assert parameter["in"] == "query"
        assert parameter["description"]
        assert parameter["schema"]


def test_the_values_of_preprocess_are_named(document: dict[str, Any]) -> None:
    parameters = {item["name"]: item for item in document["paths"]["/predict"]["post"]["parameters"]}
    about = parameters["preprocess"]["schema"]
    values = resolve(document, about["$ref"]) if "$ref" in about else about
    assert set(values["enum"]) == {"auto", "raw"}


def test_readiness_says_that_it_may_be_over(document: dict[str, Any]) -> None:
    for path in PATHS:
        if path.endswith("/ready"):
            assert "503" in document["paths"][path]["get"]["responses"], path


def test_what_needs_a_key_says_that_it_may_be_refused(document: dict[str, Any]) -> None:
    for path, method in PATHS.items():
        if path not in OPEN:
            assert {"4XX", "401"} & set(document["paths"][path][method]["responses"]), path


# The server against the document


PICTURES = st.sampled_from([png(np.full((28, 28), level, np.uint8)) for level in (0, 200)]) | st.binary()
for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
    schemathesis.openapi.media_type(f"image/{kind}", PICTURES)

POSTS = [path for path, method in PATHS.items() if method == "post"]
MODES = {"as described": GenerationMode.POSITIVE, "otherwise": GenerationMode.NEGATIVE}


def send(case: Any, session: Any) -> None:
    case.call_and_validate(session=session, checks=CHECKS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", POSTS)
def test_what_is_sent_at_random_is_answered_as_described(
    api_schema: Any, session: Any, path: str, mode: str
) -> None:
    @settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=api_schema[path]["POST"].as_strategy(generation_mode=MODES[mode]))
    def all_cases(case: Any) -> None:
        send(case, session)

    all_cases()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_sent_by_plan_is_answered_as_described(api_schema: Any, session: Any, path: str) -> None:
    """Each border of each value, each parameter left out or sent twice."""
    operation = api_schema[path][PATHS[path].upper()]
    cases = api_schema.iter_coverage_cases(
        operation, generation_modes=list(MODES.values()), generation_config=api_schema.config.generation
    )
    sent = 0
    for case in islice(cases, 200):
        if case.method.lower() == PATHS[path]:
            send(case, session)
            sent += 1
    assert sent


METHODS = ("get", "post", "put", "patch", "delete", "options", "trace")
OTHERS = [(path, method) for path, own in PATHS.items() for method in METHODS if method != own]


@pytest.mark.parametrize(("path", "method"), OTHERS)
def test_a_path_has_no_other_methods(served: Served, session: Any, path: str, method: str) -> None:
    reply = session.request(method.upper(), served.url + path)
    assert (reply.status_code, reply.headers["content-type"]) == (405, "application/json")
    assert reply.json() == {"error": "this path has another method, see /docs"}
    assert reply.headers["allow"] == PATHS[path].upper()


@pytest.mark.parametrize("query", ["a%0Ab=1", "%1b[31mred=1", "%00=1", "%e2%80%ae=1", "=1"])
def test_an_unknown_parameter_is_refused_in_one_line(served: Served, picture: bytes, query: str) -> None:
    """So the document says of every error."""
    reply = served.ask(f"/predict?{query}", picture)
    assert reply.status == 400
    assert reply.json["error"].isprintable()
    assert not reply.json["error"].startswith(":")


# The page


@pytest.fixture(scope="module")
def page(served: Served) -> str:
    reply = served.ask("/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return reply.body.decode()


def test_the_page_names_every_operation(page: str, document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        section = page.partition(f"<h2><code>{name}</code></h2>")[2].partition("</section>")[0]
        text = unescape(section)
        assert operation["summary"] in text, name
        assert operation.get("description", "") in text
        for status, answer in operation["responses"].items():
            assert f"<code>{status}</code> {answer['description']}" in text
        for kind in operation.get("requestBody", {}).get("content", {}):
            assert f"<code>{kind}</code>" in text


def test_the_page_describes_the_query(page: str, document: dict[str, Any]) -> None:
    text = unescape(page)
    for parameter in document["paths"]["/predict"]["post"]["parameters"]:
        assert f"<code>{parameter['name']}</code> {parameter['description']}" in text


def test_the_page_runs_nothing_and_loads_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"<script|<iframe|<object|<embed|javascript:|\son\w+=|style=", page, re.IGNORECASE)
    assert not re.search(r"https?:", page)
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) == {
        "page.css",
        "favicon.svg",
        ".",
        "openapi.json",
    }


def test_the_page_may_do_nothing(served: Served) -> None:
    headers = served.ask("/docs").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_what_the_page_refers_to_is_there(served: Served, page: str) -> None:
    for path in re.findall(r'href="([^"]*)"', page):
        assert served.ask(f"/{path.removeprefix('.')}").status == 200
