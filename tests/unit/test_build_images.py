"""Which build command `make images` runs, by what the Docker at hand has. Docker is a recorder."""

import os
import sys

import pytest

from deploy import DeployError, images

DOCKER = f"""#!{sys.executable}
import os, pathlib, sys

asked = sys.argv[1:]
if asked == ["buildx", "version"]:
    sys.exit(int(os.environ["NO_BUILDX"]))
if asked[0] == "info":
    print(os.environ["STORE"])
elif asked[0] == "--file" or "build" in asked:
    with (pathlib.Path(__file__).parent / "asked").open("a") as file:
        print(*asked, os.environ["DOCKER_BUILDKIT"], file=file)
    sys.exit(int(os.environ.get("FAILS", "0")))
"""
CONTAINERD = '[["driver-type","io.containerd.snapshotter.v1"]]'
OVERLAY = '[["Backing Filesystem","extfs"],["Supports d_type","true"]]'


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """The commands that were asked for, one a line."""
    script = tmp_path / "docker"
    script.write_text(DOCKER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NO_BUILDX", "1")
    monkeypatch.setenv("STORE", OVERLAY)
    return lambda: (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []


@pytest.mark.parametrize("store", [CONTAINERD, OVERLAY])
def test_buildx_is_told_to_make_dockers_manifests_wherever_images_are_kept(docker, monkeypatch, store):
    monkeypatch.setenv("NO_BUILDX", "0")
    monkeypatch.setenv("STORE", store)
    images.build()
    asked = docker()
    assert len(asked) == 2
    for command, repository in zip(asked, (images.SERVING, images.MONITOR), strict=True):
        assert command.startswith("buildx build --platform linux/amd64 --provenance=false --sbom=false")
        assert f"--output type=docker,name={repository},oci-mediatypes=false" in command
        assert f"--file {images.DOCKERFILES[repository]}" in command
        assert f"--label glassbox.sources={images.tag(repository)}" in command


def test_without_buildx_the_classic_builder_builds_where_images_are_not_in_containerd(docker):
    images.build()
    asked = docker()
    assert [command.split()[:3] for command in asked] == [
        ["build", "--tag", images.SERVING],
        ["build", "--tag", images.MONITOR],
    ]
    assert all(command.endswith(". 0") for command in asked)


def test_without_buildx_an_engine_that_would_make_oci_images_is_refused_before_the_build(docker, monkeypatch):
    monkeypatch.setenv("STORE", CONTAINERD)
    with pytest.raises(DeployError, match="expected the plugin buildx, got none"):
        images.build()
    assert docker() == []


def test_a_failed_build_is_told(docker, monkeypatch):
    monkeypatch.setenv("FAILS", "3")
    with pytest.raises(DeployError, match="glassbox-serving: docker build failed"):
        images.build()
    assert len(docker()) == 1
