//! The data directory and the key in it: whose they are, who may look into them, what they lie on.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{Check, nearest_existing};
use crate::settings::Settings;

const NAME: &str = "data directory";

pub(super) fn checks(settings: &Settings) -> Vec<Check> {
    let data_dir = &settings.data_dir;
    let mut checks = Vec::new();
    match fs::metadata(data_dir) {
        Ok(metadata) => {
            let seen = Seen {
                is_directory: metadata.is_dir(),
                mode: metadata.mode() & 0o777,
                owner: metadata.uid(),
                user: rustix::process::geteuid().as_raw(),
            };
            checks.push(of_directory(data_dir, seen));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = nearest_existing(data_dir);
            let access = rustix::fs::access(parent, rustix::fs::Access::WRITE_OK);
            checks.push(match access {
                Ok(()) => Check::ok(
                    NAME,
                    format!("{} is made at the first start", data_dir.display()),
                ),
                Err(error) => Check::fail(
                    NAME,
                    format!(
                        "{} is not there and cannot be made in {}: {}",
                        data_dir.display(),
                        parent.display(),
                        io::Error::from(error)
                    ),
                    "make it for the user that the provider runs as, or choose another one with GOLEM_PROVIDER_DATA_DIR",
                ),
            });
        }
        Err(error) => checks.push(Check::fail(
            NAME,
            format!("{} cannot be read: {error}", data_dir.display()),
            "run this as the user that the provider runs as",
        )),
    }
    checks.push(match rustix::fs::statfs(nearest_existing(data_dir)) {
        // The width and sign of the field differ between architectures; the magic numbers are 32 bits.
        Ok(file_system) => of_file_system(data_dir, file_system.f_type as u32),
        Err(error) => Check::skipped("file system", io::Error::from(error).to_string()),
    });
    checks.extend(of_key(&settings.wallet.key_dir));
    checks
}

/// What there is to see of a directory.
struct Seen {
    is_directory: bool,
    mode: u32,
    owner: u32,
    user: u32,
}

fn of_directory(path: &Path, seen: Seen) -> Check {
    let shown = path.display();
    if !seen.is_directory {
        return Check::fail(
            NAME,
            format!("{shown} is no directory"),
            "move it away, or choose another one with GOLEM_PROVIDER_DATA_DIR",
        );
    }
    if seen.owner != seen.user {
        let sentence =
            format!("{shown} belongs to user {}, and this is user {}", seen.owner, seen.user);
        // Root can use it, and what root writes there the owner cannot.
        return match seen.user {
            0 => Check::warn(
                NAME,
                sentence,
                format!("run the provider as its owner, or: chown -R root: {shown}"),
            ),
            user => Check::fail(
                NAME,
                sentence,
                format!("run the provider as its owner, or: chown -R {user}: {shown}"),
            ),
        };
    }
    if seen.mode & 0o077 != 0 {
        return Check::warn(
            NAME,
            format!("{shown} is open to other users of this computer (mode {:o})", seen.mode),
            format!("chmod 700 {shown}"),
        );
    }
    Check::ok(NAME, format!("{shown} is there, for this user alone"))
}

/// Judges a file system by its magic number, as in `statfs(2)`.
fn of_file_system(path: &Path, magic: u32) -> Check {
    const NAME: &str = "file system";
    let shown = path.display();
    let elsewhere = "put the data directory on a local disk: GOLEM_PROVIDER_DATA_DIR";
    match magic {
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x517b | 0x0102_1997 | 0x6573_5546 => Check::warn(
            NAME,
            format!(
                "{shown} is on a network or user-space file system, on which the database's locks may not hold"
            ),
            elsewhere,
        ),
        0x0102_1994 | 0x8584_58f6 => Check::warn(
            NAME,
            format!(
                "{shown} is in memory: the machines, and the provider's key, are gone with the next restart of this computer"
            ),
            elsewhere,
        ),
        0x794c_7630 => Check::warn(
            NAME,
            format!(
                "{shown} is in a container's own layer: the machines, and the provider's key, are gone with the container"
            ),
            "mount a volume and put the data directory there: GOLEM_PROVIDER_DATA_DIR",
        ),
        _ => Check::ok(NAME, format!("{shown} is on a local disk")),
    }
}

/// The provider's identity may be read by its user alone.
fn of_key(key_dir: &Path) -> Option<Check> {
    const NAME: &str = "key";
    let entries = fs::read_dir(key_dir).ok()?;
    let open = entries.flatten().find(|entry| {
        entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o077 != 0)
    });
    Some(match open {
        Some(entry) => Check::fail(
            NAME,
            format!("{} can be read by other users of this computer", entry.path().display()),
            format!(
                "chmod 600 {}; if others use this computer, make a new key",
                entry.path().display()
            ),
        ),
        None => Check::ok(NAME, format!("what is in {} is for this user alone", key_dir.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn a_directory_is_judged_by_its_kind_owner_and_mode() {
        let judged = |is_directory, mode, owner, user| {
            of_directory(Path::new("/d"), Seen { is_directory, mode, owner, user }).state
        };
        assert_eq!(judged(true, 0o700, 5, 5), State::Ok);
        assert_eq!(judged(true, 0o755, 5, 5), State::Warn);
        assert_eq!(judged(true, 0o700, 5, 6), State::Fail);
        assert_eq!(judged(true, 0o700, 5, 0), State::Warn);
        assert_eq!(judged(false, 0o600, 5, 5), State::Fail);
    }

    #[test]
    fn a_file_system_is_judged_by_what_becomes_of_what_is_written_there() {
        let judged = |magic| of_file_system(Path::new("/d"), magic).state;
        // ext4, xfs, btrfs.
        for local in [0xef53, 0x5846_5342, 0x9123_683e] {
            assert_eq!(judged(local), State::Ok, "{local:x}");
        }
        // nfs, tmpfs, overlay.
        for risky in [0x6969, 0x0102_1994, 0x794c_7630] {
            assert_eq!(judged(risky), State::Warn, "{risky:x}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_told() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("provider.key");
        fs::write(&file, "secret").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(of_key(directory.path()).unwrap().state, State::Fail);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(of_key(directory.path()).unwrap().state, State::Ok);
        assert!(of_key(&directory.path().join("none")).is_none());
    }
}
