//! What a create is refused for, and that a failed one gives everything back.

use std::{net::TcpListener, time::Duration};

use futures_util::future::join_all;

use super::{eventually, everything_is_accounted_for, phase_becomes, settle};
use crate::{
    plugins::FailureKind,
    vms::{
        Backends, JobStatus, Phase, Resources, VmError,
        testing::{Call, Fault, Fixture, free_ports, small},
    },
};

const GB: u64 = 1 << 30;

#[tokio::test]
async fn fifty_creates_at_once_for_the_room_of_three_make_three() {
    let mut fixture = Fixture { ports: free_ports(60), ..Fixture::default() };
    // 85 % of 4 GB are 3 VMs of 1 GB.
    fixture.machine.memory_total_bytes = 4 * GB;
    fixture.machine.memory_available_bytes = 4 * GB;
    let node = fixture.start().await;
    let results =
        join_all((0..50).map(|number| node.service.create(small(&format!("vm-{number}"))))).await;
    let (made, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (3, 47));
    for refusal in refused {
        assert!(matches!(refusal, Err(VmError::Insufficient { .. })));
    }
    for ticket in made {
        ticket.unwrap().finished().await.unwrap();
    }
    assert_eq!(fixture.backend.machines().len(), 3);
    assert_eq!(node.service.resources().available.memory_gb, 0);
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn two_creates_with_one_name_at_once_make_one_vm() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let results = join_all((0..10).map(|_| node.service.create(small("web")))).await;
    let mut made = 0;
    for result in results {
        match result {
            Ok(ticket) => {
                ticket.finished().await.unwrap();
                made += 1;
            }
            Err(error) => assert!(matches!(error, VmError::NameTaken { .. }), "{error}"),
        }
    }
    assert_eq!((made, fixture.backend.machines().len(), node.service.list().len()), (1, 1, 1));
    node.kill().await;
}

#[tokio::test]
async fn everything_that_can_be_refused_is_refused_before_anything_is_made() {
    let mut fixture = Fixture { ports: free_ports(2), ..Fixture::default() };
    fixture.config.max_vms = 3;
    let node = fixture.start().await;

    let mut unknown = small("web");
    unknown.image = Some("--mount=/etc:/mnt".to_owned());
    let error = node.service.create(unknown).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "unknown image '--mount=/etc:/mnt'; this provider has 22.04, 24.04"
    );

    let mut huge = small("web");
    huge.resources = Resources::new(1, 1, 5000).unwrap();
    let error = node.service.create(huge).await.err().unwrap();
    assert!(
        error.to_string().contains("not enough storage: 5000 GB of storage asked for, 3600 left"),
        "{error}"
    );

    fixture.backend.next(Call::Images, Fault::Fail(FailureKind::Unavailable));
    assert!(matches!(node.service.create(small("web")).await, Err(VmError::Backend { .. })));
    fixture.backend.next(Call::Images, Fault::Hang);
    assert!(matches!(node.service.create(small("web")).await, Err(VmError::Backend { .. })));

    assert!(node.store.vms().await.unwrap().is_empty());
    assert!(node.store.jobs().await.unwrap().is_empty());
    everything_is_accounted_for(&fixture, &node).await;

    for name in ["one", "two"] {
        node.service.create(small(name)).await.unwrap().finished().await.unwrap();
    }
    let error = node.service.create(small("three")).await.err().unwrap();
    let (from, last) = (fixture.ports.start, fixture.ports.end - 1);
    assert!(
        error.to_string().starts_with(&format!("no SSH port is free among {from}-{last}")),
        "{error}"
    );
    node.kill().await;

    fixture.config.max_vms = 2;
    let node = fixture.start().await;
    assert!(matches!(
        node.service.create(small("three")).await,
        Err(VmError::TooManyVms { max: 2 })
    ));
    assert_eq!(fixture.backend.count(Call::Create), 2);
    node.kill().await;
}

#[tokio::test]
async fn without_a_backend_creates_are_refused_with_the_reason_and_vms_stay() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    node.kill().await;
    let node =
        fixture.start_with(Backends::none("qemu is not installed".to_owned(), Vec::new())).await;
    let error = node.service.create(small("two")).await.err().unwrap();
    assert_eq!(error.to_string(), "no VM backend: qemu is not installed");
    assert!(matches!(node.service.stop("web").await, Err(VmError::NoBackend { .. })));
    assert!(matches!(node.service.delete("web").await, Err(VmError::NoBackend { .. })));
    let vm = node.service.get("web").unwrap();
    assert_eq!(vm.phase, Phase::Running);
    assert!(node.proxy.is_open(vm.ssh_port.unwrap()));
    node.kill().await;
}

