//! Notices what is dropped into the plugin directory, changed there, or taken away.
//!
//! Looks at names, sizes and times every [`EVERY`], which works on every file system and costs next to nothing. A file counts
//! once it has not changed for one round, so that one that is still being copied is not loaded half.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::desk::PluginDesk;

const EVERY: Duration = Duration::from_secs(1);

/// Files by name, each with what changes when it does.
type Seen = BTreeMap<String, [i64; 5]>;

/// Reloads what has changed, until `stop`.
pub async fn watch(desk: PluginDesk, stop: CancellationToken) {
    let directory = desk.catalog().plugin_dir().to_owned();
    let mut settled = look(&directory).await;
    let mut last = settled.clone();
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let now = look(&directory).await;
        let still = now == last;
        last = now;
        if !still || last == settled {
            continue;
        }
        let changed = changed(&settled, &last);
        settled = last.clone();
        for name in changed {
            if let Err(error) = desk.follow(&name).await {
                tracing::error!(
                    plugin.name = name,
                    "a change in the plugin directory is not taken over, what was loaded goes on: {error}"
                );
            }
        }
    }
}

/// The plugins of which a file is new, different or gone.
fn changed(before: &Seen, after: &Seen) -> BTreeSet<String> {
    before
        .keys()
        .chain(after.keys())
        .filter(|file| before.get(*file) != after.get(*file))
        .filter_map(|file| Some(Path::new(file).file_stem()?.to_str()?.to_owned()))
        .collect()
}

/// Nothing where there is no directory.
async fn look(directory: &Path) -> Seen {
    let directory = directory.to_owned();
    let look = move || {
        let mut seen = Seen::new();
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_ours = Path::new(&name)
                .extension()
                .is_some_and(|extension| extension == "wasm" || extension == "toml");
            if is_ours && let Ok(metadata) = entry.metadata() {
                let stamp = [
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.ctime(),
                    metadata.ctime_nsec(),
                    metadata.size() as i64,
                ];
                seen.insert(name, stamp);
            }
        }
        seen
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_has_changed_when_either_of_its_files_has() {
        let seen = |files: &[(&str, i64)]| -> Seen {
            files.iter().map(|(name, time)| ((*name).to_owned(), [*time, 0, 0, 0, 0])).collect()
        };
        let before = seen(&[("a.wasm", 1), ("b.toml", 1), ("c.wasm", 1), ("d.wasm", 1)]);
        let after = seen(&[("a.wasm", 2), ("a.toml", 1), ("b.toml", 2), ("d.wasm", 1)]);
        let names = changed(&before, &after);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
