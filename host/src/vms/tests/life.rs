//! What can be asked of a VM, and what it answers.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use futures_util::future::join_all;

use super::{eventually, everything_is_accounted_for, phase_becomes, settle};
use crate::{
    plugins::{FailureKind, vm_backend::PowerState},
    vms::{
        JobStatus, Phase, SshPublicKey, VmError,
        testing::{Call, Fault, Fixture, small},
    },
};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio alice";

/// Something that says `hello` to whoever connects.
fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| std::io::Write::write_all(&mut stream, b"hello"));
        }
    });
    address
}

/// What is read from a VM's port, or nothing when the connection is reset.
async fn read_from(port: u16) -> String {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let _ = TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut stream| stream.read_to_string(&mut text));
        text
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_vm_is_made_stopped_started_and_deleted() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    fixture.backend.set_ssh(greeter());

    let mut new = small("web");
    new.ssh_key = Some(SshPublicKey::parse(KEY).unwrap());
    let ticket = node.service.create(new).await.unwrap();
    assert_eq!((ticket.vm.phase, ticket.job.status), (Phase::Creating, JobStatus::Creating));
    assert_eq!(ticket.job.vm_name, "web");
    let job = ticket.job.id;
    let vm = ticket.finished().await.unwrap();
    assert_eq!((vm.phase, vm.phase.status()), (Phase::Running, "running"));
    assert_eq!(vm.ip_address.as_deref(), Some("10.0.2.15"));
    assert_eq!(node.service.job(&job).unwrap().status, JobStatus::Ready);
    assert_eq!(node.service.get("web").unwrap(), vm);
    assert_eq!(node.service.get(&vm.id).unwrap(), vm);
    let machine = &fixture.backend.machines()[&vm.id];
    assert_eq!((machine.spec.memory_mib, machine.spec.storage_mib), (1024, 10240));
    assert_eq!(
        (machine.spec.image.as_str(), machine.spec.ssh_authorized_keys.as_slice()),
        ("24.04", &[KEY.to_owned()][..])
    );
    let port = vm.ssh_port.unwrap();
    assert_eq!(read_from(port).await, "hello");

    let stopped = node.service.stop("web").await.unwrap();
    assert_eq!(
        (stopped.phase, stopped.ssh_port, &stopped.ip_address),
        (Phase::Stopped, Some(port), &None)
    );
    assert_eq!(read_from(port).await, "", "a stopped VM's connections are reset");
    assert_eq!(
        node.service.stop("web").await.unwrap().phase,
        Phase::Stopped,
        "a repeated stop is a success"
    );

    let started = node.service.start_vm(&vm.id).await.unwrap();
    assert_eq!((started.phase, started.ssh_port), (Phase::Running, Some(port)));
    assert_eq!(node.service.start_vm("web").await.unwrap().phase, Phase::Running);
    assert_eq!(read_from(port).await, "hello");

    settle(&node).await;
    everything_is_accounted_for(&fixture, &node).await;
    node.service.delete("web").await.unwrap();
    assert!(fixture.backend.machines().is_empty());
    assert!(node.store.vms().await.unwrap().is_empty());
    assert!(node.store.jobs().await.unwrap().is_empty(), "a delete leaves no rows");
    assert_eq!(node.service.job(&job), None);
    assert!(matches!(node.service.delete("web").await, Err(VmError::NotFound { .. })));
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn two_operations_at_the_same_moment_give_one_winner_and_one_busy() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.next(Call::Stop, Fault::Hang);
    let service = node.service.clone();
    let stop = tokio::spawn(async move { service.stop("web").await });
    eventually("the stop is under way", || fixture.backend.count(Call::Stop) == 1).await;
    for result in [node.service.start_vm("web").await.map(drop), node.service.delete("web").await] {
        let error = result.unwrap_err();
        assert!(matches!(&error, VmError::Busy { operation: "a stop", .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "VM 'web' is busy: a stop is under way; try again when that has ended"
        );
    }
    assert!(stop.await.unwrap().is_err(), "it hung and was given up");
    phase_becomes(&node, "web", Phase::Stopped).await;
    node.kill().await;
}

#[tokio::test]
async fn repeated_stops_and_deletes_share_one_result() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    for result in join_all((0..8).map(|_| node.service.stop("web"))).await {
        assert_eq!(result.unwrap().phase, Phase::Stopped);
    }
    assert_eq!(fixture.backend.count(Call::Stop), 1);
    let mut deleted = 0;
    for result in join_all((0..8).map(|_| node.service.delete("web"))).await {
        match result {
            Ok(()) => deleted += 1,
            Err(error) => assert!(matches!(error, VmError::NotFound { .. }), "{error}"),
        }
    }
    assert_eq!((deleted, fixture.backend.count(Call::Delete)), (8, 1));
    node.kill().await;
}

