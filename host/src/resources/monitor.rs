//! Measures the machine: cores, memory, and the file system that VMs' disks lie on.
//!
//! Everything here blocks, so it runs off the async runtime; readers get the latest measurement from memory. A container's
//! limits count where they are below the machine's.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use sysinfo::System;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    pub cpu_cores: u32,
    pub memory_total_bytes: u64,
    /// What programs could still get, caches counted as free.
    pub memory_available_bytes: u64,
    /// Of the file system that the VM data directory lies on.
    pub storage_total_bytes: u64,
    /// What an unprivileged program could still write there.
    pub storage_free_bytes: u64,
    /// What the files under the VM data directory take up on disk.
    pub vm_bytes_written: u64,
}

/// The machine, or the VM data directory, cannot be measured.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot measure this machine and its VM data directory {}: {source}", path.display())]
pub struct MonitorError {
    path: PathBuf,
    source: Arc<io::Error>,
}

/// Measures this machine. Clones share the latest measurement.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
}

struct Shared {
    latest: RwLock<Measurement>,
    source: Source,
}

enum Source {
    Machine {
        vm_data_dir: PathBuf,
        /// Kept between measurements; also makes them one at a time.
        system: Box<Mutex<System>>,
    },
    #[cfg(test)]
    Fixed,
}

impl Monitor {
    /// Measures for the first time. The directory is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made or asked about.
    pub async fn start(vm_data_dir: PathBuf) -> Result<Monitor, MonitorError> {
        let at = vm_data_dir.clone();
        off_runtime(at, move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&vm_data_dir)?;
            let mut system = System::new().map_err(io::Error::other)?;
            let latest = RwLock::new(measure(&mut system, &vm_data_dir)?);
            let source = Source::Machine { vm_data_dir, system: Box::new(Mutex::new(system)) };
            Ok(Monitor { shared: Arc::new(Shared { latest, source }) })
        })
        .await
    }

    /// Says what is measured, and what was.
    #[cfg(test)]
    pub fn fixed(measurement: Measurement) -> Monitor {
        Monitor {
            shared: Arc::new(Shared { latest: RwLock::new(measurement), source: Source::Fixed }),
        }
    }

    /// The last measurement. Never waits.
    pub fn latest(&self) -> Measurement {
        *self.shared.latest.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures now.
    ///
    /// # Errors
    /// The VM data directory cannot be asked about; the latest measurement stays what it was.
    pub async fn refresh(&self) -> Result<Measurement, MonitorError> {
        let at = match &self.shared.source {
            Source::Machine { vm_data_dir, .. } => vm_data_dir.clone(),
            #[cfg(test)]
            Source::Fixed => return Ok(self.latest()),
        };
        let shared = Arc::clone(&self.shared);
        off_runtime(at, move || match &shared.source {
            Source::Machine { vm_data_dir, system } => {
                let mut system = system.lock().unwrap_or_else(PoisonError::into_inner);
                let measured = measure(&mut system, vm_data_dir)?;
                *shared.latest.write().unwrap_or_else(PoisonError::into_inner) = measured;
                Ok(measured)
            }
            #[cfg(test)]
            Source::Fixed => Ok(*shared.latest.read().unwrap_or_else(PoisonError::into_inner)),
        })
        .await
    }
}

async fn off_runtime<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MonitorError> {
    let result = tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    result.map_err(|source| MonitorError { path, source: Arc::new(source) })
}

fn measure(system: &mut System, vm_data_dir: &Path) -> io::Result<Measurement> {
    system.refresh_memory();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let (mut memory_total_bytes, mut memory_available_bytes) =
        (system.total_memory(), system.available_memory());
    if let Some(limits) = system.cgroup_limits().filter(|limits| limits.total_memory > 0) {
        memory_total_bytes = memory_total_bytes.min(limits.total_memory);
        memory_available_bytes = memory_available_bytes.min(limits.free_memory);
    }
    let usable_cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    let cpu_cores = system.cpus().len().min(usable_cores).max(1);

    // Asked of the directory itself and not looked up among the mounts, where overlays and bind mounts are missing.
    let disk = rustix::fs::statvfs(vm_data_dir)?;
    Ok(Measurement {
        cpu_cores: u32::try_from(cpu_cores).unwrap_or(u32::MAX),
        memory_total_bytes,
        memory_available_bytes,
        storage_total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        storage_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        vm_bytes_written: bytes_on_disk(vm_data_dir)?,
    })
}

/// What the files under `root` take up, sparse ones with what they really hold. Files that vanish meanwhile are no error.
fn bytes_on_disk(root: &Path) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 512;
    let mut bytes = 0_u64;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Gone since it was listed, or something that a plugin has made: no directory of one keeps the provider from
            // starting, or fills its log.
            Err(_) if directory != root => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            // Of the entry itself: a symbolic link is not followed.
            let Ok(metadata) =
                entry.as_ref().map_err(|_| ()).and_then(|entry| entry.metadata().map_err(|_| ()))
            else {
                continue;
            };
            if metadata.is_dir() {
                directories.extend(entry.map(|entry| entry.path()));
            } else {
                bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_has_a_core_some_memory_and_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(directory.path().join("vms")).await.unwrap();
        let measured = monitor.refresh().await.unwrap();
        assert!(measured.cpu_cores >= 1);
        assert!(measured.memory_available_bytes > 0);
        assert!(measured.memory_available_bytes <= measured.memory_total_bytes);
        assert!(measured.storage_free_bytes <= measured.storage_total_bytes);
        assert_eq!(measured, monitor.latest());
    }

    #[tokio::test]
    async fn a_sparse_disk_counts_with_what_is_written_to_it() {
        use std::io::Write;

        let directory = tempfile::tempdir().unwrap();
        let monitor = Monitor::start(directory.path().to_owned()).await.unwrap();
        let before = monitor.latest().vm_bytes_written;
        let machine = directory.path().join("golem-a");
        fs::create_dir(&machine).unwrap();
        let mut disk = fs::File::create(machine.join("disk")).unwrap();
        disk.set_len(100 << 20).unwrap();
        disk.write_all(&vec![1; 4 << 20]).unwrap();
        disk.sync_all().unwrap();
        let written = monitor.refresh().await.unwrap().vm_bytes_written - before;
        assert!((4 << 20..8 << 20).contains(&written), "{written}");
    }

    #[tokio::test]
    async fn a_vm_directory_that_is_gone_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vms");
        let monitor = Monitor::start(path.clone()).await.unwrap();
        fs::remove_dir(&path).unwrap();
        let error = monitor.refresh().await.unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}
