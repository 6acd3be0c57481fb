import re
from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

from deploy.template import conditions

ROOT = Path(__file__).parents[2]

# What the stack's own names are in these tests, and its parameters: an endpoint of its own, which is monitored hourly.
NAMES = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::AccountId": "111122223333",
    "AWS::StackName": "glassbox",
    "AWS::StackId": "arn:aws:cloudformation:eu-west-1:111122223333:stack/glassbox/0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11",
    "Bucket": "amzn-s3-demo-bucket",
    "MonitorRole.Arn": "arn:aws:iam::111122223333:role/monitor",
}
REGISTRY = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
OWN = {
    "EndpointName": "traffic-signs",
    "ModelDataUrl": "s3://amzn-s3-demo-bucket/model.tar.gz",
    "ServingImage": f"{REGISTRY}/glassbox-serving:1",
    "MonitorImage": f"{REGISTRY}/glassbox-monitor:1",
}


@pytest.fixture(scope="session")
def template():
    return yaml_parse((ROOT / "template.yaml").read_text())


@pytest.fixture(scope="session")
def resolve(template):
    """Resolves the intrinsic functions in a part of the template, with OWN or other parameters.

    Resources are called by their logical ids (`CountQueue`, `CountQueue.Arn`), where NAMES has nothing else.
    """
    defaults = {name: p["Default"] for name, p in template["Parameters"].items() if "Default" in p}

    def resolved(part, **parameters):
        names = defaults | NAMES | OWN | parameters
        held = conditions(template, OWN | parameters)

        def substituted(text, own=None):
            known = names | (walk(own) if own else {})
            return re.sub(r"\$\{([^}]+)\}", lambda m: str(known.get(m[1], m[1])), text)

        functions = {
            "Ref": lambda name: names.get(name, name),
            "Fn::GetAtt": lambda path: names.get(".".join(path), ".".join(path)),
            "Fn::If": lambda given: walk(given[1] if held[given[0]] else given[2]),
            "Fn::Sub": lambda given: substituted(*given) if isinstance(given, list) else substituted(given),
            "Fn::Select": lambda given: walk(given[1])[given[0]],
            "Fn::Split": lambda given: walk(given[1]).split(given[0]),
            "Fn::Join": lambda given: given[0].join(walk(given[1])),
        }

        def walk(part):
            if isinstance(part, list):
                return [item for item in map(walk, part) if item != "AWS::NoValue"]
            if not isinstance(part, dict):
                return part
            for kind in functions.keys() & part:
                return functions[kind](part[kind])
            walked = {key: walk(value) for key, value in part.items()}
            return {key: value for key, value in walked.items() if value != "AWS::NoValue"}

        return walk(part)

    return resolved
