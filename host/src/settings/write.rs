//! Changes one setting in a `.env` file, and nothing else of it.

use std::{fs, io, path::Path};

use super::dotenv;
use crate::whole_file;

/// Sets `key` to `value` in the file, which is made if absent and replaced in one step. Every other line stays as it is.
/// `value` has to be plain: what would need quoting is refused.
///
/// # Errors
/// The file cannot be read or written, or the value is not plain.
pub fn write_setting(file: &Path, key: &str, value: &str) -> io::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,".contains(&byte);
    if !value.bytes().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the value would need quoting"));
    }
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    whole_file::replace(file, replaced(&text, key, value).as_bytes())
}

fn replaced(text: &str, key: &str, value: &str) -> String {
    let mut lines: Vec<String> =
        text.lines().filter(|line| dotenv::key_of(line) != Some(key)).map(str::to_owned).collect();
    lines.push(format!("{key}={value}"));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_changes_and_everything_else_stays() {
        let text = "# mine\nGOLEM_PROVIDER_PORT=1\nexport GOLEM_PROVIDER_NAME=old\nGOLEM_PROVIDER_NAME=older\n\n# end";
        let new = replaced(text, "GOLEM_PROVIDER_NAME", "new");
        assert_eq!(new, "# mine\nGOLEM_PROVIDER_PORT=1\n\n# end\nGOLEM_PROVIDER_NAME=new\n");
        let read = dotenv::read(&new);
        assert_eq!(read.values.last().unwrap().1, "new");
    }

    #[test]
    fn a_file_is_made_for_its_owner_alone_and_a_value_that_needs_quoting_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".env");
        write_setting(&file, "GOLEM_PROVIDER_VM_BACKEND", "qemu").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "GOLEM_PROVIDER_VM_BACKEND=qemu\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_setting(&file, "GOLEM_PROVIDER_VM_BACKEND", "a b\nX=1").is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "GOLEM_PROVIDER_VM_BACKEND=qemu\n");
    }
}
