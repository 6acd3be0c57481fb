"""README and docs: what they name exists, and the generated page is up to date."""

import importlib.util
import re
from pathlib import Path

import pytest
from scipy.stats import binom

from glassbox.monitoring.drift import jensen_shannon_distance

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


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parameters_are_those_of_the_template():
    configuration = script("write_configuration")
    template = configuration.read_template()
    listed = re.findall(r"^\| `(\w+)`", configuration.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(template["Parameters"])
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(template), "run make docs"


def test_the_thresholds_are_those_of_chance():
    page = (ROOT / "docs/thresholds.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.\d+) \|(.+)\|$", page, re.MULTILINE)
    assert [usual for usual, _ in rows] == ["0.02", "0.05", "0.1", "0.2", "0.3", "0.5"]
    for usual, cells in rows:
        for n, share in zip((50, 100, 400, 2000), map(float, cells.split("|")), strict=True):
            k = round(share * n)
            assert binom.sf(k, n, float(usual)) <= 0.001 < binom.sf(k - 1, n, float(usual))
    for moved, distance in ((0.1, 0.17), (0.2, 0.27)):
        usual = dict.fromkeys(range(43), 100_000)
        now = {c: round(100_000 * (1 - moved)) + (c == 14) * round(4_300_000 * moved) for c in usual}
        assert round(jensen_shannon_distance(usual, now), 2) == distance
        assert f"{distance}" in page


def test_the_costs_are_those_of_the_template_and_the_prices():
    costs = script("write_costs")
    template = script("write_configuration").read_template()
    assert costs.PAGE.read_text(encoding="utf-8") == costs.page(template), "run make docs"
    # 10,000 files of 100 predictions, a PUT each, at half a cent per thousand
    assert costs.cost("S3: the capture is written", 100) == pytest.approx(0.05)
    assert costs.cost("S3: the capture is written", 1) == pytest.approx(5)
    # 1.1 write units and 5 read units a file
    assert costs.cost("DynamoDB", 1) == pytest.approx(1.1 * 0.625 + 5 * 0.125)


def test_each_behaviour_is_in_the_function_that_the_page_names():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    places = [
        (file, name)
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text)
        for name in re.findall(r"[\w.]+", names)
    ]
    assert len(places) == 21
    for file, path in places:
        source = (ROOT / "layers/core/python/glassbox" / file).read_text(encoding="utf-8")
        for depth, name in enumerate(path.split(".")):  # a function, a class, or a method of a class
            found = re.search(rf"^{' ' * 4 * depth}(def|class) {name}\b", source, re.MULTILINE)
            assert found, f"{file}: {path}"
            source = source[found.start() :]


def test_the_import_graph_is_that_of_the_core():
    imports = script("write_imports")
    graph = imports.import_graph()
    assert {"ports", "violation"} <= graph["incidents.workflow"]
    assert imports.PAGE.read_text(encoding="utf-8") == imports.page(graph), "run make docs"


def test_the_import_graph_omits_imports_that_follow_from_others():
    page = script("write_imports").page({"a": {"p.b", "c"}, "p.b": {"c"}, "c": set(), "d": {"c"}})
    assert re.findall(r"(\w+) --> (\w+)", page) == [("a", "p_b"), ("p_b", "c"), ("d", "c")]


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
