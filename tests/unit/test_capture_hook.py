"""The hook of an endpoint that does not contain our code: PYTHONPATH is all that changes."""

import os
import subprocess
import sys

import pytest

import package


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hook") / "glassbox"
    package.write_hook(folder)
    return folder


def python(script, *path, **environment):
    """Run a script in a process of its own, and return its completed process."""
    given = {name: value for name, value in os.environ.items() if name.lower() != "tensors_output"}
    given["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-c", script], env=given | environment, capture_output=True, text=True, timeout=300
    )


class TestFolder:
    def test_holds_one_module_on_the_path(self, hook):
        assert sorted(entry.name for entry in hook.iterdir()) == ["glassbox_hook", "sitecustomize.py"]
        assert (hook / "glassbox_hook" / "glassbox" / "replay_marker.py").is_file()
        written = [path for path in (hook / "glassbox_hook").rglob("*") if path.is_file()]
        assert len(written) == len(package.HOOK) + len(package.CORE_MODULES)

    def test_is_written_again_over_an_older_one(self, hook, tmp_path):
        package.write_hook(tmp_path)
        (tmp_path / "sitecustomize.py").write_text("older")
        package.write_hook(tmp_path)
        assert (tmp_path / "sitecustomize.py").read_bytes() == (hook / "sitecustomize.py").read_bytes()


class TestNextSitecustomize:
    def test_runs_in_its_own_name(self, hook, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("print('owner', __name__, __file__)\nOWN = 1\n")
        ran = python("import sitecustomize; print(sitecustomize.OWN)", hook, tmp_path)
        assert ran.stdout == f"owner sitecustomize {tmp_path / 'sitecustomize.py'}\n1\n"
        assert ran.stderr == ""

    def test_its_error_is_reported_as_without_the_hook(self, hook, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("raise ValueError('of the owner')\n")
        plain, hooked = python("print(1)", tmp_path), python("print(1)", hook, tmp_path)
        assert "of the owner" in plain.stderr
        assert (hooked.stdout, hooked.stderr) == (plain.stdout, plain.stderr)

    def test_none_is_needed(self, hook):
        assert python("print(1)", hook).stderr == ""
