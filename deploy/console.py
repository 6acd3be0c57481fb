"""A local page of a stack: the dashboard's widget, kept up to date, and the reports of its incidents. It only reads."""

from __future__ import annotations

import html
import http.server
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy.stack import Stack
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import SageMakerEndpoint
from glassbox.aws.incidents_table import IncidentsTable
from glassbox.aws.objects import Objects
from glassbox.errors import GlassboxError, printable
from glassbox.incidents.dashboard import WidgetDependencies, WidgetSettings, widget

HOST = "127.0.0.1"
PORT = 8765
_REPORT = re.compile(r"/report/([a-z0-9-]{1,128})")
_REPORT_BYTES = 64 << 20
_ERROR_CHARACTERS = 500
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'"
)
# A report loads nothing.
_REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Console(http.server.ThreadingHTTPServer):
    """The server of the page.

    Requests of other sites and host names are refused: a page of another site could otherwise read this one.

    Args:
        title: name of the endpoint.
        page: returns the HTML of the widget.
        report: returns the report of an incident, or None.
    """

    daemon_threads = True

    def __init__(
        self, port: int, title: str, page: Callable[[], str], report: Callable[[str], bytes | None]
    ) -> None:
        super().__init__((HOST, port), _Request)
        self.title, self.page, self.report = title, page, report

    @property
    def hosts(self) -> set[str]:
        """The values of the Host header that are accepted."""
        return {f"{name}:{self.server_port}" for name in (HOST, "localhost")}


class _Request(http.server.BaseHTTPRequestHandler):
    server: Console

    def do_GET(self) -> None:
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        if self.headers.get("Host") not in self.server.hosts or site not in ("same-origin", "none"):
            self._answer(403, b"Forbidden: open the console by its own address.", "text/plain")
            return
        path = self.path.partition("?")[0]
        static = resources.files("deploy")
        if path == "/":
            shell = (
                static.joinpath("console.html").read_text().replace("{title}", html.escape(self.server.title))
            )
            self._answer(200, shell.encode(), "text/html")
        elif path == "/console.js":
            self._answer(200, static.joinpath("console.js").read_bytes(), "text/javascript")
        elif path == "/widget":
            self._read(lambda: self.server.page().encode())
        elif match := _REPORT.fullmatch(path):
            self._read(lambda: self.server.report(match[1]), _REPORT_POLICY)
        else:
            self._answer(404, b"Not found", "text/plain")

    def _read(self, read: Callable[[], bytes | None], policy: str = _POLICY) -> None:
        try:
            found = read()
        except (GlassboxError, ClientError, BotoCoreError) as error:
            self._answer(502, printable(error, _ERROR_CHARACTERS).encode(), "text/plain")
            return
        if found is None:
            self._answer(404, b"Not found", "text/plain")
        else:
            self._answer(200, found, "text/html", policy)

    def _answer(self, status: int, body: bytes, content_type: str, policy: str = _POLICY) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        if not str(arguments[1] if len(arguments) > 1 else "").startswith("2"):
            print(f"console: {printable(format % arguments, _ERROR_CHARACTERS)}", file=sys.stderr)


def console(stack: Stack, session: boto3.Session, port: int = PORT) -> Console:
    """Return a server that reads a stack, on a free port for port 0.

    Raises:
        OSError: the port is taken.
    """
    outputs, parameters = stack.outputs, stack.parameters
    given = {
        name: kind(parameters[parameter])
        for name, parameter, kind in (
            ("window_hours", "WindowHours", int),
            ("min_predictions", "MinPredictions", int),
        )
        if parameters.get(parameter)
    }
    dynamodb = session.client("dynamodb")
    objects = Objects(session.client("s3"))
    dependencies = WidgetDependencies(
        settings=WidgetSettings(
            endpoint_name=outputs.endpoint_name,
            bucket=outputs.bucket,
            incidents_table=outputs.incidents_table,
            counts_table=outputs.counts_table,
            stack_name=stack.name,
            command_function_arn="",
            plain_config=outputs.plain_config if stack.reacts else "",
            hooked_config=outputs.hooked_config,
            **given,
        ),
        endpoint=SageMakerEndpoint(session.client("sagemaker")),
        incidents=IncidentsTable(dynamodb, outputs.incidents_table),
        counts=CountsTable(dynamodb, outputs.counts_table),
        objects=objects,
    )

    def page() -> str:
        return widget({"heatmaps": 24}, dependencies, datetime.now(UTC))

    def report(incident: str) -> bytes | None:
        current = dependencies.incidents.current(outputs.endpoint_name)
        past = dependencies.incidents.past(outputs.endpoint_name, datetime.now(UTC) - timedelta(days=400))
        uri = next((one.report for one in (current, *past) if one and one.id == incident and one.report), "")
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return objects.get(bucket, key, at_most=_REPORT_BYTES) if uri else None

    return Console(port, outputs.endpoint_name, page, report)
