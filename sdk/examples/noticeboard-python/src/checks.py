"""Refuses what cannot be listed anywhere. The provider sends no such thing, but ids become part of addresses."""

import ipaddress
import re
from typing import NoReturn

from componentize_py_types import Err
from wit_world.exports.advertisements import Advertisement
from wit_world.imports.types import Error_InvalidArgument

PROVIDER_ID = re.compile("0x[0-9a-fA-F]{40}")
COUNTRY = re.compile("[A-Z]{2}")
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")


def provider_id(text: str) -> None:
    if not PROVIDER_ID.fullmatch(text):
        refuse(f"`{text}` is no provider's id: 40 hex digits after 0x")


def advertisement(given: Advertisement) -> None:
    provider_id(given.provider_id)
    try:
        ipaddress.ip_address(given.ip_address)
    except ValueError:
        refuse(f"`{given.ip_address}` is no IP address, so nothing is advertised")
    if given.country is not None and not COUNTRY.fullmatch(given.country):
        refuse(f"`{given.country}` is no country of two letters, so nothing is advertised")
    for prices in filter(None, (given.usd, given.glm)):
        for price in (prices.per_core_month, prices.per_gb_ram_month, prices.per_gb_storage_month):
            if not DECIMAL.fullmatch(price):
                refuse(f"`{price}` is no price, so nothing is advertised")


def refuse(why: str) -> NoReturn:
    raise Err(Error_InvalidArgument(why))
