import json

import pytest

from twin import make_twin

TENSORS = "s3://bucket/tensors/watched"
CAPTURE = {
    "InitialSamplingPercentage": 50,
    "DestinationS3Uri": "s3://stub-models/capture",
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
}


@pytest.fixture(scope="module")
def sagemaker(embedded_aws, stub_images, model_data):
    iam = embedded_aws.client("iam")
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="watched", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    allow = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::stub-models/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_role_policy(RoleName="watched", PolicyName="model", PolicyDocument=policy)
    client = embedded_aws.client("sagemaker")
    container = {"Image": stub_images["serving"], "ModelDataUrl": model_data, "Environment": {"VERSION": "7"}}
    client.create_model(ModelName="watched", ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {
        "VariantName": "Blue",
        "ModelName": "watched",
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": 1.0,
    }
    client.create_endpoint_config(
        EndpointConfigName="watched", ProductionVariants=[variant], DataCaptureConfig=CAPTURE
    )
    client.create_endpoint(EndpointName="watched", EndpointConfigName="watched")
    client.get_waiter("endpoint_in_service").wait(EndpointName="watched", WaiterConfig={"Delay": 1})
    yield client
    client.delete_endpoint(EndpointName="watched")


def test_the_twin_differs_in_the_hook_only_and_making_it_again_changes_nothing(sagemaker):
    for _ in range(2):
        assert make_twin(sagemaker, "watched", TENSORS) == ("watched", "watched-hooked")
    plain, twin = (
        sagemaker.describe_endpoint_config(EndpointConfigName=n) for n in ("watched", "watched-hooked")
    )
    assert twin["DataCaptureConfig"] == plain["DataCaptureConfig"]
    (variant,) = twin["ProductionVariants"]
    assert variant == {**plain["ProductionVariants"][0], "ModelName": "watched-hooked"}
    model, hooked = (sagemaker.describe_model(ModelName=name) for name in ("watched", "watched-hooked"))
    assert hooked["ExecutionRoleArn"] == model["ExecutionRoleArn"]
    environment = {"VERSION": "7", "tensors_output": TENSORS}
    assert hooked["PrimaryContainer"] == {**model["PrimaryContainer"], "Environment": environment}
    assert sagemaker.describe_endpoint(EndpointName="watched")["EndpointConfigName"] == "watched"


def test_an_endpoint_on_its_hooked_config_gets_no_twin_of_a_twin(sagemaker):
    make_twin(sagemaker, "watched", TENSORS)
    sagemaker.update_endpoint(EndpointName="watched", EndpointConfigName="watched-hooked")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="watched", WaiterConfig={"Delay": 1})
    with pytest.raises(ValueError, match="hooked already"):
        make_twin(sagemaker, "watched", TENSORS)
