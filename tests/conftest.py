import importlib.util
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def load_event():
    """Reads events/<name>.json: the files that ``sam local invoke`` takes too."""
    return lambda name: json.loads((ROOT / "events" / f"{name}.json").read_text())


@pytest.fixture
def load_app():
    """A fresh functions/<name>/app.py: nothing built for an earlier test is left in it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_app", ROOT / "functions" / name / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shared():
    """Real GTSRB images and a model trained on them, where they are at hand."""
    folder = Path(os.environ.get("GLASSBOX_SHARED", ROOT.parent / "shared"))
    if not (folder / "gtsrb").is_dir():
        pytest.skip(f"no real GTSRB images at {folder} (GLASSBOX_SHARED names another place)")
    return folder


@pytest.fixture(autouse=True)
def no_real_aws(monkeypatch):
    """No test ever reaches an account: a client that slips past its double has no credentials that work."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_METRICS_NAMESPACE": "Glassbox",
        "POWERTOOLS_SERVICE_NAME": "glassbox",
    }.items():
        monkeypatch.setenv(name, value)
