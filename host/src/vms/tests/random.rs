//! Any sequence of requests, failures and restarts leaves no leak and no stuck VM.

use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::{everything_is_accounted_for, settle};
use crate::{
    plugins::{FailureKind, vm_backend::PowerState},
    vms::{
        Phase, SshPublicKey, VmError, VmService,
        testing::{Call, Fault, Fixture, Node, small},
    },
};

const NAMES: [&str; 3] = ["one", "two", "three"];
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";

#[derive(Debug, Clone)]
enum Step {
    Ask(Request, usize, Wait),
    /// The machine ends by itself.
    Crash(usize),
    /// The machine vanishes.
    Vanish(usize),
    /// One of the next calls goes wrong.
    Fault(Call, Fault),
    /// So many of the next writes fail.
    StoreFails(u32),
    Pause,
    /// The provider dies and starts again.
    Kill,
    /// The provider is stopped and starts again.
    Restart {
        stop_vms: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Request {
    Create,
    Start,
    Stop,
    Delete,
    AddKey,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Wait {
    ForTheResult,
    /// The next step comes while this one is under way.
    No,
}

/// What a success that nobody has asked to undo since holds the provider to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Promise {
    /// There is a VM of that name, and it has not failed.
    Exists,
    /// Besides, it does not run.
    Stopped,
    Gone,
}

impl Request {
    async fn ask(self, service: &VmService, vm: usize) -> Result<(), VmError> {
        let name = NAMES[vm];
        match self {
            Request::Create => service.create(small(name)).await?.finished().await.map(drop),
            Request::Start => service.start_vm(name).await.map(drop),
            Request::Stop => service.stop(name).await.map(drop),
            Request::Delete => service.delete(name).await,
            Request::AddKey => service.add_ssh_key(name, SshPublicKey::parse(KEY).unwrap()).await,
        }
    }

    /// What a success says of the VM.
    fn promise(self) -> Promise {
        match self {
            Request::Create | Request::Start | Request::AddKey => Promise::Exists,
            Request::Stop => Promise::Stopped,
            Request::Delete => Promise::Gone,
        }
    }
}

/// What the provider is held to at the end.
#[derive(Debug, Default)]
struct Promises {
    of_vm: [Option<Promise>; NAMES.len()],
    /// VMs for which something is asked of which nobody knows when it is carried out.
    in_doubt: [bool; NAMES.len()],
    /// The backend may have said that a machine was stopped which runs.
    lied: bool,
}

impl Promises {
    /// Whatever was promised before may end with this, also if it fails.
    fn asked(&mut self, request: Request, vm: usize, wait: Wait) {
        self.in_doubt[vm] |= wait == Wait::No;
        let promise = &mut self.of_vm[vm];
        match request {
            Request::Delete => *promise = None,
            Request::Create if *promise == Some(Promise::Gone) => *promise = None,
            Request::Start if *promise == Some(Promise::Stopped) => {
                *promise = Some(Promise::Exists);
            }
            _ => {}
        }
    }

    fn answered(&mut self, request: Request, vm: usize) {
        self.of_vm[vm] = Some(request.promise());
    }

    fn assert_kept(&self, node: &Node) {
        for (vm, promise) in self.of_vm.into_iter().enumerate() {
            let (Some(promise), false) = (promise, self.in_doubt[vm]) else { continue };
            let found = node.service.get(NAMES[vm]).ok();
            let phase = found.as_ref().map(|vm| vm.phase);
            let is_kept = match promise {
                Promise::Gone => phase.is_none(),
                Promise::Exists => matches!(phase, Some(Phase::Running | Phase::Stopped)),
                Promise::Stopped => phase == Some(Phase::Stopped) || self.lied && phase.is_some(),
            };
            assert!(is_kept, "{promise:?} was promised of {}, and it is {phase:?}", NAMES[vm]);
        }
    }
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
    let request = prop_oneof![
        4 => Just(Request::Create),
        2 => Just(Request::Start),
        2 => Just(Request::Stop),
        2 => Just(Request::Delete),
        1 => Just(Request::AddKey),
    ];
    let step = prop_oneof![
        11 => (request, vm.clone(), wait).prop_map(|(request, vm, wait)| Step::Ask(request, vm, wait)),
        1 => vm.clone().prop_map(Step::Crash),
        1 => vm.prop_map(Step::Vanish),
        4 => (prop::sample::select(Call::ALL.to_vec()), fault).prop_map(|(call, fault)| Step::Fault(call, fault)),
        1 => (1..4_u32).prop_map(Step::StoreFails),
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
    let mut promises = Promises::default();
    let mut under_way = Vec::new();

    for step in steps {
        match step {
            Step::Ask(request, vm, wait) => {
                promises.asked(request, vm, wait);
                let service = node.service.clone();
                let asked = tokio::spawn(async move { request.ask(&service, vm).await });
                match wait {
                    Wait::No => under_way.push(asked),
                    Wait::ForTheResult => {
                        if asked.await.unwrap().is_ok() {
                            promises.answered(request, vm);
                        }
                    }
                }
            }
            Step::Crash(vm) => {
                if let Ok(vm) = node.service.get(NAMES[vm]) {
                    fixture.backend.set_power(&vm.id, PowerState::Crashed);
                }
            }
            Step::Vanish(vm) => {
                if let Ok(vm) = node.service.get(NAMES[vm]) {
                    fixture.backend.remove(&vm.id);
                }
            }
            Step::Fault(call, fault) => {
                promises.lied |= fault == Fault::Lie;
                fixture.backend.next(call, fault);
            }
            Step::StoreFails(writes) => node.store.fail_writes(writes),
            Step::Pause => tokio::time::sleep(Duration::from_millis(30)).await,
            Step::Kill => {
                node.kill().await;
                node = fixture.start().await;
            }
            Step::Restart { stop_vms } => {
                node.service.shutdown(stop_vms, Duration::from_millis(100)).await;
                node.kill().await;
                node = fixture.start().await;
            }
        }
    }

    node.store.fail_writes(0);
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
    promises.assert_kept(&node);

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

/// Providers whose steps are taken side by side, since most of the time each of them waits.
const PROVIDERS: usize = 8;

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_failures_and_restarts_leaves_no_leak_and_no_stuck_vm(
        steps in prop::collection::vec(steps(), PROVIDERS),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut walks = JoinSet::from_iter(steps.into_iter().map(walk));
            while let Some(walked) = walks.join_next().await {
                walked.unwrap();
            }
        });
    }
}
