//! VMs on paper: the plugin `tests/plugins/paper`, from outside. What it does with its settings, and what is in its files, is
//! written there.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

/// The plugin's name.
pub const NAME: &str = "paper";
/// The only image that it offers.
pub const IMAGE: &str = "paper";

/// How machines on paper behave.
#[derive(Debug, Clone)]
pub struct Paper {
    /// Where their SSH server is, usually a [`StandIn`](crate::StandIn).
    pub ssh: SocketAddr,
    /// From a start until they are ready.
    pub boot: Duration,
    /// From being asked to stop until they have.
    pub shutdown: Duration,
    /// Between two steps of a call, so that a provider can be ended between any two.
    pub step: Duration,
    pub parallel_boots: u32,
    /// The promise that they do not keep, as the plugin calls it.
    pub fault: Option<&'static str>,
}

impl Paper {
    /// Machines that do everything at once.
    pub fn with_ssh_at(ssh: SocketAddr) -> Paper {
        Paper {
            ssh,
            boot: Duration::ZERO,
            shutdown: Duration::ZERO,
            step: Duration::ZERO,
            parallel_boots: 64,
            fault: None,
        }
    }

    /// The text of the plugin's configuration file.
    pub(crate) fn configuration(&self) -> String {
        let fault = self.fault.map(|fault| format!("fault = \"{fault}\"\n")).unwrap_or_default();
        format!(
            "[settings]\nssh = \"{}\"\nboot-ms = {}\nshutdown-ms = {}\nstep-ms = {}\nparallel-boots = {}\n{fault}",
            self.ssh,
            self.boot.as_millis(),
            self.shutdown.as_millis(),
            self.step.as_millis(),
            self.parallel_boots
        )
    }
}

/// The machines of one provider, as their files show them.
#[derive(Debug, Clone)]
pub struct Machines {
    directory: PathBuf,
}

impl Machines {
    pub(crate) fn of(data_dir: &Path) -> Machines {
        Machines { directory: data_dir.join("vms").join(NAME) }
    }

    /// The ids of all there are, running or not.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>> {
        self.names_in("machines")
    }

    /// The ids of machines whose deletion has begun and not ended.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn half_deleted(&self) -> Result<Vec<String>> {
        self.names_in("trash")
    }

    pub fn runs(&self, id: &str) -> bool {
        self.power(id).is_file()
    }

    /// The keys that may log in.
    ///
    /// # Errors
    /// When there is no such machine, or it was never started.
    pub fn authorized_keys(&self, id: &str) -> Result<String> {
        let file = self.directory.join("machines").join(id).join("authorized_keys");
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Ends a machine as if its hypervisor had been killed.
    ///
    /// # Errors
    /// When it does not run.
    pub fn crash(&self, id: &str) -> Result<()> {
        fs::remove_file(self.power(id)).with_context(|| format!("crashing the machine {id}"))
    }

    fn power(&self, id: &str) -> PathBuf {
        self.directory.join("machines").join(id).join("power")
    }

    fn names_in(&self, name: &str) -> Result<Vec<String>> {
        let directory = self.directory.join(name);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", directory.display()));
            }
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}
