"""The event of a processing job's state change."""

from __future__ import annotations

from typing import Any

DEFAULT_RUNTIME_SECONDS = 86_400


def event_detail(job: dict[str, Any]) -> dict[str, Any]:
    """Return the `detail` of `SageMaker Processing Job State Change`, as captured from AWS.

    null is "", booleans are "True" and "False", times are epoch milliseconds.
    """
    inputs = [
        {
            "InputName": item["InputName"],
            "AppManaged": "False",
            "S3Input": {
                "S3Uri": item["S3Input"]["S3Uri"],
                "LocalPath": item["S3Input"].get("LocalPath", ""),
                "S3DataType": {"S3Prefix": "S3_PREFIX", "ManifestFile": "MANIFEST_FILE"}[
                    item["S3Input"]["S3DataType"]
                ],
                "S3InputMode": item["S3Input"].get("S3InputMode", "File").upper(),
                "S3DataDistributionType": item["S3Input"]
                .get("S3DataDistributionType", "FullyReplicated")
                .upper(),
                "S3CompressionType": item["S3Input"].get("S3CompressionType", ""),
            },
            "DatasetDefinition": "",
        }
        for item in job.get("ProcessingInputs", [])
    ]
    output_config = job.get("ProcessingOutputConfig", {})
    outputs = [
        {
            "OutputName": output["OutputName"],
            "S3Output": {
                "S3Uri": output["S3Output"]["S3Uri"],
                "LocalPath": output["S3Output"].get("LocalPath", ""),
                "S3UploadMode": {"EndOfJob": "END_OF_JOB", "Continuous": "CONTINUOUS"}[
                    output["S3Output"]["S3UploadMode"]
                ],
            },
            "FeatureStoreOutput": "",
            "AppManaged": "False",
        }
        for output in output_config.get("Outputs", [])
    ]
    application = job["AppSpecification"]
    network = job.get("NetworkConfig", {})
    cluster = {"VolumeKmsKeyId": "", **job["ProcessingResources"]["ClusterConfig"]}

    def milliseconds(member: str) -> int | str:
        return int(job[member] * 1000) if member in job else ""

    return {
        "SdkResponseMetadata": "",
        "SdkHttpMetadata": "",
        "ProcessingInputs": inputs,
        "ProcessingOutputConfig": {"Outputs": outputs, "KmsKeyId": output_config.get("KmsKeyId", "")},
        "ProcessingJobName": job["ProcessingJobName"],
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": job.get("StoppingCondition", {"MaxRuntimeInSeconds": DEFAULT_RUNTIME_SECONDS}),
        "AppSpecification": {
            "ImageUri": application["ImageUri"],
            "ContainerEntrypoint": application.get("ContainerEntrypoint", ""),
            "ContainerArguments": application.get("ContainerArguments", ""),
        },
        "Environment": job.get("Environment", {}),
        "NetworkConfig": {
            "EnableInterContainerTrafficEncryption": str(
                network.get("EnableInterContainerTrafficEncryption", False)
            ),
            "EnableNetworkIsolation": str(network.get("EnableNetworkIsolation", False)),
            "VpcConfig": network.get("VpcConfig", ""),
        },
        "RoleArn": job["RoleArn"],
        "ExperimentConfig": {
            "ExperimentName": "",
            "TrialName": "",
            "TrialComponentDisplayName": "",
            "RunName": "",
        },
        "ProcessingJobArn": job["ProcessingJobArn"],
        "ProcessingJobStatus": job["ProcessingJobStatus"],
        "ExitMessage": job.get("ExitMessage", ""),
        "FailureReason": job.get("FailureReason", ""),
        "ProcessingEndTime": milliseconds("ProcessingEndTime"),
        "ProcessingStartTime": milliseconds("ProcessingStartTime"),
        "LastModifiedTime": milliseconds("LastModifiedTime"),
        "CreationTime": milliseconds("CreationTime"),
        "LastModifiedBy": "",
        "CreatedBy": "",
        "MonitoringScheduleArn": "",
        "AutoMLJobArn": "",
        "TrainingJobArn": "",
        "Tags": {},
    }