#[tokio::test]
async fn a_delete_ends_a_create_that_is_under_way() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    for fault in [Call::Create, Call::AwaitReady] {
        fixture.backend.next(fault, Fault::HangAfter);
        let calls = fixture.backend.count(fault);
        let ticket = node.service.create(small("web")).await.unwrap();
        eventually("it hangs", || fixture.backend.count(fault) > calls).await;
        node.service.delete("web").await.unwrap();
        assert!(matches!(ticket.finished().await, Err(VmError::Cancelled { .. })));
        assert!(fixture.backend.machines().is_empty());
        assert!(node.store.vms().await.unwrap().is_empty());
        assert!(node.store.jobs().await.unwrap().is_empty());
    }
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_delete_that_fails_is_an_error_keeps_everything_and_is_repeated() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.always(Call::Delete, Fault::Fail(FailureKind::Internal));
    assert!(matches!(node.service.delete("web").await, Err(VmError::Backend { .. })));
    let kept = node.service.get("web").unwrap();
    assert_eq!((kept.phase, kept.ssh_port), (Phase::Deleting, vm.ssh_port));
    assert!(kept.error_message.as_deref().unwrap().starts_with("could not be deleted: "));
    assert_eq!(node.service.resources().allocated.cpu_cores, 1);
    let calls = fixture.backend.count(Call::Delete);
    eventually("it is tried again", || fixture.backend.count(Call::Delete) > calls + 2).await;
    fixture.backend.heal();
    eventually("it is gone", || node.service.list().is_empty()).await;
    assert_eq!(node.service.resources().allocated.cpu_cores, 0);
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_stop_that_fails_is_an_error_and_is_repeated_until_the_machine_is_off() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    for fault in [Fault::Fail(FailureKind::Unavailable), Fault::Hang] {
        fixture.backend.next(Call::Stop, fault);
        assert!(
            matches!(node.service.stop("web").await, Err(VmError::Backend { .. })),
            "{fault:?}"
        );
        let vm = phase_becomes(&node, "web", Phase::Stopped).await;
        assert_eq!(vm.error_message, None, "the trouble is over");
        node.service.start_vm("web").await.unwrap();
    }
    node.kill().await;
}

#[tokio::test]
async fn a_vm_that_does_not_start_is_switched_off_and_says_why() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    node.service.stop("web").await.unwrap();
    let kind = FailureKind::Internal;
    for (call, fault) in [
        (Call::Start, Fault::Fail(kind)),
        (Call::Start, Fault::FailAfter(kind)),
        (Call::AwaitReady, Fault::Fail(kind)),
        (Call::AwaitReady, Fault::Hang),
        (Call::Limits, Fault::Fail(kind)),
    ] {
        fixture.backend.next(call, fault);
        assert!(
            matches!(node.service.start_vm("web").await, Err(VmError::Backend { .. })),
            "{call:?} {fault:?}"
        );
        let vm = phase_becomes(&node, "web", Phase::Stopped).await;
        assert!(
            vm.error_message.as_deref().unwrap().starts_with("the VM could not be started: "),
            "{vm:?}"
        );
        assert!(vm.ssh_port.is_some(), "it keeps what it has");
        settle(&node).await;
        everything_is_accounted_for(&fixture, &node).await;
    }
    let vm = node.service.start_vm("web").await.unwrap();
    assert_eq!((vm.phase, &vm.error_message), (Phase::Running, &None));
    node.kill().await;
}

#[tokio::test]
async fn a_machine_that_was_killed_is_stopped_says_so_and_can_be_started() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.set_power(&vm.id, PowerState::Crashed);
    let vm = phase_becomes(&node, "web", Phase::Stopped).await;
    assert!(vm.error_message.as_deref().unwrap().contains("crashed or was killed"));
    assert_eq!(node.service.resources().allocated.cpu_cores, 1, "it keeps what it has");
    let vm = node.service.start_vm("web").await.unwrap();
    assert_eq!((vm.phase, &vm.error_message), (Phase::Running, &None));

    fixture.backend.set_power(&vm.id, PowerState::Stopped);
    let vm = phase_becomes(&node, "web", Phase::Stopped).await;
    assert!(vm.error_message.as_deref().unwrap().contains("shut down"));
    fixture.backend.set_power(&vm.id, PowerState::Running);
    let vm = phase_becomes(&node, "web", Phase::Running).await;
    assert_eq!(vm.error_message, None, "it came back");
    node.kill().await;
}

