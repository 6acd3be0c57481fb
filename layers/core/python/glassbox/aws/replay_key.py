"""The KMS key that signs replays."""

from typing import Any

from glassbox.aws.errors import translated
from glassbox.replay_marker import PublicKey


class ReplayKey:
    """Sign and GetPublicKey through a boto3 ``kms`` client.

    Raises (every method):
        RetryableError: KMS refuses or does not answer.
    """

    def __init__(self, client: Any, key_arn: str) -> None:
        self._client, self._key_arn = client, key_arn
        self._public: PublicKey | None = None

    def sign(self, message: bytes) -> bytes:
        """Return the RSASSA-PKCS1-v1_5 signature (SHA-256) of at most 4,096 bytes."""
        answer = self._call(
            "sign", Message=message, MessageType="RAW", SigningAlgorithm="RSASSA_PKCS1_V1_5_SHA_256"
        )
        signature: bytes = answer["Signature"]
        return signature

    def public(self) -> PublicKey:
        """Return the public key and cache it.

        Raises:
            BadInputError: the key is not an RSA_2048 key.
        """
        if self._public is None:
            self._public = PublicKey.from_der(self._call("get_public_key")["PublicKey"])
        return self._public

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        with translated(f"{self._key_arn}: kms {operation} failed"):
            answer: dict[str, Any] = getattr(self._client, operation)(KeyId=self._key_arn, **request)
        return answer
