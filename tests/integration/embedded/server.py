"""A stub of the serving image: each request controls its response, which contains version and process."""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(200 if self.path == "/ping" else 404, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wish = json.loads(body) if self.headers["Content-Type"] == "application/json" else {}
        if wish.get("die"):
            os._exit(3)
        time.sleep(wish.get("sleep", 0))
        if "path" in wish:
            answer = json.dumps(sys.path).encode()
        elif "tree" in wish:
            folder = Path(os.environ["OPT_ML"]) / wish["tree"]
            found = {
                str(p.relative_to(folder)): [p.read_text(), p.stat().st_mode & 0o777]
                for p in folder.rglob("*")
                if p.is_file() and p.suffix != ".pyc"  # root can write to read-only folders
            }
            answer = json.dumps(found).encode()
        elif "environment" in wish:
            answer = json.dumps(dict(os.environ)).encode()
        else:
            answer = json.dumps(
                {"version": os.environ.get("VERSION"), "pid": os.getpid(), "bytes": len(body)}
            ).encode()
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith("x-amzn-sagemaker")}
        if "echo" in wish:
            answer = json.dumps(headers).encode()
        self._answer(wish.get("status", 200), wish.get("text", "").encode() or answer)

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Amzn-SageMaker-Custom-Attributes", "served-by=stub")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # the process ends after its requests in progress
    request_queue_size = 64


def main():
    if os.environ.get("FAIL"):
        sys.exit(f"cannot load the model: {os.environ['FAIL']}")
    files = sorted(p.name for p in (Path(os.environ["OPT_ML"]) / "model").rglob("*") if p.is_file())
    print("model files:", files, flush=True)
    time.sleep(float(os.environ.get("SLOW_START", 0)))
    server = Server(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


main()
