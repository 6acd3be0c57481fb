"""Check how the deploy tool reads an endpoint and creates its twin, for every member of SageMaker's API."""

import copy
from types import SimpleNamespace

import boto3
import botocore.session
import pytest
from botocore.exceptions import ClientError, ParamValidationError
from botocore.validate import ParamValidator
from moto import mock_aws

from deploy import DeployError
from deploy.hook import MOUNT, Hooks
from deploy.quotas import quota_lines
from deploy.twin import Overrides, check_twin, create_twin, delete_twins, record_trial, trial
from deploy.watched_endpoint import read_endpoint

REGION, ACCOUNT = "eu-west-1", "123456789012"
ARN = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
SERVICE = botocore.session.get_session().get_service_model("sagemaker")
NOUNS = {"model": "Model", "endpoint_config": "EndpointConfig", "endpoint": "Endpoint"}
BUCKET = "acme-captures"


def refused(code, message, operation="Call"):
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


class SageMaker:
    """Models, endpoint configs and endpoints in memory; botocore validates every request."""

    def __init__(self):
        self.meta = SimpleNamespace(service_model=SERVICE)
        self.kept = {kind: {} for kind in NOUNS}
        self.tags = {}
        self.refuse = {}  # name -> message

    def create(self, kind, request):
        shape = SERVICE.operation_model(f"Create{NOUNS[kind]}").input_shape
        report = ParamValidator().validate(request, shape)
        if report.has_errors():
            raise ParamValidationError(report=report.generate_report())
        name = request[f"{NOUNS[kind]}Name"]
        if name in self.refuse:
            raise refused("ValidationException", self.refuse[name])
        assert name not in self.kept[kind]
        record = {member: copy.deepcopy(value) for member, value in request.items() if member != "Tags"}
        record[f"{NOUNS[kind]}Arn"] = arn = f"{ARN}:{kind.replace('_', '-')}/{name.lower()}"
        self.kept[kind][name] = record | {"CreationTime": 0}
        self.tags[arn] = {tag["Key"]: tag["Value"] for tag in request.get("Tags", ())}

    def __getattr__(self, operation):
        verb, _, kind = operation.partition("_")
        member = f"{NOUNS[kind]}Name"

        def call(**request):
            if verb == "create":
                return self.create(kind, request)
            name = request[member]
            if name not in self.kept[kind]:
                raise refused("ValidationException", f'Could not find {kind} "{name}".')
            if verb == "delete":
                return self.kept[kind].pop(name)
            assert verb == "describe"
            return {**copy.deepcopy(self.kept[kind][name]), "ResponseMetadata": {}}

        return call

    def add_tags(self, ResourceArn, Tags):
        self.tags[ResourceArn] |= {tag["Key"]: tag["Value"] for tag in Tags}

    def get_paginator(self, operation):
        pages = {
            "list_tags": lambda ResourceArn: [
                {"Tags": [{"Key": k, "Value": v}]} for k, v in self.tags.get(ResourceArn, {}).items()
            ],
            "list_models": lambda NameContains: [
                {"Models": [model]} for name, model in self.kept["model"].items() if NameContains in name
            ],
            "list_endpoint_configs": lambda NameContains: [
                {"EndpointConfigs": [config]}
                for name, config in self.kept["endpoint_config"].items()
                if NameContains in name
            ],
            "list_endpoints": lambda: [{"Endpoints": [e]} for e in self.kept["endpoint"].values()],
        }
        return SimpleNamespace(paginate=pages[operation])


def everything(shape, path=()):
    """Return a value with every member of a shape, and one item per list."""
    match shape.type_name:
        case "structure":
            return {name: everything(member, (*path, name)) for name, member in shape.members.items()}
        case "list":
            return [everything(shape.member, path)]
        case "map":
            return {"TEAM": everything(shape.value, path)}
        case "boolean":
            return True
        case "integer" | "long" | "float":
            return shape.metadata.get("min", 1) or 1
    return shape.enum[0] if shape.enum else "-".join(path)[-shape.metadata.get("max", 99) :].ljust(20, "x")


