"""The signed marker of a replay: proof that the stack, and not a client, sent a request.

A replay carries one custom attribute::

    glassbox=1.<purpose>.<incident>.<event id>.<option>.<body hash>.<signature>

======================  ==============================================================================
purpose                 ``trace`` (the twin always traces it) or ``repair`` (the twin answers it, never traces it)
incident                the id of the incident that sends it; it begins with its opening time
event id                ``[A-Za-z0-9-]{1,64}``, the event id of the captured request, or its hash
option                  ``[A-Za-z0-9_-]{0,64}``, unused: empty
body hash               the first 16 bytes of sha256(body), base64url without padding
signature               RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2) of everything before its dot, base64url
======================  ==============================================================================

KMS signs with an RSA_2048 key. Verification needs the public key only. The module needs the standard library and
:mod:`glassbox.errors`: ``package.py`` puts it into ``model.tar.gz`` beside the hook.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Callable, NamedTuple, Optional

from glassbox.errors import BadInputError

KeySource = Callable[[], Optional["PublicKey"]]

ATTRIBUTE = "glassbox"
ATTRIBUTES_CHARACTERS = 1024  # of all custom attributes of a request (InvokeEndpoint)
TRACE, REPAIR = "trace", "repair"
LIFETIME = timedelta(hours=24)  # from the incident's opening

_BYTES = 256  # of an RSA_2048 modulus, and of a signature
_EXPONENT = 65537  # of every RSA key of KMS
# DER of SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): rsaEncryption, then the modulus behind a zero byte, then the exponent
_DER_HEADER = bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100")
_DER_TRAILER = bytes.fromhex("0203010001")
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # SHA-256 (RFC 8017, 9.2)
_PADDING = b"\0\1" + b"\xff" * (_BYTES - 3 - len(_DIGEST_INFO) - 32) + b"\0" + _DIGEST_INFO

_INCIDENT = re.compile(r"[0-9]{8}t[0-9]{6}[a-z0-9-]{0,49}")
_EVENT_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_OPTION = re.compile(r"[A-Za-z0-9_-]{0,64}")
_MARKER = re.compile(
    rf"(?P<text>1\.(?P<purpose>{TRACE}|{REPAIR})\.(?P<incident>{_INCIDENT.pattern})\.(?P<event_id>{_EVENT_ID.pattern})"
    rf"\.(?P<option>{_OPTION.pattern})\.(?P<body_hash>[A-Za-z0-9_-]{{22}}))\.(?P<signature>[A-Za-z0-9_-]{{342}})"
)


@dataclass(frozen=True)
class PublicKey:
    """The public half of the RSA_2048 key that signs replays."""

    modulus: int

    @classmethod
    def from_der(cls, der: bytes) -> PublicKey:
        """Read the SubjectPublicKeyInfo that kms:GetPublicKey returns.

        Raises:
            BadInputError: ``der`` is not that of a 2,048 bit RSA key with exponent 65537, byte for byte.
        """
        modulus = der[len(_DER_HEADER) : -len(_DER_TRAILER)]
        if der != _DER_HEADER + modulus + _DER_TRAILER or len(modulus) != _BYTES:
            raise BadInputError(
                f"replay key ({len(der)} bytes): expected the SubjectPublicKeyInfo of an RSA_2048 key with exponent "
                f"{_EXPONENT}, {len(_DER_HEADER) + _BYTES + len(_DER_TRAILER)} bytes of DER. "
                "Use the public key that kms:GetPublicKey returns for the stack's output ReplayKeyArn."
            )
        return cls._of(modulus)

    @classmethod
    def from_pem(cls, pem: bytes | str) -> PublicKey:
        """Read a PEM file (RFC 7468) that holds one ``PUBLIC KEY``.

        Raises:
            BadInputError: as :meth:`from_der`, or ``pem`` is not such a file.
        """
        text = pem.decode("ascii", "replace") if isinstance(pem, bytes) else pem
        match = re.fullmatch(
            r"\s*-----BEGIN PUBLIC KEY-----\s([A-Za-z0-9+/=\s]{1,1000})-----END PUBLIC KEY-----\s*", text
        )
        try:
            der = base64.b64decode("".join(match[1].split()), validate=True) if match else b""
        except binascii.Error:
            der = b""
        if not der:
            raise BadInputError(
                "replay key: expected a PEM file with one PUBLIC KEY. `make remove` writes one, and so does "
                "`aws kms get-public-key` with `openssl pkey -pubin -inform der`."
            )
        return cls.from_der(der)

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """Read :attr:`text`.

        Raises:
            BadInputError: ``text`` is not 342 characters of base64url, or not a modulus of 2,048 bits.
        """
        modulus = _decoded(text)
        if modulus is None or len(modulus) != _BYTES:
            raise BadInputError(
                f"replay key ({len(text)} characters): expected the modulus of an RSA_2048 key, 342 characters of "
                "base64url. `make twin` writes it into the twin's environment."
            )
        return cls._of(modulus)

    @classmethod
    def _of(cls, modulus: bytes) -> PublicKey:
        if not modulus[0] & 0x80 or not modulus[-1] & 1:
            raise BadInputError("replay key: expected an odd modulus of 2,048 bits")
        return cls(int.from_bytes(modulus, "big"))

    @property
    def text(self) -> str:
        """The modulus as 342 characters of base64url, for an environment variable of a model."""
        return _encoded(self.modulus.to_bytes(_BYTES, "big"))

    @property
    def pem(self) -> str:
        """The key as a PEM file."""
        der = _DER_HEADER + self.modulus.to_bytes(_BYTES, "big") + _DER_TRAILER
        encoded = base64.b64encode(der).decode()
        lines = [encoded[i : i + 64] for i in range(0, len(encoded), 64)]
        return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` is the RSASSA-PKCS1-v1_5 signature (SHA-256) of ``message``.

        The decrypted block must equal the only valid one. It is never parsed: parsers that accept other paddings
        accept forgeries (Bleichenbacher 2006).
        """
        number = int.from_bytes(signature, "big")
        # a number of at least the modulus would be reduced, which gives a signature a second form
        if len(signature) != _BYTES or number >= self.modulus:
            return False
        expected = _PADDING + hashlib.sha256(message).digest()
        return pow(number, _EXPONENT, self.modulus) == int.from_bytes(expected, "big")


