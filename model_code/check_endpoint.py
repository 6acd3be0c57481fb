"""Try offline whether the hook can explain an unchanged endpoint: with its own model.tar.gz, code and images.

    make check-endpoint ARCHIVE=model.tar.gz IMAGE=x.png [PYTHON=…] [CONTENT_TYPE=…] [HEATMAPS=folder] [DETAILS=1]

The archive's code answers the images through the SageMaker PyTorch inference toolkit, in one process with the hook and
in one without it. PYTHON is the owner's interpreter, which has the toolkit and the owner's requirements. Runs the
owner's code on this machine. Nothing is sent to AWS: the hook uploads to a server in this process.

Prints a line for each image: the network and its explanation, or the reason why there is none. The exit status is 0 if
all images are explained and the hook changes no answer, else 1.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

import numpy as np
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from PIL import Image, ImageOps

from glassbox.errors import BadInputError, SettingsError, printable
from glassbox.explanation import heatmap
from glassbox.explanation.answers import compare
from glassbox.explanation.describe import describe, details, warnings
from glassbox.explanation.fullgrad import Explanation, explain
from glassbox.explanation.trace_reader import read_index, read_trace
from glassbox.monitoring.response import ResponseParser
from glassbox.replay_marker import TRACE, PublicKey, ReplayMarker, write_marker
from package import HERE, unpacked, write_hook

ROUNDS = 3
"""Requests per image after the first, whose CPU time is measured."""

MAX_BODY = 6 << 20  # bytes, the limit of InvokeEndpoint
MAX_STORED = 1 << 30  # bytes of all traces
LOG_SECONDS = 2.0  # that the reason in the log may come before the object that holds it
INSTALL = "-m pip install sagemaker-inference sagemaker-pytorch-inference boto3 scipy"
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
PACKED = "code/recorder.py"  # an archive of package.py contains the hook

# Variables of the shell that would change what the hook does, or reach AWS.
_OURS = re.compile(
    r"(?i)AWS_.*|.*_PROXY|TENSORS_OUTPUT|TRACES_PER_MINUTE|TRACE_FORM|BLUR_TEST|REPLAY_KEY(_ARN)?|PYTHON.*"
)
_LOGGED = re.compile(r"(?:glassbox: not hooked|not traced|trace dropped, \d+ so far): (.+)")
# Reasons of the hook in the words of the owner's code, with a cure.
_REFUSED = {
    r"expected a call of a torch\.nn\.Module with a float tensor": (
        "the network runs outside PyTorch, or its input is not a float tensor (N, C, H, W)"
    ),
    r"expected class scores (\(\d+, K\)) as output, got (.*)": (
        r"the last call of a module returns no class scores \1, but \2. Layers that are called one by one outside a "
        "forward cannot be explained"
    ),
    r"expected one network that returns class scores, got several: (.*)": (
        r"the answer is made of several networks: \1"
    ),
    r"_native_multi_head_attention|_transformer_encoder_layer_fwd": (
        "the network is traced with fused attention, which has no gradient. Trace it after "
        "torch.backends.mha.set_fastpath_enabled(False)"
    ),
    r"failed in the TorchScript interpreter": (
        "the TorchScript network does not run with gradients. Serve it before torch.jit.optimize_for_inference"
    ),
    r"No module named '(\w+)'": r"the owner's Python has no module \1, which the hook needs. Install it there",
}


class CheckError(ValueError):
    """The check cannot run, and the message has the cure."""


class LocalS3(http.server.ThreadingHTTPServer):
    """An S3 of this machine that stores what the hook uploads and refuses all other requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Put)
        self.objects: dict[str, bytes] = {}
        self.stored = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.server_port}"

    def traces(self) -> list[str]:
        """Return the keys of the complete steps, in their order."""
        with self.lock:
            return sorted(key for key in self.objects if "/index/" in key)


