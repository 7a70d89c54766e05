//! A signature as it travels with a request, in one line:
//!
//! ```text
//! Golem ADDRESS:SIGNATURE;timestamp=SECONDS;nonce=NONCE
//! ```
//!
//! What is needed to check it is in the same line, since without it the signature is worth nothing: one line to make, to copy and
//! to hide from a log. Pure: values in, values out.

use std::fmt;

use alloy::{
    primitives::{Address, Signature},
    signers::{SignerSync, local::PrivateKeySigner},
};

use super::statement::{Asked, InvalidNonce, Nonce, Statement};

/// What the line begins with.
pub const SCHEME: &str = "Golem";

/// More digits than any time to come has.
const MAX_TIMESTAMP_DIGITS: usize = 12;

/// Who says to have signed what, and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub address: Address,
    pub signature: Signature,
    /// In seconds since 1970.
    pub timestamp: u64,
    pub nonce: Nonce,
}

/// Why a line is none that a signature travels in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it does not read `Golem ADDRESS:SIGNATURE;timestamp=SECONDS;nonce=NONCE`")]
    Shape,
    #[error("the address is not 0x and 40 hex digits, or its checksum is wrong")]
    Address,
    #[error("the signature is not 0x and 130 hex digits: r, s, and 27 or 28")]
    Signature,
    #[error("the signature's s is in the upper half of what it can be, where wallets put none")]
    HighS,
    #[error("the timestamp is not a number of seconds since 1970")]
    Timestamp,
    #[error(transparent)]
    Nonce(#[from] InvalidNonce),
}

/// The signature is not that of the address for this request at this provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not that of the address for this request")]
pub struct Unproven;

impl Credentials {
    /// Signs a request.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(
        signer: &PrivateKeySigner,
        provider: Address,
        asked: Asked<'_>,
        timestamp: u64,
        nonce: Nonce,
    ) -> Result<Self, alloy::signers::Error> {
        let statement = Statement { provider, asked, timestamp, nonce: &nonce };
        let signature = signer.sign_message_sync(statement.to_string().as_bytes())?;
        Ok(Self { address: signer.address(), signature, timestamp, nonce })
    }

    /// Reads what stands behind the scheme.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut parts = text.split(';').map(str::trim);
        let (who, parameters) = (parts.next().unwrap_or_default(), parts);
        let (address, signature) = who.split_once(':').ok_or(Malformed::Shape)?;
        let (mut timestamp, mut nonce) = (None, None);
        for parameter in parameters {
            let (name, value) = parameter.split_once('=').ok_or(Malformed::Shape)?;
            let place = match name {
                "timestamp" => &mut timestamp,
                "nonce" => &mut nonce,
                _ => return Err(Malformed::Shape),
            };
            if place.replace(value).is_some() {
                return Err(Malformed::Shape);
            }
        }
        let (Some(timestamp), Some(nonce)) = (timestamp, nonce) else {
            return Err(Malformed::Shape);
        };
        Ok(Self {
            address: self::address(address).ok_or(Malformed::Address)?,
            signature: self::signature(signature)?,
            timestamp: self::timestamp(timestamp).ok_or(Malformed::Timestamp)?,
            nonce: Nonce::parse(nonce)?,
        })
    }

    /// Takes about a tenth of a millisecond, of which nearly all is recovering the key from the signature.
    ///
    /// # Errors
    /// The signature is somebody else's, or about something else.
    pub fn check(&self, provider: Address, asked: Asked<'_>) -> Result<(), Unproven> {
        let Self { address, signature, timestamp, nonce } = self;
        let statement = Statement { provider, asked, timestamp: *timestamp, nonce };
        let signer = signature.recover_address_from_msg(statement.to_string());
        if signer.is_ok_and(|signer| signer == *address) { Ok(()) } else { Err(Unproven) }
    }
}

/// The whole line.
impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, signature, timestamp, nonce } = self;
        let address = address.to_checksum(None);
        write!(f, "{SCHEME} {address}:{signature};timestamp={timestamp};nonce={nonce}")
    }
}

/// An address as people copy it: all in small or all in capital letters, or with the checksum of EIP-55.
pub fn address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 40)?;
    let mut bytes = [0; 20];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    let address = Address::from(bytes);
    let one_case = !digits.bytes().any(|byte| byte.is_ascii_uppercase())
        || !digits.bytes().any(|byte| byte.is_ascii_lowercase());
    (one_case || address.to_checksum(None) == text).then_some(address)
}

