"""serve.py bounds what requests take at once: predictions by the cores, bodies in memory by a number."""

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


def test_as_many_predictions_run_at_once_as_there_are_cores():
    cores = len(os.sched_getaffinity(0))
    model = Model(cores)
    app = serve.application(inference(model.predict), model)
    assert asyncio.run(posts(app, 6 * cores)) == [200] * 6 * cores
    assert model.most == cores


def test_a_bounded_number_of_bodies_is_in_memory():
    reading = SimpleNamespace(now=0, most=0)
    app = serve.application(inference(lambda *_: ("{}", "application/json")), Model(1))
    assert asyncio.run(posts(app, 5 * serve.BODIES, reading)) == [200] * 5 * serve.BODIES
    assert reading.most == serve.BODIES


def test_a_request_that_fails_makes_room_for_the_next():
    def fail(*_):
        raise MemoryError("too large")

    app = serve.application(inference(fail), Model(1))
    assert asyncio.run(posts(app, 3 * serve.BODIES)) == [500] * 3 * serve.BODIES
