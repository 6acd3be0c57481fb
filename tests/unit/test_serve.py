"""serve.py bounds concurrent predictions by the cores, and the bodies in memory."""

import asyncio
import os
import threading
from types import SimpleNamespace

import serve


class Model:
    """A model whose predictions wait for one another, to find how many run at once."""

    def __init__(self, together):
        self.barrier = threading.Barrier(together)
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def predict(self, model, body, kind, accept, request):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.barrier.wait(60)
        with self.lock:
            self.now -= 1
        return "{}", "application/json"

    def close(self):
        pass


async def post(app, status, reading=None):
    """One request in the way of a server; ``reading`` keeps the bodies' numbers."""

    async def receive():
        if reading is not None:
            reading.now += 1
            reading.most = max(reading.most, reading.now)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return {"type": "http.request", "body": b"body", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            status.append(message["status"])
            if reading is not None:
                reading.now -= 1

    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "raw_path": b"/invocations", "headers": [],
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "client": None, "server": None,
    }  # fmt: skip
    await app(scope, receive, send)


async def posts(app, count, reading=None):
    status = []
    await asyncio.gather(*(post(app, status, reading) for _ in range(count)))
    return status


def inference(transform_fn):
    return SimpleNamespace(transform_fn=transform_fn, RequestError=LookupError)


def test_runs_one_prediction_per_core():
    cores = len(os.sched_getaffinity(0))
    model = Model(cores)
    app = serve.application(inference(model.predict), model)
    assert asyncio.run(posts(app, 6 * cores)) == [200] * 6 * cores
    assert model.most == cores


def test_bounds_the_bodies_in_memory():
    reading = SimpleNamespace(now=0, most=0)
    app = serve.application(inference(lambda *_: ("{}", "application/json")), Model(1))
    assert asyncio.run(posts(app, 5 * serve.BODIES, reading)) == [200] * 5 * serve.BODIES
    assert reading.most == serve.BODIES


def test_failed_requests_free_their_place():
    def fail(*_):
        raise MemoryError("too large")

    app = serve.application(inference(fail), Model(1))
    assert asyncio.run(posts(app, 3 * serve.BODIES)) == [500] * 3 * serve.BODIES
