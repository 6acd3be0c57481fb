"""The console's server: its pages, its refusals, and what it reads of a stack."""

import http.client
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from deploy import console as module
from deploy.console import Console
from glassbox.errors import RetryableError

REPORTS = {"20261123t102105-class-share": b"<h1>report</h1>"}


@pytest.fixture
def server():
    asked = Counter()

    def page():
        asked["page"] += 1
        if asked["fail"]:
            raise RetryableError("DynamoDB: throttled\x1b[31m")
        return "<p>widget</p>"

    with Console(0, "shop<1>", page, REPORTS.get) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield SimpleNamespace(port=server.server_port, asked=asked)
        server.shutdown()
        thread.join()


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(
        method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_page_escapes_its_title_and_loads_only_its_own_script(server):
    status, text, headers = get(server, "/")
    assert status == 200
    assert "<title>Glassbox: shop&lt;1&gt;</title>" in text
    assert '<script src="/console.js"></script>' in text
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe-inline" not in headers["Content-Security-Policy"].partition("script-src")[2]
    assert get(server, "/console.js")[2]["Content-Type"] == "text/javascript; charset=utf-8"


def test_the_widget_is_read_at_every_request(server):
    for _ in range(2):
        assert get(server, "/widget")[:2] == (200, "<p>widget</p>")
    assert server.asked["page"] == 2


def test_an_error_of_aws_is_shown_without_control_characters(server):
    server.asked["fail"] = 1
    assert get(server, "/widget")[:2] == (502, r"DynamoDB: throttled\x1b[31m")


def test_a_report_is_shown_without_scripts(server):
    status, text, headers = get(server, "/report/20261123t102105-class-share")
    assert (status, text) == (200, "<h1>report</h1>")
    assert "script-src" not in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "path", ["/report/absent", "/report/../secret", "/report/%2e%2e", "/etc/passwd", "/x"]
)
def test_other_paths_do_not_exist(server, path):
    assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "127.0.0.1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/widget", "/report/20261123t102105-class-share"])
def test_other_sites_and_host_names_are_refused(server, path, headers):
    """A page that rebinds its name to this address must not read the stack."""
    status, text, _ = get(server, path, **headers)
    assert (status, text) == (403, "Forbidden: open the console by its own address.")
    assert not server.asked


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_reads(server, method):
    assert get(server, "/widget", method)[0] == 501
    assert not server.asked


def test_only_this_machine_reaches_it(server):
    assert module.HOST == "127.0.0.1"
