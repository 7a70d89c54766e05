//! A healthy provider with one thing changed, and what is said of it.

use jiff::Timestamp;

use super::*;
use crate::{
    resources::{Amounts, Minimums, ResourceReport},
    settings::Environment,
    status::{
        FailingFunction, Health, PluginLine, ProviderSection, ProxySection, Running, Status,
        Traffic, VmLine,
    },
    telemetry::LogTarget,
};

fn amounts(cpu_cores: u64, memory_gb: u64, storage_gb: u64) -> Amounts {
    Amounts { cpu_cores, memory_gb, storage_gb }
}

fn plugin(name: &str, state: PluginState) -> PluginLine {
    PluginLine {
        name: name.to_owned(),
        version: Some("0.1.0".to_owned()),
        kind: Some(crate::plugins::Kind::VmBackend),
        origin: "bundled".to_owned(),
        state,
        in_use: true,
        problem: None,
        failing: Vec::new(),
    }
}

fn healthy() -> Sections {
    let vm = VmLine {
        id: "golem-web-20261123-040000".to_owned(),
        name: "web".to_owned(),
        state: Phase::Running.name().to_owned(),
        backend: "qemu".to_owned(),
        image: "24.04".to_owned(),
        owner: None,
        cpu_cores: 1,
        memory_gb: 1,
        storage_gb: 10,
        ssh_port: Some(50_800),
        created_at: Timestamp::UNIX_EPOCH,
        error: None,
        progress: None,
        traffic: Some(Traffic::default()),
    };
    Sections {
        provider: ProviderSection {
            version: "0.1.0".to_owned(),
            environment: Environment::Production,
            data_dir: "/data".into(),
            api: ([127, 0, 0, 1], 7466).into(),
            running: Some(Running {
                pid: 1,
                since: Timestamp::UNIX_EPOCH,
                log: LogTarget::StandardError,
            }),
        },
        resources: Some(ResourcesSection {
            amounts: ResourceReport {
                total: amounts(8, 32, 500),
                allocatable: amounts(7, 27, 450),
                allocated: amounts(1, 1, 10),
                available: amounts(6, 26, 440),
            },
            minimums: Minimums::default(),
        }),
        vms: VmsSection { max: 10, list: vec![vm] },
        plugins: PluginsSection {
            default_backend: Some("qemu".to_owned()),
            no_backend: None,
            list: vec![plugin("qemu", PluginState::Working)],
        },
        network: None,
        prices: None,
        payments: None,
        proxy: Some(ProxySection::default()),
        start: None,
    }
}

fn down(sections: &mut Sections) {
    sections.provider.running = None;
    sections.resources = None;
    sections.proxy = None;
    sections.start = Some(StartSection::default());
}

#[test]
fn a_provider_on_which_nothing_is_wrong_is_healthy() {
    let status = Status::of(healthy());
    assert_eq!((status.health, status.issues), (Health::Healthy, vec![]));
}

type Change = fn(&mut Sections);

