"""A replay key for tests, and markers that it signs."""

import base64
import functools

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from captures import NPY
from glassbox.replay_marker import TRACE, PublicKey, ReplayMarker, write_marker

INCIDENT = "20261123t095500-class-share"
EVENT_ID = "3f0c7e52-9d1a-4f6e-8b1c-5a2d7e9f0b14"
PRIVATE = rsa.generate_private_key(65537, 2048)
DER = PRIVATE.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
KEY = PublicKey.from_der(DER)
BODY = base64.b64decode(NPY)  # of captures.record


@functools.cache
def sign(message):
    return PRIVATE.sign(message, padding.PKCS1v15(), hashes.SHA256())


def key():
    return KEY


def marker(body=BODY, incident=INCIDENT, event_id=EVENT_ID, purpose=TRACE, option=""):
    """Return the custom attribute of a replay."""
    return write_marker(ReplayMarker(purpose, incident, event_id, option), body, sign)


FORGED = marker().replace(EVENT_ID, "another")
