"""Formats of the API's document that JSON Schema knows nothing of."""

import base64

import schemathesis
from hypothesis import strategies


def _ed25519(key: bytes) -> str:
    kind = b"ssh-ed25519"
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, key))
    return f"{kind.decode()} {base64.b64encode(blob).decode()}"


schemathesis.openapi.format(
    "ssh-public-key", strategies.binary(min_size=32, max_size=32).map(_ed25519)
)
