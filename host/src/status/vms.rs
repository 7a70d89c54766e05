//! The section of the VMs, and what passes through their ports.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ProxySection;
use crate::{
    proxy::{Counters, Proxy},
    vms::{Phase, Vm, VmService},
};

/// The VMs there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmsSection {
    /// How many there may be at the same time.
    pub max: u32,
    /// Oldest first.
    pub list: Vec<VmLine>,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmLine {
    pub id: String,
    pub name: String,
    /// As the provider calls it: `creating`, `running`, `stopping`, `stopped`, `starting`, `deleting` or `failed`.
    pub state: String,
    pub backend: String,
    pub image: String,
    /// The address that it belongs to, if any.
    #[serde(default)]
    pub owner: Option<String>,
    pub cpu_cores: u32,
    pub memory_gb: u32,
    pub storage_gb: u32,
    pub ssh_port: Option<u16>,
    pub created_at: Timestamp,
    /// What went wrong with it.
    pub error: Option<String>,
    /// How far what is under way has come, for people.
    pub progress: Option<String>,
    /// Through its port; absent where that is not open.
    pub traffic: Option<Traffic>,
}

/// What has passed since a port was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub connections_open: u64,
    pub connections_total: u64,
    pub connections_refused: u64,
    pub bytes_to_vms: u64,
    pub bytes_from_vms: u64,
}

impl From<Counters> for Traffic {
    fn from(counters: Counters) -> Traffic {
        Traffic {
            connections_open: counters.connections_open,
            connections_total: counters.connections_total,
            connections_refused: counters.connections_refused,
            bytes_to_vms: counters.bytes_to_vm,
            bytes_from_vms: counters.bytes_from_vm,
        }
    }
}

impl VmLine {
    pub(super) fn of(vm: &Vm, traffic: Option<Traffic>) -> VmLine {
        let progress = vm.progress.as_ref().map(|progress| match progress.percent {
            Some(percent) => format!("{}, {percent} %", progress.stage),
            None => progress.stage.clone(),
        });
        VmLine {
            id: vm.id.clone(),
            name: vm.name.clone(),
            state: vm.phase.name().to_owned(),
            backend: vm.backend.clone(),
            image: vm.image.clone(),
            owner: vm.ownership.owner().map(|owner| owner.to_checksum(None)),
            cpu_cores: vm.resources.cpu_cores,
            memory_gb: vm.resources.memory_gb,
            storage_gb: vm.resources.storage_gb,
            ssh_port: vm.ssh_port,
            created_at: vm.created_at,
            error: vm.error_message.clone(),
            progress,
            traffic,
        }
    }

    pub(super) fn is(&self, phase: Phase) -> bool {
        self.state == phase.name()
    }
}

/// The VMs, and all their ports together.
pub(super) fn sections(vms: &VmService, proxy: &Proxy, max: u32) -> (VmsSection, ProxySection) {
    let list: Vec<VmLine> = vms
        .list()
        .iter()
        .map(|vm| {
            let counters = vm.ssh_port.and_then(|port| proxy.counters(port));
            VmLine::of(vm, counters.map(Traffic::from))
        })
        .collect();
    let sum = list.iter().filter_map(|vm| vm.traffic).fold(
        ProxySection::default(),
        |ProxySection { ports_open, traffic: sum }, next| ProxySection {
            ports_open: ports_open + 1,
            traffic: Traffic {
                connections_open: sum.connections_open + next.connections_open,
                connections_total: sum.connections_total + next.connections_total,
                connections_refused: sum.connections_refused + next.connections_refused,
                bytes_to_vms: sum.bytes_to_vms.saturating_add(next.bytes_to_vms),
                bytes_from_vms: sum.bytes_from_vms.saturating_add(next.bytes_from_vms),
            },
        },
    );
    (VmsSection { max, list }, sum)
}
