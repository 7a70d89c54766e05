"""What the published client of Golem Base sees and does; run by the tests with the Python that has golem_base_sdk.

read RPC                              every entity of a provider, as JSON, ordered by key
create RPC WS PRIVATE_KEY ENTITY      makes an entity; ENTITY is JSON: {"btl", "strings": {...}, "numbers": {...}}
"""
import asyncio, json, sys
from golem_base_sdk import Annotation, GolemBaseClient, GolemBaseCreate, GolemBaseHttpClient


async def read(rpc):
    client = GolemBaseHttpClient(rpc)
    found = []
    for result in await client.query_entities('golem_type = "provider"'):
        key = result.entity_key
        key = key if hasattr(key, "as_hex_string") else as_key(key)
        entity = await client.get_entity_metadata(key)
        found.append({
            "key": key.as_hex_string(),
            "owner": entity.owner.as_hex_string(),
            "expires_at_block": entity.expires_at_block,
            "strings": {a.key: a.value for a in entity.string_annotations},
            "numbers": {a.key: a.value for a in entity.numeric_annotations},
        })
    await client.provider.disconnect()
    print(json.dumps(sorted(found, key=lambda entity: entity["key"])))


def as_key(text):
    from golem_base_sdk import EntityKey, GenericBytes
    return EntityKey(GenericBytes.from_hex_string(text))


async def create(rpc, ws, private_key, entity):
    entity = json.loads(entity)
    client = await GolemBaseClient.create_rw_client(rpc, ws, bytes.fromhex(private_key))
    annotations = lambda of: [Annotation(key, value) for key, value in of.items()]
    made = await client.create_entities([
        GolemBaseCreate(b"", entity["btl"], annotations(entity["strings"]), annotations(entity["numbers"]))
    ])
    print(json.dumps({"key": made[0].entity_key.as_hex_string()}))
    await client.disconnect()


asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
