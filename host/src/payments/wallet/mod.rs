//! The provider's Ethereum key: from the settings, else from a file that is made at the first start.
//!
//! The address of this key is the provider's id, and what is paid goes to it. So a key file is written whole and synced
//! before it is used, and one that is there and cannot be read is an error: it is never overwritten, since a new key
//! in its place would be another provider. The key shows in no error, log line or `Debug`.
//!
//! ```text
//! settings name a key ──────────────────────────────────────────────► that one; files do not matter
//! a passphrase file is set ── provider.json there ──────────────────► decrypted (provider.key beside it has to be the same)
//!                          ├─ only provider.key there ──────────────► that one, with a warning: `wallet encrypt` moves it over
//!                          └─ neither ──────────────────────────────► made, encrypted
//! none is set ──────────────── provider.key there ──────────────────► that one
//!                          ├─ only provider.json there ─────────────► an error: no passphrase
//!                          └─ neither ──────────────────────────────► made
//! ```
//!
//! `keystore` is the encrypted form; `custody` is what an operator does with keys. Everything here blocks, for the length of a
//! few file operations or of deriving a key from a passphrase: never call it on the runtime's threads. Called by the
//! composition root, once while starting, and by `cli`.

pub mod custody;
pub mod keystore;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use alloy::{primitives::Address, signers::local::PrivateKeySigner};

use self::keystore::KeystoreError;
use crate::settings::{Secret, WalletSettings};

/// The key file's name in the key directory.
pub const KEY_FILE: &str = "provider.key";
/// The name of the file with the encrypted key.
pub const KEYSTORE_FILE: &str = "provider.json";

/// The provider's key and address.
#[derive(Clone)]
pub struct Wallet {
    signer: PrivateKeySigner,
    origin: KeyOrigin,
}

/// Where a key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOrigin {
    Settings,
    /// Not encrypted.
    File(PathBuf),
    Keystore(PathBuf),
}

/// Why there is no key to work with.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// 32 bytes, but zero or beyond the curve's order.
    #[error(
        "GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY is no valid private key; check that it was copied whole"
    )]
    InvalidSetting,
    #[error("the key file {} does not hold a private key in hex; put the right file back, or move it away to get a new \
             key, which makes this another provider", .0.display())]
    InvalidFile(PathBuf),
    #[error("the key file {} cannot be read: {source}; the provider needs it to be who it was", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("no key could be kept in {}: {source}; make the directory writable, or set GOLEM_PROVIDER_ETHEREUM_KEY_DIR", dir.display())]
    NotKept { dir: PathBuf, source: io::Error },
    #[error("the file with the passphrase, {} (GOLEM_PROVIDER_ETHEREUM_KEYSTORE_PASSPHRASE_FILE), cannot be used: {source}", path.display())]
    Passphrase { path: PathBuf, source: io::Error },
    #[error("the provider's key is encrypted, in {}; set GOLEM_PROVIDER_ETHEREUM_KEYSTORE_PASSPHRASE_FILE to the file that its \
             passphrase is in", .0.display())]
    NoPassphrase(PathBuf),
    #[error("the keystore {} {source}", path.display())]
    Keystore { path: PathBuf, source: KeystoreError },
    #[error("there are two different keys, in {} and {}; move the one away that is not the provider's", plain.display(), encrypted.display())]
    TwoKeys { plain: PathBuf, encrypted: PathBuf },
}

impl Wallet {
    /// Takes the key from the settings, else from its file, else makes both key and file.
    ///
    /// # Errors
    /// When there is a key that cannot be used, or none could be kept.
    pub fn open(settings: &WalletSettings) -> Result<Self, WalletError> {
        match Self::find(settings)? {
            Some(wallet) => Ok(wallet),
            None => {
                let signer = PrivateKeySigner::random();
                let (wallet, is_new) = keep(settings, &signer)?;
                if is_new {
                    let (address, path) = (wallet.provider_id(), wallet.origin.to_string());
                    tracing::info!(%address, path, "made the provider's key; keep a copy of it");
                }
                Ok(wallet)
            }
        }
    }

