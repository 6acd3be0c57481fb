"""The hooked twin of what an endpoint runs now: the same models with `tensors_output`, the same variants and capture.

    python model_code/twin.py --endpoint traffic-signs --bucket <the stack's bucket>

prints the two parameters to deploy the stack with. The model's container has to be one with the hook
(model_code/Dockerfile, or inference.py and hook.py in an image of your own). Running it again changes nothing.
"""

import argparse
from typing import Any

import boto3
from botocore.exceptions import ClientError

SUFFIX = "-hooked"
NAME = 63  # characters

_MODEL = ("ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation")
_CONFIG = ("DataCaptureConfig", "KmsKeyId", "ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation")


def make_twin(sagemaker: Any, endpoint: str, tensors: str) -> tuple[str, str]:
    """Create the hooked models and their endpoint config; the endpoint itself is left alone.

    Args:
        sagemaker: a boto3 client.
        tensors: ``s3://bucket/tensors/<endpoint>``, where the hook writes to.

    Returns:
        The names of the plain and of the hooked endpoint config.

    Raises:
        ValueError: the endpoint runs a hooked config already, or a model of several containers.
    """
    plain = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=plain)
    variants = []
    for variant in config["ProductionVariants"]:
        hooked_model = _hooked_model(sagemaker, variant["ModelName"], tensors)
        variants.append({**variant, "ModelName": hooked_model})
    hooked = _name(plain)
    kept = {name: config[name] for name in _CONFIG if config.get(name)}
    _unless_there(
        sagemaker.create_endpoint_config, EndpointConfigName=hooked, ProductionVariants=variants, **kept
    )
    return plain, hooked


def _hooked_model(sagemaker: Any, name: str, tensors: str) -> str:
    model = sagemaker.describe_model(ModelName=name)
    if "PrimaryContainer" not in model:
        raise ValueError(f"model {name} has several containers: only one can carry the hook")
    container = model["PrimaryContainer"]
    environment = container.get("Environment", {})
    if environment.get("tensors_output"):
        raise ValueError(f"model {name} is hooked already: restore the endpoint first")
    hooked = {**container, "Environment": {**environment, "tensors_output": tensors}}
    kept = {key: model[key] for key in _MODEL if model.get(key)}
    _unless_there(sagemaker.create_model, ModelName=_name(name), PrimaryContainer=hooked, **kept)
    return _name(name)


def _name(plain: str) -> str:
    return plain[: NAME - len(SUFFIX)].rstrip("-") + SUFFIX


def _unless_there(create: Any, **request: Any) -> None:
    try:
        create(**request)
    except ClientError as error:
        if "already existing" not in str(error):
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", required=True, help="the stack's bucket (output Bucket)")
    chosen = parser.parse_args()
    tensors = f"s3://{chosen.bucket}/tensors/{chosen.endpoint}"
    plain, hooked = make_twin(boto3.client("sagemaker"), chosen.endpoint, tensors)
    print(f"sam deploy --parameter-overrides PlainConfigName={plain} HookedConfigName={hooked}")


if __name__ == "__main__":
    main()
