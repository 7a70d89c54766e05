//! A key under a passphrase: the Web3 keystore that every Ethereum program reads.
//!
//! Deriving a key from a passphrase is slow and takes memory on purpose, and the file says how much of both. What a file may
//! ask for is bounded here, before the library looks at it. Everything blocks.

use std::{fs, io, path::Path};

use alloy::signers::{k256::elliptic_curve::rand_core::OsRng, local::PrivateKeySigner};
use serde::Deserialize;

use crate::settings::Secret;

/// More than any keystore takes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024;
/// More than any passphrase takes.
const MAX_PASSPHRASE_BYTES: u64 = 4 * 1024;
/// What deriving may take: four times what the strictest program asks for.
const MAX_SCRYPT_BYTES: u64 = 1 << 30;
const MAX_SCRYPT_WORK: u64 = 1 << 26;
const MAX_PBKDF2_ROUNDS: u64 = 10_000_000;

/// Why a keystore gave no key. No variant carries anything of the key or the passphrase.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    #[error("is no Web3 keystore of version 3: {0}")]
    Malformed(String),
    #[error("asks for more memory or time than a keystore may")]
    TooExpensive,
    #[error("does not open with this passphrase")]
    WrongPassphrase,
    #[error("cannot be made: {0}")]
    NotMade(String),
}

/// What of a keystore decides whether it is safe to open.
#[derive(Deserialize)]
struct Outline {
    version: u64,
    #[serde(default)]
    address: Option<String>,
    crypto: Crypto,
}

#[derive(Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParameters,
    ciphertext: String,
    kdfparams: Derivation,
}

#[derive(Deserialize)]
struct CipherParameters {
    iv: String,
}

#[derive(Deserialize)]
struct Derivation {
    dklen: u64,
    n: Option<u64>,
    r: Option<u64>,
    p: Option<u64>,
    c: Option<u64>,
}

/// Reads the passphrase out of its file: the first line, without its end.
///
/// # Errors
/// The file cannot be read, is too long, or its first line is empty.
pub fn read_passphrase(file: &Path) -> io::Result<Secret> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    if fs::metadata(file)?.len() > MAX_PASSPHRASE_BYTES {
        return Err(invalid("it is too long for a passphrase"));
    }
    let text = Secret::new(fs::read_to_string(file)?);
    match text.expose().lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(invalid("its first line, which is the passphrase, is empty")),
    }
}

/// The text of a keystore for this key. Takes about a second of processor time.
///
/// # Errors
/// There is no room for a temporary file.
pub fn encrypt(signer: &PrivateKeySigner, passphrase: &Secret) -> Result<String, KeystoreError> {
    let not_made = |error: &dyn std::fmt::Display| KeystoreError::NotMade(error.to_string());
    // The library writes files only; what lies here for a moment is encrypted, and open to nobody else.
    let nursery = tempfile::tempdir().map_err(|error| not_made(&error))?;
    let name = "keystore";
    PrivateKeySigner::encrypt_keystore(
        nursery.path(),
        &mut OsRng,
        signer.to_bytes(),
        passphrase.expose(),
        Some(name),
    )
    .map_err(|error| not_made(&error))?;
    let text = fs::read_to_string(nursery.path().join(name)).map_err(|error| not_made(&error))?;
    let mut keystore: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| not_made(&error))?;
    // As other programs do, so that people can tell keystores apart without opening them.
    keystore["address"] = hex::encode(signer.address()).into();
    Ok(format!("{keystore}\n"))
}

/// The key in a keystore. Takes as long as the keystore says.
///
/// # Errors
/// See [`KeystoreError`].
pub fn decrypt(text: &str, passphrase: &Secret) -> Result<PrivateKeySigner, KeystoreError> {
    let outline = check(text)?;
    let malformed = |what: &str| KeystoreError::Malformed(what.to_owned());
    let nursery = tempfile::tempdir().map_err(|error| KeystoreError::NotMade(error.to_string()))?;
    let file = nursery.path().join("keystore");
    fs::write(&file, text).map_err(|error| KeystoreError::NotMade(error.to_string()))?;
    let signer = PrivateKeySigner::decrypt_keystore(&file, passphrase.expose()).map_err(
        |error| match error.to_string().contains("Mac Mismatch") {
            true => KeystoreError::WrongPassphrase,
            false => malformed("the library cannot read it"),
        },
    )?;
    let claimed = outline.address.map(|address| address.to_ascii_lowercase());
    let claimed = claimed.as_deref().map(|text| text.strip_prefix("0x").unwrap_or(text));
    if claimed.is_some_and(|claimed| claimed != hex::encode(signer.address())) {
        return Err(malformed("its key has another address than it says"));
    }
    Ok(signer)
}

/// The address that a keystore says it has the key of.
pub fn claimed_address(text: &str) -> Option<alloy::primitives::Address> {
    serde_json::from_str::<Outline>(text).ok()?.address?.parse().ok()
}