    /// The key there is; makes none.
    ///
    /// # Errors
    /// When there is a key that cannot be used.
    pub fn find(settings: &WalletSettings) -> Result<Option<Self>, WalletError> {
        if let Some(key) = &settings.private_key {
            let signer = parse(key).ok_or(WalletError::InvalidSetting)?;
            return Ok(Some(Self { signer, origin: KeyOrigin::Settings }));
        }
        let (plain_path, encrypted_path) = paths(settings);
        let encrypted = read(&encrypted_path)?;
        let plain = match read(&plain_path)? {
            Some(text) => {
                let signer = parse(&text).ok_or(WalletError::InvalidFile(plain_path.clone()))?;
                Some(Self { signer, origin: KeyOrigin::File(plain_path.clone()) })
            }
            None => None,
        };
        let Some(passphrase) = passphrase(settings)? else {
            return match (plain, encrypted) {
                (None, Some(_)) => Err(WalletError::NoPassphrase(encrypted_path)),
                (plain, _) => Ok(plain),
            };
        };
        let Some(text) = encrypted else {
            if plain.is_some() {
                tracing::warn!(
                    path = %plain_path.display(),
                    "the provider's key is not encrypted, although there is a passphrase for it; \
                     `golem-provider wallet encrypt` does that"
                );
            }
            return Ok(plain);
        };
        let signer = keystore::decrypt(text.expose(), &passphrase)
            .map_err(|source| WalletError::Keystore { path: encrypted_path.clone(), source })?;
        match plain {
            Some(plain) if plain.signer.address() != signer.address() => {
                Err(WalletError::TwoKeys { plain: plain_path, encrypted: encrypted_path })
            }
            _ => Ok(Some(Self { signer, origin: KeyOrigin::Keystore(encrypted_path) })),
        }
    }

    /// The provider's id: its address with the checksum of EIP-55.
    pub fn provider_id(&self) -> String {
        self.signer.address().to_checksum(None)
    }

    pub fn address(&self) -> Address {
        self.signer.address()
    }

    pub fn origin(&self) -> &KeyOrigin {
        &self.origin
    }

    /// For whoever signs on the provider's behalf.
    pub fn signer(&self) -> &PrivateKeySigner {
        &self.signer
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet").field("address", &self.signer.address()).finish_non_exhaustive()
    }
}

impl fmt::Display for KeyOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings => f.write_str("GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY"),
            Self::File(path) | Self::Keystore(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Of the key as it is, and of the encrypted one.
fn paths(settings: &WalletSettings) -> (PathBuf, PathBuf) {
    (settings.key_dir.join(KEY_FILE), settings.key_dir.join(KEYSTORE_FILE))
}

fn passphrase(settings: &WalletSettings) -> Result<Option<Secret>, WalletError> {
    let Some(path) = &settings.passphrase_file else { return Ok(None) };
    let read = keystore::read_passphrase(path)
        .map_err(|source| WalletError::Passphrase { path: path.clone(), source })?;
    // Not ours to change: a service manager may have put it there.
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        tracing::warn!(path = %path.display(), "others can read the passphrase of the provider's key");
    }
    Ok(Some(read))
}

/// A private key in hex.
fn parse(text: &Secret) -> Option<PrivateKeySigner> {
    let mut key = [0; 32];
    let digits = text.expose().trim();
    hex::decode_to_slice(digits.strip_prefix("0x").unwrap_or(digits), &mut key).ok()?;
    PrivateKeySigner::from_slice(&key).ok()
}

fn in_hex(signer: &PrivateKeySigner) -> Secret {
    Secret::new(format!("0x{}\n", hex::encode(signer.to_bytes())))
}

