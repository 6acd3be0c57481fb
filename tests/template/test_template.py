"""What the template promises, checked on the template."""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def resources(template, kind):
    return {name: r for name, r in template["Resources"].items() if r["Type"] == kind}


def functions(template):
    return resources(template, "AWS::Serverless::Function")


def test_the_class_share_threshold_has_no_default(template):
    assert "Default" not in template["Parameters"]["Threshold"]


def test_every_rule_retries_and_ends_in_a_dead_letter_queue(template):
    rules = resources(template, "AWS::Events::Rule")
    assert rules
    for name, rule in rules.items():
        for target in rule["Properties"]["Targets"]:
            assert target["DeadLetterConfig"]["Arn"], name
            assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0, name


def test_every_queue_redrives_and_waits_six_times_its_functions_timeout(template):
    queues = resources(template, "AWS::SQS::Queue")
    fed = {}
    for function in functions(template).values():
        timeout = function["Properties"].get("Timeout", template["Globals"]["Function"]["Timeout"])
        for event in function["Properties"]["Events"].values():
            if event["Type"] == "SQS":
                assert event["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
                fed[event["Properties"]["Queue"]["Fn::GetAtt"][0]] = timeout
    assert fed
    for name, timeout in fed.items():
        assert queues[name]["Properties"]["VisibilityTimeout"] >= 6 * timeout, name
        assert queues[name]["Properties"]["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0] in queues
    for name, queue in queues.items():
        assert queue["Properties"]["SqsManagedSseEnabled"] is True, name


def statements(template):
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        documents = [p["PolicyDocument"] for p in properties.get("Policies", []) if "PolicyDocument" in p]
        documents += [p for p in properties.get("Policies", []) if "Statement" in p]
        for document in documents:
            for statement in document["Statement"]:
                yield name, statement["Fn::If"][1] if "Fn::If" in statement else statement


def test_no_policy_allows_whole_services_or_all_resources(template):
    seen = 0
    for name, statement in statements(template):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [a for a in actions if a.endswith("*")], name
        if statement["Resource"] == "*":
            assert actions == ["ecr:GetAuthorizationToken"], name  # the one call that knows no resource
        seen += 1
    assert seen > 5


def test_every_function_gets_just_the_variables_it_reads(template, load_app):
    shared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for name, function in functions(template).items():
        given = set(function["Properties"]["Environment"]["Variables"])
        app = load_app(Path(function["Properties"]["CodeUri"]).name)
        found = [
            c for c in vars(app).values() if dataclasses.is_dataclass(c) and c.__name__.endswith("Settings")
        ]
        settings = max(found, key=lambda c: len(dataclasses.fields(c)))
        read = {f.name.upper() for f in dataclasses.fields(settings)}
        needed = {f.name.upper() for f in dataclasses.fields(settings) if f.default is dataclasses.MISSING}
        assert needed <= given | shared, f"{name} lacks {needed - given - shared}"
        assert given <= read, f"{name} never reads {given - read}"


def test_hooked_and_plain_config_capture_alike_under_the_same_variant(template):
    plain, hooked = (template["Resources"][n]["Properties"] for n in ("PlainConfig", "HookedConfig"))
    assert plain["DataCaptureConfig"] == hooked["DataCaptureConfig"]
    (plain_variant,), (hooked_variant,) = plain["ProductionVariants"], hooked["ProductionVariants"]
    assert plain_variant.pop("ModelName") != hooked_variant.pop("ModelName")
    assert plain_variant == hooked_variant


def test_data_outlives_the_stack(template):
    assert template["Resources"]["Bucket"]["DeletionPolicy"] == "Retain"


def test_every_path_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    folders = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "out")
    quoted = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", text))
    assert len(links) > 5
    assert len(quoted) > 10
    assert not sorted(path for path in links | quoted if not (ROOT / path).exists())