class _Put(http.server.BaseHTTPRequestHandler):
    server: LocalS3
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if not self.path.startswith("/checked/") or self.server.stored + size > MAX_STORED:
            return self._refuse()
        content = self.rfile.read(size)
        with self.server.lock:
            self.server.objects[self.path.removeprefix("/checked/")] = content
            self.server.stored += size
        return self._reply(200)

    def _refuse(self) -> None:
        self.close_connection = True
        self._reply(403)

    do_GET = do_POST = do_HEAD = do_DELETE = do_CONNECT = _refuse  # noqa: N815

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered; ``began`` and ``ended`` are CPU seconds of its process."""

    status: int
    answer: bytes
    began: float
    ended: float

    @property
    def reason(self) -> str:
        """The last line of an error, which is the exception where the toolkit adds a traceback."""
        lines = self.answer.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else "an empty answer"


class Endpoint:
    """A process that answers requests with the owner's code.

    Raises:
        CheckError: the toolkit is missing, or the model does not load.
    """

    def __init__(
        self, python: str, folder: Path, environment: Mapping[str, str], archive: Path, seconds: float
    ) -> None:
        folder.mkdir()
        script = folder / "endpoint_process.py"
        script.write_bytes((HERE / script.name).read_bytes())
        self._log, self._seconds, self._archive = folder / "log", seconds, archive
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 (the owner's code, as the command states)
                    [python, str(script)],
                    cwd=folder,
                    env={**environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            except OSError as error:
                raise CheckError(f"PYTHON: expected a Python interpreter, got {python}: {error}") from error
        try:
            started = self._read()
            if "missing" in started:
                raise CheckError(
                    f"{python}: expected sagemaker-pytorch-inference, got no module {started['missing']}. "
                    f"Run {python} {INSTALL}, or set PYTHON to an interpreter that has it."
                )
            if "error" in started:
                raise CheckError(f"{archive}: the model does not load: {self._load_error(started['error'])}")
        except BaseException:
            self.close()
            raise

    def _load_error(self, text: str) -> str:
        reason = printable(" ".join(text.split()), 400)
        if "Exactly one .pth or .pt" in text or "torchscript" in text.lower():
            return f"{reason} Without code/inference.py, the toolkit loads a TorchScript file model.pt."
        return reason

    def send(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a request.

        Raises:
            CheckError: the process ends, or does not answer in time.
        """
        line = json.dumps({"body": base64.b64encode(body).decode(), "headers": dict(headers)})
        with contextlib.suppress(BrokenPipeError):  # the process has ended: reading gives the reason
            print(line, file=cast(IO[str], self._process.stdin), flush=True)
        reply = self._read()
        return Reply(
            reply["status"], base64.b64decode(reply["answer"]), float(reply["began"]), float(reply["ended"])
        )

    def logged(self) -> list[str]:
        """Return the reasons in the hook's log."""
        return _LOGGED.findall(self._log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._seconds, kill)
        timer.start()
        try:
            line = cast(IO[str], self._process.stdout).readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise CheckError(
                f"{self._archive}: expected an answer within {self._seconds:g} s, got none. Set SECONDS=…"
            )
        if not line:
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            ended = f"its process ended with status {self._process.wait()}"
            raise CheckError(f"{self._archive}: {': '.join([ended, *last])}")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass(frozen=True)
