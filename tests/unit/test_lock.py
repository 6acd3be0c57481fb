"""The lock files pin all that pyproject.toml requires, and the images and layers get the tested versions."""

import importlib.util
import re
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement

from local.emulator import ROOT

IMAGES_AND_LAYERS = [
    "layers/dependencies/requirements.txt",
    "layers/imaging/requirements.txt",
    "model_code/requirements.txt",
    "monitor_container/requirements.txt",
]

spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci/lock.py")
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(*files):
    """The version of each package; every pin is exact and each package has one."""
    found = {}
    for line in [line for file in files for line in lock.pins(file)]:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([a-z0-9.]+)", line).groups()
        assert found.setdefault(normal(name), version) == version, line
    return found


@pytest.mark.parametrize("file", lock.LOCKS)
def test_each_direct_requirement_is_pinned(file):
    found = versions(*([file, lock.TORCH] if "demo" in lock.LOCKS[file] else [file]))
    for group in lock.LOCKS[file]:
        for requirement in map(Requirement, lock.requirements()[group]):
            pinned = found.get(normal(requirement.name))
            assert pinned and requirement.specifier.contains(pinned), f"{requirement}: run make lock"


def test_each_extra_and_group_has_a_lock_file():
    assert {group for groups in lock.LOCKS.values() for group in groups} == set(lock.requirements())


def test_transitive_requirements_are_pinned_at_versions_that_fit():
    found = versions("requirements.txt", lock.TORCH)
    problems = []
    for name in found:
        for requirement in map(Requirement, distribution(name).requires or []):
            pinned = found.get(normal(requirement.name))
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if not (pinned and requirement.specifier.contains(pinned, prereleases=True)):
                problems.append(f"{name} requires {requirement}, pinned: {pinned}")
    # smdebug is installed with --no-deps (pyproject.toml); a CUDA build of torch requires NVIDIA's libraries.
    allowed = r"smdebug requires pyinstrument==3.4.2, pinned: 5|torch requires (nvidia|cuda|triton)"
    assert not [problem for problem in problems if not re.match(allowed, problem)]


def test_installed_versions_are_the_pinned_ones():
    found = versions("requirements.txt", lock.TORCH)
    assert {name: distribution(name).version.partition("+")[0] for name in found} == found


@pytest.mark.parametrize("file", IMAGES_AND_LAYERS)
def test_images_and_layers_get_the_tested_versions(file):
    tested = versions("requirements.txt", lock.TORCH)
    assert {name: tested.get(name) for name in versions(file)} == versions(file)
