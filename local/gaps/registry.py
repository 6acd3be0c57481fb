"""Image manifests in the embedded ECR."""

from __future__ import annotations

import re

from ministack.core.responses import request_scope
from ministack.services import ecr

IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.[^/]+/(?P<repository>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>.+))?"
)


def manifest_type(account: str, region: str, image: str) -> str | None:
    """Return the media type of an image's manifest, or None if the registry lacks the image."""
    named = IMAGE.fullmatch(image)
    if named is None or named["account"] != account:
        return None
    wanted = {"imageDigest": named["digest"]} if named["digest"] else {"imageTag": named["tag"] or "latest"}
    with request_scope(account, region):
        found = ecr._find_image(named["repository"], wanted)
    return found["imageManifestMediaType"] if found else None
