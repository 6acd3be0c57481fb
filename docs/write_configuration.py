"""Write docs/configuration.md: the parameters of template.yaml, in the groups that CloudFormation's console shows."""

import sys
from pathlib import Path
from typing import Any

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE, PAGE = ROOT / "template.yaml", ROOT / "docs" / "configuration.md"

HEAD = """# Configuration

The parameters of `template.yaml`. `make docs` writes this page; a test compares the two.

`make deploy SET="Name=value …"` sets parameters. An omitted parameter keeps its value;
`SET="Name="` empties it. The functions and the monitor container read the same values from
environment variables: `MinPredictions` is `MIN_PREDICTIONS`. They read `MaxClassShare` from
`THRESHOLD` too.
"""


def page(template: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    parameters = template["Parameters"]
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    sections = [HEAD]
    for group in groups:
        rows = [_row(name, parameters[name]) for name in group["Parameters"]]
        head = "| parameter | default | values | meaning |\n|---|---|---|---|"
        sections.append("\n".join([f"## {group['Label']['default']}", "", head, *rows, ""]))
    return "\n".join(sections)


def _row(name: str, parameter: dict[str, Any]) -> str:
    default = parameter.get("Default")
    shown = "required" if default is None else f"`{default}`" if default != "" else "empty"
    cells = [f"`{name}`", shown, _values(parameter), str(parameter["Description"]).strip()]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(parameter: dict[str, Any]) -> str:
    if allowed := parameter.get("AllowedValues"):
        return ", ".join(f"`{value}`" for value in allowed)
    if "MinValue" in parameter or "MaxValue" in parameter:
        minimum, maximum = parameter.get("MinValue", ""), parameter.get("MaxValue", "")
        return f"{minimum} to {maximum}" if maximum != "" else f"at least {minimum}"
    return str(parameter.get("ConstraintDescription", "text"))


def read_template() -> dict[str, Any]:
    """Return template.yaml as a dictionary."""
    return dict(cfn_yaml.load(str(TEMPLATE)))


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    PAGE.write_text(page(read_template()), encoding="utf-8")
