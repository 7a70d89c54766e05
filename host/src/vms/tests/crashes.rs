//! What is true after the provider died, and after it was stopped.

use std::{net::TcpListener, time::Duration};

use super::{eventually, everything_is_accounted_for, phase_becomes, settle};
use crate::{
    plugins::{FailureKind, vm_backend::PowerState},
    vms::{
        JobStatus, Phase, VmError,
        testing::{Call, Fault, Fixture, Node, small},
    },
};

/// Asks for something in a task, and kills the provider when the backend hangs in `call`.
async fn killed_in(fixture: &Fixture, node: Node, call: Call, fault: Fault, request: Request) {
    fixture.backend.next(call, fault);
    let calls = fixture.backend.count(call);
    let service = node.service.clone();
    let task = tokio::spawn(async move {
        match request {
            Request::Create => service.create(small("web")).await?.finished().await.map(drop),
            Request::Start => service.start_vm("web").await.map(drop),
            Request::Stop => service.stop("web").await.map(drop),
            Request::Delete => service.delete("web").await,
        }
    });
    eventually("it hangs", || fixture.backend.count(call) > calls).await;
    node.kill().await;
    assert!(matches!(task.await.unwrap(), Err(VmError::ShuttingDown)), "nothing was promised");
    fixture.backend.heal();
}

#[derive(Clone, Copy)]
enum Request {
    Create,
    Start,
    Stop,
    Delete,
}

#[tokio::test]
async fn a_create_that_was_cut_off_before_there_was_a_machine_has_failed_after_the_restart() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    killed_in(&fixture, node, Call::Create, Fault::Hang, Request::Create).await;
    let node = fixture.start().await;
    settle(&node).await;
    let vm = node.service.get("web").unwrap();
    assert_eq!((vm.phase, vm.ssh_port), (Phase::Failed, None));
    assert!(vm.error_message.as_deref().unwrap().starts_with("the provider was restarted"));
    let job = node.store.jobs().await.unwrap().remove(0).job;
    assert_eq!((job.status, job.error), (JobStatus::Failed, vm.error_message.clone()));
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_create_that_was_cut_off_later_goes_on_after_the_restart() {
    for (call, fault) in [
        (Call::Create, Fault::HangAfter),
        (Call::AwaitReady, Fault::Hang),
        (Call::AwaitReady, Fault::HangAfter),
    ] {
        let fixture = Fixture::default();
        let node = fixture.start().await;
        killed_in(&fixture, node, call, fault, Request::Create).await;
        let node = fixture.start().await;
        let port = node.service.get("web").unwrap().ssh_port.unwrap();
        assert!(node.proxy.is_open(port), "before the first request");
        settle(&node).await;
        let vm = node.service.get("web").unwrap();
        assert_eq!((vm.phase, vm.ssh_port), (Phase::Running, Some(port)));
        assert_eq!(node.store.jobs().await.unwrap()[0].job.status, JobStatus::Ready);
        assert_eq!(fixture.backend.machines().len(), 1);
        everything_is_accounted_for(&fixture, &node).await;
        node.kill().await;
    }
}

#[tokio::test]
async fn what_was_under_way_when_the_provider_died_is_finished_by_the_next_start() {
    for (call, fault, request, end) in [
        (Call::Stop, Fault::Hang, Request::Stop, Some(Phase::Stopped)),
        (Call::Stop, Fault::HangAfter, Request::Stop, Some(Phase::Stopped)),
        (Call::Delete, Fault::Hang, Request::Delete, None),
        (Call::Delete, Fault::HangAfter, Request::Delete, None),
        (Call::Start, Fault::Hang, Request::Start, Some(Phase::Running)),
        (Call::Start, Fault::HangAfter, Request::Start, Some(Phase::Running)),
        (Call::AwaitReady, Fault::Hang, Request::Start, Some(Phase::Running)),
    ] {
        let fixture = Fixture::default();
        let node = fixture.start().await;
        let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
        if matches!(request, Request::Start) {
            node.service.stop("web").await.unwrap();
        }
        killed_in(&fixture, node, call, fault, request).await;
        let node = fixture.start().await;
        settle(&node).await;
        assert_eq!(node.service.get("web").ok().map(|vm| vm.phase), end, "{call:?} {fault:?}");
        if let Ok(after) = node.service.get("web") {
            assert_eq!(
                (&after.id, after.ssh_port, after.created_at),
                (&vm.id, vm.ssh_port, vm.created_at)
            );
        }
        everything_is_accounted_for(&fixture, &node).await;
        node.kill().await;
    }
}

#[tokio::test]
async fn running_and_stopped_vms_are_the_same_after_a_restart_with_the_same_ports() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    for name in ["one", "two", "three"] {
        node.service.create(small(name)).await.unwrap().finished().await.unwrap();
    }
    node.service.delete("one").await.unwrap();
    node.service.stop("two").await.unwrap();
    settle(&node).await;
    let before = node.service.list();
    node.stop(false).await;
    assert_eq!(
        fixture
            .backend
            .machines()
            .values()
            .filter(|machine| machine.power == PowerState::Running)
            .count(),
        1
    );
    let node = fixture.start().await;
    assert_eq!(node.service.list(), before);
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_machine_that_died_while_the_provider_was_away_is_stopped_and_says_so() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    node.kill().await;
    fixture.backend.set_power(&vm.id, PowerState::Crashed);
    let node = fixture.start().await;
    let vm = node.service.get("web").unwrap();
    assert_eq!(vm.phase, Phase::Stopped, "known before the first request");
    assert!(vm.error_message.is_some());
    node.kill().await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer_at_the_start_leaves_everything_as_it_is_and_is_asked_again()
{
    for fault in [Fault::Fail(FailureKind::Unavailable), Fault::Hang] {
        let fixture = Fixture::default();
        let node = fixture.start().await;
        node.service.create(small("web")).await.unwrap().finished().await.unwrap();
        let vm = node.service.create(small("two")).await.unwrap().finished().await.unwrap();
        killed_in(&fixture, node, Call::Stop, Fault::Hang, Request::Stop).await;
        fixture.backend.set_power(&vm.id, PowerState::Crashed);
        fixture.backend.always(Call::InspectAll, fault);
        fixture.backend.always(Call::Inspect, fault);
        let node = fixture.start().await;
        let phases: Vec<Phase> = node.service.list().iter().map(|vm| vm.phase).collect();
        assert_eq!(phases, [Phase::Stopping, Phase::Running]);
        fixture.backend.heal();
        phase_becomes(&node, "web", Phase::Stopped).await;
        phase_becomes(&node, "two", Phase::Stopped).await;
        node.kill().await;
    }
}

