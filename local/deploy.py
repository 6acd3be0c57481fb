"""A small `sam build` and `sam deploy` for any CloudFormation endpoint, without the SAM CLI and containers.

It packages functions and layers as SAM does, with wheels for the running interpreter. Archives are deterministic, so
unchanged code is neither uploaded nor updated.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import hashlib
import io
import json
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from local.waiting import wait_for

ARTIFACTS = "glassbox-artifacts"
BUILD = Path(".build")
DEPLOY_SECONDS = 600.0
HASHED = py_compile.PycInvalidationMode.UNCHECKED_HASH
IGNORED = {"__pycache__", ".DS_Store", ".mypy_cache", ".pytest_cache", ".ruff_cache"}

# The property that names local code, by resource type.
CODE = {"AWS::Serverless::Function": "CodeUri", "AWS::Serverless::LayerVersion": "ContentUri"}


class DeployError(RuntimeError):
    """The deployment failed, for the reason of the first resource that failed."""


def deploy(
    template: Path,
    stack: str,
    parameters: dict[str, str],
    session: boto3.Session,
    *,
    build: Path | None = None,
    bucket: str = ARTIFACTS,
) -> dict[str, str]:
    """Package the code, create or update the stack, wait for it and return its outputs.

    Args:
        parameters: an update keeps the values of the others; a new stack takes the template's defaults.
        build: caches installed requirements (default: .build beside the template).
        bucket: receives the archives and the template.

    Raises:
        DeployError: the template is invalid or a resource failed.
    """
    body = yaml_parse(template.read_text())
    s3 = session.client("s3")
    _package(body, template.parent.resolve(), build or template.parent / BUILD, s3, bucket)
    url = _upload(body, s3, bucket)
    cloudformation = session.client("cloudformation")
    current = _describe(cloudformation, stack)
    if current and current["StackStatus"] in ("ROLLBACK_COMPLETE", "REVIEW_IN_PROGRESS", "CREATE_FAILED"):
        cloudformation.delete_stack(StackName=stack)  # its creation failed, so no update is possible
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=stack, WaiterConfig={"Delay": 1})
        current = None
    if _apply(cloudformation, stack, url, set(body.get("Parameters", {})), parameters, current):
        _wait(cloudformation, stack)
    outputs = (_describe(cloudformation, stack) or {}).get("Outputs", [])
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def _describe(cloudformation: Any, stack: str) -> dict[str, Any] | None:
    try:
        described: dict[str, Any] = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return described


def _apply(
    cloudformation: Any,
    stack: str,
    url: str,
    declared: set[str],
    parameters: dict[str, str],
    current: dict[str, Any] | None,
) -> bool:
    """Create and execute a change set; return False if it is empty."""
    values: list[dict[str, Any]] = [{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()]
    if current:
        known = {p["ParameterKey"] for p in current.get("Parameters", [])} & declared
        values += [{"ParameterKey": k, "UsePreviousValue": True} for k in sorted(known - set(parameters))]
    name = f"glassbox-{time.time_ns()}"
    try:
        cloudformation.create_change_set(
            StackName=stack,
            ChangeSetName=name,
            ChangeSetType="UPDATE" if current else "CREATE",
            TemplateURL=url,
            Parameters=values,
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
        )
    except ClientError as error:
        raise DeployError(f"{stack}: {error.response['Error']['Message']}") from error

    def described() -> dict[str, Any] | None:
        change_set: dict[str, Any] = cloudformation.describe_change_set(StackName=stack, ChangeSetName=name)
        return change_set if change_set["Status"] in ("CREATE_COMPLETE", "FAILED") else None

    change_set = wait_for(described, DEPLOY_SECONDS, f"{stack}: change set {name}")
    if change_set["Status"] == "FAILED":
        reason = change_set.get("StatusReason", "")
        cloudformation.delete_change_set(StackName=stack, ChangeSetName=name)
        if "didn't contain changes" in reason or "No updates" in reason:
            return False
        raise DeployError(f"{stack}: {reason}")
    cloudformation.execute_change_set(StackName=stack, ChangeSetName=name)
    return True


def _wait(cloudformation: Any, stack: str) -> None:
    began = time.time()

    def ended() -> str | None:
        status: str = (_describe(cloudformation, stack) or {}).get("StackStatus", "DELETE_COMPLETE")
        return status if status.endswith(("_FAILED", "_COMPLETE")) else None

    status = wait_for(ended, DEPLOY_SECONDS, f"{stack}: deployment")
    if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise DeployError(f"{stack} is {status}: {_first_failure(cloudformation, stack, began)}")


def _first_failure(cloudformation: Any, stack: str, since: float) -> str:
    """Return the reason of the first resource that failed; the failures after it are its consequences."""
    events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
    for event in sorted(events, key=lambda e: e["Timestamp"]):
        reason = event.get("ResourceStatusReason", "")
        if (
            event["ResourceStatus"].endswith("_FAILED")
            and event["ResourceType"] != "AWS::CloudFormation::Stack"
            and event["Timestamp"].timestamp() >= since - 60
            and "cancelled" not in reason
        ):
            return f"{event['LogicalResourceId']} ({event['ResourceType']}): {reason}"
    stack_reason: str = (_describe(cloudformation, stack) or {}).get("StackStatusReason", "no reason given")
    return stack_reason


# ---------------------------------------------------------------- packaging


def _package(template: dict[str, Any], root: Path, build: Path, s3: Any, bucket: str) -> None:
    """Upload the archives that S3 lacks and put their URIs into the template in place of local paths."""
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    uploaded: dict[tuple[str, bool], str] = {}
    for name, resource in template["Resources"].items():
        member = CODE.get(resource["Type"])
        code = resource["Properties"].get(member) if member else None
        if not isinstance(code, str) or code.startswith("s3://"):
            continue
        source = root / code
        if not source.is_dir():
            raise DeployError(f"{name}: {member}: expected a directory, got {code}.")
        # A layer with a BuildMethod is built like a function, into python/; any other is packaged unchanged.
        layer = "BuildMethod" in (resource.get("Metadata") or {})
        unchanged = member == "ContentUri" and not layer
        if (code, layer) not in uploaded:
            prefix = "python" if layer else ""
            files = _files(source, build, prefix=prefix, install=not unchanged)
            key = f"{_digest(files)}.zip"
            if not _exists(s3, bucket, key):
                s3.put_object(Bucket=bucket, Key=key, Body=_archive(files, build / "archives" / key))
            uploaded[code, layer] = f"s3://{bucket}/{key}"
        resource["Properties"][member] = uploaded[code, layer]


def _upload(template: dict[str, Any], s3: Any, bucket: str) -> str:
    """Upload the template and return its URL: S3 allows 1 MB, a request only 51,200 bytes."""
    body = json.dumps(template, default=str).encode()
    key = f"{hashlib.sha256(body).hexdigest()}.template"
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    return f"{s3.meta.endpoint_url}/{bucket}/{key}"


def _exists(s3: Any, bucket: str, key: str) -> bool:
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return False
        raise
    return True


def _files(source: Path, build: Path, *, prefix: str, install: bool) -> dict[str, Path]:
    """Return the archive's files by name below `prefix`: requirements, which sources of the same name replace."""
    requirements = source / "requirements.txt"
    roots = [_installed(requirements, build), source] if install and requirements.exists() else [source]
    files: dict[str, Path] = {}
    for root in roots:
        for path in root.rglob("*"):
            relative = path.relative_to(root)
            if path.is_file() and (root is not source or not IGNORED & set(relative.parts)):
                files[(Path(prefix) / relative).as_posix()] = path
    return dict(sorted(files.items()))


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        content = path.read_bytes()
        digest.update(f"{name}\0{os.access(path, os.X_OK)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _archive(files: dict[str, Path], cached: Path) -> bytes:
    """Return the files as a zip: equal files give equal bytes. `cached` is read if it exists, else written."""
    if cached.exists():
        return cached.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, path in files.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            archive.writestr(info, path.read_bytes())
    cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(cached)
    return buffer.getvalue()


def _installed(requirements: Path, build: Path) -> Path:
    """Install requirements with pip, once per content, Python version and platform; return the directory."""
    text = requirements.read_bytes() + f"{sys.implementation.cache_tag} {sysconfig.get_platform()}".encode()
    target = build.resolve() / "requirements" / hashlib.sha256(text).hexdigest()[:16]
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--target", f"{temporary}/site", "--no-compile", "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DeployError(f"{requirements}: pip install failed:\n{done.stderr.strip()[-2000:]}")
        site = Path(temporary) / "site"
        shutil.rmtree(site / "bin", ignore_errors=True)  # scripts with this interpreter's path
        # Hash-based byte code is valid for any unpacking time; without it a cold start takes a second longer.
        compileall.compile_dir(
            str(site), quiet=2, stripdir=str(site), prependdir="/opt/python", invalidation_mode=HASHED
        )
        with contextlib.suppress(OSError):  # another process has installed them meanwhile
            site.rename(target)
    return target


def main() -> None:
    """Deploy a template to the AWS endpoint of the environment (AWS_ENDPOINT_URL)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("template", type=Path)
    parser.add_argument("stack")
    parser.add_argument("parameters", nargs="*", metavar="Key=Value")
    options = parser.parse_args()
    parameters = dict(pair.split("=", 1) for pair in options.parameters)
    try:
        outputs = deploy(options.template, options.stack, parameters, boto3.Session())
    except (DeployError, TimeoutError) as error:
        sys.exit(str(error))
    for key, value in outputs.items():
        print(f"{key}={value}")


if __name__ == "__main__":
    main()
