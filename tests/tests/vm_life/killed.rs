//! The provider killed between any two things that it does for a real machine: nothing is left over, and nothing that was
//! answered with success is undone.
//!
//! The provider's own steps are walked through in `killed_between_steps.rs`, with a backend that has no machines; here it
//! is every lasting effect of the QEMU plugin that a kill may follow.

use std::{ops::Range, time::Duration};

use anyhow::{Result, ensure};
use golem_provider::faults::FaultPoint::{self, *};
use golem_provider_tests::{Answer, Image, Key, KeyKind, Provider, Setup, Ssh, database, wait};
use serde_json::json;

use crate::checks::{Steps, assert_no_trace, assert_nothing_held, machine, running, ssh_port, vm};

const NAME: &str = "my-vm";

/// More visits than any operation makes; a walk that gets here has lost its end.
const VISITS: Range<u32> = 1..100;

async fn provider() -> Result<Provider> {
    Setup::new()?.with_images(&[Image::for_tests()?])?.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_killed_anywhere_leaves_nothing_that_a_delete_does_not_remove()
-> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let mut provider = provider().await?;
    let client = provider.client().clone();
    for point in [PluginHostCall, PluginFileUnnamed] {
        for visit in VISITS {
            provider.arm(&[(point, visit), (CreateMade, 1)])?;
            let answer = client.post("/vms?async=true", &json!({ "name": NAME })).await;
            let died_at = provider.death().await?;
            steps.next(&format!("killed in a create at {} {visit}", died_at.name()));
            provider.start_again().await?;
            let deleted = client.delete(&format!("/vms/{NAME}")).await?;
            if answer.is_ok_and(|answer| answer.status == 202) {
                deleted.expect(200)?;
            } else {
                ensure!(matches!(deleted.status, 200 | 404), "{} {}", deleted.status, deleted.text);
            }
            assert_nothing_is_left(&provider).await?;
            if died_at == CreateMade {
                break;
            }
            ensure!(visit + 1 < VISITS.end, "a create never comes to its end");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_killed_anywhere_is_finished_by_the_next_start() -> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let mut provider = provider().await?;
    let client = provider.client().clone();
    for visit in VISITS {
        client.post("/vms?async=true", &json!({ "name": NAME })).await?.expect(202)?;
        let pause = Duration::from_millis(50);
        wait::until("a process", Duration::from_secs(60), pause, async || {
            Ok((!provider.machines().is_empty()).then_some(()))
        })
        .await?;
        provider.arm(&[(PluginHostCall, visit), (DeleteCleared, 1)])?;
        let answer = client.delete(&format!("/vms/{NAME}")).await;
        let died_at = provider.death().await?;
        steps.next(&format!("killed in a delete at {} {visit}", died_at.name()));
        ensure!(answer.is_err(), "answered before it was done: {answer:?}");
        provider.start_again().await?;
        // The machine may still have been made when the kill came: then the delete was not yet begun, and is asked for again.
        let again = client.delete(&format!("/vms/{NAME}")).await?;
        ensure!(matches!(again.status, 200 | 404), "{} {}", again.status, again.text);
        assert_nothing_is_left(&provider).await?;
        if died_at == DeleteCleared {
            return Ok(());
        }
    }
    anyhow::bail!("a delete never comes to its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_and_starts_that_are_killed_are_finished_and_lose_nothing_on_the_disk() -> Result<()>
{
    let _turn = machine().await?;
    let steps = Steps::begin();
    let mut provider = provider().await?;
    let client = provider.client().clone();
    let key = Key::generate(KeyKind::Ed25519).await?;
    let request = json!({ "name": NAME, "ssh_key": key.public });
    let made = client.post("/vms", &request).await?.json()?;
    let port = ssh_port(&made)?;
    let ssh = Ssh::to(port)?;
    ssh.run(&key, "echo kept > /root/note && sync").await?;

    let pairs = [
        ((PluginHostCall, 1), (PluginHostCall, 3)),
        ((PluginFileUnnamed, 1), (PluginFileUnnamed, 1)),
        ((StopDone, 1), (StartMade, 1)),
    ];
    for (in_stop, in_start) in pairs {
        steps.next(&format!("killing it in a stop at {} {}", in_stop.0.name(), in_stop.1));
        killed(&mut provider, "stop", in_stop).await?;
        let (deadline, pause) = (Duration::from_secs(120), Duration::from_millis(500));
        wait::until("the stop to be finished", deadline, pause, async || {
            let vm = client.get(&format!("/vms/{NAME}")).await?.expect(200)?;
            if vm["status"] == "running" {
                // It was cut off before it was written down, and never answered.
                client.post_nothing(&format!("/vms/{NAME}/stop")).await?;
            }
            Ok((vm["status"] == "stopped" && provider.machines().is_empty()).then_some(()))
        })
        .await?;
        let stopped = vm(&client, NAME, "stopped").await?;
        ensure!(stopped["error_message"].is_null(), "{stopped}");

        steps.next(&format!("killing it in a start at {} {}", in_start.0.name(), in_start.1));
        killed(&mut provider, "start", in_start).await?;
        // Where the kill came before the start was written down, this begins it; else it waits for the one under way.
        client.post_nothing(&format!("/vms/{NAME}/start")).await?.expect(200)?;
        let started = running(&client, NAME).await?;
        ensure!(provider.machines().len() == 1, "{:?}", provider.machines());
        for field in ["id", "ssh_port", "resources", "created_at"] {
            ensure!(started[field] == made[field], "{field} is not as before: {started}");
        }
        ensure!(ssh.run(&key, "cat /root/note").await? == "kept");
    }
    client.delete(&format!("/vms/{NAME}")).await?.expect(200)?;
    assert_no_trace(&provider, &made).await
}

/// Asks for a change during which the provider dies, and starts it again.
async fn killed(provider: &mut Provider, change: &str, point: (FaultPoint, u32)) -> Result<()> {
    provider.arm(&[point])?;
    let client = provider.client().clone();
    let answer: Result<Answer> = client.post_nothing(&format!("/vms/{NAME}/{change}")).await;
    provider.death().await?;
    ensure!(answer.is_err(), "answered before it was done: {answer:?}");
    provider.start_again().await
}

async fn assert_nothing_is_left(provider: &Provider) -> Result<()> {
    assert_nothing_held(provider).await?;
    let files = provider.files_named(NAME)?;
    ensure!(files.is_empty(), "files are left: {files:?}");
    // An image that was being copied when its VM was deleted is there for the next one.
    let (deadline, pause) = (Duration::from_secs(60), Duration::from_millis(100));
    wait::until("nothing to be half written", deadline, pause, async || {
        Ok(provider.files_named(".partial")?.is_empty().then_some(()))
    })
    .await?;
    let rows = database::rows_that_mention(&provider.data_dir(), NAME)?;
    ensure!(rows.is_empty(), "rows are left: {rows:?}");
    Ok(())
}
