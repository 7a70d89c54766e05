"""What is in a document of the noticeboard. Functions of values alone.

Anybody may have written a document, so everything in it is looked at before it is believed: what is no listing is passed over.
"""

from dataclasses import asdict
from typing import Optional

from wit_world.exports.advertisements import Advertisement, Listing, Prices, Query, Resources

U32_MAX = 2**32 - 1


def document(advertisement: Advertisement, expires_at: int) -> dict:
    """`expires_at` is in seconds since 1970. The board itself need not know the time: readers pass over what has expired."""
    return {**asdict(advertisement), "expires_at": expires_at}


def without_expiry(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "expires_at"}


def listing(document: object, now: int) -> Optional[Listing]:
    """The listing in a document; none where there is none, or where it has expired."""
    match document:
        case {
            "provider_id": str(provider_id),
            "ip_address": str(ip_address),
            "available": {
                "cpu_cores": int(cpu_cores),
                "memory_gb": int(memory_gb),
                "storage_gb": int(storage_gb),
            },
            "expires_at": int(expires_at),
        } if now < expires_at <= now + U32_MAX:
            sizes = (cpu_cores, memory_gb, storage_gb)
        case _:
            return None
    if not all(0 <= size <= U32_MAX for size in sizes):
        return None
    return Listing(
        provider_id=provider_id,
        ip_address=ip_address,
        name=text(document, "name"),
        country=text(document, "country"),
        platform=text(document, "platform"),
        network=text(document, "network"),
        payments_network=text(document, "payments_network"),
        available=Resources(*sizes),
        usd=prices(document.get("usd")),
        glm=prices(document.get("glm")),
        # Nothing proves who wrote an entry.
        owner=None,
        expires_in_seconds=expires_at - now,
    )


def text(document: dict, key: str) -> Optional[str]:
    value = document.get(key)
    return value if isinstance(value, str) else None


def prices(value: object) -> Optional[Prices]:
    match value:
        case {
            "per_core_month": str(core),
            "per_gb_ram_month": str(ram),
            "per_gb_storage_month": str(storage),
        }:
            return Prices(core, ram, storage)
        case _:
            return None


def matches(listing: Listing, query: Query) -> bool:
    available = listing.available
    return (
        available.cpu_cores >= (query.min_cpu_cores or 0)
        and available.memory_gb >= (query.min_memory_gb or 0)
        and available.storage_gb >= (query.min_storage_gb or 0)
        and query.network in (None, listing.network)
        and query.payments_network in (None, listing.payments_network)
    )
