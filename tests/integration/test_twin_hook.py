"""The deploy tool mounts the hook into the twin of an endpoint with foreign image and code, on the embedded AWS."""

import json
from types import SimpleNamespace

import pytest
from samtranslator.yaml_helper import yaml_parse

from deploy import DeployError
from deploy.hook import MOUNT, read_hooks
from deploy.twin import Overrides, create_twin, delete_twins, mounted_hook
from deploy.watched_endpoint import read_endpoint
from local.emulator import REGION, ROOT

BUCKET, ENDPOINT = "hooked-stack", "foreign"


def allow(action, resource, **more):
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def policy_of_template(role):
    """Return the statements of template.yaml for a bucket whose endpoint has this role."""
    template = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
    known = {"EndpointRoleArns": [role], "EndpointName": ENDPOINT}
    arn = f"arn:aws:s3:::{BUCKET}"

    def resolve(value):
        match value:
            case {"Fn::If": ["ForeignRoles", statement, _]}:
                return resolve(statement)
            case {"Ref": name}:
                return known[name]
            case {"Fn::GetAtt": _}:
                return arn
            case {"Fn::Sub": text}:
                return text.replace("${Bucket.Arn}", arn).replace("${EndpointName}", ENDPOINT)
            case dict():
                return {name: resolve(part) for name, part in value.items()}
            case list():
                return [resolve(part) for part in value]
        return value

    return resolve(template["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"])


@pytest.fixture(scope="module")
def session(embedded_aws):
    return SimpleNamespace(client=embedded_aws.client, region_name=REGION)


@pytest.fixture(scope="module")
def role(embedded_aws):
    iam = embedded_aws.client("iam")
    trust = allow("sts:AssumeRole", "*", Principal={"Service": "sagemaker.amazonaws.com"})
    del trust["Resource"]
    created = iam.create_role(
        RoleName="foreign", AssumeRolePolicyDocument=json.dumps({"Statement": [trust]})
    )["Role"]
    document = {
        "Version": "2012-10-17",
        "Statement": [allow("s3:GetObject", "arn:aws:s3:::stub-models/*")],
    }
    iam.put_role_policy(RoleName="foreign", PolicyName="p", PolicyDocument=json.dumps(document))
    return created["Arn"]


@pytest.fixture(scope="module")
def watched(embedded_aws, session, role, model_data, stub_images, eventually):
    """An endpoint of another image, whose archive does not contain the hook."""
    sagemaker = embedded_aws.client("sagemaker")
    embedded_aws.create_bucket(BUCKET)
    container = {
        "Image": stub_images["serving"].replace("stub-serving", "stub-environment"),
        "ModelDataUrl": model_data,
        "Environment": {"TEAM": "acme", "PYTHONPATH": "/opt/acme"},
    }
    sagemaker.create_model(ModelName=ENDPOINT, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {
        "VariantName": "Blue",
        "ModelName": ENDPOINT,
        "InitialInstanceCount": 1,
        "InstanceType": "ml.t2.medium",
    }
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{BUCKET}/capture",
        "CaptureOptions": [{"CaptureMode": "Output"}],
    }
    sagemaker.create_endpoint_config(
        EndpointConfigName=ENDPOINT, ProductionVariants=[variant], DataCaptureConfig=capture
    )
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT)
    eventually(lambda: status(sagemaker) == ("InService", ENDPOINT))
    yield read_endpoint(ENDPOINT, session)
    sagemaker.delete_endpoint(EndpointName=ENDPOINT)


def status(sagemaker):
    described = sagemaker.describe_endpoint(EndpointName=ENDPOINT)
    return described["EndpointStatus"], described["EndpointConfigName"]


def answer(aws, wish):
    body = aws.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=ENDPOINT, Body=json.dumps(wish).encode(), ContentType="application/json"
    )["Body"]
    return json.loads(body.read())


def test_a_twin_of_unchanged_code_starts_with_the_hook_on_its_path(
    embedded_aws, session, watched, role, eventually
):
    s3, sagemaker = embedded_aws.client("s3"), embedded_aws.client("sagemaker")
    hooks = read_hooks(watched, replaced=False, session=session)
    assert hooks.paths == {ENDPOINT: f"{MOUNT}:/opt/acme"}
    assert hooks.notes == ()
    with pytest.raises(DeployError, match=f"foreign-hooked: SageMaker refuses it: Could not access.*{role}"):
        create_twin(watched, "s", BUCKET, "key", session, Overrides(), hooks)
    assert not sagemaker.list_models(NameContains="foreign-hooked")["Models"]

    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy_of_template(role)))
    twin = create_twin(watched, "s", BUCKET, "key", session, Overrides(), hooks)
    prefix = mounted_hook(twin, session).removeprefix(f"s3://{BUCKET}/")
    sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=twin)
    eventually(lambda: status(sagemaker) == ("InService", twin))
    mounted = answer(embedded_aws, {"tree": "additional-model-data-sources/glassbox"})
    uploaded = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    assert sorted(mounted) == sorted(key.removeprefix(prefix) for key in uploaded)
    assert "sitecustomize.py" in mounted
    seen = answer(embedded_aws, {"environment": 1})
    folder = f"{seen['OPT_ML']}/additional-model-data-sources/glassbox"
    assert seen["PYTHONPATH"] == f"{folder}:/opt/acme"
    assert (seen["TEAM"], seen["STAGE"]) == ("acme", "image")
    assert seen["tensors_output"] == f"s3://{BUCKET}/tensors/{ENDPOINT}"
    path = answer(embedded_aws, {"path": 1})
    assert path[1:3] == [folder, "/opt/acme"]  # path[0] is the folder of the script

    before = watched.models[ENDPOINT]["PrimaryContainer"]
    after = sagemaker.describe_model(ModelName="foreign-hooked")["PrimaryContainer"]
    changed = ("Environment", "AdditionalModelDataSources")
    assert {name: value for name, value in after.items() if name not in changed} == {
        name: value for name, value in before.items() if name != "Environment"
    }
    sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT)
    eventually(lambda: status(sagemaker) == ("InService", ENDPOINT))
    assert set(delete_twins("s", session)) == {"foreign-hooked"}
    assert mounted_hook(twin, session) == ""