fn signature(text: &str) -> Result<Signature, Malformed> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 130);
    let mut bytes = [0; 65];
    hex::decode_to_slice(digits.ok_or(Malformed::Signature)?, &mut bytes)
        .map_err(|_| Malformed::Signature)?;
    let is_odd = match bytes[64] {
        0 | 27 => false,
        1 | 28 => true,
        _ => return Err(Malformed::Signature),
    };
    let signature = Signature::from_bytes_and_parity(&bytes[..64], is_odd);
    // Of each signature anybody could make a second one that is as good; only one of the two counts.
    match signature.normalize_s() {
        Some(_) => Err(Malformed::HighS),
        None => Ok(signature),
    }
}

fn timestamp(text: &str) -> Option<u64> {
    let plain = text.len() <= MAX_TIMESTAMP_DIGITS
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0');
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use alloy::primitives::U256;
    use proptest::prelude::*;

    use super::*;

    const PROVIDER: Address = Address::repeat_byte(0x11);
    const NOW: u64 = 1_795_417_200;

    fn signer() -> PrivateKeySigner {
        // A key that the whole world knows.
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80".parse().unwrap()
    }

    fn signed(method: &str, path: &str, body: &[u8], nonce: &str) -> Credentials {
        let (asked, nonce) = (Asked::new(method, path, body), Nonce::parse(nonce).unwrap());
        Credentials::sign(&signer(), PROVIDER, asked, NOW, nonce).unwrap()
    }

    fn read(line: &str) -> Result<Credentials, Malformed> {
        Credentials::parse(line.strip_prefix("Golem ").unwrap())
    }

    #[test]
    fn what_was_signed_is_read_back_and_counts() {
        let signed = signed("POST", "/api/v1/vms", b"{}", "12345678");
        let line = signed.to_string();
        assert!(line.starts_with("Golem 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266:0x"), "{line}");
        assert!(line.ends_with(";timestamp=1795417200;nonce=12345678"), "{line}");
        assert_eq!(read(&line), Ok(signed.clone()));
        assert_eq!(read(&line.replace(';', " ; ")), Ok(signed.clone()));
        let asked = Asked::new("POST", "/api/v1/vms", b"{}");
        assert_eq!(signed.check(PROVIDER, asked), Ok(()));
        assert_eq!(signed.check(Address::ZERO, asked), Err(Unproven), "at another provider");
    }

    #[test]
    fn the_last_byte_of_a_signature_may_be_0_or_1_as_some_wallets_write_it() {
        let signed = signed("GET", "/", b"", "12345678");
        let (line, last) = (signed.to_string(), hex::encode([signed.signature.v_byte()]));
        let other = hex::encode([signed.signature.v_byte() - 27]);
        let rewritten = line.replace(&format!("{last};"), &format!("{other};"));
        assert_ne!(rewritten, line);
        assert_eq!(read(&rewritten), Ok(signed));
        for wrong in ["02", "1a", "1d", "25", "ff"] {
            let line = line.replace(&format!("{last};"), &format!("{wrong};"));
            assert_eq!(read(&line), Err(Malformed::Signature), "{wrong}");
        }
    }

    #[test]
    fn the_twin_of_a_signature_does_not_count() {
        let signed = signed("GET", "/", b"", "12345678");
        let order = U256::from_str_radix(
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
            16,
        );
        let (r, s) = (signed.signature.r(), order.unwrap() - signed.signature.s());
        let twin = Credentials { signature: Signature::new(r, s, !signed.signature.v()), ..signed };
        assert_eq!(read(&twin.to_string()), Err(Malformed::HighS));
    }

    #[test]
    fn what_is_malformed_is_refused_with_the_reason() {
        let line = signed("GET", "/", b"", "12345678").to_string();
        let address = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        for (wrong, expected) in [
            ("Golem ".to_owned(), Malformed::Shape),
            (line.replace(':', "."), Malformed::Shape),
            (line.replace(";nonce=12345678", ""), Malformed::Shape),
            (line.replace(";timestamp=1795417200", ""), Malformed::Shape),
            (format!("{line};nonce=12345678"), Malformed::Shape),
            (format!("{line};more=1"), Malformed::Shape),
            (format!("{line};"), Malformed::Shape),
            (line.replace(address, &address[2..]), Malformed::Address),
            (line.replace(address, &address.replace('f', "F")), Malformed::Address),
            (line.replace(address, &address.replace('9', "g")), Malformed::Address),
            (line.replace(":0x", ":"), Malformed::Signature),
            (line.replace(":0x", ":0x00"), Malformed::Signature),
            (line.replace("=1795417200", "=+795417200"), Malformed::Timestamp),
            (line.replace("=1795417200", "=01795417200"), Malformed::Timestamp),
            (line.replace("=1795417200", "="), Malformed::Timestamp),
            (line.replace("=1795417200", "=9999999999999"), Malformed::Timestamp),
            (line.replace("=12345678", "=1234567"), Malformed::Nonce(InvalidNonce)),
        ] {
            assert_eq!(read(&wrong), Err(expected), "{wrong}");
        }
        for right in [address.to_lowercase(), format!("0x{}", address[2..].to_uppercase())] {
            assert!(read(&line.replace(address, &right)).is_ok(), "{right}");
        }
        let zeros =
            format!("Golem {address}:0x{};timestamp=1795417200;nonce=12345678", "0".repeat(130));
        assert_eq!(
            read(&zeros).unwrap().check(PROVIDER, Asked::new("GET", "/", b"")),
            Err(Unproven)
        );
    }

    /// The text with one bit of one byte flipped, where that leaves a text.
    fn flipped(text: &str, at: prop::sample::Index, bit: u8) -> Option<String> {
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        String::from_utf8(bytes).ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_flipped_bit_in_what_was_signed_is_refused(
            path in "/[a-z0-9/?=&%]{0,40}", body in prop::collection::vec(any::<u8>(), 1..200), nonce in "[a-zA-Z0-9_-]{8,64}",
            at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let signed = signed("DELETE", &path, &body, &nonce);
            let checks = |credentials: &Credentials, method: &str, path: &str, body: &[u8]| {
                credentials.check(PROVIDER, Asked::new(method, path, body))
            };
            prop_assert_eq!(checks(&signed, "DELETE", &path, &body), Ok(()));
            if let Some(method) = flipped("DELETE", at, bit) {
                prop_assert_eq!(checks(&signed, &method, &path, &body), Err(Unproven));
            }
            if let Some(path) = flipped(&path, at, bit) {
                prop_assert_eq!(checks(&signed, "DELETE", &path, &body), Err(Unproven));
            }
            let mut other_body = body.clone();
            let index = at.index(body.len());
            other_body[index] ^= 1 << bit;
            prop_assert_eq!(checks(&signed, "DELETE", &path, &other_body), Err(Unproven));
            let timestamp = signed.timestamp ^ (1 << (bit + 8 * (at.index(4) as u8)));
            let others = [
                Credentials { timestamp, ..signed.clone() },
                Credentials {
                    address: { let mut address = signed.address; address[at.index(20)] ^= 1 << bit; address },
                    ..signed.clone()
                },
            ];
            for other in others {
                prop_assert_eq!(checks(&other, "DELETE", &path, &body), Err(Unproven));
            }
            if let Some(Ok(nonce)) = flipped(&nonce, at, bit).map(|nonce| Nonce::parse(&nonce)) {
                let other = Credentials { nonce, ..signed.clone() };
                prop_assert_eq!(checks(&other, "DELETE", &path, &body), Err(Unproven));
            }
            let mut bytes = signed.signature.as_bytes();
            bytes[at.index(65)] ^= 1 << bit;
            let (line, now) = (signed.to_string(), format!("0x{}", hex::encode(bytes)));
            if let Ok(other) = read(&line.replace(&signed.signature.to_string(), &now)) {
                prop_assert_eq!(checks(&other, "DELETE", &path, &body), Err(Unproven));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            prop_assert!(Credentials::parse(&text).is_err());
        }

        #[test]
        fn any_flipped_bit_in_the_line_is_refused_or_says_the_same(at: prop::sample::Index, bit in 0_u8..8) {
            let signed = signed("POST", "/api/v1/vms", b"{}", "12345678");
            let line = signed.to_string();
            let Some(other) = flipped(line.strip_prefix("Golem ").unwrap(), at, bit) else { return Ok(()) };
            // Capital letters mean the same in hex.
            if let Ok(read) = Credentials::parse(&other) && read != signed {
                prop_assert_eq!(read.check(PROVIDER, Asked::new("POST", "/api/v1/vms", b"{}")), Err(Unproven));
            }
        }
    }
}
