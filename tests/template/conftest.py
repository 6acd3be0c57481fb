import re
from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).parents[2]

# What the parameters and the stack's own names are in these tests.
NAMES = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::AccountId": "111122223333",
    "Bucket": "amzn-s3-demo-bucket",
}


@pytest.fixture(scope="session")
def template():
    return yaml_parse((ROOT / "template.yaml").read_text())


@pytest.fixture(scope="session")
def resolve(template):
    """Resolves Ref, Fn::Sub of a plain string and Fn::If (to the stack's own endpoint) in a part of the template."""
    names = {name: p["Default"] for name, p in template["Parameters"].items() if "Default" in p} | NAMES

    def walk(part):
        if isinstance(part, list):
            return [walk(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "Ref" in part:
            return names.get(part["Ref"], part["Ref"])
        if "Fn::If" in part:
            return walk(part["Fn::If"][1])
        if isinstance(part.get("Fn::Sub"), str):
            return re.sub(r"\$\{([^}]+)\}", lambda m: str(names[m[1]]), part["Fn::Sub"])
        return {key: walk(value) for key, value in part.items()}

    return walk
