//! What a machine is called in Multipass.
//!
//! Multipass takes letters, digits and `-`, begins with a letter and ends without a `-`; and the name becomes the host name that
//! the machine is known by on Multipass' network, which ends at 63 characters. Almost every id of the contract is such a name
//! and is taken as it is, so that an operator finds it in `multipass list`. Any other is shortened in the same way every
//! time. Pure.

use sha2::{Digest, Sha256};

/// The longest host name.
const MAX_BYTES: usize = 63;
/// Of the hash that tells shortened names apart.
const HASH_BYTES: usize = 4;

/// The name of the machine with this id; the same every time.
pub fn of(id: &str) -> String {
    if is_name(id) {
        return id.to_owned();
    }
    let hash = hex::encode(&Sha256::digest(id.as_bytes())[..HASH_BYTES]);
    let room = MAX_BYTES - hash.len() - "vm-".len() - "-".len();
    let plain: String =
        id.chars().filter(|char| char.is_ascii_alphanumeric() || *char == '-').take(room).collect();
    let plain = plain.trim_matches('-');
    let start = if plain.starts_with(|char: char| char.is_ascii_alphabetic()) { "" } else { "vm-" };
    format!("{start}{plain}-{hash}").replace("--", "-")
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_BYTES
        && text.starts_with(|char: char| char.is_ascii_alphabetic())
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_multipass_takes_is_the_name() {
        for id in ["golem-my-webserver-20250219-130424", "a", &"a".repeat(63)] {
            assert_eq!(of(id), id);
        }
    }

    #[test]
    fn any_other_id_becomes_a_name_that_multipass_takes_and_no_other_id_has() {
        let long = format!("golem-{}-20250219-130424", "x".repeat(64));
        let longer = format!("{long}-2");
        let hyphens = format!("golem-{}-20250219-130424", "x-".repeat(32));
        let ids = [&long, &longer, &hyphens, "-", "1", "1-", "a-", &"-".repeat(100)];
        let names: Vec<String> = ids.iter().map(|id| of(id)).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(is_name(name), "{name}");
            assert_eq!(of(ids[at]), *name);
            assert!(!names[..at].contains(name), "{name}");
        }
        assert!(names[0].starts_with("golem-xxx"));
    }
}