/// What is changed, the health, and for each issue its code and a part of its sentence.
type Case = (&'static str, Change, Health, &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[
    ("it does not run", down, Health::Down, &[("down", "a machine that ran when it ended")]),
    (
        "it does not run, and nothing ran on it",
        |s| {
            down(s);
            s.vms.list.clear();
        },
        Health::Down,
        &[("down", "the provider does not run")],
    ),
    (
        "it does not run, and could not",
        |s| {
            down(s);
            s.start = Some(StartSection {
                silent_pid: None,
                data_dir_problem: Some("/data is no directory".into()),
                address_problem: Some("127.0.0.1:7466: in use".into()),
            });
        },
        Health::Down,
        &[("down", "not run"), ("data-dir", "/data is no"), ("address", "127.0.0.1:7466")],
    ),
    (
        "it has the directory and does not answer",
        |s| {
            down(s);
            s.start = Some(StartSection { silent_pid: Some(77), ..StartSection::default() });
        },
        Health::Down,
        &[("silent", "process 77")],
    ),
    (
        "there is no backend",
        |s| s.plugins.no_backend = Some("QEMU is missing".into()),
        Health::Issues,
        &[("no-backend", "QEMU is missing")],
    ),
    (
        "a plugin fails",
        |s| {
            s.plugins.list[0].state = PluginState::Degraded;
            s.plugins.list[0].failing = vec![FailingFunction {
                function: "create".into(),
                failures: 10,
                since: Timestamp::UNIX_EPOCH,
                next_try: Timestamp::UNIX_EPOCH,
            }];
        },
        Health::Issues,
        &[("plugin-degraded", "`create` (10 times in a row)")],
    ),
    (
        "a bundled plugin that nobody uses does not fit the machine",
        |s| s.plugins.list.push(plugin("other", PluginState::Unusable)),
        Health::Healthy,
        &[("plugin-unusable", "other is not used")],
    ),
    (
        "an installed plugin cannot be loaded",
        |s| {
            let mut broken = plugin("other", PluginState::Unusable);
            broken.problem = Some("no component".into());
            s.plugins.list.push(broken);
        },
        Health::Issues,
        &[("plugin-unusable", "no component")],
    ),
    (
        "the plugin of a machine is switched off",
        |s| s.plugins.list[0].state = PluginState::Disabled,
        Health::Issues,
        &[("plugin-disabled", "qemu is switched off")],
    ),
    (
        "a plugin without machines is switched off",
        |s| s.plugins.list.push(plugin("other", PluginState::Disabled)),
        Health::Healthy,
        &[],
    ),
    (
        "the plugin of a machine is gone",
        |s| s.vms.list[0].backend = "bhyve".into(),
        Health::Issues,
        &[("backend-gone", "bhyve, which is not there")],
    ),
    (
        "a machine could not be made",
        |s| {
            s.vms.list[0].state = "failed".into();
            s.vms.list[0].error = Some("it did not boot".into());
        },
        Health::Issues,
        &[("vm-failed", "web could not be made: it did not boot")],
    ),
    (
        "a machine has crashed",
        |s| {
            s.vms.list[0].state = "stopped".into();
            s.vms.list[0].error = Some("the machine has ended".into());
        },
        Health::Issues,
        &[("vm-error", "web (stopped): the machine has ended")],
    ),
    (
        "a machine cannot be reached",
        |s| s.vms.list[0].traffic = None,
        Health::Issues,
        &[("port-closed", "port 50800 is not open")],
    ),
    (
        "other programs fill the disk",
        |s| {
            if let Some(resources) = &mut s.resources {
                resources.amounts.available.storage_gb = 3;
            }
        },
        Health::Issues,
        &[("no-room", "storage: 440 GB could be let, and 3 GB are free")],
    ),
    (
        "machines fill the computer, as they should",
        |s| {
            if let Some(resources) = &mut s.resources {
                resources.amounts.allocated = resources.amounts.allocatable;
                resources.amounts.available = Amounts::default();
            }
        },
        Health::Healthy,
        &[],
    ),
    (
        "the computer is too small",
        |s| {
            if let Some(resources) = &mut s.resources {
                resources.amounts.allocatable.memory_gb = 0;
            }
        },
        Health::Issues,
        &[("too-small", "nothing can be let")],
    ),
];

#[test]
fn whatever_is_wrong_is_told_with_what_to_do_about_it() {
    for (what, change, health, expected) in CASES {
        let mut sections = healthy();
        change(&mut sections);
        let status = Status::of(sections);
        assert_eq!(status.health, *health, "{what}: {:?}", status.issues);
        assert_eq!(status.issues.len(), expected.len(), "{what}: {:?}", status.issues);
        for (issue, (code, part)) in status.issues.iter().zip(*expected) {
            assert_eq!(issue.code, *code, "{what}");
            assert!(issue.sentence.contains(part), "{what}: {}", issue.sentence);
            assert!(!issue.remedy.is_empty(), "{what}");
        }
    }
}

#[test]
fn the_worst_comes_first() {
    let mut sections = healthy();
    sections.plugins.list.push(plugin("other", PluginState::Unusable));
    sections.vms.list[0].traffic = None;
    sections.plugins.no_backend = Some("none".into());
    let codes: Vec<String> = issues(&sections).into_iter().map(|issue| issue.code).collect();
    assert_eq!(codes, ["no-backend", "port-closed", "plugin-unusable"]);
}

#[test]
fn a_status_reads_back_as_it_was_written() {
    let status = Status::of(healthy());
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
}

fn paid() -> PaymentsSection {
    PaymentsSection {
        blocked: None,
        silent: None,
        monitor_enabled: true,
        machines: std::collections::BTreeMap::new(),
        unpaid: Vec::new(),
    }
}

#[test]
fn payments_that_cannot_be_read_or_are_not_made_are_told() {
    let told = |section: PaymentsSection| {
        let status = Status::of(Sections { payments: Some(section), ..healthy() });
        let codes = status.issues.into_iter().map(|issue| issue.code);
        codes.filter(|code| code != "not-advertised").collect::<Vec<_>>()
    };
    let silent = Some("no node answers".to_owned());
    let unpaid = vec!["web".to_owned()];
    assert!(told(paid()).is_empty());
    assert_eq!(told(PaymentsSection { silent: silent.clone(), ..paid() }), ["chain-silent"]);
    let blocked = PaymentsSection { blocked: Some("no contract".to_owned()), silent, ..paid() };
    assert_eq!(told(blocked), ["payments-unreadable"]);
    // The monitor is about to stop it.
    assert!(told(PaymentsSection { unpaid: unpaid.clone(), ..paid() }).is_empty());
    let nobody = PaymentsSection { unpaid, monitor_enabled: false, ..paid() };
    assert_eq!(told(nobody), ["unpaid-machines"]);
}
