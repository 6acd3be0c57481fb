"""The replay marker against the cryptography package, and against forgeries."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from glassbox.errors import BadInputError
from glassbox.replay_marker import (
    REPAIR,
    TRACE,
    PublicKey,
    ReplayMarker,
    is_marked,
    marker_event_id,
    own_attributes,
    verified_marker,
    write_marker,
)

PRIVATE = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
INCIDENT = "20261123t101500-class-share"
OPENED = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
MARKER = ReplayMarker(TRACE, INCIDENT, "0f6f4a0e-5f39-4a3e-8a53-2f2f6d1a9c11")
BODY = b"\x89PNG a body"


def der(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


KEY = PublicKey.from_der(der(PRIVATE))
N, D = PRIVATE.public_key().public_numbers().n, PRIVATE.private_numbers().d


def sign(message, key=PRIVATE, digest=None):
    return key.sign(message, padding.PKCS1v15(), digest or hashes.SHA256())


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def verify(attributes, body=BODY, now=OPENED + timedelta(minutes=5), key=KEY):
    return verified_marker(attributes, body=body, now=now, key=lambda: key)


ATTRIBUTE = write_marker(MARKER, BODY, sign)


@pytest.mark.parametrize("purpose", [TRACE, REPAIR])
@pytest.mark.parametrize("option", ["", "14", "-", "_" * 64])
def test_verified_marker_returns_the_signed_parts(purpose, option):
    marker = MARKER._replace(purpose=purpose, option=option)
    attribute = write_marker(marker, BODY, sign)
    assert is_marked(attribute)
    assert verify(attribute) == marker


@pytest.mark.parametrize(
    "attributes",
    [
        f"camera=7,{ATTRIBUTE}",
        f" {ATTRIBUTE} , camera=7",
        [f"camera=7,{ATTRIBUTE}"],
        ["camera=7", ATTRIBUTE],
        f"x={ATTRIBUTE.partition('=')[2]},{ATTRIBUTE}",
        ATTRIBUTE.replace("=", " = "),
    ],
)
def test_verified_marker_ignores_other_attributes(attributes):
    assert verify(attributes) == MARKER


def test_marker_leaves_space_for_other_attributes():
    assert len(ATTRIBUTE) < 480
    longest = ReplayMarker(REPAIR, INCIDENT.ljust(64, "x"), "e" * 64, "o" * 64)
    assert len(write_marker(longest, BODY, sign)) == 578


def test_verified_marker_checks_signature_and_age_without_a_body():
    assert verify(ATTRIBUTE, body=None) == MARKER
    assert verify(ATTRIBUTE, body=None, key=PublicKey.from_der(der(OTHER))) is None


def text_of(attribute):
    return attribute.partition("=")[2].rpartition(".")[0]


def with_signature(signature, text=None):
    return f"glassbox={text or text_of(ATTRIBUTE)}.{b64(signature)}"


SIGNATURE = sign(text_of(ATTRIBUTE).encode())


@pytest.mark.parametrize(
    "forged",
    [
        ATTRIBUTE.replace("class-share", "operator"),
        ATTRIBUTE.replace("0f6f4a0e", "0f6f4a0f"),
        ATTRIBUTE.replace(".trace.", ".repair."),
        ATTRIBUTE.replace("=1.", "=2."),
        ATTRIBUTE[:-1],
        ATTRIBUTE[:-40],
        ATTRIBUTE + "A",
        ATTRIBUTE + "=",
        text_of(ATTRIBUTE),
        f"glassbox={text_of(ATTRIBUTE)}",
        f"glassbox={text_of(ATTRIBUTE)}.",
        "glassbox=",
        "glassbox=1",
        "glassbox=1.trace.x.y.z",
        f"{ATTRIBUTE},{ATTRIBUTE}",
        f"{ATTRIBUTE},glassbox=x",
        f"glassbox=,{ATTRIBUTE}",
        [ATTRIBUTE, ATTRIBUTE],
        with_signature(SIGNATURE[:-1]),
        with_signature(SIGNATURE + b"\0"),
        with_signature(b"\0" + SIGNATURE),
        with_signature(bytes(256)),
        with_signature(b"\xff" * 256),
        with_signature((1).to_bytes(256, "big")),
        with_signature((N - 1).to_bytes(256, "big")),
        with_signature(sign(text_of(ATTRIBUTE).encode(), OTHER)),
        with_signature(sign(text_of(ATTRIBUTE).encode(), digest=hashes.SHA1())),  # noqa: S303
        with_signature(sign(text_of(ATTRIBUTE).encode(), digest=hashes.SHA512())),
        with_signature(
            PRIVATE.sign(
                text_of(ATTRIBUTE).encode(), padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()
            )
        ),
        # the slack bits of the last character of 256 bytes in base64: a second spelling of the same bytes
        ATTRIBUTE[:-1] + chr(ord(ATTRIBUTE[-1]) + 1),
        ATTRIBUTE.replace("1.trace", "１.trace"),
    ],
)
def test_verified_marker_refuses_every_other_spelling(forged):
    assert verify(forged) is None


def test_verified_marker_refuses_another_body():
    assert verify(ATTRIBUTE, body=BODY + b"\0") is None
    assert verify(ATTRIBUTE, body=b"") is None


def test_verified_marker_accepts_a_day_from_the_opening():
    assert verify(ATTRIBUTE, now=OPENED + timedelta(hours=24) - timedelta(seconds=1)) == MARKER
    assert verify(ATTRIBUTE, now=OPENED + timedelta(hours=24)) is None
    for incident in ("20261323t101500-x", "20261123t246000-x"):  # no such month, no such hour
        attribute = write_marker(MARKER._replace(incident=incident), BODY, sign)
        assert verify(attribute) is None


def test_verified_marker_reads_the_key_last_and_needs_it():
    assert verify(ATTRIBUTE, key=None) is None

    def unreadable():
        raise AssertionError("the key was read for a marker that cannot be valid")

    for attributes, body in ((None, BODY), ("a=1", BODY), (ATTRIBUTE + "x", BODY), (ATTRIBUTE, b"other")):
        assert verified_marker(attributes, body=body, now=OPENED, key=unreadable) is None


@pytest.mark.parametrize(
    ("attributes", "marked"),
    [
        (None, False),
        ("", False),
        ([], False),
        ("camera=7", False),
        ("glassbox", False),
        ("glassboxes=1", False),
        ("x=glassbox=1", False),
        (["glassbox", "=1"], False),
        ("glassbox=", True),
        ("camera=7,\tglassbox =1", True),
        (["camera=7", "trace=1,glassbox=2"], True),
    ],
)
def test_is_marked_finds_any_marker(attributes, marked):
    assert is_marked(attributes) is marked


# ---------------------------------------------------------------- signatures


def encrypted(block):
    """Sign any block with the private key: the worst input of a lenient parser."""
    return pow(int.from_bytes(block, "big"), D, N).to_bytes(256, "big")


MESSAGE = b"1.trace.a message"
DIGEST = hashlib.sha256(MESSAGE).digest()
INFO = bytes.fromhex("3031300d060960864801650304020105000420")


def block(padded, after=b""):
    return padded + b"\0" + INFO + DIGEST + after


@pytest.mark.parametrize(
    "malformed",
    [
        # Bleichenbacher 2006: short padding, and freely chosen bytes behind the digest
        block(b"\0\1" + b"\xff" * 8, bytes(256 - 2 - 8 - 1 - 51)),
        block(b"\0\1" + b"\xff" * 8, b"\xff" * (256 - 2 - 8 - 1 - 51)),
        block(b"\0\1" + b"\xff" * 201, b"\0"),
        # no padding at all, other block types, other padding bytes
        block(b"\0\1", bytes(202)),
        block(b"\0\2" + b"\xff" * 202),
        block(b"\0\0" + b"\xff" * 202),
        block(b"\0\1" + b"\xff" * 201 + b"\xfe"),
        block(b"\0\1" + b"\0" + b"\xff" * 201),
        # no zero byte before the digest info
        b"\0\1" + b"\xff" * 203 + INFO + DIGEST,
        # parameters of the algorithm left out, though RFC 8017 lets a verifier accept that
        b"\0\1" + b"\xff" * 204 + b"\0" + bytes.fromhex("302f300b0609608648016503040201" + "0420") + DIGEST,
        # bytes hidden in the parameters (CVE-2006-4340)
        b"\0\1"
        + b"\xff" * 194
        + b"\0"
        + bytes.fromhex("303930150609608648016503040201" + "0408" + "00" * 8 + "0420")
        + DIGEST,
        # lengths in long form
        b"\0\1" + b"\xff" * 201 + b"\0" + bytes.fromhex("308131300d060960864801650304020105000420") + DIGEST,
        # SHA-224's and SHA-1's identifiers over the digest
        b"\0\1" + b"\xff" * 202 + b"\0" + bytes.fromhex("3031300d060960864801650304020405000420") + DIGEST,
        # the bare digest, and another message's
        b"\0\1" + b"\xff" * 221 + b"\0" + DIGEST,
        b"\0\1" + b"\xff" * 202 + b"\0" + INFO + hashlib.sha256(MESSAGE + b"\0").digest(),
    ],
)
def test_verifies_refuses_malformed_blocks(malformed):
    assert len(malformed) <= 256
    assert not KEY.verifies(MESSAGE, encrypted(malformed))


def test_verifies_accepts_the_one_valid_block_which_cryptography_signs():
    valid = encrypted(block(b"\0\1" + b"\xff" * 202))
    assert valid == sign(MESSAGE)
    assert KEY.verifies(MESSAGE, valid)
    assert not KEY.verifies(MESSAGE + b"\0", valid)


def test_verifies_accepts_one_form_of_a_signature():
    # of a key for which signature + modulus fits into 256 bytes
    private = next(
        key for key in iter(lambda: rsa.generate_private_key(65537, 2048), None) if modulus(key) < 3 << 2046
    )
    messages = iter(range(1 << 20))
    message = next(
        m for i in messages if number(sign(m := b"%d" % i, private)) + modulus(private) < 1 << 2048
    )
    signature, key = sign(message, private), PublicKey.from_der(der(private))
    assert key.verifies(message, signature)
    assert not key.verifies(message, (number(signature) + modulus(private)).to_bytes(256, "big"))


def modulus(key):
    return key.public_key().public_numbers().n


def number(signature):
    return int.from_bytes(signature, "big")


def test_verifies_refuses_a_low_exponent_forgery():
    """The cube root forgery needs e = 3; the exponent is fixed for every key."""
    cube = rsa.generate_private_key(3, 2048)
    with pytest.raises(BadInputError, match="exponent 65537"):
        PublicKey.from_der(der(cube))


# ---------------------------------------------------------------- the key's forms


def test_public_key_round_trips_through_all_forms():
    assert KEY.modulus == N
    assert PublicKey.from_pem(pem(PRIVATE)) == KEY
    assert KEY.pem.encode() == pem(PRIVATE)
    assert len(KEY.text) == 342
    assert PublicKey.from_text(KEY.text) == KEY


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        der(PRIVATE)[:-1],
        der(PRIVATE) + b"\0",
        b"\x31" + der(PRIVATE)[1:],
        der(PRIVATE)[:33] + b"\0" + der(PRIVATE)[34:],
        der(PRIVATE)[:288] + b"\0" + der(PRIVATE)[289:],
        der(rsa.generate_private_key(65537, 1024)),  # noqa: S505
        der(ec.generate_private_key(ec.SECP256R1())),
        bytes(294),
    ],
    ids=[
        "empty",
        "cut",
        "one byte more",
        "no sequence",
        "modulus without its top bit",
        "even modulus",
        "1,024 bits",
        "elliptic curve",
        "zeros",
    ],
)
def test_from_der_refuses_other_keys(broken):
    with pytest.raises(BadInputError, match="replay key"):
        PublicKey.from_der(broken)
    armoured = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(broken) + b"\n-----END PUBLIC KEY-----\n"
    with pytest.raises(BadInputError, match="replay key"):
        PublicKey.from_pem(armoured)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff\xfe",
        pem(PRIVATE) * 2,
        b"x" + pem(PRIVATE),
        pem(PRIVATE).replace(b"PUBLIC", b"PRIVATE"),
        b"-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----\n",
        PRIVATE.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
    ],
    ids=["empty", "binary", "two keys", "text before it", "private", "not base64", "PKCS#1"],
)
def test_from_pem_refuses_other_files(broken):
    with pytest.raises(BadInputError, match="replay key"):
        PublicKey.from_pem(broken)


@pytest.mark.parametrize(
    "broken",
    ["", "A", "A" * 342, KEY.text + "=", KEY.text[:-1], "é" * 342],
    ids=["empty", "short", "even", "padded", "cut", "not ASCII"],
)
def test_from_text_refuses_other_texts(broken):
    with pytest.raises(BadInputError, match="replay key"):
        PublicKey.from_text(broken)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "marker",
    [
        MARKER._replace(purpose="count"),
        MARKER._replace(incident="id"),
        MARKER._replace(incident=INCIDENT + ".x"),
        MARKER._replace(event_id=""),
        MARKER._replace(event_id="a,b"),
        MARKER._replace(option="a.b"),
    ],
)
def test_write_marker_refuses_parts_of_another_form(marker):
    with pytest.raises(ValueError, match="replay marker"):
        write_marker(marker, BODY, sign)


def test_marker_event_id_keeps_valid_ids_and_hashes_others():
    assert marker_event_id("0f6f4a0e-5f39") == "0f6f4a0e-5f39"
    odd = ["", "a" * 65, "../../x", "a.b", "ä", "\ud800", "a\n"]
    hashed = [marker_event_id(event_id) for event_id in odd]
    assert len(set(hashed)) == len(odd)
    assert all(len(h) == 32 and h == marker_event_id(h) for h in hashed)


def test_own_attributes_excludes_those_of_glassbox():
    own = own_attributes("camera=7, glassbox=x,lane=2,glassbox-incident=y,Glassbox=z,,x=glassbox=1")
    assert own == ["camera=7", "lane=2", "x=glassbox=1"]
    assert own_attributes(["a=1,glassbox", "b=2"]) == ["a=1", "b=2"]
    assert own_attributes(None) == []