CAPTURE = {
    "EnableCapture": True,
    "InitialSamplingPercentage": 100,
    "DestinationS3Uri": f"s3://{BUCKET}/captured",
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
}
CONTAINER = {
    "Image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/acme:7",
    "ModelDataUrl": "s3://models/one.tar.gz",
}
VARIANT = {
    "VariantName": "Blue",
    "ModelName": "Signs",
    "InitialInstanceCount": 2,
    "InstanceType": "ml.m5.xlarge",
}
HOOKED_IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/hooked:1"
HOOKED_DATA = "s3://models/hooked.tar.gz"
BOTH = Overrides(HOOKED_IMAGE, HOOKED_DATA)


@pytest.fixture
def sagemaker():
    return SageMaker()


@pytest.fixture
def session(sagemaker, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        found = boto3.Session(region_name=REGION)
        found.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        clients = {"sagemaker": sagemaker}
        yield SimpleNamespace(
            client=lambda name: clients.get(name) or found.client(name), region_name=REGION, clients=clients
        )


@pytest.fixture
def watch(sagemaker, session):
    """Read an endpoint with these members of model, config and description."""

    def read(*, model=None, config=None, endpoint=None, tags=()):
        role = f"arn:aws:iam::{ACCOUNT}:role/acme"
        model = {"ModelName": "Signs", "ExecutionRoleArn": role, "PrimaryContainer": CONTAINER} | (
            model or {}
        )
        config = {
            "EndpointConfigName": "Shop-v1",
            "ProductionVariants": [VARIANT],
            "DataCaptureConfig": CAPTURE,
        } | (config or {})
        tags = [{"Key": key, "Value": value} for key, value in dict(tags).items()]
        sagemaker.create("model", {k: v for k, v in model.items() if v is not None} | {"Tags": tags})
        sagemaker.create(
            "endpoint_config", {k: v for k, v in config.items() if v is not None} | {"Tags": tags}
        )
        sagemaker.kept["endpoint"]["Shop"] = {
            "EndpointName": "Shop",
            "EndpointArn": f"{ARN}:endpoint/shop",
            "EndpointConfigName": "Shop-v1",
            "EndpointStatus": "InService",
        } | (endpoint or {})
        return read_endpoint("Shop", session)

    return read


def twin_of(sagemaker):
    return sagemaker.kept["model"]["signs-hooked"], sagemaker.kept["endpoint_config"]["shop-v1-hooked"]


def names(sagemaker):
    return set(sagemaker.kept["model"]) | set(sagemaker.kept["endpoint_config"])


# ---------------------------------------------------------------- every member


@pytest.mark.parametrize("member", ["PrimaryContainer", "Containers"])
def test_twin_keeps_every_member_of_a_model_except_the_environment(sagemaker, session, watch, member):
    model = everything(SERVICE.operation_model("CreateModel").input_shape)
    [container] = model.pop("Containers")
    model |= {"ModelName": "Signs", "EnableNetworkIsolation": False}
    # SageMaker refuses these members with the others; separate tests cover them
    left_out = {"ModelPackageName", "InferenceSpecificationName", "ModelDataUrl"}
    container = {k: v for k, v in container.items() if k not in left_out} | {"Mode": "SingleModel"}
    model = {k: v for k, v in model.items() if k not in ("PrimaryContainer", "Tags")}
    model[member] = container if member == "PrimaryContainer" else [container]
    create_twin(
        watch(model=model | ({"PrimaryContainer": None} if member == "Containers" else {})),
        "s",
        "b",
        "key",
        session,
        Overrides(),
    )
    twin, _ = twin_of(sagemaker)
    hooked = container | {
        "Environment": container["Environment"]
        | {"tensors_output": "s3://b/tensors/Shop", "REPLAY_KEY": "key"}
    }
    expected = model | {
        "ModelName": "signs-hooked",
        member: hooked if member == "PrimaryContainer" else [hooked],
    }
    assert {k: v for k, v in twin.items() if k not in ("ModelArn", "CreationTime")} == expected


def test_twin_keeps_every_member_of_an_endpoint_config_except_the_models(sagemaker, session, watch):
    config = everything(SERVICE.operation_model("CreateEndpointConfig").input_shape)
    del config["Tags"], config["AsyncInferenceConfig"]
    del config["ProductionVariants"][0]["ServerlessConfig"]
    config |= {"EndpointConfigName": "Shop-v1", "EnableNetworkIsolation": False}
    config["ProductionVariants"][0]["ModelName"] = "Signs"
    config["DataCaptureConfig"] |= CAPTURE
    create_twin(watch(config=config), "s", "b", "key", session, Overrides())
    _, twin = twin_of(sagemaker)
    variant = config["ProductionVariants"][0] | {"ModelName": "signs-hooked"}
    expected = config | {"EndpointConfigName": "shop-v1-hooked", "ProductionVariants": [variant]}
    assert {k: v for k, v in twin.items() if k not in ("EndpointConfigArn", "CreationTime")} == expected
    assert twin["ProductionVariants"][0]["EnableSSMAccess"] is True
    assert twin["ExplainerConfig"]["ClarifyExplainerConfig"]["InferenceConfig"]["MaxPayloadInMB"] == 1


def test_descriptions_contain_every_member_of_the_create_calls():
    """The twin is created from descriptions, and would lose a member that they omit."""
    for noun in ("Model", "EndpointConfig"):
        taken = SERVICE.operation_model(f"Create{noun}").input_shape.members
        described = SERVICE.operation_model(f"Describe{noun}").output_shape.members
        assert set(taken) - set(described) == {"Tags"}
        for name in set(taken) & set(described):
            assert taken[name].name == described[name].name or taken[name].type_name == "boolean", name


def test_twin_copies_tags_except_those_of_aws(sagemaker, session, watch):
    create_twin(
        watch(tags={"cost": "shop", "aws:cloudformation:stack-name": "acme"}),
        "s",
        "b",
        "key",
        session,
        Overrides(),
    )
    for described, kind in zip(twin_of(sagemaker), ("Model", "EndpointConfig"), strict=True):
        assert sagemaker.tags[described[f"{kind}Arn"]] == {"cost": "shop", "glassbox": "s"}


def test_twin_keeps_the_models_of_shadow_variants(sagemaker, session, watch):
    shadow = VARIANT | {"VariantName": "Next", "ModelName": "Next-model"}
    watched = watch(config={"ShadowProductionVariants": [shadow]})
    create_twin(watched, "s", "b", "key", session, Overrides())
    assert twin_of(sagemaker)[1]["ShadowProductionVariants"] == [shadow]
    assert watched.parameters["ShadowVariants"] == "Next"
    assert watched.instances == {"ml.m5.xlarge": 4}


def test_twin_repeats_only_one_of_model_data_url_and_source(sagemaker, session, watch):
    source = {
        "S3DataSource": {"S3Uri": "s3://m/one.tar.gz", "S3DataType": "S3Object", "CompressionType": "Gzip"}
    }
    watched = watch(model={"PrimaryContainer": CONTAINER | {"ModelDataSource": source}})
    create_twin(watched, "s", "b", "key", session, Overrides())
    container = twin_of(sagemaker)[0]["PrimaryContainer"]
    assert (container["ModelDataSource"], container.get("ModelDataUrl")) == (source, None)
    create_twin(watched, "s", "b", "key", session, BOTH)
    container = twin_of(sagemaker)[0]["PrimaryContainer"]
    assert (container.get("ModelDataSource"), container["ModelDataUrl"]) == (None, HOOKED_DATA)


def test_create_twin_replaces_only_what_differs(sagemaker, session, watch):
    watched = watch()
    create_twin(watched, "s", "b", "key", session, Overrides())
    for described in twin_of(sagemaker):
        described |= {
            "CreationTime": 7,
            "EnableNetworkIsolation": False,
        }  # as AWS describes omitted members
    twin_of(sagemaker)[0]["PrimaryContainer"]["Mode"] = "SingleModel"
    create_twin(watched, "s", "b", "key", session, Overrides())
    assert [described["CreationTime"] for described in twin_of(sagemaker)] == [7, 7]
    create_twin(watched, "s", "b", "key", session, Overrides(image=HOOKED_IMAGE))
    assert [described["CreationTime"] for described in twin_of(sagemaker)] == [0, 7]


def test_create_twin_rolls_back_after_a_refusal(sagemaker, session, watch):
    watched = watch()
    before = names(sagemaker)
    sagemaker.refuse["shop-v1-hooked"] = "no such instance type"
    with pytest.raises(DeployError, match="shop-v1-hooked: SageMaker refuses it: no such instance type"):
        create_twin(watched, "s", "b", "key", session, Overrides())
    assert names(sagemaker) == before
    sagemaker.refuse.clear()
    create_twin(watched, "s", "b", "key", session, Overrides())
    made = {name: dict(model) for name, model in sagemaker.kept["model"].items()}
    sagemaker.kept["endpoint_config"].pop("shop-v1-hooked")
    sagemaker.refuse["shop-v1-hooked"] = "no such instance type"
    with pytest.raises(DeployError):
        create_twin(watched, "s", "b", "key", session, Overrides(image=HOOKED_IMAGE))
    assert sagemaker.kept["model"] == made
    assert delete_twins("s", session) == ["signs-hooked"]  # the rollback restores the tag too


def test_a_repacked_twin_starts_with_its_program(sagemaker, session, watch):
    program = {"SAGEMAKER_PROGRAM": "glassbox_program.py", "GLASSBOX_PROGRAM": "serve.py"}
    hooks = Hooks(programs={"Signs": program})
    create_twin(watch(), "s", "b", "key", session, Overrides(model_data=HOOKED_DATA), hooks)
    container = twin_of(sagemaker)[0]["PrimaryContainer"]
    assert container["ModelDataUrl"] == HOOKED_DATA
    assert program.items() <= container["Environment"].items()


# ---------------------------------------------------------------- unsupported endpoints


def test_image_and_model_data_replace_a_model_package(sagemaker, session, watch):
    package = f"{ARN}:model-package/signs/3"
    watched = watch(
        model={"PrimaryContainer": {"ModelPackageName": package, "InferenceSpecificationName": "one"}}
    )
    for some in (Overrides(), Overrides(image=HOOKED_IMAGE), Overrides(model_data=HOOKED_DATA)):
        with pytest.raises(
            DeployError,
            match=f"model Signs: expected an image, got model package {package}.*IMAGE=… and MODEL_DATA=",
        ):
            create_twin(watched, "s", "b", "key", session, some)
    create_twin(watched, "s", "b", "key", session, BOTH)
    container = twin_of(sagemaker)[0]["PrimaryContainer"]
    assert container == BOTH.members | {
        "Environment": {"tensors_output": "s3://b/tensors/Shop", "REPLAY_KEY": "key"}
    }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"model": {"EnableNetworkIsolation": True}},
            "model Signs: expected EnableNetworkIsolation=false .*, got true",
        ),
        (
            {"config": {"EnableNetworkIsolation": True}},
            "endpoint config Shop-v1: expected EnableNetworkIsolation=false .*, got true",
        ),
        (
            {"model": {"PrimaryContainer": None, "Containers": [CONTAINER] * 2}},
            "model Signs: expected one container, got several",
        ),
        (
            {"config": {"ProductionVariants": [{"VariantName": "Blue", "InstanceType": "ml.m5.xlarge"}]}},
            "variant Blue: expected a model, got inference components",
        ),
    ],
)
def test_check_twin_names_the_reason_and_suggests_react_false(session, watch, changed, reason):
    watched = watch(**changed)
    with pytest.raises(DeployError, match=reason) as caught:
        check_twin(watched, "s", {}, session)
    assert 'Set SET="React=false" to watch and notify without a twin.' in str(caught.value)
    assert watched.lines()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"endpoint": {"EndpointStatus": "Updating"}}, "EndpointStatus: expected InService, got Updating"),
        (
            {"config": {"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://b/out"}}}},
            "AsyncInferenceConfig: expected none",
        ),
        (
            {"model": {"PrimaryContainer": CONTAINER | {"Mode": "MultiModel"}}},
            "model Signs: expected Mode SingleModel, got MultiModel",
        ),
        (
            {
                "model": {
                    "PrimaryContainer": None,
                    "Containers": [CONTAINER, CONTAINER | {"Mode": "MultiModel"}],
                }
            },
            "model Signs: expected Mode SingleModel, got MultiModel",
        ),
        (
            {
                "config": {
                    "ProductionVariants": [
                        VARIANT | {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}}
                    ]
                }
            },
            "variant Blue: expected instances, got ServerlessConfig",
        ),
        (
            {"config": {"DataCaptureConfig": None}},
            "endpoint config Shop-v1: expected an enabled DataCaptureConfig, got none",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"EnableCapture": False}}},
            "expected an enabled DataCaptureConfig, got none",
        ),
        (
            {"endpoint": {"DataCaptureConfig": {"CaptureStatus": "Stopped"}}},
            "expected an enabled DataCaptureConfig, got none",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"InitialSamplingPercentage": 0}}},
            "InitialSamplingPercentage: expected more than 0",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"CaptureOptions": [{"CaptureMode": "Input"}]}}},
            "CaptureOptions: expected CaptureMode Output, got Input only",
        ),
        (
            {
                "config": {
                    "DataCaptureConfig": CAPTURE
                    | {"DestinationS3Uri": f"https://{BUCKET}.s3.amazonaws.com/c"}
                }
            },
            f"expected s3://bucket/prefix, got https://{BUCKET}.s3.amazonaws.com/c",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"DestinationS3Uri": f"s3://{BUCKET}"}}},
            "expected a prefix",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"DestinationS3Uri": f"s3://{BUCKET}/a b"}}},
            "expected a prefix",
        ),
        (
            {"config": {"DataCaptureConfig": CAPTURE | {"DestinationS3Uri": "s3://no-such-bucket/c"}}},
            "capture bucket no-such-bucket: expected an existing bucket, got none",
        ),
        (
            {"model": {"PrimaryContainer": CONTAINER | {"Environment": {"tensors_output": "s3://b/t"}}}},
            "model Signs: expected an environment without tensors_output, got a hooked model",
        ),
        (
            {"config": {"ProductionVariants": [VARIANT | {"ModelName": "Deleted"}]}},
            "model Deleted: expected an existing model, got a deleted one",
        ),
    ],
)
def test_read_endpoint_refuses_with_the_reason(watch, changed, reason):
    with pytest.raises(DeployError, match=reason) as caught:
        watch(**changed)
    assert str(caught.value).count("\n") == 1  # the endpoint, and this reason only


