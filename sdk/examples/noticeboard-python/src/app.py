"""What the provider calls: the world `discovery-advertiser`, for a noticeboard.

A noticeboard keeps one JSON document for each provider, at `URL/PROVIDER-ID`. `board` exchanges documents with it, `entry` says
what is in them, and `checks` refuses what cannot be listed. The files in `wit/` say what each function here has to promise.

This module is run once, when the component is built, and what it leaves in memory is what every call begins with. So nothing
here may ask the provider for anything outside of a function.
"""

import functools
import json
from typing import Callable, List, Optional

import board
import checks
import entry
from componentize_py_types import Err
from settings import SCHEMA, Settings
from wit_world import exports
from wit_world.exports.advertisements import (
    Advertisement,
    Change,
    Listing,
    Published,
    Query,
    Schedule,
)
from wit_world.exports.plugin import Description, Finding, Severity
from wit_world.imports import clock
from wit_world.imports.types import Error_Internal

# Changes that come closer together than this go out as one.
MINIMUM_GAP_MS = 2_000

# Prices follow the market every few minutes, which is no news for a noticeboard.
PRICE_INTERVAL_SECONDS = 600

# An entry outlasts two publications that fail.
LIFETIME_IN_INTERVALS = 3


def answered[**Given, Answer](function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Makes of a fault of this program an error that the operator can read. Uncaught, it would end the call without a word."""

    @functools.wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Answer:
        try:
            return function(*given, **named)
        except Err:
            raise
        except Exception as fault:
            what = f"{function.__name__}: {type(fault).__name__}: {fault}"
            raise Err(Error_Internal(f"a fault of this plugin: {what}")) from fault

    return call


class Plugin(exports.Plugin):
    def describe(self) -> Description:
        return Description(
            name="noticeboard-python",
            version="0.1.0",
            summary="Lists the provider on a noticeboard: one JSON document per provider, over HTTP",
            license="Apache-2.0",
            settings_schema=json.dumps(SCHEMA),
        )

    @answered
    def probe(self) -> List[Finding]:
        # Whether the board answers is found out, and told, when something is published there.
        if Settings.read().url is not None:
            return []
        return [
            Finding(
                severity=Severity.BLOCKING,
                message="no noticeboard is named",
                remedy="write url = \"https://…\" under [settings] in noticeboard-python.toml",
            )
        ]


class Advertisements(exports.Advertisements):
    @answered
    def get_schedule(self) -> Schedule:
        return Schedule(
            interval_seconds=Settings.read().interval_seconds,
            minimum_gap_ms=MINIMUM_GAP_MS,
            price_interval_seconds=PRICE_INTERVAL_SECONDS,
        )

    @answered
    def publish(self, advertisement: Advertisement) -> Published:
        checks.advertisement(advertisement)
        settings = Settings.read()
        now = now_seconds()
        lifetime = settings.interval_seconds * LIFETIME_IN_INTERVALS
        place = board.of(settings)
        before = present(place.get(advertisement.provider_id), now)
        document = entry.document(advertisement, expires_at=now + lifetime)
        place.put(advertisement.provider_id, document)
        if before is None:
            change = Change.CREATED
        elif entry.without_expiry(before) == entry.without_expiry(document):
            change = Change.RENEWED
        else:
            change = Change.UPDATED
        return Published(
            change=change,
            expires_in_seconds=lifetime,
            reference=place.address(advertisement.provider_id),
        )

    @answered
    def withdraw(self, provider_id: str) -> None:
        checks.provider_id(provider_id)
        board.of(Settings.read()).delete(provider_id)

    @answered
    def look_up(self, provider_id: str) -> List[Listing]:
        checks.provider_id(provider_id)
        now = now_seconds()
        found = entry.listing(board.of(Settings.read()).get(provider_id), now)
        return [] if found is None else [found]

    @answered
    def search(self, query: Query) -> List[Listing]:
        now = now_seconds()
        documents = board.of(Settings.read()).get_all()
        listings = (entry.listing(document, now) for document in documents)
        matching = [one for one in listings if one is not None and entry.matches(one, query)]
        return matching[: query.limit]


def present(document: object, now: int) -> Optional[dict]:
    """A document that is a listing for now; what has expired, or is none, is as good as absent."""
    return document if isinstance(document, dict) and entry.listing(document, now) else None


def now_seconds() -> int:
    return clock.unix_ms() // 1000