/// The file's text, `None` when there is no file. Others lose the right to read it.
fn read(path: &Path) -> Result<Option<Secret>, WalletError> {
    read_text(path).map_err(|source| WalletError::Unreadable { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> io::Result<Option<Secret>> {
    let file = match File::open(path) {
        Ok(file) => file,
        // A link into nowhere is a file that is there and cannot be read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    // One that is longer is no key; what is left of it says so.
    (&file).take(keystore::MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the provider's key file; they no longer can");
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
    }
    Ok(Some(Secret::new(text)))
}

/// Keeps a key where there is none: after this returns, it survives a loss of power. Never replaces a file: where another
/// process was faster its key counts, which is what the flag says.
fn keep(
    settings: &WalletSettings,
    signer: &PrivateKeySigner,
) -> Result<(Wallet, bool), WalletError> {
    let dir = &settings.key_dir;
    let not_kept = |source| WalletError::NotKept { dir: dir.clone(), source };
    let (path, text, origin) = kept_form(settings, signer)?;
    make_dir(dir).map_err(not_kept)?;
    match write_new(&path, &text) {
        Ok(()) => Ok((Wallet { signer: signer.clone(), origin }, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let other = Wallet::find(settings)?;
            other.map(|wallet| (wallet, false)).ok_or_else(|| not_kept(error))
        }
        Err(source) => Err(not_kept(source)),
    }
}

/// Where and as what text a key is kept with these settings.
fn kept_form(
    settings: &WalletSettings,
    signer: &PrivateKeySigner,
) -> Result<(PathBuf, Secret, KeyOrigin), WalletError> {
    let (plain, encrypted) = paths(settings);
    Ok(match passphrase(settings)? {
        None => (plain.clone(), in_hex(signer), KeyOrigin::File(plain)),
        Some(passphrase) => match keystore::encrypt(signer, &passphrase) {
            Ok(text) => (encrypted.clone(), Secret::new(text), KeyOrigin::Keystore(encrypted)),
            Err(source) => return Err(WalletError::Keystore { path: encrypted, source }),
        },
    })
}

/// Open to this user alone.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Writes a file that is not there yet, whole and durably, for this user alone.
fn write_new(path: &Path, text: &Secret) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new.{}", std::process::id()));
    let draft = dir.join(name);
    let written = (|| {
        // One of a process of the same number that did not finish.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.expose().as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a link fails where there is a file already.
        fs::hard_link(&draft, path)
    })();
    let _ = fs::remove_file(&draft);
    written?;
    sync_directories(dir)
}

/// Makes the new names durable: the file's in its directory, and the directory's in its parent.
fn sync_directories(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A key that the whole world knows, and its address.
    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

    fn settings(dir: &TempDir, key: Option<&str>) -> WalletSettings {
        WalletSettings {
            key_dir: dir.path().join("home/keys"),
            private_key: key.map(Secret::new),
            passphrase_file: None,
        }
    }

    fn with_passphrase(dir: &TempDir) -> WalletSettings {
        let file = dir.path().join("passphrase");
        fs::write(&file, "open, sesame\n").unwrap();
        WalletSettings { passphrase_file: Some(file), ..settings(dir, None) }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_id_is_the_address_of_the_key_that_is_set_and_no_file_is_made() {
        let dir = TempDir::new().unwrap();
        assert_eq!(Wallet::open(&settings(&dir, Some(KEY))).unwrap().provider_id(), ADDRESS);
        assert!(!dir.path().join("home").exists());
    }

    #[test]
    fn a_key_is_made_once_for_the_owner_alone_and_found_again() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir, None);
        let id = Wallet::open(&settings).unwrap().provider_id();
        assert_eq!(Wallet::open(&settings).unwrap().provider_id(), id);
        assert_eq!(
            (mode(&settings.key_dir), mode(&settings.key_dir.join(KEY_FILE))),
            (0o700, 0o600)
        );
        assert_eq!(fs::read_dir(&settings.key_dir).unwrap().count(), 1);
        let other = TempDir::new().unwrap();
        assert_ne!(Wallet::open(&self::settings(&other, None)).unwrap().provider_id(), id);
    }

    #[test]
    fn processes_that_start_at_once_agree_on_one_key() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir, None);
        fs::create_dir_all(&settings.key_dir).unwrap();
        let path = settings.key_dir.join(KEY_FILE);
        fs::write(&path, KEY).unwrap();
        // As if the file had appeared just after it was looked for.
        let (wallet, is_new) = keep(&settings, &PrivateKeySigner::random()).unwrap();
        assert_eq!((wallet.provider_id().as_str(), is_new), (ADDRESS, false));
        assert_eq!(fs::read_to_string(&path).unwrap(), KEY);
    }

    #[test]
    fn a_file_that_holds_no_key_is_an_error_and_is_left_as_it_is() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir, None);
        fs::create_dir_all(&settings.key_dir).unwrap();
        let path = settings.key_dir.join(KEY_FILE);
        for text in ["", "0x12", &"0".repeat(64), &KEY.replace('a', "g")] {
            fs::write(&path, text).unwrap();
            let error = Wallet::open(&settings).unwrap_err();
            assert!(matches!(error, WalletError::InvalidFile(_)), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_no_new_key_is_made() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir, None);
        fs::create_dir_all(settings.key_dir.join(KEY_FILE)).unwrap();
        assert!(matches!(Wallet::open(&settings), Err(WalletError::Unreadable { .. })));

        let dir = TempDir::new().unwrap();
        let settings = self::settings(&dir, None);
        fs::create_dir_all(&settings.key_dir).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", settings.key_dir.join(KEY_FILE)).unwrap();
        assert!(matches!(Wallet::open(&settings), Err(WalletError::Unreadable { .. })));
    }

    #[test]
    fn a_file_that_others_can_read_is_closed_to_them() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir, None);
        fs::create_dir_all(&settings.key_dir).unwrap();
        let path = settings.key_dir.join(KEY_FILE);
        fs::write(&path, format!("0x{KEY}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Wallet::open(&settings).unwrap().provider_id(), ADDRESS);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn the_key_shows_in_no_debug_and_no_error() {
        let dir = TempDir::new().unwrap();
        let wallet = Wallet::open(&settings(&dir, Some(KEY))).unwrap();
        assert!(!format!("{wallet:?}").contains(&KEY[..8]));
        let settings = settings(&dir, Some(&"f".repeat(64)));
        let error = Wallet::open(&settings).unwrap_err();
        assert!(!format!("{error} {error:?} {settings:?}").contains("ffff"));
    }

    #[test]
    fn with_a_passphrase_the_key_is_made_encrypted_and_found_again_with_it_alone() {
        let dir = TempDir::new().unwrap();
        let settings = with_passphrase(&dir);
        let wallet = Wallet::open(&settings).unwrap();
        let path = settings.key_dir.join(KEYSTORE_FILE);
        assert_eq!(wallet.origin(), &KeyOrigin::Keystore(path.clone()));
        assert_eq!(fs::read_dir(&settings.key_dir).unwrap().count(), 1);
        assert_eq!((mode(&settings.key_dir), mode(&path)), (0o700, 0o600));
        assert_eq!(Wallet::open(&settings).unwrap().provider_id(), wallet.provider_id());

        let without = self::settings(&dir, None);
        assert!(matches!(Wallet::open(&without), Err(WalletError::NoPassphrase(_))));
        fs::write(dir.path().join("passphrase"), "wrong").unwrap();
        let error = Wallet::open(&settings).unwrap_err().to_string();
        assert!(error.contains("passphrase") && !error.contains("wrong"), "{error}");
        fs::write(dir.path().join("passphrase"), "\nsecond line").unwrap();
        assert!(matches!(Wallet::open(&settings), Err(WalletError::Passphrase { .. })));
        assert_eq!(fs::read_dir(&settings.key_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_is_not_encrypted_stays_as_it_is_when_a_passphrase_is_set() {
        let dir = TempDir::new().unwrap();
        let id = Wallet::open(&settings(&dir, None)).unwrap().provider_id();
        let settings = with_passphrase(&dir);
        let wallet = Wallet::open(&settings).unwrap();
        assert_eq!(wallet.provider_id(), id);
        assert!(matches!(wallet.origin(), KeyOrigin::File(_)));
        assert!(!settings.key_dir.join(KEYSTORE_FILE).exists());
    }

    #[test]
    fn two_different_keys_are_an_error() {
        let dir = TempDir::new().unwrap();
        let settings = with_passphrase(&dir);
        Wallet::open(&settings).unwrap();
        fs::write(settings.key_dir.join(KEY_FILE), KEY).unwrap();
        assert!(matches!(Wallet::open(&settings), Err(WalletError::TwoKeys { .. })));
    }

    #[test]
    fn looking_for_a_key_makes_none() {
        let dir = TempDir::new().unwrap();
        assert!(Wallet::find(&settings(&dir, None)).unwrap().is_none());
        assert!(!dir.path().join("home").exists());
    }
}