#[tokio::test]
async fn a_machine_that_no_vm_has_is_cleared_away_but_never_another_providers() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let deleted = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    fixture.backend.next(Call::Delete, Fault::Lie);
    node.service.delete("web").await.unwrap();
    assert!(fixture.backend.machines().contains_key(&deleted.id), "the backend lied");
    fixture.backend.plant("golem-web-20200101-000000");
    fixture.backend.plant("someone-elses");
    eventually("ours is cleared away", || !fixture.backend.machines().contains_key(&deleted.id))
        .await;
    fixture.backend.plant(&deleted.id);
    node.kill().await;
    let node = fixture.start().await;
    eventually("at a start too", || !fixture.backend.machines().contains_key(&deleted.id)).await;
    let left: Vec<String> = fixture.backend.machines().into_keys().collect();
    assert_eq!(left, ["golem-web-20200101-000000", "someone-elses"]);
    node.kill().await;
}

#[tokio::test]
async fn a_port_that_something_else_has_at_the_start_comes_back_when_it_is_free() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    let port = vm.ssh_port.unwrap();
    node.kill().await;
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let node = fixture.start().await;
    assert_eq!(*node.service.get("web").unwrap(), *vm);
    assert!(!node.proxy.is_open(port));
    drop(other);
    eventually("the port is open again", || node.proxy.is_open(port)).await;
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_vm_keeps_its_port_when_the_operator_moves_the_range() {
    let mut fixture = Fixture::default();
    let node = fixture.start().await;
    let vm = node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    node.kill().await;
    fixture.ports = crate::vms::testing::free_ports(10);
    let node = fixture.start().await;
    assert_eq!(node.service.get("web").unwrap().ssh_port, vm.ssh_port);
    assert!(node.proxy.is_open(vm.ssh_port.unwrap()));
    let second = node.service.create(small("two")).await.unwrap().finished().await.unwrap();
    assert_eq!(second.ssh_port, Some(fixture.ports.start));
    node.kill().await;
}

#[tokio::test]
async fn a_shutdown_refuses_requests_and_leaves_machines_running() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    node.service.create(small("web")).await.unwrap().finished().await.unwrap();
    let service = node.service.clone();
    node.stop(false).await;
    assert!(matches!(service.create(small("two")).await, Err(VmError::ShuttingDown)));
    assert!(matches!(service.stop("web").await, Err(VmError::ShuttingDown)));
    assert!(service.get("web").is_ok(), "reads go on");
    assert_eq!(fixture.backend.count(Call::Stop), 0);
}

#[tokio::test]
async fn a_shutdown_that_stops_vms_stops_them_all_and_ends_in_time_even_if_one_hangs() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    for name in ["one", "two", "three"] {
        node.service.create(small(name)).await.unwrap().finished().await.unwrap();
    }
    fixture.backend.next(Call::Stop, Fault::Hang);
    tokio::time::timeout(Duration::from_secs(5), node.stop(true)).await.unwrap();
    let running = fixture
        .backend
        .machines()
        .values()
        .filter(|machine| machine.power == PowerState::Running)
        .count();
    assert_eq!(running, 1, "the one whose stop hung");
    let node = fixture.start().await;
    settle(&node).await;
    assert!(
        node.service.list().iter().all(|vm| vm.phase == Phase::Stopped),
        "finished by the next start"
    );
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

#[tokio::test]
async fn a_shutdown_cuts_off_what_takes_too_long_and_the_next_start_goes_on_with_it() {
    let fixture = Fixture::default();
    fixture.backend.set_boot_time(Duration::from_millis(300));
    let node = fixture.start().await;
    let ticket = node.service.create(small("web")).await.unwrap();
    eventually("it boots", || fixture.backend.most_booting() == 1).await;
    node.service.shutdown(false, Duration::from_millis(50)).await;
    assert!(matches!(ticket.finished().await, Err(VmError::ShuttingDown)));
    node.kill().await;
    let node = fixture.start().await;
    phase_becomes(&node, "web", Phase::Running).await;
    node.kill().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_written_for_a_while_loses_no_vm() {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    fixture.backend.set_boot_time(Duration::from_millis(200));
    let ticket = node.service.create(small("web")).await.unwrap();
    eventually("it boots", || fixture.backend.most_booting() == 1).await;
    // Until the end of the boot nobody can write: the machine runs, and that it does cannot be written down.
    let other = rusqlite::Connection::open(fixture.directory.path().join("provider.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = ticket.finished().await.unwrap_err();
    assert!(matches!(&error, VmError::Store(_)), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    settle(&node).await;
    assert_eq!(node.service.get("web").unwrap().phase, Phase::Running);
    assert_eq!(node.store.jobs().await.unwrap()[0].job.status, JobStatus::Ready);
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}
