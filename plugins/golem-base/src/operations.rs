//! What is done to entities in one transaction, and how that is encoded (RLP). All of it happens or none. Pure.

use alloy_rlp::{Encodable, RlpEncodable, bytes::Bytes};
use sha3::{Digest, Keccak256};

/// Where storage transactions go.
pub const CONTRACT: &str = "0x0000000000000000000000000000000060138453";

/// The first topic of the log of a creation; the second one is the entity's key.
pub const CREATED: [u8; 32] = [
    0xce, 0x4b, 0x4a, 0xd6, 0x89, 0x1d, 0x71, 0x6d, 0x0b, 0x1f, 0xba, 0x2b, 0x4a, 0xeb, 0x05, 0xec,
    0x20, 0xed, 0xad, 0xb0, 0x1d, 0xf5, 0x12, 0x26, 0x3d, 0x0d, 0xde, 0x42, 0x37, 0x36, 0xbb, 0xb9,
];

/// An entity's key.
pub type Key = [u8; 32];

/// What an entity is found by. The order is that in which it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    pub strings: Vec<(String, String)>,
    pub numbers: Vec<(String, u64)>,
}

/// One transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, RlpEncodable)]
pub struct Operations {
    creates: Vec<Create>,
    updates: Vec<Update>,
    deletes: Vec<Key>,
    extends: Vec<Extend>,
}

#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable)]
struct Create {
    lifetime_blocks: u64,
    payload: Bytes,
    strings: Vec<StringAnnotation>,
    numbers: Vec<NumericAnnotation>,
}

#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable)]
struct Update {
    key: Key,
    lifetime_blocks: u64,
    payload: Bytes,
    strings: Vec<StringAnnotation>,
    numbers: Vec<NumericAnnotation>,
}

#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable)]
struct Extend {
    key: Key,
    blocks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable)]
struct StringAnnotation {
    key: String,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable)]
struct NumericAnnotation {
    key: String,
    value: u64,
}

impl Operations {
    pub fn create(lifetime_blocks: u64, annotations: Annotations) -> Self {
        let (strings, numbers) = annotations.encodable();
        let create = Create { lifetime_blocks, payload: Bytes::new(), strings, numbers };
        Self { creates: vec![create], ..Self::default() }
    }

    /// Replaces all annotations.
    pub fn update(key: Key, lifetime_blocks: u64, annotations: Annotations) -> Self {
        let (strings, numbers) = annotations.encodable();
        let update = Update { key, lifetime_blocks, payload: Bytes::new(), strings, numbers };
        Self { updates: vec![update], ..Self::default() }
    }

    pub fn delete(keys: Vec<Key>) -> Self {
        Self { deletes: keys, ..Self::default() }
    }

    pub fn extend(key: Key, blocks: u64) -> Self {
        Self { extends: vec![Extend { key, blocks }], ..Self::default() }
    }

    #[must_use]
    pub fn and_delete(mut self, keys: Vec<Key>) -> Self {
        self.deletes.extend(keys);
        self
    }

    /// Of the entity that is there before and after.
    pub fn key(&self) -> Option<&Key> {
        let updated = self.updates.first().map(|update| &update.key);
        updated.or(self.extends.first().map(|extend| &extend.key))
    }

    /// The data of the transaction.
    pub fn encoded(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.length());
        self.encode(&mut data);
        data
    }

    /// The keys of the entities that a transaction with this hash creates.
    pub fn created_keys(&self, transaction_hash: &[u8]) -> Vec<Key> {
        let key = |(index, create): (usize, &Create)| {
            let mut counter = [0; 32];
            counter[24..].copy_from_slice(&(index as u64).to_be_bytes());
            let hasher = Keccak256::new_with_prefix(transaction_hash);
            hasher.chain_update(&create.payload).chain_update(counter).finalize().into()
        };
        self.creates.iter().enumerate().map(key).collect()
    }
}

impl Annotations {
    fn encodable(self) -> (Vec<StringAnnotation>, Vec<NumericAnnotation>) {
        let strings = self.strings.into_iter().map(|(key, value)| StringAnnotation { key, value });
        let numbers = self.numbers.into_iter().map(|(key, value)| NumericAnnotation { key, value });
        (strings.collect(), numbers.collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn annotations(of: &Value) -> Annotations {
        let pairs = |kind: &str| of[kind].as_array().unwrap().clone().into_iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Annotations {
            strings: pairs("string").map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
            numbers: pairs("numeric")
                .map(|pair| (text(&pair[0]), text(&pair[1]).parse().unwrap()))
                .collect(),
        }
    }

    fn key(of: &Value) -> Key {
        let mut key = [0; 32];
        hex::decode_to_slice(&of.as_str().unwrap()[2..], &mut key).unwrap();
        key
    }

    fn operations(of: &Value) -> Operations {
        let list = |kind: &str| of[kind].as_array().cloned().unwrap_or_default().into_iter();
        let payload = |of: &Value| Bytes::from(hex::decode(of["data"].as_str().unwrap()).unwrap());
        let create = |of: Value| {
            let (strings, numbers) = annotations(&of).encodable();
            let lifetime_blocks = of["btl"].as_u64().unwrap();
            Create { lifetime_blocks, payload: payload(&of), strings, numbers }
        };
        let update = |of: Value| {
            let (strings, numbers) = annotations(&of).encodable();
            let lifetime_blocks = of["btl"].as_u64().unwrap();
            let key = key(&of["entity_key"]);
            Update { key, lifetime_blocks, payload: payload(&of), strings, numbers }
        };
        Operations {
            creates: list("creates").map(create).collect(),
            updates: list("updates").map(update).collect(),
            deletes: list("deletes").map(|of| key(&of)).collect(),
            extends: list("extensions")
                .map(|of| Extend {
                    key: key(&of["entity_key"]),
                    blocks: of["number_of_blocks"].as_u64().unwrap(),
                })
                .collect(),
        }
    }

    #[test]
    fn everything_is_encoded_as_by_the_published_client_and_keys_are_those_of_the_chain() {
        let vectors = include_str!("../../../tests/vectors/golembase_vectors.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        assert_eq!(vectors["to"].as_str(), Some(CONTRACT));
        let created = &vectors["topics"]["GolemBaseStorageEntityCreated(uint256,uint256)"];
        assert_eq!(key(created), CREATED);
        let list = vectors["vectors"].as_array().unwrap();
        assert_eq!(list.len(), 11);
        for vector in list {
            let operations = operations(&vector["ops"]);
            let encoded = format!("0x{}", hex::encode(operations.encoded()));
            assert_eq!(encoded, vector["rlp"].as_str().unwrap(), "{}", vector["name"]);
            let hash = key(&vector["signed_eip1559"]["txHash"]);
            let keys: Vec<Key> =
                vector["entity_keys_of_creates"].as_array().unwrap().iter().map(key).collect();
            assert_eq!(operations.created_keys(&hash), keys, "{}", vector["name"]);
        }
    }
}
