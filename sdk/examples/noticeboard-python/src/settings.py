"""What an operator can set. The provider checks settings against `SCHEMA` before it calls anything else."""

import json
from dataclasses import dataclass
from typing import Optional

from wit_world.imports import settings

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "url": {
            "description": "The noticeboard; a provider's entry is at URL/PROVIDER-ID",
            "type": "string",
            "pattern": "^https?://[^\\s?#]+$",
        },
        "token": {
            "description": "What the noticeboard knows this provider by, if it asks for that (bearer token)",
            "type": "string",
            "pattern": "^[!-~]+$",
            "writeOnly": True,
        },
        "interval-seconds": {
            "description": "The entry is renewed after so long, and is gone three times as long after the last renewal",
            "type": "integer",
            "minimum": 5,
            "maximum": 86400,
            "default": 240,
        },
    },
}


@dataclass(frozen=True)
class Settings:
    url: Optional[str]
    token: Optional[str]
    interval_seconds: int

    @staticmethod
    def read() -> "Settings":
        set_by_operator = json.loads(settings.json())
        return Settings(
            url=set_by_operator.get("url"),
            token=set_by_operator.get("token"),
            interval_seconds=set_by_operator.get(
                "interval-seconds", SCHEMA["properties"]["interval-seconds"]["default"]
            ),
        )