def test_capture_mode_may_name_both_sides(watch):
    capture = CAPTURE | {"CaptureOptions": [{"CaptureMode": "InputAndOutput"}]}
    watched = watch(config={"DataCaptureConfig": capture})
    assert "100 % of the requests, inputs and outputs, to" in watched.lines()[-1]
    assert watched.notes() == []


def test_notes_without_a_twin_omit_what_limits_a_twin(session, watch):
    watched = watch(
        model={"VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}},
        config={"DataCaptureConfig": CAPTURE | {"CaptureOptions": [{"CaptureMode": "Output"}]}},
    )
    assert [note.partition(":")[0] for note in watched.notes()] == [
        "The endpoint captures no inputs",
        "The models are in a VPC",
    ]
    assert watched.notes(twin=False) == []


def test_read_endpoint_refuses_a_bucket_of_another_region(session, watch):
    boto3.client("s3", region_name="us-west-2").create_bucket(
        Bucket="acme-far-away", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    capture = CAPTURE | {"DestinationS3Uri": "s3://acme-far-away/captured"}
    with pytest.raises(
        DeployError, match=f"acme-far-away: expected region {REGION}, as the endpoint's, got us-west-2"
    ):
        watch(config={"DataCaptureConfig": capture})


def test_lines_describe_a_managed_number_of_instances(watch):
    scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 4}
    variant = {k: v for k, v in VARIANT.items() if k != "InitialInstanceCount"} | {
        "ManagedInstanceScaling": scaling
    }
    assert (
        "variant Blue: a managed number of x ml.m5.xlarge"
        in watch(config={"ProductionVariants": [variant]}).lines()[1]
    )


# ---------------------------------------------------------------- keys


def test_keys_are_resolved_to_their_arn(session, watch):
    kms = session.client("kms")
    arn = kms.create_key()["KeyMetadata"]["Arn"]
    kms.create_alias(AliasName="alias/acme", TargetKeyId=arn)
    capture = CAPTURE | {"KmsKeyId": arn.rpartition("/")[2]}
    watched = watch(config={"KmsKeyId": "alias/acme", "DataCaptureConfig": capture})
    assert watched.parameters["EndpointKeyArn"] == arn
    assert watched.parameters["CaptureKeyArn"] == arn
    assert watched.notes() == []


def test_notes_ask_for_the_arn_of_a_key_that_kms_does_not_describe(session, watch):
    def describe_key(KeyId):
        raise refused("AccessDeniedException", "no")

    session.clients["kms"] = SimpleNamespace(describe_key=describe_key)
    watched = watch(config={"KmsKeyId": "alias/acme"})
    assert watched.parameters["EndpointKeyArn"] == ""
    assert ["Set SET=EndpointKeyArn=…" in note for note in watched.notes()] == [True]


# ---------------------------------------------------------------- quotas


class Quotas:
    def __init__(self, error=None, **values):
        self.values, self.error = values, error

    def get_paginator(self, operation):
        def paginate(ServiceCode):
            assert (operation, ServiceCode) == ("list_service_quotas", "sagemaker")
            if self.error:
                raise self.error
            return [
                {"Quotas": [{"QuotaName": f"{name} for endpoint usage", "Value": value}]}
                for name, value in self.values.items()
            ]

        return SimpleNamespace(paginate=paginate)


@pytest.mark.parametrize(
    ("quota", "new", "expected"),
    [
        (4.0, False, "A swap starts 2 more ml.m5.xlarge, 2 of 4 are in use: the quota is sufficient."),
        (3.0, False, "Note: a swap starts 2 more ml.m5.xlarge, 2 of 3 are in use: QUOTA EXCEEDED"),
        (5.0, True, "Note: a swap starts 2 more ml.m5.xlarge, 2 of 5 are in use: QUOTA EXCEEDED"),
        (6.0, True, "A swap starts 2 more ml.m5.xlarge, 2 of 6 are in use: the quota is sufficient."),
    ],
)
def test_quota_lines_count_the_fleet_twice(session, watch, quota, new, expected):
    session.clients["service-quotas"] = Quotas(**{"ml.m5.xlarge": quota})
    [line] = quota_lines(watch().instances, session, new=new)
    assert line.startswith(expected)


def test_quota_lines_count_autoscaled_instances(session, watch):
    session.clients["service-quotas"] = Quotas(**{"ml.m5.xlarge": 9})
    live = {"ProductionVariants": [{"VariantName": "Blue", "CurrentInstanceCount": 5}]}
    [line] = quota_lines(watch(endpoint=live).instances, session)
    assert "starts 5 more ml.m5.xlarge, 5 of 9 are in use: QUOTA EXCEEDED" in line


def test_quota_lines_skip_an_endpoint_with_a_deleted_config(sagemaker, session, watch):
    session.clients["service-quotas"] = Quotas(**{"ml.m5.xlarge": 4})
    fleet = watch().instances
    sagemaker.kept["endpoint"]["Old"] = {"EndpointName": "Old", "EndpointConfigName": "deleted"}
    assert "2 of 4 are in use: the quota is sufficient" in quota_lines(fleet, session)[0]


def test_quota_lines_note_a_refused_call(session, watch):
    session.clients["service-quotas"] = Quotas(refused("AccessDeniedException", "no", "ListServiceQuotas"))
    [line] = quota_lines(watch().instances, session)
    assert line == (
        "Note: a swap starts 2 more ml.m5.xlarge. The quotas were not checked: ListServiceQuotas failed with "
        "AccessDeniedException."
    )
    session.clients["service-quotas"] = Quotas(refused("ThrottlingException", "slowly", "ListServiceQuotas"))
    with pytest.raises(ClientError, match="slowly"):
        quota_lines({"ml.m5.xlarge": 2}, session)


def test_a_trial_counts_for_the_twin_with_the_same_hook(sagemaker, session, watch):
    endpoint = watch()
    hooks = Hooks({"Signs": MOUNT})
    assert trial(endpoint, hooks, session) == ""
    hooked = create_twin(endpoint, "stack", BUCKET, "key", session, Overrides(), hooks)
    assert trial(endpoint, hooks, session) == ""
    record_trial(hooked, "refused", session)
    record_trial(hooked, "complete", session)
    assert trial(endpoint, hooks, session) == "complete"
    create_twin(endpoint, "stack", BUCKET, "key", session, Overrides(), hooks)
    assert trial(endpoint, hooks, session) == "complete"  # nothing was replaced
    assert trial(endpoint, Hooks(), session) == ""  # the archive contains the hook now
    create_twin(endpoint, "stack", BUCKET, "another key", session, Overrides(), hooks)
    assert trial(endpoint, hooks, session) == ""  # the model was replaced
