import re

import pytest

from local.sagemaker.errors import SageMakerError
from local.sagemaker.shapes import check, from_template, input_shape

CONFIG = input_shape("CreateEndpointConfig")


def variant(**more):
    return {"VariantName": "v", "ModelName": "m", **more}


def test_converts_template_strings_to_the_types_of_the_api():
    properties = {
        "ProductionVariants": [variant(InitialInstanceCount="2", InitialVariantWeight="0.5")],
        "DataCaptureConfig": {"EnableCapture": "true", "InitialSamplingPercentage": "50"},
    }
    assert from_template(properties, CONFIG) == {
        "ProductionVariants": [variant(InitialInstanceCount=2, InitialVariantWeight=0.5)],
        "DataCaptureConfig": {"EnableCapture": True, "InitialSamplingPercentage": 50},
    }


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({"Colour": "red"}, "unsupported property Colour"),
        (
            {"ProductionVariants": [variant(InitialInstanceCount="two")]},
            "/ProductionVariants/0/InitialInstanceCount: expected integer, got 'two'",
        ),
        (
            {"DataCaptureConfig": {"EnableCapture": "yes"}},
            "/DataCaptureConfig/EnableCapture: expected boolean, got 'yes'",
        ),
        ({"ProductionVariants": "one"}, "/ProductionVariants: expected list, got str"),
    ],
)
def test_error_names_the_invalid_template_value(properties, problem):
    with pytest.raises(ValueError, match=problem):
        from_template(properties, CONFIG)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (
            {"ProductionVariants": [variant()]},
            "Value null at 'endpointConfigName' failed to satisfy constraint: Member must not be null",
        ),
        (
            {"EndpointConfigName": "n" * 64, "ProductionVariants": [variant()]},
            "length less than or equal to 63",
        ),
        ({"EndpointConfigName": "n", "ProductionVariants": []}, "have length between 1 and 10"),
        (
            {"EndpointConfigName": "n", "ProductionVariants": [variant(InitialInstanceCount=-1)]},
            "Value '-1' at 'productionVariants.1.member.initialInstanceCount' failed to satisfy constraint: "
            "Member must have value greater than or equal to 1",
        ),
        (
            {"EndpointConfigName": "n", "ProductionVariants": [variant(InstanceType="ml.abacus")]},
            "Member must satisfy enum value set: [",
        ),
    ],
)
def test_refuses_a_request_that_violates_its_model(request_, problem):
    with pytest.raises(SageMakerError) as caught:
        check(request_, CONFIG)
    assert caught.value.code == "ValidationException"
    assert re.match(r"(1 validation error|2 validation errors) detected: Value ", caught.value.message)
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({f"K{n}": "v" for n in range(101)}, "have size between 0 and 100"),
        ({"K" * 1025: "v"}, "length less than or equal to 1024"),
        ({"a key": "v"}, "regular expression pattern"),
    ],
)
def test_refuses_an_environment_with_too_many_or_invalid_names(environment, problem):
    request = {"ModelName": "m", "PrimaryContainer": {"Environment": environment}}
    with pytest.raises(SageMakerError, match=problem):
        check(request, input_shape("CreateModel"))


def test_accepts_a_valid_request():
    check({"EndpointConfigName": "a-1", "ProductionVariants": [variant(InstanceType="ml.m5.large")]}, CONFIG)


def test_a_tag_may_contain_a_blank_and_no_comma():
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:model/m"
    shape = input_shape("AddTags")
    check({"ResourceArn": arn, "Tags": [{"Key": "tried", "Value": "1f2e complete"}]}, shape)
    with pytest.raises(SageMakerError, match="regular expression"):
        check({"ResourceArn": arn, "Tags": [{"Key": "tried", "Value": "1f2e, complete"}]}, shape)