class Answers:
    """The answers to the requests of one image, and the CPU seconds of a request."""

    content_type: str
    body: bytes
    answers: tuple[bytes, ...]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What the hook makes of one image.

    Attributes:
        network: class of the network, or empty.
        explanation: None with a ``reason``.
        multiple: CPU seconds of the explanation / of a request without it.
        is_same: whether all answers are those without the hook.
    """

    network: str
    explanation: Explanation | None
    reason: str
    multiple: float
    is_same: bool

    def line(self) -> str:
        """Return the network and its explanation, or the reason why there is none."""
        name = f"{self.network}: " if self.network else ""
        if self.explanation is None:
            return f"{name}not explained: {self.reason}"
        return (
            f"{name}explained: {describe(self.explanation)}; CPU time of {self.multiple:.1f} plain requests"
        )


def check(
    archive: Path,
    images: Sequence[Path],
    python: str = sys.executable,
    content_type: str = "",
    seconds: float = 300,
    responses: ResponseParser | None = None,
) -> list[Verdict]:
    """Return the verdict on each image.

    Args:
        archive: model.tar.gz as on the endpoint.
        images: image files, or request bodies of ``content_type``.
        python: the owner's interpreter.
        content_type: of the requests; by default the first that the owner's code accepts.
        seconds: that the model may take to load, and a request with its trace.
        responses: reads the answers, to compare their classes with the explained ones.

    Raises:
        CheckError: the archive, an image or the interpreter cannot be used, or no request is answered.
        OSError: a file cannot be read.
    """
    requests = [list(bodies(image, content_type)) for image in images]
    if not tarfile.is_tarfile(archive):
        raise CheckError(f"{archive}: expected a tar archive such as model.tar.gz, got another file")
    with tempfile.TemporaryDirectory() as name, unpacked(archive) as (model, _), local_s3() as s3:
        folder = Path(name)
        plain = environment(model, s3.url)
        owner = Endpoint(python, folder / "plain", plain, archive, seconds)
        try:
            answers = [_answers(owner, image, given) for image, given in zip(images, requests, strict=True)]
        finally:
            owner.close()
        key = rsa.generate_private_key(65537, 2048)
        hooked = Endpoint(python, folder / "hooked", with_hook(plain, folder, model, key), archive, seconds)
        try:
            parser = responses or ResponseParser()
            return [_verdict(hooked, s3, key, given, seconds, parser) for given in answers]
        finally:
            hooked.close()


@contextlib.contextmanager
def local_s3() -> Iterator[LocalS3]:
    """Yield a running server."""
    with LocalS3() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(model: Path, url: str) -> dict[str, str]:
    """Return the environment of the owner's process, which calls ``url`` in place of AWS."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return {
        "SAGEMAKER_PROGRAM": "inference.py",
        **kept,
        **dict.fromkeys(proxies, url),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "offline",
        "AWS_SECRET_ACCESS_KEY": "offline",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "GLASSBOX_MODEL_DIR": str(model),
        "PYTHONPATH": str(model / "code"),
        # CPU times of several threads would depend on the machine's load.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def with_hook(plain: Mapping[str, str], folder: Path, model: Path, key: rsa.RSAPrivateKey) -> dict[str, str]:
    """Return a hooked twin's environment, and write the hook unless the archive has it."""
    path = plain["PYTHONPATH"]
    if not (model / PACKED).is_file():
        write_hook(folder / "hook")
        path = os.pathsep.join((str(folder / "hook"), path))
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        **plain,
        "PYTHONPATH": path,
        "TENSORS_OUTPUT": "s3://checked/tensors",
        "TRACES_PER_MINUTE": "0",
        "REPLAY_KEY": PublicKey.from_der(der).text,
    }


def bodies(image: Path, content_type: str) -> Iterator[tuple[str, bytes]]:
    """Yield content types and bodies of one image, in the order in which they are tried.

    Raises:
        CheckError: not an image, or larger than an endpoint accepts.
        OSError: the file cannot be read.
    """
    content = image.read_bytes()
    if len(content) > MAX_BODY:
        raise CheckError(f"{image}: expected at most {MAX_BODY} bytes (InvokeEndpoint), got {len(content)}")
    if content_type:
        yield content_type, content
        return
    try:
        with Image.open(io.BytesIO(content)) as opened:
            own = Image.MIME.get(opened.format or "", "application/x-image")
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except Exception as error:  # for a broken file Pillow raises any error
        raise CheckError(
            f"{image}: expected an image, got a file that Pillow cannot read. For another body set CONTENT_TYPE=…"
        ) from error
    for name in dict.fromkeys((own, "application/x-image", "application/octet-stream")):
        yield name, content
    # The default handler gives the array to the network.
    array = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    npy = io.BytesIO()
    np.save(npy, array, allow_pickle=False)
    yield "application/x-npy", npy.getvalue()
    yield "application/json", json.dumps(array.round(4).tolist()).encode()


def _answers(owner: Endpoint, image: Path, requests: Sequence[tuple[str, bytes]]) -> Answers:
    """Return the answers to the first content type that the owner's code accepts."""
    failed = []
    for content_type, body in requests:
        if len(body) > MAX_BODY:
            failed.append(f"{content_type}: larger than {MAX_BODY} bytes")
            continue
        first = owner.send(body, {"Content-Type": content_type})
        if first.status == 200:
            rest = [owner.send(body, {"Content-Type": content_type}) for _ in range(ROUNDS)]
            seconds = median(reply.ended - reply.began for reply in rest)
            return Answers(
                content_type, body, (first.answer, *(reply.answer for reply in rest)), max(seconds, 1e-6)
            )
        failed.append(f"{content_type}: status {first.status}, {printable(first.reason, 200)}")
    raise CheckError(
        f"{image}: expected an answer, got an error for every content type. {'; '.join(failed)}. Set CONTENT_TYPE=…"
    )


