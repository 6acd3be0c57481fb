import importlib.util
import json
import os
import re
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

# a time limit for an example would fail on a busy machine
hypothesis.settings.register_profile("glassbox", deadline=None)
hypothesis.settings.load_profile("glassbox")
# Skips that .ci/run accepts: another of its commands runs the test, or the test needs data that is not published.
RUN_ELSEWHERE = re.compile("make (deploy|sam|images)-test|make build|make test-all|real GTSRB images")


def fail_if_skipped(report):
    """Fail a skipped test or module in .ci/run, where everything that a test needs is installed."""
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("GLASSBOX_CI") and not RUN_ELSEWHERE.search(str(report.longrepr)):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return fail_if_skipped((yield))


@pytest.fixture(scope="session")
def load_event():
    """Reads events/<name>.json, the example events that ``sam local invoke`` accepts too."""
    return lambda name: json.loads((ROOT / "events" / f"{name}.json").read_text())


@pytest.fixture
def one_thread():
    """Runs torch in one thread: parallel test processes would compete for the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load_app():
    """A fresh functions/<name>/app.py, without the cached objects of earlier tests."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_app", ROOT / "functions" / name / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shared():
    """Real GTSRB images and a model trained on them, if this machine has them."""
    folder = Path(os.environ.get("GLASSBOX_SHARED", ROOT.parent / "shared"))
    if not (folder / "gtsrb").is_dir():
        pytest.skip(f"no real GTSRB images at {folder} (GLASSBOX_SHARED sets the folder)")
    return folder


@pytest.fixture(autouse=True)
def no_real_aws(monkeypatch):
    """A client that bypasses its double has invalid credentials, so that no test reaches an account."""
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
