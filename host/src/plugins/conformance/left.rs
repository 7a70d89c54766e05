//! What is left when all machines were deleted: nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal};

use super::{
    Bed, Machines,
    expect::success,
    record::{Missed, Recorder, Tried},
};
use crate::plugins::{
    harness::{Harness, Loaded},
    vm_backend::VmBackend,
};

/// Larger files are images and disks; what they contain is not looked at.
const READ_BYTES: u64 = 4 << 20;
/// Levels of directories that are looked into.
const LEVELS: usize = 64;

pub async fn check(bed: &Bed<'_>, harness: &Harness, recorder: &mut Recorder) {
    recorder
        .check("delete", "no file, value or program of the machines is left", async {
            let directory = bed.plugin.directory().to_owned();
            let tag = bed.machines.tag.clone();
            let searching = tokio::task::spawn_blocking(move || mentions(&directory, &tag));
            let files = match searching.await {
                Ok(Ok(files)) => files,
                Ok(Err(error)) => return Err(Missed::Failed(format!("cannot look: {error}"))),
                Err(error) => return Err(Missed::Failed(error.to_string())),
            };
            nothing("files", files)?;
            let in_state = |(key, value): &(String, Vec<u8>)| {
                contains(key.as_bytes(), &bed.machines.tag) || contains(value, &bed.machines.tag)
            };
            // What the contract lets a plugin remember of a machine that may come up later.
            let kept = |(key, _): &(String, Vec<u8>)| !key.starts_with("abandoned/");
            let values: Vec<_> = harness.state().all().into_iter().filter(kept).collect();
            nothing("values", values.into_iter().filter(in_state).map(|(key, _)| key).collect())?;
            let running = success("listing programs", bed.plugin.left_running())?;
            nothing("programs", running.into_iter().map(|(_, line)| line).collect())
        })
        .await;
}

fn nothing(what: &str, left: Vec<String>) -> Tried<()> {
    if left.is_empty() {
        return Ok(());
    }
    let more = match left.len() {
        count @ 6.. => format!(" and {} more", count - 5),
        _ => String::new(),
    };
    let first = left.into_iter().take(5).collect::<Vec<_>>().join(", ");
    Err(Missed::Failed(format!("{what} are left: {first}{more}")))
}

/// Names of files that carry the text in their name or in what they contain, within the directory.
fn mentions(directory: &Path, text: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut waiting: Vec<(PathBuf, usize)> = vec![(directory.to_owned(), 0)];
    while let Some((place, level)) = waiting.pop() {
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let file_type = entry.file_type()?;
            let named = contains(entry.file_name().as_encoded_bytes(), text);
            if named || file_type.is_file() && contains(&beginning(&path)?, text) {
                let shown = path.strip_prefix(directory).unwrap_or(&path);
                found.push(shown.display().to_string());
            } else if file_type.is_dir() && level < LEVELS {
                waiting.push((path, level + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The content of a small file; nothing of a large one, and of one that has gone since.
fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(path).and_then(|metadata| match metadata.len() {
        0..=READ_BYTES => fs::read(path),
        _ => Ok(Vec::new()),
    }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Removes what a run has left, by the plugin as far as it does that, and by force.
pub async fn remove(plugin: &Loaded, machines: &Machines) {
    for id in machines.all() {
        // An error says no more than the check that failed before.
        let _ = plugin.delete(&id).await;
    }
    for (pid, _) in plugin.left_running().unwrap_or_default() {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_names_a_machine_is_found_by_name_and_by_content() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = directory.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("images/abc", "bytes");
        write("vms/golem-check-1-a/disk", "x");
        write("index.json", r#"["golem-check-1-b"]"#);
        let found = mentions(directory.path(), "golem-check-1").unwrap();
        assert_eq!(found, ["index.json", "vms/golem-check-1-a"]);
        assert!(mentions(directory.path(), "golem-check-2").unwrap().is_empty());
    }
}
