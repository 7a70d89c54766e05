//! The disk gets full while a machine is made: the requestor learns why, everything is given back, and what runs goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use golem_provider_tests::{
    Image, Setup,
    mounts::{self, Mount},
    wait,
};
use serde_json::json;

use crate::checks::{Steps, assert_nothing_held, machine, text, vm};

/// More than a machine asks for. Memory is used only for what is written.
const ROOMY_BYTES: u64 = 200 << 30;
/// Less than an image has, and more than is there before one is fetched.
const TIGHT_BYTES: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_gets_full_while_a_vm_is_made_fails_the_create_and_gives_everything_back()
-> Result<()> {
    if !mounts::are_allowed() {
        return Ok(());
    }
    let _turn = machine().await?;
    let steps = Steps::begin();
    let setup = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 0);
    let setup = setup.with_images(&[Image::for_tests()?])?;
    let disks = setup.data_dir().join("vms");
    let mount = Mount::in_memory(&disks, ROOMY_BYTES)?;
    let provider = setup.with_mount(mount).start().await?;
    let client = provider.client();

    steps.next("creating, and filling the disk");
    client.post("/vms?async=true", &json!({ "name": "my-vm" })).await?.expect(202)?;
    mounts::resize(&disks, TIGHT_BYTES)?;
    let (deadline, pause) = (Duration::from_secs(120), Duration::from_millis(200));
    wait::until("the create to fail and give everything back", deadline, pause, async || {
        let failed = client.get("/vms/my-vm").await?.expect(200)?["status"] == "error";
        Ok(if failed { assert_nothing_held(&provider).await.ok() } else { None })
    })
    .await?;
    let failed = vm(client, "my-vm", "error").await?;
    let reason = text(&failed, "error_message")?;
    // Seen before the first byte is written, or while it is.
    let words = ["make room on it", "No space left on device"];
    ensure!(words.iter().any(|words| reason.contains(words)), "{reason}");
    let left: Vec<_> = std::fs::read_dir(disks.join("qemu/images"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    ensure!(left.is_empty(), "half an image is left: {left:?}");

    steps.next("creating where there is no space from the beginning");
    let refusal = client.post("/vms?async=true", &json!({ "name": "other-vm" })).await?;
    let refusal = refusal.refusal(409)?;
    ensure!(refusal.contains("storage"), "{refusal}");

    steps.next("creating where there is space again");
    mounts::resize(&disks, ROOMY_BYTES)?;
    wait::until("the space to be seen", deadline, pause, async || {
        let answer = client.post("/vms?async=true", &json!({ "name": "my-vm" })).await?;
        Ok((answer.status == 202).then_some(()))
    })
    .await?;
    wait::until("a machine", deadline, pause, async || {
        ensure!(client.get("/vms/my-vm").await?.expect(200)?["status"] != "error");
        Ok((!provider.machines().is_empty()).then_some(()))
    })
    .await?;
    client.delete("/vms/my-vm").await?.expect(200)?;
    assert_nothing_held(&provider).await
}
