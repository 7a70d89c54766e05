//! How a plugin is tested on a machine that a script describes: the bundled QEMU plugin, without QEMU.

// Helpers of tests are no tests themselves to the linter.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use golem_provider_sdk_testing::{
    Answer, FailureKind, GrantList, Harness, InstanceSpec, Loaded, PowerState, Reply, Script,
    Severity, VmBackend, component, plugins, unheard,
};
use serde_json::json;

const QEMU: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };

fn qemu(settings: serde_json::Value, script: Script) -> Harness {
    Harness::new(component("qemu").unwrap())
        .unwrap()
        .settings(settings)
        .script(script.no_http().simulated_clock())
        .compiled_in(plugins().join("compiled/plugins"))
}

fn assert_nothing_unexpected(plugin: &Loaded) {
    assert_eq!(plugin.script().unwrap().unexpected(), []);
}

#[tokio::test]
async fn a_machine_without_qemu_is_told_what_to_install() {
    let plugin = qemu(json!({}), Script::new().installed("qemu-img")).load().await.unwrap();
    let findings = plugin.probe().await.unwrap();
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.severity, Severity::Blocking);
    assert_eq!(finding.message, format!("{QEMU} is not installed"));
    assert!(finding.remedy.as_ref().unwrap().contains("apt install qemu-system"));
    assert_nothing_unexpected(&plugin);
}

#[tokio::test]
async fn kvm_on_which_a_guest_never_ends_is_not_taken() {
    let script = Script::new()
        .on(QEMU, &[".."], Answer::success().after(Duration::from_secs(3600)))
        .installed("qemu-img")
        .on("id", &[".."], Answer::success().stdout("998\n"));
    let plugin = qemu(json!({ "internet": "off" }), script).load().await.unwrap();
    let findings = plugin.probe().await.unwrap();
    let emulated = findings.iter().find(|finding| finding.severity == Severity::Warning).unwrap();
    assert!(emulated.message.contains("less than 200 million instructions"), "{emulated:?}");
    assert_nothing_unexpected(&plugin);

    // What was found out is remembered: the guest is tried once.
    plugin.probe().await.unwrap();
    let tried = plugin.script().unwrap().asked();
    assert_eq!(tried.iter().filter(|asked| asked.what.starts_with(QEMU)).count(), 1);
}

#[tokio::test]
async fn a_disk_that_cannot_be_made_is_told_in_the_programs_words_and_leaves_nothing_behind() {
    let image = json!({
        "description": "Tiny",
        "source": "https://images.example/tiny.qcow2",
        "sha256": "8950abfda7b727630760dd35bcf5c3daa7631aff223a90f7728c0d2521dde10c",
    });
    let info = json!({ "format": "qcow2", "virtual-size": 1 << 30 }).to_string();
    let script = Script::new()
        .get("https://images.example/tiny.qcow2", Reply::ok("tiny"))
        .on("qemu-img", &["info", "--output=json", "*"], Answer::success().stdout(info))
        .on("qemu-img", &["create", ".."], Answer::status(1).stderr("No space left on device\n"));
    let grants =
        GrantList { http: vec!["https://images.example".to_owned()], ..GrantList::default() };
    let harness =
        qemu(json!({ "images": { "tiny": image }, "accelerator": "tcg" }), script).grants(grants);
    let plugin = harness.load().await.unwrap();
    let spec = InstanceSpec {
        id: "golem-web-1".to_owned(),
        hostname: "web".to_owned(),
        cpu_cores: 1,
        memory_mib: 1024,
        storage_mib: 10_240,
        image: "tiny".to_owned(),
        ssh_authorized_keys: Vec::new(),
    };

    let error = plugin.create(&spec, unheard()).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Internal);
    assert_eq!(error.message, "qemu-img failed with exit status 1: No space left on device");
    assert_nothing_unexpected(&plugin);

    // A provider that starts anew finds the machine unfinished, and removes it.
    let plugin = harness.load().await.unwrap();
    assert_eq!(plugin.inspect(&spec.id).await.unwrap().power, PowerState::Stopped);
    plugin.delete(&spec.id).await.unwrap();
    let error = plugin.inspect(&spec.id).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::NotFound);
    assert!(!plugin.directory().join("vms/golem-web-1").exists());
}

#[tokio::test]
async fn what_the_manifest_does_not_ask_for_is_refused_also_on_a_scripted_machine() {
    let harness = qemu(json!({}), Script::new().installed("qemu-img")).without_asked_grants();
    let error = harness.load().await.unwrap().probe().await.unwrap_err();
    assert_eq!(error.kind, FailureKind::PermissionDenied);
    assert!(error.message.contains(QEMU), "{error}");
}
