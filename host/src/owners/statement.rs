//! The text that is signed. Readable, because wallets show it to whoever is to sign it.
//!
//! ```text
//! Golem provider request, version 1
//! provider: 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266
//! method: POST
//! path: /api/v1/vms?async=true
//! body-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
//! timestamp: 1795417200
//! nonce: 5f0c3c6cbe0f4f0e8a2b7a1d9f3e6c55
//! ```
//!
//! Seven lines, `\n` between them and none at the end. No value can contain a line's end, so there is one way to read it. The first
//! line keeps it apart from everything else that the same key may sign; the provider is in it so that what is signed for one
//! is worth nothing at another. The signer is not: it is what the signature itself tells.

use std::fmt;

use alloy::primitives::Address;
use sha2::{Digest, Sha256};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// In capitals.
    pub method: &'a str,
    /// Path and query, as they stand in the request.
    pub path: &'a str,
    pub body_sha256: [u8; 32],
}

impl<'a> Asked<'a> {
    pub fn new(method: &'a str, path: &'a str, body: &[u8]) -> Self {
        Self { method, path, body_sha256: Sha256::digest(body).into() }
    }
}

/// All that a signature is about. Its `Display` is the text that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Who is asked.
    pub provider: Address,
    pub asked: Asked<'a>,
    /// In seconds since 1970.
    pub timestamp: u64,
    pub nonce: &'a Nonce,
}

impl fmt::Display for Statement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, asked, timestamp, nonce } = self;
        writeln!(f, "Golem provider request, version 1")?;
        writeln!(f, "provider: {}", provider.to_checksum(None))?;
        writeln!(f, "method: {}", asked.method)?;
        writeln!(f, "path: {}", asked.path)?;
        writeln!(f, "body-sha256: {}", hex::encode(asked.body_sha256))?;
        writeln!(f, "timestamp: {timestamp}")?;
        write!(f, "nonce: {nonce}")
    }
}

/// What makes a signature different from all others of its second: 8 to 64 letters, digits, `-` and `_`, chosen at random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nonce(String);

/// A text that is no nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a nonce has {} to {} letters, digits, `-` and `_`", Nonce::MIN, Nonce::MAX)]
pub struct InvalidNonce;

impl Nonce {
    const MIN: usize = 8;
    const MAX: usize = 64;

    /// # Errors
    /// It is too short, too long, or has other characters.
    pub fn parse(text: &str) -> Result<Self, InvalidNonce> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let good = (Self::MIN..=Self::MAX).contains(&text.len()) && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidNonce) }
    }

    /// One that nobody has used.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::address;

    use super::*;

    #[test]
    fn the_text_is_the_documented_one() {
        let nonce = Nonce::parse("5f0c3c6cbe0f4f0e8a2b7a1d9f3e6c55").unwrap();
        let statement = Statement {
            provider: address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
            asked: Asked::new("POST", "/api/v1/vms?async=true", b""),
            timestamp: 1_795_417_200,
            nonce: &nonce,
        };
        let expected = "Golem provider request, version 1\n\
            provider: 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\n\
            method: POST\n\
            path: /api/v1/vms?async=true\n\
            body-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\
            timestamp: 1795417200\n\
            nonce: 5f0c3c6cbe0f4f0e8a2b7a1d9f3e6c55";
        assert_eq!(statement.to_string(), expected);
        let document = include_str!("../../../docs/requests.md");
        assert!(document.contains(expected), "docs/requests.md shows another text");
    }

    #[test]
    fn a_nonce_is_short_and_has_no_characters_that_mean_something() {
        for good in ["12345678", "a-B_9xyz", &"n".repeat(64), Nonce::random().as_str()] {
            assert_eq!(Nonce::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "1234567", &"n".repeat(65), "1234 678", "1234;678", "1234\n678", "äöüäöüäö"]
        {
            assert_eq!(Nonce::parse(bad), Err(InvalidNonce), "{bad:?}");
        }
        assert_ne!(Nonce::random(), Nonce::random());
    }
}