fn check(text: &str) -> Result<Outline, KeystoreError> {
    let malformed = |what: &str| KeystoreError::Malformed(what.to_owned());
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(malformed("it is too long"));
    }
    // serde's own words would repeat parts of the file.
    let outline: Outline = serde_json::from_str(text)
        .map_err(|_| malformed("it is no JSON, or something is missing in it"))?;
    if outline.version != 3 {
        return Err(malformed("its version is another"));
    }
    if outline.crypto.cipher != "aes-128-ctr" {
        return Err(malformed("its cipher is another than aes-128-ctr"));
    }
    if outline.crypto.cipherparams.iv.len() != 32 || outline.crypto.ciphertext.len() != 64 {
        return Err(malformed("a part of it has another length than it should"));
    }
    let kdf = &outline.crypto.kdfparams;
    if kdf.dklen != 32 {
        return Err(malformed("its derived key has another length than 32"));
    }
    let affordable = match (kdf.n, kdf.r, kdf.p, kdf.c) {
        (Some(n), Some(r), Some(p), None) => {
            // The last of these is a rule of scrypt itself.
            let too_large =
                n.checked_ilog2().is_none_or(|log| u64::from(log) >= r.saturating_mul(16));
            if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 || too_large {
                return Err(malformed("its scrypt parameters make no sense"));
            }
            let memory = n.checked_mul(r).and_then(|blocks| blocks.checked_mul(128));
            let work = n.checked_mul(r).and_then(|blocks| blocks.checked_mul(p));
            memory.is_some_and(|bytes| bytes <= MAX_SCRYPT_BYTES)
                && work.is_some_and(|work| work <= MAX_SCRYPT_WORK)
        }
        (None, None, None, Some(rounds)) => rounds > 0 && rounds <= MAX_PBKDF2_ROUNDS,
        _ => return Err(malformed("its key derivation is neither scrypt nor PBKDF2")),
    };
    match affordable {
        true => Ok(outline),
        false => Err(KeystoreError::TooExpensive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    /// The same key as made by the Python library eth-account, and, in the other way, by the definition of the format.
    const SCRYPT: &str = r#"{"address":"008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b","crypto":{"cipher":"aes-128-ctr",
        "cipherparams":{"iv":"22c6bc87c5b91d8664cefc94c1132acb"},
        "ciphertext":"74fe94427acddddfa93937d8ad60f5c139ec95f3b4136f7a69c99867e231b864","kdf":"scrypt",
        "kdfparams":{"dklen":32,"n":4096,"r":8,"p":1,"salt":"b92d106e9829cc63f236a94da581c126"},
        "mac":"98b8a4d5140a9ee00cf310361de2c52828104fc44d06187e309f4185f243fef3"},"id":"03ab5098-0162-40f7-83b4-e2877ce7ea61","version":3}"#;
    const PBKDF2: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",
        "kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256","salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},"id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;

    fn signer() -> PrivateKeySigner {
        PrivateKeySigner::from_slice(&hex::decode(KEY).unwrap()).unwrap()
    }

    #[test]
    fn a_key_comes_back_with_its_passphrase_and_with_no_other() {
        let passphrase = Secret::new("open, sesame");
        let text = encrypt(&signer(), &passphrase).unwrap();
        assert!(!text.contains(&KEY[..8]) && !text.contains("sesame"));
        assert_eq!(decrypt(&text, &passphrase).unwrap(), signer());
        assert_eq!(claimed_address(&text), Some(signer().address()));
        let error = decrypt(&text, &Secret::new("open, simsim")).unwrap_err();
        assert!(matches!(error, KeystoreError::WrongPassphrase), "{error}");
        let other = text.replace(&hex::encode(signer().address()), &"12".repeat(20));
        assert!(matches!(decrypt(&other, &passphrase), Err(KeystoreError::Malformed(_))));
    }

    #[test]
    fn keystores_of_other_programs_open() {
        let expected = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";
        for text in [SCRYPT, PBKDF2] {
            let signer = decrypt(text, &Secret::new("testpassword")).unwrap();
            assert_eq!(hex::encode(signer.to_bytes()), expected);
        }
    }

    #[test]
    fn a_keystore_that_would_take_the_machine_down_is_refused_before_it_is_opened() {
        for (from, to) in [
            (r#""n":4096"#, r#""n":1073741824"#),
            (r#""r":8"#, r#""r":4000000000"#),
            (r#""p":1"#, r#""p":1000000"#),
        ] {
            let text = SCRYPT.replace(from, to);
            let error = decrypt(&text, &Secret::new("testpassword")).unwrap_err();
            assert!(matches!(error, KeystoreError::TooExpensive), "{to}: {error}");
        }
        let text = PBKDF2.replace(r#""c":262144"#, r#""c":4000000000"#);
        assert!(matches!(decrypt(&text, &Secret::new("x")), Err(KeystoreError::TooExpensive)));
    }

    #[test]
    fn what_is_no_keystore_is_refused_without_a_panic() {
        for (from, to) in [
            (r#""n":4096"#, r#""n":4095"#),
            (r#""n":4096"#, r#""n":0"#),
            (r#""r":8"#, r#""r":0"#),
            (r#""dklen":32"#, r#""dklen":8"#),
            ("22c6bc87c5b91d8664cefc94c1132acb", "22c6"),
            ("22c6bc87c5b91d8664cefc94c1132acb", "zzc6bc87c5b91d8664cefc94c1132acb"),
            (r#""version":3"#, r#""version":1"#),
            (r#""cipher":"aes-128-ctr""#, r#""cipher":"rot13""#),
            (r#""kdf":"scrypt""#, r#""kdf":"none""#),
        ] {
            let text = SCRYPT.replace(from, to);
            let error = decrypt(&text, &Secret::new("testpassword")).unwrap_err();
            assert!(matches!(error, KeystoreError::Malformed(_)), "{to}: {error}");
        }
        for text in ["", "{", "[]", "null"] {
            assert!(decrypt(text, &Secret::new("x")).is_err());
        }
    }
}
