//! The service around the backend in memory, one sentence about the product each.

mod admission;
mod crashes;
mod life;
mod random;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Phase, Vm, lifecycle,
    model::JobStatus,
    testing::{Fixture, Node},
};
use crate::plugins::vm_backend::PowerState;

/// Long enough for anything that is going to happen at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `true`; says what it waited for if that does not come.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn phase_becomes(node: &Node, name: &str, phase: Phase) -> Arc<Vm> {
    eventually(&format!("{name} becomes {phase}"), || {
        node.service.get(name).is_ok_and(|vm| vm.phase == phase)
    })
    .await;
    node.service.get(name).unwrap()
}

/// Waits until nothing is under way and nothing is left to be done.
async fn settle(node: &Node) {
    eventually("everything settles", || {
        let idle = node.service.inner().registry.idle();
        idle.len() == node.service.list().len()
            && idle.iter().all(|idle| {
                lifecycle::unfinished(idle.vm.phase, idle.vm.ssh_port.is_some()).is_none()
            })
    })
    .await;
}

/// Every VM, machine, port, reservation, row and job is accounted for. After `settle`.
async fn everything_is_accounted_for(fixture: &Fixture, node: &Node) {
    let vms = node.service.list();

    let rows: Vec<Vm> =
        node.store.vms().await.unwrap().into_iter().map(|record| record.vm).collect();
    assert_eq!(
        rows,
        vms.iter().map(|vm| (**vm).clone()).collect::<Vec<_>>(),
        "memory and store agree"
    );

    let machines = fixture.backend.machines();
    for (id, machine) in &machines {
        let vm = node.service.get(id).unwrap_or_else(|_| panic!("machine {id} belongs to no VM"));
        assert!(vm.ssh_port.is_some(), "machine {id} belongs to a VM that holds nothing");
        let agree = match machine.power {
            // A machine that reboots is one that runs.
            PowerState::Running | PowerState::Starting => vm.phase == Phase::Running,
            PowerState::Stopping | PowerState::Stopped | PowerState::Crashed => {
                vm.phase != Phase::Running
            }
        };
        assert!(agree, "machine {id} is {:?}, VM is {}", machine.power, vm.phase);
    }
    for vm in &vms {
        assert!(
            machines.contains_key(&vm.id)
                || vm.phase == Phase::Failed
                || vm.error_message.is_some(),
            "{} says nothing of its machine being gone",
            vm.id
        );
        assert_eq!(vm.ssh_port.is_none(), vm.phase == Phase::Failed, "{} holds something", vm.id);
        assert_eq!(vm.progress, None);
    }

    let held: Vec<u16> = vms.iter().filter_map(|vm| vm.ssh_port).collect();
    assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "every port once");
    for port in fixture.ports.clone() {
        assert_eq!(node.proxy.is_open(port), held.contains(&port), "port {port}");
    }

    let allocated = node.service.resources().allocated;
    let cores: u32 =
        vms.iter().filter(|vm| vm.ssh_port.is_some()).map(|vm| vm.resources.cpu_cores).sum();
    assert_eq!(allocated.cpu_cores, u64::from(cores));

    for job in node.store.jobs().await.unwrap() {
        assert_ne!(job.job.status, JobStatus::Creating, "job of {} never ends", job.vm_id);
        assert_eq!(node.service.job(&job.job.id), Some(job.job));
    }
}
