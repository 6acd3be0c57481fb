"""Check the manifests of both images in a registry: SageMaker accepts only Docker's."""

import http.client
import os
import shutil
import socket
import subprocess
import time

import pytest

from deploy.images import DOCKER_MANIFEST, MONITOR, SERVING

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not os.environ.get("GLASSBOX_IMAGES"), reason="needs Docker and the images: make images-test"
    ),
    pytest.mark.skipif(
        not shutil.which("docker-registry"), reason="needs a registry: Debian's package docker-registry"
    ),
]
KINDS = ", ".join(
    (
        DOCKER_MANIFEST,
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Start a registry on this machine, where Docker needs no TLS, and return its port."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    serving = subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not reachable(port):
            assert serving.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        serving.terminate()
        serving.wait()


def reachable(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("repository", [SERVING, MONITOR])
def test_push_stores_dockers_manifest(registry, repository):
    uri = f"127.0.0.1:{registry}/{repository}:test"
    subprocess.run(["docker", "tag", repository, uri], check=True)
    try:
        subprocess.run(["docker", "push", "--quiet", uri], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rmi", uri], check=True, capture_output=True)
    connection = http.client.HTTPConnection("127.0.0.1", registry, timeout=30)
    connection.request("HEAD", f"/v2/{repository}/manifests/test", headers={"Accept": KINDS})
    assert connection.getresponse().headers["Content-Type"] == DOCKER_MANIFEST
