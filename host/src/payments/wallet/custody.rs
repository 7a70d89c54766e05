//! What an operator does with the provider's key: bring one along, take a copy, encrypt it.
//!
//! Nothing here loses a key: another one in its place is kept under another name first, and a file goes only when what
//! takes its place has been read back. A provider that runs keeps the key that it started with.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use alloy::signers::local::PrivateKeySigner;

use super::{
    KEYSTORE_FILE, KeyOrigin, Wallet, WalletError, in_hex, keep, kept_form, keystore, make_dir,
    parse, passphrase, paths, sync_directories, write_new,
};
use crate::{
    settings::{Secret, WalletSettings},
    whole_file,
};

/// Why nothing was done with a key.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    #[error(transparent)]
    Wallet(#[from] WalletError),
    #[error("this is neither a private key in hex nor a keystore")]
    NoKey,
    #[error("the keystore {0}")]
    Keystore(#[from] keystore::KeystoreError),
    #[error(
        "GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY is set, and counts before every file; remove it there first"
    )]
    SetElsewhere,
    #[error(
        "the provider has a key already, that of {address}, and would be another provider with this one; --replace does it, and \
         keeps a copy of the old one"
    )]
    WouldReplace { address: String },
    #[error(
        "there is no key yet; the first start makes one, `golem-provider wallet import` brings one along"
    )]
    NoKeyYet,
    #[error("it is encrypted already, in {}", .0.display())]
    IsEncrypted(PathBuf),
    #[error(
        "set GOLEM_PROVIDER_ETHEREUM_KEYSTORE_PASSPHRASE_FILE to a file with a passphrase, which the provider reads at each start"
    )]
    NoPassphraseFile,
    #[error("{} cannot be written: {source}", path.display())]
    NotWritten { path: PathBuf, source: io::Error },
    #[error("{} does not hold what was written to it; nothing was removed", .0.display())]
    NotReadBack(PathBuf),
}

/// What an import came to.
#[derive(Debug)]
pub struct Imported {
    pub wallet: Wallet,
    /// The provider had this key before.
    pub was_there: bool,
    /// Copies of the files that were replaced.
    pub copies: Vec<PathBuf>,
}

/// A key in the form that somebody brings it in: hex, or a keystore whose passphrase is asked for when it is needed.
///
/// # Errors
/// It is neither, or does not open.
pub fn read_key<E: From<CustodyError>>(
    text: &Secret,
    passphrase: impl FnOnce() -> Result<Secret, E>,
) -> Result<PrivateKeySigner, E> {
    if !text.expose().trim_start().starts_with('{') {
        return parse(text).ok_or_else(|| CustodyError::NoKey.into());
    }
    let opened = keystore::decrypt(text.expose(), &passphrase()?);
    opened.map_err(|error| CustodyError::from(error).into())
}

/// Makes this the provider's key.
///
/// # Errors
/// The provider has another one and `replace` is not given, or files cannot be written.
pub fn import(
    settings: &WalletSettings,
    signer: &PrivateKeySigner,
    replace: bool,
) -> Result<Imported, CustodyError> {
    if settings.private_key.is_some() {
        return Err(CustodyError::SetElsewhere);
    }
    let present = match Wallet::find(settings) {
        Ok(present) => present,
        // What cannot be opened can still be kept aside.
        Err(_) if replace => None,
        Err(error) => return Err(error.into()),
    };
    match present {
        Some(wallet) if wallet.address() == signer.address() => {
            return Ok(Imported { wallet, was_there: true, copies: Vec::new() });
        }
        Some(wallet) if !replace => {
            return Err(CustodyError::WouldReplace { address: wallet.provider_id() });
        }
        _ => {}
    }
    make_dir(&settings.key_dir)
        .map_err(|source| WalletError::NotKept { dir: settings.key_dir.clone(), source })?;
    let (plain, encrypted) = paths(settings);
    let old: Vec<PathBuf> =
        [plain, encrypted].into_iter().filter(|path| fs::symlink_metadata(path).is_ok()).collect();
    if old.is_empty() {
        let (wallet, is_new) = keep(settings, signer)?;
        if !is_new && wallet.address() != signer.address() {
            // A provider that was started at this moment made one of its own.
            return Err(CustodyError::WouldReplace { address: wallet.provider_id() });
        }
        return Ok(Imported { wallet, was_there: false, copies: Vec::new() });
    }
    let copies = old.iter().map(|path| copy_aside(path)).collect::<Result<_, _>>()?;
    let (path, text, origin) = kept_form(settings, signer)?;
    // At every moment there is a key: the old one, the new one, or for a moment two, which a start refuses.
    whole_file::replace(&path, text.expose().as_bytes())
        .map_err(|source| CustodyError::NotWritten { path: path.clone(), source })?;
    for other in old.iter().filter(|other| **other != path) {
        fs::remove_file(other)
            .and_then(|()| sync_directories(&settings.key_dir))
            .map_err(|source| CustodyError::NotWritten { path: other.clone(), source })?;
    }
    let wallet = Wallet { signer: signer.clone(), origin };
    Ok(Imported { wallet, was_there: false, copies })
}

