//! The provider's Ethereum key: from the settings, else from a file that is made at the first start.
//!
//! The address of this key is the provider's id, and what is paid goes to it. So the key file is written whole and synced
//! before it is used, and one that is there and cannot be read is an error: it is never overwritten, since a new key
//! in its place would be another provider. The key shows in no error, log line or `Debug`.
//!
//! Everything here blocks for the length of a few file operations; it is called once, while starting.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use alloy::signers::local::PrivateKeySigner;

use crate::settings::{Secret, WalletSettings};

/// The key file's name in the key directory.
pub const KEY_FILE: &str = "provider.key";

/// The provider's key and address.
#[derive(Clone)]
pub struct Wallet {
    signer: PrivateKeySigner,
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
}

impl Wallet {
    /// Takes the key from the settings, else from the key file, else makes both key and file.
    ///
    /// # Errors
    /// When there is a key that cannot be used, or none could be kept.
    pub fn open(settings: &WalletSettings) -> Result<Self, WalletError> {
        if let Some(key) = &settings.private_key {
            return parse(key).ok_or(WalletError::InvalidSetting);
        }
        let dir = &settings.key_dir;
        let path = dir.join(KEY_FILE);
        match read(&path) {
            Ok(Some(text)) => parse(&text).ok_or(WalletError::InvalidFile(path)),
            Ok(None) => create(dir, &path),
            Err(source) => Err(WalletError::Unreadable { path, source }),
        }
    }

    /// The provider's id: its address with the checksum of EIP-55.
    pub fn provider_id(&self) -> String {
        self.signer.address().to_checksum(None)
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

fn parse(text: &Secret) -> Option<Wallet> {
    let mut key = [0; 32];
    let digits = text.expose().trim();
    hex::decode_to_slice(digits.strip_prefix("0x").unwrap_or(digits), &mut key).ok()?;
    PrivateKeySigner::from_slice(&key).ok().map(|signer| Wallet { signer })
}

/// The file's text, `None` when there is no file. Others lose the right to read it.
fn read(path: &Path) -> io::Result<Option<Secret>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Secret::new(text),
        // A link into nowhere is a file that is there and cannot be read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the provider's key file; they no longer can");
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
    }
    Ok(Some(text))
}

/// Makes a key and keeps it: after this returns, it survives a loss of power. Never replaces a file.
fn create(dir: &Path, path: &Path) -> Result<Wallet, WalletError> {
    let not_kept = |source| WalletError::NotKept { dir: dir.to_owned(), source };
    let wallet = Wallet { signer: PrivateKeySigner::random() };
    let text = Secret::new(format!("0x{}\n", hex::encode(wallet.signer.to_bytes())));
    let new = dir.join(format!("{KEY_FILE}.new.{}", std::process::id()));
    let kept = (|| {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        // One of a process of the same number that did not finish.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.expose().as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a link fails where there is a file already.
        fs::hard_link(&new, path)
    })();
    let _ = fs::remove_file(&new);
    match kept {
        Ok(()) => {
            sync_directories(dir).map_err(not_kept)?;
            tracing::info!(address = %wallet.provider_id(), path = %path.display(), "made the provider's key; keep a copy of it");
            Ok(wallet)
        }
        // Another process was faster; its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match read(path) {
            Ok(Some(text)) => parse(&text).ok_or_else(|| WalletError::InvalidFile(path.to_owned())),
            Ok(None) => Err(not_kept(error)),
            Err(source) => Err(WalletError::Unreadable { path: path.to_owned(), source }),
        },
        Err(source) => Err(not_kept(source)),
    }
}

/// Makes the new names durable: the file's in its directory, and the directory's in its parent.
fn sync_directories(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A key that the whole world knows, and its address.
    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

    fn settings(dir: &TempDir, key: Option<&str>) -> WalletSettings {
        WalletSettings { key_dir: dir.path().join("home/keys"), private_key: key.map(Secret::new) }
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
        assert_eq!(create(&settings.key_dir, &path).unwrap().provider_id(), ADDRESS);
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
}