#[tokio::test]
async fn a_start_looks_whether_a_vm_that_should_run_does() {
    let mut fixture = Fixture::default();
    fixture.config.reconcile_every = Duration::from_secs(600);
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.set_power(&vm.id, PowerState::Crashed);
    assert_eq!(node.service.start_vm("web").await.unwrap().phase, Phase::Running);
    assert_eq!(fixture.backend.machines()[&vm.id].power, PowerState::Running);
    node.kill().await;
}

#[tokio::test]
async fn a_hiccup_of_the_backend_forgets_no_vm() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    let unavailable = FailureKind::Unavailable;
    for fault in [Fault::Fail(unavailable), Fault::Hang, Fault::Lie] {
        fixture.backend.always(Call::InspectAll, fault);
        let asked = fixture.backend.count(Call::InspectAll);
        eventually("it was asked", || fixture.backend.count(Call::InspectAll) > asked + 1).await;
        assert_eq!(*node.service.get("web").unwrap(), *vm, "{fault:?}");
        fixture.backend.heal();
    }
    node.kill().await;
}

#[tokio::test]
async fn a_vm_whose_machine_is_gone_says_so_and_can_be_deleted() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.remove(&vm.id);
    let vm = phase_becomes(&node, "web", Phase::Stopped).await;
    assert!(vm.error_message.as_deref().unwrap().contains("the machine is gone"));
    assert!(node.service.start_vm("web").await.is_err());
    phase_becomes(&node, "web", Phase::Stopped).await;
    node.service.delete("web").await.unwrap();
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn the_port_follows_a_machine_whose_address_changes() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    let port = vm.ssh_port.unwrap();
    assert_eq!(read_from(port).await, "");
    fixture.backend.set_ssh(greeter());
    let end = tokio::time::Instant::now() + super::PATIENCE;
    while read_from(port).await != "hello" {
        assert!(tokio::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.kill().await;
}

#[tokio::test]
async fn a_key_is_added_to_a_running_vm_only() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    let key = SshPublicKey::parse(KEY).unwrap();
    node.service.add_ssh_key("web", key.clone()).await.unwrap();
    assert_eq!(fixture.backend.machines()[&vm.id].keys, [KEY]);
    fixture.backend.next(Call::AddKey, Fault::Fail(FailureKind::Internal));
    assert!(matches!(
        node.service.add_ssh_key("web", key.clone()).await,
        Err(VmError::Backend { .. })
    ));
    assert_eq!(node.service.get("web").unwrap().phase, Phase::Running);
    node.service.stop("web").await.unwrap();
    assert!(matches!(node.service.add_ssh_key("web", key).await, Err(VmError::WrongState { .. })));
    node.kill().await;
}

#[tokio::test]
async fn machines_boot_no_more_than_allowed_at_a_time_and_the_others_say_that_they_wait() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    fixture.backend.set_parallel_boots(2);
    fixture.backend.set_boot_time(Duration::from_millis(150));
    let names: Vec<String> = (0..6).map(|number| format!("vm-{number}")).collect();
    let mut tickets = Vec::new();
    for name in &names {
        tickets.push(node.service.create(small(name)).await.unwrap());
    }
    eventually("some wait", || {
        let waits = |stage: &str| stage == "waiting for other machines to boot";
        node.service
            .list()
            .iter()
            .any(|vm| vm.progress.as_ref().is_some_and(|progress| waits(&progress.stage)))
    })
    .await;
    for ticket in tickets {
        let vm = ticket.finished().await.unwrap();
        assert_eq!((vm.phase, &vm.progress), (Phase::Running, &None));
    }
    assert_eq!(fixture.backend.most_booting(), 2);
    node.kill().await;
}

#[tokio::test]
async fn the_list_is_oldest_first() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    for name in ["zzz", "mmm", "aaa"] {
        node.service.create(small(name)).await.unwrap().finished().await.unwrap();
    }
    let names: Vec<String> = node.service.list().iter().map(|vm| vm.name.clone()).collect();
    assert_eq!(names, ["zzz", "mmm", "aaa"]);
    node.kill().await;
}

#[tokio::test]
async fn a_machine_that_was_only_said_to_be_gone_is_no_longer_said_to_be() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.next(Call::Stop, Fault::FailAfter(FailureKind::NotFound));
    let vm = node.service.stop("web").await.unwrap();
    assert!(vm.error_message.as_deref().unwrap().contains("the machine is gone"));
    eventually("the message goes", || node.service.get("web").unwrap().error_message.is_none())
        .await;
    node.kill().await;
}
