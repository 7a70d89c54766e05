//! Creates that come to nothing: failed, cancelled, or one too many. All that they took is free again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Client, Image, Provider, Setup, wait};
use serde_json::{Value, json};

use crate::checks::{
    Steps, StoredImages, assert_no_trace, assert_nothing_held, assert_shape, machine, text, vm,
};

/// An image whose bytes are not those that its digest names.
const DAMAGED: &str = "damaged";

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_says_why_and_gives_everything_back() -> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let image = Image::for_tests()?;
    let setup = Setup::new()?.with_images(&[image.with_wrong_digest(DAMAGED), image])?;
    let provider = setup.start().await?;
    let client = provider.client();
    let request = json!({ "name": "my-vm", "image": DAMAGED });

    steps.next("creating with a job");
    let accepted = client.post("/vms?async=true", &request).await?.expect(202)?;
    let path = format!("/vms/jobs/{}", text(&accepted, "job_id")?);
    let (deadline, pause) = (Duration::from_secs(120), Duration::from_secs(1));
    let job = wait::until("the job to fail", deadline, pause, async || {
        let job = client.get(&path).await?.expect(200)?;
        ensure!(job["status"] != "ready", "{job}");
        Ok((job["status"] == "failed").then_some(job))
    })
    .await?;
    let failed = failed_for_its_digest(&provider).await?;
    assert_eq!(failed["error_message"], job["error"]);

    steps.next("creating with an answer, under the same name");
    let answer = client.post("/vms", &request).await?;
    assert!(answer.status >= 500, "the requestor is blamed: {} {}", answer.status, answer.text);
    ensure_digest_is_blamed(&answer.refusal(answer.status)?)?;
    let failed_again = failed_for_its_digest(&provider).await?;
    assert_ne!(failed_again["id"], failed["id"]);

    client.delete("/vms/my-vm").await?.expect(200)?;
    for vm in [failed, failed_again] {
        assert_no_trace(&provider, &vm).await?;
    }
    steps.next("nothing is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_damaged_after_it_was_fetched_is_fetched_again_for_the_next_create()
-> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let provider = Setup::new()?.with_images(&[Image::for_tests()?])?.start().await?;
    let client = provider.client();
    let made = async || {
        client.post("/vms?async=true", &json!({ "name": "my-vm" })).await?.expect(202)?;
        let (deadline, pause) = (Duration::from_secs(120), Duration::from_millis(200));
        wait::until("a machine", deadline, pause, async || {
            let vm = client.get("/vms/my-vm").await?.expect(200)?;
            ensure!(vm["status"] != "error", "{vm}");
            Ok((!provider.machines().is_empty()).then_some(()))
        })
        .await?;
        delete_soon(client).await
    };
    steps.next("creating");
    made().await?;
    let damaged = StoredImages::of(&provider)?.damage()?;
    steps.next("creating from what was damaged");
    made().await?;
    damaged.assert_mended(&provider)?;
    assert_nothing_held(&provider).await
}

/// The VM, once it is given up and holds nothing any more.
async fn failed_for_its_digest(provider: &Provider) -> Result<Value> {
    let failed = vm(provider.client(), "my-vm", "error").await?;
    ensure_digest_is_blamed(text(&failed, "error_message")?)?;
    let (deadline, pause) = (Duration::from_secs(15), Duration::from_millis(500));
    wait::until("everything to be given back", deadline, pause, async || {
        Ok(assert_nothing_held(provider).await.ok())
    })
    .await?;
    Ok(failed)
}

fn ensure_digest_is_blamed(reason: &str) -> Result<()> {
    let words = ["sha256", "sha-256", "digest", "checksum"];
    let reason = reason.to_lowercase();
    ensure!(words.iter().any(|word| reason.contains(word)), "nobody learns why: {reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_ends_a_create_and_of_two_creates_of_one_name_one_is_refused() -> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let setup = Setup::new()?.with("MAX_VMS", 1).with_images(&[Image::for_tests()?])?;
    let provider = setup.start().await?;
    let client = provider.client();
    let request = json!({ "name": "my-vm" });

    steps.next("creating twice");
    let (one, other) = tokio::join!(
        client.post("/vms?async=true", &request),
        client.post("/vms?async=true", &request)
    );
    let (one, other) = (one?, other?);
    let (won, lost) = if one.status == 202 { (one, other) } else { (other, one) };
    let job = format!("/vms/jobs/{}", text(&won.expect(202)?, "job_id")?);
    assert!(lost.refusal(409)?.contains("my-vm"), "{}", lost.text);
    let refusal = client.post("/vms?async=true", &json!({ "name": "another-vm" })).await?;
    assert!(refusal.refusal(409)?.contains('1'), "{}", refusal.text);

    steps.next("waiting for the machine to boot");
    let (deadline, pause) = (Duration::from_secs(120), Duration::from_millis(200));
    wait::until("a machine", deadline, pause, async || {
        Ok((!provider.machines().is_empty()).then_some(()))
    })
    .await?;
    let creating = vm(client, "my-vm", "creating").await?;
    steps.next("deleting while it boots");
    delete_soon(client).await?;
    client.get(&job).await?.refusal(404)?;
    assert_no_trace(&provider, &creating).await?;

    steps.next("deleting while somebody waits for the create's answer");
    let waiting = tokio::spawn({
        let (client, request) = (client.clone(), request.clone());
        async move { client.post("/vms", &request).await }
    });
    let creating = wait::until("the VM", deadline, pause, async || {
        let answer = client.get("/vms/my-vm").await?;
        Ok((answer.status == 200).then_some(answer))
    })
    .await?;
    let creating = creating.json()?;
    assert_shape(&creating, "creating")?;
    delete_soon(client).await?;
    let answer = wait::within("the create's answer", Duration::from_secs(10), waiting).await???;
    let refusal = answer.refusal(409)?;
    assert!(refusal.contains("deleted"), "{refusal}");
    assert_no_trace(&provider, &creating).await?;
    steps.next("nothing is left");
    Ok(())
}

async fn delete_soon(client: &Client) -> Result<()> {
    let deleted = client.delete("/vms/my-vm");
    let deleted =
        wait::within("deleting a VM that is being made", Duration::from_secs(30), deleted);
    deleted.await??.expect(200).context("deleting a VM that is being made")?;
    Ok(())
}