def _verdict(
    hooked: Endpoint,
    s3: LocalS3,
    key: rsa.RSAPrivateKey,
    plain: Answers,
    seconds: float,
    responses: ResponseParser,
) -> Verdict:
    """Send the same requests as signed replays, and wait for what each of them uploads."""
    before, logged = len(s3.traces()), len(hooked.logged())
    replies: list[Reply] = []
    for number in range(1, len(plain.answers) + 1):
        headers = {"Content-Type": plain.content_type, ATTRIBUTES: _marker(plain.body, key)}
        replies.append(hooked.send(plain.body, headers))
        if not _wait(hooked, s3, before + number, logged, seconds):
            break
    answers = tuple(reply.answer for reply in replies)
    is_random = len(set(plain.answers)) > 1
    is_same = is_random or answers == plain.answers[: len(answers)]
    keys = s3.traces()[before:]
    if not keys:
        reasons = hooked.logged()[logged:] or hooked.logged()
        return Verdict("", None, _in_words(reasons[-1] if reasons else "the hook wrote no trace"), 0, is_same)
    index = read_index(keys[0], s3.objects[keys[0]])
    trace = read_trace(index, s3.objects[index.events_key])
    if trace.meta.refused:
        reason = trace.meta.refused.removeprefix(f"{trace.meta.model}: ")
        network = "" if "got several" in reason else trace.meta.model
        return Verdict(network, None, _in_words(reason), 0, is_same)
    # Between two requests the process computes the trace alone.
    spent = [later.began - earlier.ended for earlier, later in itertools.pairwise(replies[1:])]
    explanation = compare(explain(trace), trace, responses)[0]
    return Verdict(trace.meta.model, explanation, "", median(spent or [0.0]) / plain.seconds, is_same)


def _wait(hooked: Endpoint, s3: LocalS3, count: int, logged: int, seconds: float) -> bool:
    """Return whether this many steps are uploaded, in time and without an error in the hook's log before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if len(s3.traces()) >= count:
            return True
        if len(hooked.logged()) > logged:
            deadline = min(deadline, time.monotonic() + LOG_SECONDS)
        time.sleep(0.01)
    return False


def _marker(body: bytes, key: rsa.RSAPrivateKey) -> str:
    marker = ReplayMarker(TRACE, f"{datetime.now(UTC):%Y%m%dt%H%M%S}-check", "check", "")
    return write_marker(marker, body, lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256()))


def _in_words(reason: str) -> str:
    """Return the reason of a refusal with its cure, where one is known."""
    reason = " ".join(reason.split())
    for pattern, words in _REFUSED.items():
        if found := re.search(pattern, reason):
            return found.expand(words)
    return re.sub(r"^\w+Error: ", "", reason)


def report(verdicts: Sequence[Verdict], images: Sequence[Path], *, with_details: bool) -> Iterator[str]:
    """Yield the lines of the command."""
    for image, verdict in zip(images, verdicts, strict=True):
        yield f"{image.name}: {verdict.line()}"
        if verdict.explanation is not None:
            if with_details:
                yield from details(verdict.explanation)
            yield from warnings(verdict.explanation)
    changed = [image.name for image, verdict in zip(images, verdicts, strict=True) if not verdict.is_same]
    if changed:
        yield f"WARNING: the hook changes the answer to {', '.join(changed)}"
    else:
        yield "The answers are equal byte for byte with and without the hook"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="model.tar.gz")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument("--python", default=sys.executable, help="the owner's interpreter")
    parser.add_argument("--content-type", default="", help="of the requests (default: tried in turn)")
    parser.add_argument("--class-path", help="ClassPath of the stack, JMESPath from an answer to its class")
    parser.add_argument("--seconds", type=float, default=300, help="for each answer and its trace")
    parser.add_argument("--heatmaps", type=Path, help="a folder for the heat maps")
    parser.add_argument("--details", action="store_true", help="list the terms")
    given = parser.parse_args()
    try:
        responses = ResponseParser(given.class_path)
        verdicts = check(
            given.archive, given.images, given.python, given.content_type, given.seconds, responses
        )
        for line in report(verdicts, given.images, with_details=given.details):
            print(line, flush=True)
        for image, verdict in zip(given.images, verdicts, strict=True):
            if given.heatmaps and verdict.explanation is not None:
                given.heatmaps.mkdir(parents=True, exist_ok=True)
                path = given.heatmaps / f"{image.stem}.png"
                path.write_bytes(heatmap.render(verdict.explanation))
                print(f"Heat map: {path}")
    except (OSError, ValueError, BadInputError, SettingsError, tarfile.TarError) as error:
        sys.exit(f"check-endpoint: {' '.join(str(error).split())}")
    sys.exit(any(verdict.explanation is None or not verdict.is_same for verdict in verdicts))


if __name__ == "__main__":
    main()
