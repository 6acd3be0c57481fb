"""The SageMaker endpoint: DescribeEndpoint, UpdateEndpoint and InvokeEndpoint."""

import re
from typing import Any

from botocore.exceptions import ClientError

from glassbox.aws.errors import AWS_ERRORS, code_of, is_denied, translate
from glassbox.errors import BadInputError, GlassboxError, RetryableError, printable
from glassbox.incidents.model import DELETED, EndpointState, Request, Response

BAKE_SECONDS = 120
_NAME = re.compile("[A-Za-z0-9-]{1,63}")
_FAILURE_CHARACTERS = 1024
SERVER_ERROR = 500  # and above: the container failed, and the same request may succeed later


class SageMakerEndpoint:
    """DescribeEndpoint and UpdateEndpoint through a boto3 ``sagemaker`` client.

    Raises (every method):
        BadInputError: a permission is missing (for the call, or for the KMS key of the endpoint config's volumes), or
            the endpoint config does not exist.
        RetryableError: an update is in progress, a limit or throttling was hit, or AWS could not be reached.
    """

    def __init__(self, client: Any, rollback_alarm: str = "") -> None:
        self._client, self._rollback_alarm = client, rollback_alarm

    def describe(self, name: str) -> EndpointState:
        """Return the state of the endpoint, with status DELETED if it does not exist."""
        try:
            answer = self._client.describe_endpoint(EndpointName=name)
        except AWS_ERRORS as error:
            if _is_missing(error):
                return EndpointState(DELETED, "", str(error))
            raise _sagemaker_error(error) from error
        failure = printable(answer.get("FailureReason", ""), _FAILURE_CHARACTERS)  # it enters e-mails
        variants = tuple(variant["VariantName"] for variant in answer.get("ProductionVariants", ()))
        return EndpointState(
            answer["EndpointStatus"],
            answer["EndpointConfigName"],
            failure,
            answer.get("LastModifiedTime"),
            variants,
        )

    def exists(self, name: str) -> bool:
        """Return whether the account has an endpoint of this name, watched or not."""
        if not _NAME.fullmatch(name):  # SageMaker refuses to search for it
            return False
        request = {"NameContains": name, "MaxResults": 100}
        try:
            while True:
                answer = self._client.list_endpoints(**request)
                if any(found["EndpointName"] == name for found in answer["Endpoints"]):
                    return True
                if "NextToken" not in answer:
                    return False
                request["NextToken"] = answer["NextToken"]
        except AWS_ERRORS as error:
            raise _sagemaker_error(error) from error

    def update(self, name: str, config: str, *, guarded: bool) -> None:
        """Update the endpoint to a config, and keep its instance counts and weights.

        By default UpdateEndpoint resets them to the initial ones, with which an endpoint that was scaled out fails
        requests. Data capture is that of ``config``.

        Args:
            guarded: SageMaker returns to the old config if the rollback alarm goes off in the bake time. A restore
                is not guarded: an alarm that the hooked model raised would undo it.
        """
        request: dict[str, Any] = {
            "EndpointName": name,
            "EndpointConfigName": config,
            "RetainAllVariantProperties": True,
        }
        if self._rollback_alarm and guarded:
            request["DeploymentConfig"] = _blue_green(self._rollback_alarm)
        try:
            self._client.update_endpoint(**request)
        except AWS_ERRORS as error:
            raise _sagemaker_error(error) from error


def _blue_green(alarm: str) -> dict[str, Any]:
    return {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": BAKE_SECONDS},
            "TerminationWaitInSeconds": BAKE_SECONDS,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]},
    }


class Runtime:
    """InvokeEndpoint through a boto3 ``sagemaker-runtime`` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def invoke(self, endpoint: str, request: Request) -> Response:
        """Send a captured request again.

        Raises:
            BadInputError: the model refuses it (a status below 500), or it cannot be sent.
            RetryableError: the endpoint does not answer, or its container failed (500 and above).
        """
        try:
            answer = self._client.invoke_endpoint(
                EndpointName=endpoint,
                Body=request.body,
                ContentType=request.content_type,
                InferenceId=request.event_id[:64],
                CustomAttributes=request.custom_attributes,
                TargetVariant=request.variant,
            )
            return Response(answer["Body"].read(), answer.get("ContentType", ""))
        except ClientError as error:
            if code_of(error) == "ModelError" and error.response.get("OriginalStatusCode", 0) >= SERVER_ERROR:
                raise RetryableError(str(error)) from error
            raise translate(error, bad=("ModelError", "ValidationError", "ValidationException")) from error
        except AWS_ERRORS as error:
            raise translate(error) from error


def _is_missing(error: Exception) -> bool:
    # only its text distinguishes SageMaker's ValidationException
    return "could not find" in str(error).lower()


def _sagemaker_error(error: Exception) -> GlassboxError:
    return BadInputError(str(error)) if _is_missing(error) or is_denied(error) else translate(error)