/// Gives a file a second name that is still free: `provider.key.old`, `provider.key.old-2`, …
fn copy_aside(path: &Path) -> Result<PathBuf, CustodyError> {
    let not_written = |source| CustodyError::NotWritten { path: path.to_owned(), source };
    for number in 1..10_000_u32 {
        let mut name = path.as_os_str().to_owned();
        name.push(if number == 1 { ".old".to_owned() } else { format!(".old-{number}") });
        let aside = PathBuf::from(name);
        // A link fails where there is a file already.
        match fs::hard_link(path, &aside) {
            Ok(()) => {
                let dir = path.parent().unwrap_or(Path::new("."));
                sync_directories(dir).map_err(not_written)?;
                return Ok(aside);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(not_written(source)),
        }
    }
    Err(not_written(io::Error::from(io::ErrorKind::AlreadyExists)))
}

/// The key that the provider has.
///
/// # Errors
/// There is none yet, or it cannot be opened.
pub fn present(settings: &WalletSettings) -> Result<Wallet, CustodyError> {
    Wallet::find(settings)?.ok_or(CustodyError::NoKeyYet)
}

/// The key in hex, with `0x` before it. Whoever has it is the provider.
///
/// # Errors
/// There is none yet, or it cannot be opened.
pub fn export(settings: &WalletSettings) -> Result<Secret, CustodyError> {
    Ok(in_hex(present(settings)?.signer()))
}

/// Writes a copy of the key, encrypted, to a file that is not there yet.
///
/// # Errors
/// There is no key, or there is such a file.
pub fn export_keystore(
    settings: &WalletSettings,
    file: &Path,
    passphrase: &Secret,
) -> Result<Wallet, CustodyError> {
    let wallet = present(settings)?;
    let text = Secret::new(keystore::encrypt(wallet.signer(), passphrase)?);
    write_new(file, &text)
        .map_err(|source| CustodyError::NotWritten { path: file.to_owned(), source })?;
    Ok(wallet)
}

/// Keeps the key encrypted from now on, under the passphrase of the settings, and removes the file that it was in.
///
/// # Errors
/// There is no key or no passphrase, it is encrypted already, or files cannot be written. Then the key is where it was.
pub fn encrypt(settings: &WalletSettings) -> Result<Wallet, CustodyError> {
    if settings.private_key.is_some() {
        return Err(CustodyError::SetElsewhere);
    }
    let passphrase = passphrase(settings)?.ok_or(CustodyError::NoPassphraseFile)?;
    let wallet = present(settings)?;
    let (plain, encrypted) = paths(settings);
    if matches!(wallet.origin(), KeyOrigin::File(_)) {
        let text = keystore::encrypt(wallet.signer(), &passphrase)?;
        let not_written = |source| CustodyError::NotWritten { path: encrypted.clone(), source };
        whole_file::replace(&encrypted, text.as_bytes()).map_err(not_written)?;
        let read_back = fs::read_to_string(&encrypted).map_err(not_written)?;
        let same = keystore::decrypt(&read_back, &passphrase)
            .is_ok_and(|signer| signer.address() == wallet.address());
        if !same {
            return Err(CustodyError::NotReadBack(encrypted));
        }
    } else if fs::symlink_metadata(&plain).is_err() {
        return Err(CustodyError::IsEncrypted(settings.key_dir.join(KEYSTORE_FILE)));
    }
    fs::remove_file(&plain)
        .and_then(|()| sync_directories(&settings.key_dir))
        .map_err(|source| CustodyError::NotWritten { path: plain, source })?;
    Ok(Wallet { origin: KeyOrigin::Keystore(encrypted), ..wallet })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::{super::KEY_FILE, *};

    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

    fn settings(dir: &TempDir) -> WalletSettings {
        WalletSettings {
            key_dir: dir.path().join("keys"),
            private_key: None,
            passphrase_file: None,
        }
    }

    fn with_passphrase(dir: &TempDir) -> WalletSettings {
        let file = dir.path().join("passphrase");
        fs::write(&file, "open, sesame").unwrap();
        WalletSettings { passphrase_file: Some(file), ..settings(dir) }
    }

    fn key() -> PrivateKeySigner {
        read_key::<CustodyError>(&Secret::new(format!("0x{KEY}\n")), || {
            unreachable!("it is no keystore")
        })
        .unwrap()
    }

    #[test]
    fn a_key_that_is_imported_is_the_providers_and_another_one_is_not_lost() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        let first = Wallet::open(&settings).unwrap();
        let old = fs::read_to_string(settings.key_dir.join(KEY_FILE)).unwrap();
        let error = import(&settings, &key(), false).unwrap_err();
        assert!(error.to_string().contains(&first.provider_id()), "{error}");
        assert_eq!(Wallet::open(&settings).unwrap().provider_id(), first.provider_id());

        let imported = import(&settings, &key(), true).unwrap();
        assert_eq!(Wallet::open(&settings).unwrap().provider_id(), ADDRESS);
        assert_eq!(imported.copies.len(), 1);
        assert_eq!(fs::read_to_string(&imported.copies[0]).unwrap(), old);
        assert!(import(&settings, &key(), false).unwrap().was_there);
        // And back again, twice: no copy takes the place of another.
        let first = read_key::<CustodyError>(&Secret::new(old), || unreachable!()).unwrap();
        import(&settings, &first, true).unwrap();
        import(&settings, &key(), true).unwrap();
        assert_eq!(fs::read_dir(&settings.key_dir).unwrap().count(), 4);
    }

    #[test]
    fn what_is_no_key_is_not_imported() {
        for text in ["", "0x12", &"0".repeat(64), "{}"] {
            let read = read_key::<CustodyError>(&Secret::new(text), || Ok(Secret::new("x")));
            assert!(read.is_err(), "{text}");
        }
        let dir = TempDir::new().unwrap();
        let set = WalletSettings { private_key: Some(Secret::new(KEY)), ..settings(&dir) };
        assert!(matches!(import(&set, &key(), true), Err(CustodyError::SetElsewhere)));
    }

    #[test]
    fn an_exported_keystore_can_be_imported_and_takes_no_files_place() {
        let dir = TempDir::new().unwrap();
        let settings = settings(&dir);
        assert!(matches!(export(&settings), Err(CustodyError::NoKeyYet)));
        import(&settings, &key(), false).unwrap();
        assert_eq!(export(&settings).unwrap().expose(), format!("0x{KEY}\n"));
        let file = dir.path().join("copy.json");
        let passphrase = Secret::new("a longer one");
        export_keystore(&settings, &file, &passphrase).unwrap();
        let text = Secret::new(fs::read_to_string(&file).unwrap());
        let read = read_key::<CustodyError>(&text, || Ok(passphrase.clone())).unwrap();
        assert_eq!(read.address().to_checksum(None), ADDRESS);
        assert!(export_keystore(&settings, &file, &passphrase).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), text.expose());
    }

    #[test]
    fn encrypting_keeps_the_id_and_leaves_no_key_in_the_clear() {
        let dir = TempDir::new().unwrap();
        import(&settings(&dir), &key(), false).unwrap();
        assert!(matches!(encrypt(&settings(&dir)), Err(CustodyError::NoPassphraseFile)));
        let settings = with_passphrase(&dir);
        assert_eq!(encrypt(&settings).unwrap().provider_id(), ADDRESS);
        let wallet = Wallet::open(&settings).unwrap();
        assert_eq!(wallet.provider_id(), ADDRESS);
        assert!(matches!(wallet.origin(), KeyOrigin::Keystore(_)));
        for entry in fs::read_dir(&settings.key_dir).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains(&KEY[..16]));
        }
        assert!(matches!(encrypt(&settings), Err(CustodyError::IsEncrypted(_))));
        // As after a crash between the two steps.
        fs::write(settings.key_dir.join(KEY_FILE), KEY).unwrap();
        encrypt(&settings).unwrap();
        assert!(!settings.key_dir.join(KEY_FILE).exists());
    }
}
