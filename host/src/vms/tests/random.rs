//! Any sequence of requests, failures and restarts leaves no leak and no stuck VM.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::{everything_is_accounted_for, settle};
use crate::{
    plugins::{FailureKind, vm_backend::PowerState},
    vms::{
        Phase, VmError,
        testing::{Call, Fault, Fixture, small},
    },
};

const NAMES: [&str; 3] = ["one", "two", "three"];

#[derive(Debug, Clone)]
enum Step {
    Create(usize, Wait),
    Start(usize, Wait),
    Stop(usize, Wait),
    Delete(usize, Wait),
    /// The machine ends by itself.
    Crash(usize),
    /// The machine vanishes.
    Vanish(usize),
    /// One of the next calls goes wrong.
    Fault(Call, Fault),
    Pause,
    /// The provider dies and starts again.
    Kill,
    /// The provider is stopped and starts again.
    Restart {
        stop_vms: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Wait {
    ForTheResult,
    /// The next step comes while this one is under way.
    No,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![Just(Wait::ForTheResult), Just(Wait::No)];
    let kind = prop_oneof![
        Just(FailureKind::Internal),
        Just(FailureKind::Unavailable),
        Just(FailureKind::NotFound)
    ];
    let fault = prop_oneof![
        kind.clone().prop_map(Fault::Fail),
        kind.prop_map(Fault::FailAfter),
        Just(Fault::Hang),
        Just(Fault::HangAfter),
        Just(Fault::Lie),
    ];
    let vm = 0..NAMES.len();
    let step = prop_oneof![
        4 => (vm.clone(), wait.clone()).prop_map(|(vm, wait)| Step::Create(vm, wait)),
        2 => (vm.clone(), wait.clone()).prop_map(|(vm, wait)| Step::Start(vm, wait)),
        2 => (vm.clone(), wait.clone()).prop_map(|(vm, wait)| Step::Stop(vm, wait)),
        2 => (vm.clone(), wait).prop_map(|(vm, wait)| Step::Delete(vm, wait)),
        1 => vm.clone().prop_map(Step::Crash),
        1 => vm.prop_map(Step::Vanish),
        4 => (prop::sample::select(Call::ALL.to_vec()), fault).prop_map(|(call, fault)| Step::Fault(call, fault)),
        1 => Just(Step::Pause),
        1 => Just(Step::Kill),
        1 => any::<bool>().prop_map(|stop_vms| Step::Restart { stop_vms }),
    ];
    prop::collection::vec(step, 1..25)
}

async fn walk(steps: Vec<Step>) {
    let mut fixture = Fixture::default();
    let short = Duration::from_millis(30);
    let deadlines = &mut fixture.config.deadlines;
    (deadlines.create, deadlines.start, deadlines.stop_slack) = (short, short, short);
    (deadlines.delete, deadlines.ask, deadlines.add_key) = (short, short, short);
    let mut node = fixture.start().await;
    // VMs whose create was answered with success and whose delete nobody has asked for.
    let mut promised = BTreeSet::new();
    // VMs with a delete of which nobody knows when it is carried out.
    let mut in_doubt = BTreeSet::new();
    let mut under_way = Vec::new();

    for step in steps {
        let service = node.service.clone();
        let request = match step {
            Step::Create(vm, wait) => {
                let task = tokio::spawn(async move {
                    service.create(small(NAMES[vm])).await?.finished().await.map(|_| Some(vm))
                });
                Some((task, wait))
            }
            Step::Start(vm, wait) => Some((
                tokio::spawn(async move { service.start_vm(NAMES[vm]).await.map(|_| None) }),
                wait,
            )),
            Step::Stop(vm, wait) => Some((
                tokio::spawn(async move { service.stop(NAMES[vm]).await.map(|_| None) }),
                wait,
            )),
            Step::Delete(vm, wait) => {
                promised.remove(&vm);
                if wait == Wait::No {
                    in_doubt.insert(vm);
                }
                Some((
                    tokio::spawn(async move { service.delete(NAMES[vm]).await.map(|()| None) }),
                    wait,
                ))
            }
            Step::Crash(vm) => {
                if let Ok(vm) = service.get(NAMES[vm]) {
                    fixture.backend.set_power(&vm.id, PowerState::Crashed);
                }
                None
            }
            Step::Vanish(vm) => {
                if let Ok(vm) = service.get(NAMES[vm]) {
                    fixture.backend.remove(&vm.id);
                }
                None
            }
            Step::Fault(call, fault) => {
                fixture.backend.next(call, fault);
                None
            }
            Step::Pause => {
                tokio::time::sleep(Duration::from_millis(30)).await;
                None
            }
            Step::Kill => {
                node.kill().await;
                node = fixture.start().await;
                None
            }
            Step::Restart { stop_vms } => {
                node.service.shutdown(stop_vms, Duration::from_millis(100)).await;
                node.kill().await;
                node = fixture.start().await;
                None
            }
        };
        match request {
            Some((task, Wait::ForTheResult)) => {
                let result: Result<Option<usize>, VmError> = task.await.unwrap();
                if let Ok(Some(vm)) = result {
                    promised.insert(vm);
                }
            }
            Some((task, Wait::No)) => under_way.push(task),
            None => {}
        }
    }

    fixture.backend.heal();
    let patience = Duration::from_secs(30);
    for task in under_way {
        let _ = tokio::time::timeout(patience, task).await.expect("every request ends").unwrap();
    }
    settle(&node).await;
    // One more look of the reconciler, at machines that ended meanwhile.
    let looked = fixture.backend.count(Call::InspectAll);
    super::eventually("the reconciler looks", || {
        fixture.backend.count(Call::InspectAll) > looked + 2
    })
    .await;
    settle(&node).await;
    everything_is_accounted_for(&fixture, &node).await;
    for vm in promised.difference(&in_doubt) {
        let vm = node.service.get(NAMES[*vm]).expect("a create that succeeded is not undone");
        assert_ne!(vm.phase, Phase::Failed);
    }

    // Nothing is stuck: each can be deleted, and then nothing is left but the jobs of creates that failed.
    for vm in node.service.list() {
        assert!(
            matches!(vm.phase, Phase::Running | Phase::Stopped | Phase::Failed),
            "{} is {}",
            vm.name,
            vm.phase
        );
        node.service.delete(&vm.id).await.unwrap();
    }
    assert!(fixture.backend.machines().is_empty());
    assert!(node.service.list().is_empty());
    everything_is_accounted_for(&fixture, &node).await;
    node.kill().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_failures_and_restarts_leaves_no_leak_and_no_stuck_vm(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(walk(steps));
    }
}
