"""Properties of the template: retries, permissions, encryption, parameters."""

import dataclasses
import json
import re
from pathlib import Path

import boto3
import pytest

from deploy.template import RESOURCE_NAMES, conditions, count_resources

ROOT = Path(__file__).parents[2]


def resources(template, kind):
    return {name: r for name, r in template["Resources"].items() if r["Type"] == kind}


def functions(template):
    return resources(template, "AWS::Serverless::Function")


def test_parameters_that_depend_on_the_owner_have_no_default(template):
    required = {name for name, parameter in template["Parameters"].items() if "Default" not in parameter}
    assert required == {"EndpointName", "MaxClassShare"}


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
        for event in function["Properties"].get("Events", {}).values():
            if event["Type"] == "SQS":
                assert event["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
                fed[event["Properties"]["Queue"]["Fn::GetAtt"][0]] = timeout
    assert fed
    for name, timeout in fed.items():
        assert queues[name]["Properties"]["VisibilityTimeout"] >= 6 * timeout, name
        assert queues[name]["Properties"]["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0] in queues
    for name, queue in queues.items():
        assert queue["Properties"]["SqsManagedSseEnabled"] is True, name


def test_counting_has_time_and_memory_for_two_files_and_three_receives(template):
    """A file may contain 6 MB responses and meet a throttled table; the other file must not fail for that."""
    properties = functions(template)["CountPredictionsFunction"]["Properties"]
    assert properties["Timeout"] == 120
    assert properties["MemorySize"] >= 1024
    assert 1 <= properties["Events"]["Queue"]["Properties"]["BatchSize"] <= 2
    queues = resources(template, "AWS::SQS::Queue")
    assert queues["CountQueue"]["Properties"]["VisibilityTimeout"] == 720
    # functions that read objects: a missing or denied object fails three times, then the alarm notifies
    for name in ("CountQueue", "RenderQueue"):
        assert queues[name]["Properties"]["RedrivePolicy"]["maxReceiveCount"] == 3, name


def test_queues_and_functions_have_alarms_with_a_command(template):
    alarms = {}
    of_endpoint = {}
    for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
        properties = alarm["Properties"]
        if properties["Namespace"] == "Glassbox":
            of_endpoint[name] = properties
            continue
        (dimension,) = properties["Dimensions"]
        assert properties["AlarmActions"] == [{"Ref": "Topic"}]
        # no data is not a failure, and no notification follows when an alarm ends
        assert properties["TreatMissingData"] == "notBreaching"
        assert "OKActions" not in properties
        watched = next(iter(dimension["Value"].values()))
        watched = watched[0] if isinstance(watched, list) else watched
        alarms[watched] = (properties["MetricName"], properties["AlarmDescription"]["Fn::Sub"])
        assert alarm.get("Condition") == template["Resources"][watched].get("Condition")
    for name in resources(template, "AWS::SQS::Queue"):
        if name.endswith("DeadLetters"):
            metric, text = alarms.pop(name)
            assert metric == "ApproximateNumberOfMessagesVisible"
            assert f"start-message-move-task --source-arn ${{{name}.Arn}}" in text
    for name in ("CountQueue", "SwapQueue", "ConfirmQueue"):
        metric, text = alarms.pop(name)
        assert metric == "ApproximateAgeOfOldestMessage"
        assert "aws logs tail ${" in text
    for name in functions(template):
        metric, text = alarms.pop(name)
        assert metric == "Errors"
        assert f"aws logs tail ${{{name.removesuffix('Function')}Logs}}" in text
    assert not alarms
    assert {properties["MetricName"] for properties in of_endpoint.values()} == {
        "OpenIncidents",
        "IncompleteExplanations",
    }
    for properties in of_endpoint.values():
        assert properties["AlarmActions"] == [{"Ref": "Topic"}]
        assert properties["TreatMissingData"] == "notBreaching"
        assert properties["Dimensions"] == [
            {"Name": "service", "Value": "glassbox"},
            {"Name": "endpoint", "Value": {"Ref": "EndpointName"}},
        ]
        assert " make " in properties["AlarmDescription"]["Fn::Sub"]


def test_every_function_has_a_role_and_a_log_group_of_its_own(template):
    groups, roles = set(), set()
    for name, function in functions(template).items():
        properties = function["Properties"]
        assert "Policies" not in properties  # SAM would add managed policies, which allow every queue and log
        role, group = properties["Role"]["Fn::GetAtt"][0], properties["LoggingConfig"]["LogGroup"]["Ref"]
        log = template["Resources"][group]["Properties"]
        assert log["RetentionInDays"] == {"Fn::FindInMap": ["Stages", {"Ref": "Stage"}, "LogRetentionDays"]}
        groups.add(group)
        roles.add(role)
        for resource in (role, group):
            assert template["Resources"][resource].get("Condition") == function.get("Condition"), name
    assert len(groups) == len(roles) == len(functions(template))
    assert set(template["Parameters"]["Stage"]["AllowedValues"]) == set(template["Mappings"]["Stages"])


def listed(value):
    return value if isinstance(value, list) else [value]


def statements(template):
    for name, role in resources(template, "AWS::IAM::Role").items():
        assert "ManagedPolicyArns" not in role["Properties"], name
        for policy in role["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement["Fn::If"][1] if "Fn::If" in statement else statement


def test_no_policy_allows_whole_services_or_all_resources(template):
    # actions without resource-level permissions
    everywhere = {
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "sagemaker:ListEndpoints",
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcs",
    }
    seen = 0
    for name, statement in statements(template):
        actions = listed(statement["Action"])
        assert not [a for a in actions if "*" in a], name
        if statement["Resource"] == "*":
            assert set(actions) <= everywhere, name
        seen += 1
    assert seen > 40


def test_each_queue_accepts_messages_of_its_own_rules_only(template, resolve):
    """Rules are named by their ARNs: CloudFormation cuts the names that it makes, and a long stack's name with them."""
    sent, allowed = {}, {}
    for name, rule in resources(template, "AWS::Events::Rule").items():
        for target in resolve(rule["Properties"]["Targets"]):
            for arn in (target["Arn"], target["DeadLetterConfig"]["Arn"]):
                if arn != "Topic":
                    sent.setdefault(arn, set()).add(f"{name}.Arn")
    for name, policy in resources(template, "AWS::SQS::QueuePolicy").items():
        properties = resolve(policy["Properties"])
        (queue,) = properties["Queues"]
        assert name == f"{queue}Policy"
        assert policy.get("Condition") == template["Resources"][queue].get("Condition"), name
        (statement,) = properties["PolicyDocument"]["Statement"]
        assert statement["Resource"] == f"{queue}.Arn", name
        assert statement["Principal"] == {"Service": "events.amazonaws.com"}
        assert statement["Action"] == "sqs:SendMessage"
        allowed[statement["Resource"]] = set(statement["Condition"]["ArnEquals"]["aws:SourceArn"])
    assert allowed == sent


def test_queue_policies_are_within_the_quotas_of_sqs(template, resolve):
    """SQS developer guide, "Quotas related to policies"; the longest names that AWS gives count towards the bytes."""
    arn = f"arn:aws-us-gov:events:us-gov-west-1:111122223333:rule/{'r' * 64}"
    policies = resources(template, "AWS::SQS::QueuePolicy")
    assert len(policies) == 11
    for name, policy in policies.items():
        names = {f"{rule}.Arn": arn for rule in resources(template, "AWS::Events::Rule")}
        properties = resolve(policy["Properties"], **names)
        document = properties["PolicyDocument"]
        assert len(properties["Queues"]) == 1, name
        assert len(json.dumps(document).encode()) <= 8192, name
        assert len(document["Statement"]) <= 20, name
        principals = conditions = 0
        for statement in document["Statement"]:
            assert isinstance(statement["Resource"], str), name
            assert len(listed(statement["Action"])) <= 7, name
            principals += sum(len(listed(value)) for value in statement["Principal"].values())
            keys = [value for operator in statement["Condition"].values() for value in operator.values()]
            conditions += sum(len(listed(value)) for value in keys)
        assert principals <= 50, name
        assert conditions <= 10, name


def test_queues_keep_messages_longer_than_an_outage_and_dead_letters_longest(template):
    """A message keeps its send time on redrive, so the dead-letter queue's period includes the time in the queue."""
    queues = {
        name: q["Properties"]["MessageRetentionPeriod"]
        for name, q in resources(template, "AWS::SQS::Queue").items()
    }
    assert len(queues) == 14
    for name, seconds in queues.items():
        assert seconds == (1_209_600 if name.endswith("DeadLetters") else 345_600), name


def test_policies_allow_an_endpoint_by_its_name_and_by_its_lower_case_arn(template, resolve):
    named = "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/Shop"
    seen = 0
    for parameters, arn in (
        ({}, "Endpoint"),
        ({"ModelDataUrl": "", "EndpointArn": named.lower()}, named.lower()),
    ):
        for _, statement in statements(template):
            if re.search(r"sagemaker:\w+Endpoint\b", str(statement["Action"])):
                assert {named, arn} <= set(resolve(statement["Resource"], EndpointName="Shop", **parameters))
                seen += 1
    assert seen == 2 * 9


def test_layers_are_named_after_the_stack_and_deleted_with_it(template, resolve):
    names = set()
    for layer in resources(template, "AWS::Serverless::LayerVersion").values():
        properties = resolve(layer["Properties"], **{"AWS::StackName": "s" * 128})
        assert properties["RetentionPolicy"] == "Delete"
        assert len(properties["LayerName"]) <= 140
        names.add(properties["LayerName"].removeprefix("s" * 128))
    assert names == {"-core", "-packages", "-imaging"}


def test_alarms_and_rules_can_use_the_encrypted_topic(template, resolve):
    """The key's condition is one that SNS's requests carry; EventBridge supports no condition in a topic's policy."""
    assert template["Resources"]["Topic"]["Properties"]["KmsMasterKeyId"]["Fn::If"][1] == {
        "Fn::GetAtt": ["TopicKey", "Arn"]
    }
    key = resolve(template["Resources"]["TopicKey"]["Properties"]["KeyPolicy"]["Statement"])
    (given,) = (s for s in key if "Service" in s["Principal"])
    assert given == {
        "Sid": "AlarmsAndRules",
        "Effect": "Allow",
        "Principal": {"Service": ["cloudwatch.amazonaws.com", "events.amazonaws.com"]},
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "*",
        "Condition": {
            "ArnLike": {"kms:EncryptionContext:aws:sns:topicArn": "arn:aws:sns:eu-west-1:111122223333:*"}
        },
    }
    topic = resolve(template["Resources"]["TopicPolicy"]["Properties"]["PolicyDocument"]["Statement"])
    in_account = {"StringEquals": {"aws:SourceAccount": "111122223333"}}
    for service, condition in (("cloudwatch", in_account), ("events", None)):
        (given,) = (s for s in topic if s["Principal"] == {"Service": f"{service}.amazonaws.com"})
        assert (given["Effect"], given["Action"], given.get("Condition")) == (
            "Allow",
            "sns:Publish",
            condition,
        )


def test_each_publisher_of_the_topic_may_use_its_key(template):
    by_role = {}
    for name, statement in statements(template):
        actions = listed(statement["Action"])
        by_role.setdefault(name, set()).update(actions)
    for name, actions in by_role.items():
        assert ("sns:Publish" in actions) == ("kms:GenerateDataKey" in actions), name


def test_every_parameter_is_described_grouped_and_bounded(template):
    parameters = template["Parameters"]
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(grouped) == sorted(parameters)
    free_text = {"ClassPath", "ConfidencePath", "RollbackAlarm"}
    for name, parameter in parameters.items():
        assert parameter["Description"], name
        bounds = {"AllowedPattern", "AllowedValues", "MinValue"} & set(parameter)
        assert bool(bounds) != (name in free_text), name
        if "AllowedPattern" in parameter and "Default" in parameter:
            assert re.fullmatch(parameter["AllowedPattern"], parameter["Default"]), name


KEY = "arn:aws:kms:eu-west-1:111122223333:key/volumes"
FOR_SERVICE = {"Bool": {"kms:GrantIsForAWSResource": "true"}}


def allowed(template, resolve, role, action, **parameters):
    """The resolved statements of a role that allow an action, with these parameters."""
    policies = resolve(template["Resources"][role]["Properties"]["Policies"], **parameters)
    statements = [s for policy in policies for s in policy["PolicyDocument"]["Statement"]]
    return [s for s in statements if action in listed(s["Action"])]


def test_each_role_that_updates_the_endpoint_may_use_its_volume_key(template, resolve):
    updates = {
        name
        for name in resources(template, "AWS::IAM::Role")
        if allowed(template, resolve, name, "sagemaker:UpdateEndpoint")
    }
    assert updates == {"SwapEndpointRole", "ConfirmEndpointRole", "RestoreEndpointRole"}
    for role in updates:
        (describe,) = allowed(template, resolve, role, "kms:DescribeKey", EndpointKeyArn=KEY)
        (grant,) = allowed(template, resolve, role, "kms:CreateGrant", EndpointKeyArn=KEY)
        assert (describe["Resource"], describe.get("Condition")) == (KEY, None)
        assert (grant["Resource"], grant["Condition"]) == (KEY, FOR_SERVICE)
        assert not allowed(template, resolve, role, "kms:CreateGrant")


def test_the_monitor_jobs_volume_key_is_granted_to_the_job_and_to_its_starter(template, resolve):
    for role in ("MonitorRole", "StartMonitorRole"):
        (grant,) = allowed(template, resolve, role, "kms:CreateGrant", MonitorKeyArn=KEY)
        assert (grant["Resource"], grant["Condition"]) == (KEY, FOR_SERVICE)
        assert not allowed(template, resolve, role, "kms:CreateGrant")


def test_models_and_configs_use_the_given_network_and_key(template, resolve):
    given = {
        "SubnetIds": ["subnet-1", "subnet-2"],
        "SecurityGroupIds": ["sg-1"],
        "EndpointKeyArn": KEY,
    }
    vpc = {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    for name in ("PlainModel", "HookedModel"):
        properties = template["Resources"][name]["Properties"]
        assert resolve(properties, **given)["VpcConfig"] == vpc
        assert "VpcConfig" not in resolve(properties)
    for name in ("PlainConfig", "HookedConfig"):
        properties = template["Resources"][name]["Properties"]
        assert resolve(properties, **given)["KmsKeyId"] == KEY
        assert "KmsKeyId" not in resolve(properties)
    for role in ("EndpointRole", "MonitorRole"):
        (statement,) = allowed(template, resolve, role, "ec2:CreateNetworkInterface", **given)
        assert "*" not in statement["Resource"]
        assert not allowed(template, resolve, role, "ec2:CreateNetworkInterface")


def test_an_update_of_the_stack_keeps_the_instance_counts(template):
    assert template["Resources"]["Endpoint"]["Properties"]["RetainAllVariantProperties"] is True


@pytest.mark.parametrize(
    ("region", "suffix"),
    [
        ("eu-west-1", "amazonaws.com"),
        ("cn-north-1", "amazonaws.com.cn"),
        ("us-iso-east-1", "c2s.ic.gov"),
        ("eusc-de-east-1", "amazonaws.eu"),
    ],
)
@pytest.mark.parametrize(
    ("name", "repositories"),
    [
        ("glassbox-serving:1a2b", ["glassbox-serving", "glassbox-serving/*"]),
        (f"glassbox-serving@sha256:{'0' * 64}", ["glassbox-serving", "glassbox-serving/*"]),
        ("acme/signs/serving:7", ["acme", "acme/*"]),
        ("glassbox-serving", ["glassbox-serving", "glassbox-serving/*"]),
    ],
)
def test_images_of_every_partition_are_accepted_and_may_be_pulled(
    template, resolve, region, suffix, name, repositories
):
    image = f"111122223333.dkr.ecr.{region}.{suffix}/{name}"
    for parameter, role in (("ServingImage", "EndpointRole"), ("MonitorImage", "MonitorRole")):
        assert re.fullmatch(template["Parameters"][parameter]["AllowedPattern"], image)
        (statement,) = allowed(template, resolve, role, "ecr:BatchGetImage", **{parameter: image})
        assert statement["Resource"] == [
            f"arn:aws:ecr:{region}:111122223333:repository/{repository}" for repository in repositories
        ]


def test_no_resource_names_a_host_of_one_partition(template):
    """Service principals end in amazonaws.com in every partition; hosts do not."""

    def texts(part):
        if isinstance(part, dict):
            for key, value in part.items():
                if key not in ("Service", "iam:PassedToService"):
                    yield from texts(value)
        elif isinstance(part, list):
            for item in part:
                yield from texts(item)
        else:
            yield str(part)

    assert not [text for text in texts(template["Resources"]) if "amazonaws" in text]
    assert not [text for text in texts(template["Resources"]) if "arn:aws:" in text]


def test_queue_functions_have_a_maximum_concurrency(template):
    """Concurrency is bounded, because the functions share DynamoDB, SageMaker and the endpoint."""
    called = {"DashboardWidgetFunction", "DashboardCommandFunction"}  # by a viewer of the dashboard
    for name, function in functions(template).items():
        assert (name in called) == ("Events" not in function["Properties"]), name
        if name in called:
            continue
        (event,) = function["Properties"]["Events"].values()
        scaling = event["Properties"].get("ScalingConfig", {}).get("MaximumConcurrency")
        assert (scaling is None) == (name == "StartMonitorFunction"), name  # called once an hour


def test_stored_data_has_a_retention(template):
    rules = template["Resources"]["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    days = {rule["Id"]: rule.get("ExpirationInDays") for rule in rules}
    assert days == {
        "tensors": 7,
        "captures": 90,
        "monitoring": 400,
        "saliency": {"Ref": "ReportDays"},
        "incidents": {"Ref": "ReportDays"},
        "versions": None,
        "uploads": None,
    }
    assert template["Parameters"]["ReportDays"]["Default"] == 400
    for name in ("Bucket", "CountsTable", "IncidentsTable"):
        resource = template["Resources"][name]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == (
            "RetainExceptOnCreate",
            "Retain",
        )


def test_the_endpoint_url_of_aws_is_declared_and_empty(template):
    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    assert variables["AWS_ENDPOINT_URL"] == {"Ref": "AwsEndpointUrl"}
    assert template["Parameters"]["AwsEndpointUrl"]["Default"] == ""


def test_botocore_ignores_an_empty_endpoint_url(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert boto3.Session().client("sqs").meta.endpoint_url == "https://sqs.eu-west-1.amazonaws.com"


def test_each_function_gets_exactly_the_variables_that_it_reads(template, load_app):
    shared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    # what botocore and Powertools read
    assert shared == {"AWS_ENDPOINT_URL", "POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE"}
    for name, function in functions(template).items():
        given = set(function["Properties"]["Environment"]["Variables"])
        app = load_app(Path(function["Properties"]["CodeUri"]).name)
        found = [
            c for c in vars(app).values() if dataclasses.is_dataclass(c) and c.__name__.endswith("Settings")
        ]
        settings = max(found, key=lambda c: len(dataclasses.fields(c)))
        assert {f.name.upper() for f in dataclasses.fields(settings)} == given, name


def test_hooked_and_plain_config_capture_alike_under_the_same_variant(template):
    plain, hooked = (template["Resources"][n]["Properties"] for n in ("PlainConfig", "HookedConfig"))
    assert plain["DataCaptureConfig"] == hooked["DataCaptureConfig"]
    (plain_variant,), (hooked_variant,) = plain["ProductionVariants"], hooked["ProductionVariants"]
    assert plain_variant.pop("ModelName") != hooked_variant.pop("ModelName")
    assert plain_variant == hooked_variant


def test_the_plan_names_every_resource_type_of_the_template(template):
    every = count_resources(
        template,
        {
            "ModelDataUrl": "s3://b/k",
            "MonitorImage": "image",
            "NotificationEmail": "a@b",
            "Diagnose": "true",
        },
    )
    assert every["Lambda function"] == len(functions(template)) == 9
    assert (every["endpoint"], every["SageMaker model"], every["subscription"]) == (1, 2, 1)
    watching = count_resources(
        template, {"TopicKeyArn": "arn:aws:kms:eu-west-1:111122223333:key/k", "Diagnose": "false"}
    )
    assert watching["Lambda function"] == 7
    assert not {"endpoint", "SageMaker model", "schedule", "subscription"} & set(watching)
    assert (every["KMS key"], watching["KMS key"]) == (2, 1)  # the topic's own, and the replay key
    assert {r["Type"] for r in template["Resources"].values()} == set(RESOURCE_NAMES)


CHANGES = {"sagemaker:UpdateEndpoint", "sagemaker:InvokeEndpoint", "kms:Sign", "kms:CreateGrant"}


@pytest.mark.parametrize("own", [True, False])
def test_notify_only_has_no_twin_and_no_permission_to_change_the_endpoint(template, resolve, own):
    model = {} if own else {"ModelDataUrl": ""}
    given = model | {"RollbackAlarm": "errors", "EndpointKeyArn": "arn:aws:kms:eu-west-1:111122223333:key/a"}

    def may(**parameters):
        held = conditions(template, {"ModelDataUrl": "s3://b/m.tar.gz"} | given | parameters)
        return {
            action
            for name, role in resources(template, "AWS::IAM::Role").items()
            if template["Resources"].get(name.removesuffix("Role") + "Function")
            and held.get(role.get("Condition"), True)
            for policy in resolve(role["Properties"]["Policies"], **given, **parameters)
            for statement in policy["PolicyDocument"]["Statement"]
            for action in listed(statement["Action"])
        }

    watching, reacting = may(React="false", Diagnose="false"), may(React="true", Diagnose="false")
    assert reacting - watching == {*CHANGES, "kms:DescribeKey", "cloudwatch:DescribeAlarms"}
    assert reacting >= CHANGES
    # a diagnosis asks the endpoint, and changes nothing
    asking = {"sagemaker:InvokeEndpoint", "kms:Sign", "sqs:SendMessage"}
    assert may(React="false", Diagnose="true") - watching == asking
    held = conditions(template, {"ModelDataUrl": "s3://b/m.tar.gz"} | model | {"React": "false"})
    for name in ("HookedModel", "HookedConfig"):
        assert held[template["Resources"][name]["Condition"]] is False
    assert held[template["Outputs"]["HookedConfig"]["Condition"]] is False
    for name in ("SwapEndpointFunction", "ConfirmEndpointFunction", "RestoreEndpointFunction"):
        variables = template["Resources"][name]["Properties"]["Environment"]["Variables"]
        found = resolve(variables, React="false", **model)
        assert (found["REACT"], found["HOOKED_CONFIG"]) == ("false", "")


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"PlainConfigName": "plain", "HookedConfigName": "hooked"}, True),
        ({"PlainConfigName": "plain"}, False),
        ({"PlainConfigName": "plain", "React": "false"}, True),
        ({"React": "false"}, True),
        ({}, False),
    ],
)
def test_an_existing_endpoint_requires_a_hooked_config_unless_notify_only(template, given, allowed):
    rule = template["Rules"]["ConfigsWithoutModel"]
    every = {"ModelDataUrl": "", "CaptureBucket": "captures"} | given
    # deploy.template evaluates conditions: the assertions are read as such
    as_conditions = {str(i): assertion["Assert"] for i, assertion in enumerate(rule["Assertions"])}
    held = conditions(template | {"Conditions": as_conditions}, every)
    assert all(held.values()) is allowed