class ReplayMarker(NamedTuple):
    """The parts of a verified marker."""

    purpose: str
    incident: str
    event_id: str
    option: str = ""


def write_marker(marker: ReplayMarker, body: bytes, sign: Callable[[bytes], bytes]) -> str:
    """Return the custom attribute that marks ``body`` as a replay, at most 578 characters.

    Args:
        sign: returns the RSASSA-PKCS1-v1_5 signature (SHA-256) of a message, 256 bytes.

    Raises:
        ValueError: a part of the marker has another form than in the table above.
    """
    purpose, incident, event_id, option = marker
    text = f"1.{purpose}.{incident}.{event_id}.{option}.{_body_hash(body)}"
    value = f"{text}.{_encoded(sign(text.encode()))}"
    if not _MARKER.fullmatch(value):
        raise ValueError(f"replay marker ({text}): expected the form in the docstring of {__name__}")
    return f"{ATTRIBUTE}={value}"


def marker_event_id(event_id: str) -> str:
    """Return an event id in the form of a marker, hashed (32 characters) if it differs."""
    if _EVENT_ID.fullmatch(event_id):
        return event_id
    return hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_marked(custom_attributes: str | list[str] | None) -> bool:
    """Return whether a request carries a marker, valid or not."""
    return bool(_markers(custom_attributes))


def verified_marker(
    custom_attributes: str | list[str] | None,
    *,
    body: bytes | None,
    now: datetime,
    key: KeySource,
) -> ReplayMarker | None:
    """Return the marker of a request if it proves that the stack sent the request, else None.

    Several markers verify as none, so the result cannot depend on their order.

    Args:
        custom_attributes: of a request, comma-separated, or several such texts, as in a capture record.
        body: of the request; None if it was not captured: then the marker does not bind it.
        now: the time of the request, UTC.
        key: returns the public key; called only for a marker that is valid apart from its signature. With None, no
            marker verifies.
    """
    markers = _markers(custom_attributes)
    match = _MARKER.fullmatch(markers[0]) if len(markers) == 1 else None
    if match is None or (body is not None and match["body_hash"] != _body_hash(body)):
        return None
    signature = _decoded(match["signature"])
    if signature is None or not _is_current(match["incident"], now):
        return None
    public_key = key()
    if public_key is None or not public_key.verifies(match["text"].encode(), signature):
        return None
    return ReplayMarker(match["purpose"], match["incident"], match["event_id"], match["option"])


def own_attributes(custom_attributes: str | list[str] | None) -> list[str]:
    """Return the caller's own attributes, whose names do not begin with ``glassbox``."""
    return [part for part in _parts(custom_attributes) if not part.lower().startswith(ATTRIBUTE)]


def _is_current(incident: str, now: datetime) -> bool:
    try:
        opened = datetime.strptime(incident[:15], "%Y%m%dt%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return False
    return now - opened < LIFETIME


def _markers(custom_attributes: str | list[str] | None) -> list[str]:
    """Return the values of all attributes of the name ``glassbox``."""
    given = [custom_attributes] if isinstance(custom_attributes, str) else custom_attributes or []
    if not any(ATTRIBUTE in one for one in given):  # the usual case
        return []
    pairs = (part.partition("=") for part in _parts(given))
    return [value.strip() for name, equals, value in pairs if equals and name.strip() == ATTRIBUTE]


def _parts(custom_attributes: str | list[str] | None) -> list[str]:
    given = [custom_attributes] if isinstance(custom_attributes, str) else custom_attributes or []
    return [part for one in given for piece in one.split(",") if (part := piece.strip())]


def _body_hash(body: bytes) -> str:
    return _encoded(hashlib.sha256(body).digest()[:16])


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes | None:
    """Decode base64url without padding; return None for text that :func:`_encoded` cannot return."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return data if _encoded(data) == text else None
