"""README and docs: what they name exists, and the generated page is up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
# a path of the repository: its first part is a file or folder of the repository
PATH = re.compile(r"`([A-Za-z_.-]+/[A-Za-z0-9_./-]+)`")
COMMAND = re.compile(r"(?:^|`|&& )make +([a-z][a-z_-]*)", re.MULTILINE)
BUILT = ("out/", "baseline/")


def anchors(page):
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def configuration():
    spec = importlib.util.spec_from_file_location("write_configuration", ROOT / "docs/write_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parameters_are_those_of_the_template(configuration):
    template = configuration.read_template()
    listed = re.findall(r"^\| `(\w+)`", configuration.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(template["Parameters"])
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(template), "run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z_-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {command for command in COMMAND.findall(text) if not command.startswith("invoke-")}
    assert commands <= targets, f"{page.name}: {commands - targets}"
    paths = [path for path in PATH.findall(text) if (ROOT / path.split("/")[0]).is_dir()]
    missing = [
        path for path in paths if not path.startswith(BUILT) and not (ROOT / path.rstrip("/")).exists()
    ]
    assert not missing, f"{page.name}: {missing}"
