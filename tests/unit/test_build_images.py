"""Check the build command of `make images` for each kind of Docker engine; a fake docker records its calls."""

import os
import sys

import pytest

from deploy import DeployError, images

DOCKER = f"""#!{sys.executable}
import os, pathlib, sys

calls = sys.argv[1:]
if calls == ["buildx", "version"]:
    sys.exit(int(os.environ["NO_BUILDX"]))
if calls[0] == "info":
    print(os.environ["STORE"])
elif calls[0] == "--file" or "build" in calls:
    with (pathlib.Path(__file__).parent / "calls").open("a") as file:
        print(*calls, os.environ["DOCKER_BUILDKIT"], file=file)
    sys.exit(int(os.environ.get("FAILS", "0")))
"""
CONTAINERD = '[["driver-type","io.containerd.snapshotter.v1"]]'
OVERLAY = '[["Backing Filesystem","extfs"],["Supports d_type","true"]]'


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Return a function that returns the recorded commands."""
    script = tmp_path / "docker"
    script.write_text(DOCKER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NO_BUILDX", "1")
    monkeypatch.setenv("STORE", OVERLAY)
    return lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


@pytest.mark.parametrize("store", [CONTAINERD, OVERLAY])
def test_build_passes_buildx_the_option_for_dockers_manifests(docker, monkeypatch, store):
    monkeypatch.setenv("NO_BUILDX", "0")
    monkeypatch.setenv("STORE", store)
    images.build()
    calls = docker()
    assert len(calls) == 2
    for command, repository in zip(calls, (images.SERVING, images.MONITOR), strict=True):
        assert command.startswith("buildx build --platform linux/amd64 --provenance=false --sbom=false")
        assert f"--output type=docker,name={repository},oci-mediatypes=false" in command
        assert f"--file {images.DOCKERFILES[repository]}" in command
        assert f"--label glassbox.sources={images.tag(repository)}" in command


def test_build_uses_the_classic_builder_without_buildx_and_containerd(docker):
    images.build()
    calls = docker()
    assert [command.split()[:3] for command in calls] == [
        ["build", "--tag", images.SERVING],
        ["build", "--tag", images.MONITOR],
    ]
    assert all(command.endswith(". 0") for command in calls)


def test_build_refuses_containerd_without_buildx(docker, monkeypatch):
    monkeypatch.setenv("STORE", CONTAINERD)
    with pytest.raises(DeployError, match="expected the plugin buildx, got none"):
        images.build()
    assert docker() == []


def test_build_raises_after_a_failed_command(docker, monkeypatch):
    monkeypatch.setenv("FAILS", "3")
    with pytest.raises(DeployError, match="glassbox-serving: docker build failed"):
        images.build()
    assert len(docker()) == 1
