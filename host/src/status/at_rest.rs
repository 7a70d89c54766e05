//! What can be said of a provider that does not run, or does not answer.

use std::{io, net::TcpListener, path::Path};

use super::{ProviderSection, Sections, StartSection, Status, VmsSection, plugins, vms::VmLine};
use crate::{plugins::installation::Listed, settings::Settings, store};

/// Looks for itself: at the store, the data directory and the address. `listed` are the plugins there are. Blocks shortly.
pub fn at_rest(settings: &Settings, listed: Vec<Listed>) -> Status {
    let silent_pid = store::holder(&settings.data_dir);
    let (list, store_problem) = match store::vms_at_rest(&settings.data_dir) {
        Ok(records) => {
            let records = records.unwrap_or_default();
            (records.iter().map(|record| VmLine::of(&record.vm, None)).collect(), None)
        }
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let start = StartSection {
        silent_pid,
        data_dir_problem: data_dir_problem(&settings.data_dir).or(store_problem),
        // Whoever has the data directory has the address too.
        address_problem: silent_pid.is_none().then(|| address_problem(settings)).flatten(),
    };
    Status::of(Sections {
        provider: ProviderSection::new(settings, None),
        resources: None,
        vms: VmsSection { max: settings.vms.max_vms, list },
        plugins: plugins::section_at_rest(listed),
        network: None,
        prices: None,
        payments: None,
        proxy: None,
        start: Some(start),
    })
}

fn data_dir_problem(data_dir: &Path) -> Option<String> {
    let metadata = match std::fs::metadata(data_dir) {
        Ok(metadata) => metadata,
        // The first start makes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("{} cannot be read: {error}", data_dir.display())),
    };
    if !metadata.is_dir() {
        return Some(format!("{} is no directory", data_dir.display()));
    }
    let access =
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let refused = rustix::fs::access(data_dir, access).err()?;
    let reason = io::Error::from(refused);
    Some(format!("{} cannot be used by this user: {reason}", data_dir.display()))
}

/// Binds the address for a moment.
fn address_problem(settings: &Settings) -> Option<String> {
    let address = settings.api.bind;
    let error = TcpListener::bind(address).err()?;
    Some(format!("{address}: {error}"))
}