#[tokio::test]
async fn a_failed_create_gives_everything_back_wherever_it_fails() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let internal = FailureKind::Internal;
    for (call, fault) in [
        (Call::Limits, Fault::Fail(internal)),
        (Call::Create, Fault::Fail(internal)),
        (Call::Create, Fault::FailAfter(internal)),
        (Call::Create, Fault::Hang),
        (Call::Create, Fault::HangAfter),
        (Call::Create, Fault::Lie),
        (Call::AwaitReady, Fault::Fail(internal)),
        (Call::AwaitReady, Fault::Hang),
    ] {
        fixture.backend.next(call, fault);
        let ticket = node.service.create(small("web")).await.unwrap();
        let job = ticket.job.id;
        let error = ticket.finished().await.unwrap_err();
        assert!(matches!(error, VmError::Backend { .. }), "{call:?} {fault:?}: {error}");
        let vm = node.service.get("web").unwrap();
        assert_eq!(
            (vm.phase, vm.phase.status(), vm.ssh_port),
            (Phase::Failed, "error", None),
            "{call:?} {fault:?}"
        );
        let job = node.service.job(&job).unwrap();
        assert_eq!((job.status, &job.error), (JobStatus::Failed, &vm.error_message));
        assert!(fixture.backend.machines().is_empty(), "{call:?} {fault:?}");
        assert_eq!(node.service.resources().allocated.cpu_cores, 0);
        everything_is_accounted_for(&fixture, &node).await;
    }
    assert!(matches!(node.service.start_vm("web").await, Err(VmError::WrongState { .. })));
    assert!(matches!(node.service.stop("web").await, Err(VmError::WrongState { .. })));
    // The name is free, and so is the failed VM's record once it is deleted.
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    node.service.delete("web").await.unwrap();
    assert!(node.service.list().is_empty());
    node.kill().await;
}

#[tokio::test]
async fn a_failed_create_holds_what_it_has_until_the_backend_confirms_that_nothing_is_left() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    fixture.backend.next(Call::AwaitReady, Fault::Fail(FailureKind::Internal));
    fixture.backend.always(Call::Delete, Fault::Fail(FailureKind::Unavailable));
    let ticket = node.service.create(small("web")).await.unwrap();
    let job = ticket.job.id;
    ticket.finished().await.unwrap_err();
    assert_eq!(
        node.service.job(&job).unwrap().status,
        JobStatus::Failed,
        "its requestor need not wait"
    );
    let vm = node.service.get("web").unwrap();
    assert_eq!((vm.phase, node.service.resources().allocated.cpu_cores), (Phase::Failed, 1));
    assert!(matches!(node.service.create(small("web")).await, Err(VmError::NameTaken { .. })));
    fixture.backend.heal();
    settle(&node).await;
    assert_eq!(node.service.get("web").unwrap().ssh_port, None);
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_skipped() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let _other = TcpListener::bind(("127.0.0.1", fixture.ports.start)).unwrap();
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    assert_eq!(vm.ssh_port, Some(fixture.ports.start + 1));
    node.kill().await;
}

#[tokio::test]
async fn two_hundred_create_delete_cycles_leak_no_port() {
    let fixture = Fixture { ports: free_ports(1), ..Fixture::default() };
    let node = fixture.start().await;
    for cycle in 0..200 {
        if cycle % 10 == 0 {
            fixture.backend.next(Call::Create, Fault::FailAfter(FailureKind::Internal));
        }
        let result = node.service.create(small("web")).await.unwrap().finished().await;
        assert_eq!(result.is_err(), cycle % 10 == 0);
        node.service.delete("web").await.unwrap();
    }
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_nothing() {
    let fixture = Fixture::default();
    fixture.backend.set_boot_time(Duration::from_millis(100));
    let node = fixture.start().await;
    drop(node.service.create(small("web")).await.unwrap());
    phase_becomes(&node, "web", Phase::Running).await;
    let stop = node.service.stop("web");
    assert!(
        tokio::time::timeout(Duration::ZERO, stop).await.is_err()
            || fixture.backend.count(Call::Stop) > 0
    );
    phase_becomes(&node, "web", Phase::Stopped).await;
    node.kill().await;
}

#[tokio::test]
async fn a_name_that_looks_like_another_vms_id_never_means_two_vms() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    assert!(matches!(node.service.create(small(&vm.id)).await, Err(VmError::NameTaken { .. })));
    node.kill().await;
}

#[tokio::test]
async fn jobs_are_forgotten_a_while_after_their_end() {
    let mut fixture = Fixture::default();
    let node = fixture.start().await;
    let ticket = node.service.create(small("web")).await.unwrap();
    let job = ticket.job.id;
    ticket.finished().await.unwrap();
    node.kill().await;
    let node = fixture.start().await;
    assert_eq!(node.service.job(&job).unwrap().status, JobStatus::Ready, "kept over a restart");
    node.kill().await;
    fixture.config.job_retention = Duration::ZERO;
    let node = fixture.start().await;
    eventually("the job is forgotten", || node.service.job(&job).is_none()).await;
    assert!(node.store.jobs().await.unwrap().is_empty());
    assert_eq!(node.service.list().len(), 1);
    node.kill().await;
}
