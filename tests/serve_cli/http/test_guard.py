"""Who is answered: keys, hosts, origins; and what every response carries."""

from collections.abc import Iterator

import pytest

from serve_cli.http.hosts import Hosts
from serve_cli.http.settings import Settings
from serve_cli.spec import BUNDLED_MODEL
from tests.serve_cli.http.serving import Served, serving

SITE = "https://example.org"
KEY = "open-sesame"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """A server with a key, another site that may ask, and a name."""
    with serving(
        "--api-key", KEY, "--cors", SITE, "--allowed-host", "digits.example", "--max-body", 1
    ) as server:
        yield server


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x_api_key": KEY}]
)
def test_the_key_opens(guarded: Served, picture: bytes, headers: dict[str, str]) -> None:
    assert guarded.ask("/predict", picture, **headers).json["label"] == 7
    assert guarded.ask("/metrics", **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer"}, {"x_api_key": f"{KEY}!"}],
)
def test_without_the_key_nothing_is_answered(
    guarded: Served, picture: bytes, headers: dict[str, str]
) -> None:
    for path, body in (("/predict", picture), ("/v2/models/mnist/infer", b"{}"), ("/metrics", None)):
        reply = guarded.ask(path, body, **headers)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert "Authorization: Bearer" in reply.json["error"]


@pytest.mark.parametrize(
    "path",
    ["/", "/page.js", "/page.css", "/favicon.svg", "/docs", "/openapi.json", "/v2", "/v2/health/ready"],
)
def test_the_page_and_probes_need_no_key(guarded: Served, path: str) -> None:
    assert guarded.ask(path).status == 200


def test_another_site_may_ask_if_it_is_named(guarded: Served, picture: bytes) -> None:
    reply = guarded.ask("/predict", picture, origin=SITE, x_api_key=KEY)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, SITE)
    refused = guarded.ask("/predict", picture, origin="https://evil.example", x_api_key=KEY)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("key", "body", "status"),
    [(KEY, b"no picture", 400), ("other", b"", 401), (KEY, b"0" * 2 * 1024**2, 413)],
)
def test_errors_reach_the_other_site(guarded: Served, key: str, body: bytes, status: int) -> None:
    reply = guarded.ask("/predict", body, origin=SITE, x_api_key=key)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, SITE)


def test_preflights_are_answered_without_key(guarded: Served) -> None:
    asked = (
        f"OPTIONS /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: {SITE}\r\nConnection: close\r\n"
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-api-key\r\n\r\n"
    )
    answer = guarded.send(asked.encode()).decode()
    assert answer.startswith("HTTP/1.1 200 ")
    assert f"access-control-allow-origin: {SITE}" in answer
    assert "x-api-key" in answer


def test_the_limit_is_that_of_the_options(guarded: Served) -> None:
    reply = guarded.ask("/predict", b"\0" * 8 * 1024**2, x_api_key=KEY)
    assert (reply.status, reply.json["error"]) == (
        413,
        "the body has more than 1 MiB: send a smaller picture",
    )


def test_a_named_host_is_served(guarded: Served) -> None:
    assert guarded.ask("/v2", host="DIGITS.example:80").status == 200
    assert guarded.ask("/v2", host="example").status == 421


@pytest.mark.parametrize("path", ["/", "/v2", "/nothing", "/predict", "/docs"])
def test_every_response_says_what_pages_may_do(served: Served, path: str) -> None:
    headers = served.ask(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_a_clients_own_id_comes_back(served: Served) -> None:
    assert served.ask("/v2", x_request_id="abc-123").headers["x-request-id"] == "abc-123"
    assert len(served.ask("/v2", x_request_id="not an id").headers["x-request-id"]) == 16


@pytest.mark.parametrize(
    ("host", "served_names", "refused_names"),
    [
        ("127.0.0.1", {"localhost", "[::1]"}, {"10.0.0.7"}),
        ("0.0.0.0", {"10.0.0.7", "[fe80::1]", "localhost"}, {"evil.example", ""}),
        ("digits.lan", {"digits.lan", "10.0.0.7"}, {"evil.example"}),
    ],
)
def test_hosts_follow_the_address(host: str, served_names: set[str], refused_names: set[str]) -> None:
    hosts = Hosts(Settings(model=BUNDLED_MODEL, host=host))
    assert {name for name in served_names | refused_names if name.encode() in hosts} == served_names
