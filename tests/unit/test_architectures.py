"""docs/architectures.md lists the networks that the benchmark measures, and the verdicts that the pages claim."""

import random
import re
from pathlib import Path

import torch

from benchmarks import architectures

DOCS = Path(__file__).parents[2] / "docs"
known, drawn = (
    re.findall(r"^\| (?:timm )?(\w+) \| (\d+) \|.*\| (complete|refused|incomplete)", part, re.MULTILINE)
    for part in (DOCS / "architectures.md").read_text(encoding="utf-8").split("## Drawn architectures")
)


def test_the_page_lists_the_46_networks():
    assert [(name, int(size)) for name, size, _ in known] == [(a.name, a.size) for a in architectures.known()]
    assert len(known) == 46
    assert {verdict for *_, verdict in known} == {"complete"}


def test_the_page_lists_20_drawn_networks():
    assert [verdict for *_, verdict in drawn].count("complete") == 19
    assert [name for name, _, verdict in drawn if verdict == "refused"] == ["gemma4_vit_570m_enc"]
    assert f"{architectures.SEED} is the seed" in (DOCS / "architectures.md").read_text(encoding="utf-8")


class Timm:
    """Families with two models each, some of which the 46 contain."""

    def list_modules(self):
        return ["vgg", "dla", *(f"family{i}" for i in range(30))]

    def list_models(self, module):
        return ["dla34", "dla60"] if module == "dla" else [f"{module}_b", f"{module}_a"]


def test_the_draw_takes_one_network_of_each_of_20_other_families():
    families, found = architectures.drawn(Timm())
    draw = random.Random(architectures.SEED)
    chosen = draw.sample(sorted(f"family{i}" for i in range(30)), 20)
    assert families == 30
    assert [a.name for a in found] == [draw.choice([f"{family}_a", f"{family}_b"]) for family in chosen]


def test_the_disturbed_network_has_its_own_statistics_and_stays_in_eval_mode():
    norm = torch.nn.BatchNorm2d(3)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), norm).eval()
    architectures.disturb(network, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert not norm.training
    assert bool((norm.running_mean != 0).all())
    assert bool((norm.running_var > 0).all())
