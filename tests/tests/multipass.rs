//! The life of VMs that Multipass makes, with a stand-in for its program that is slow, hangs and lies as the real one does.
//!
//! All but the last have their machines on paper.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use golem_provider::faults::FaultPoint::{CreateMade, DeleteCleared, PluginHostCall};
use golem_provider_tests::{
    Client, Image, Key, KeyKind, Multipass, Provider, Setup, Ssh, StandIn, database,
    multipass::REAL_IMAGE, ports, wait,
};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKqP3GRLUWVzUCw5cE6D2Tq8b4AwAWTK8kE5PCnO6oXo two@example.org";

const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

async fn provider(multipass: &Multipass) -> Result<Provider> {
    Setup::new()?.with_multipass(multipass)?.start().await
}

/// An SSH server at the address that the stand-in will show for its machine's `number`th address.
async fn ssh_at(multipass: &Multipass, number: u8) -> Result<StandIn> {
    let address: SocketAddr = format!("{}:22", multipass.address(number)).parse()?;
    StandIn::start_at(address).await
}

fn body(name: &str) -> Value {
    json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": KEY })
}

async fn create(client: &Client, name: &str) -> Result<(String, u16)> {
    let vm = client.post("/vms", &body(name)).await?;
    ensure!(matches!(vm.status, 200 | 201), "{} {}", vm.status, vm.text);
    let vm = vm.json()?;
    ensure!(vm["status"] == "running", "{vm}");
    let id = vm["id"].as_str().context("no id")?.to_owned();
    let port = vm["ssh_port"].as_u64().context("no port")?;
    Ok((id, u16::try_from(port)?))
}

async fn status(provider: &Provider, name: &str) -> Result<Value> {
    let vm = provider.client().get(&format!("/vms/{name}")).await?.expect(200)?;
    Ok(vm["status"].clone())
}

async fn becomes(provider: &Provider, name: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("{name} to be {wanted}"), DEADLINE, PAUSE, async || {
        Ok((status(provider, name).await? == wanted).then_some(()))
    })
    .await
}

/// Waits until Multipass was told to make a machine, and answers its name.
async fn being_made(provider: &Provider) -> Result<String> {
    let multipass = provider.multipass();
    wait::until("Multipass to make a machine", DEADLINE, PAUSE, async || {
        Ok(multipass.instances()?.keys().next().cloned())
    })
    .await
}

fn assert_nothing_is_left(provider: &Provider, id: &str) -> Result<()> {
    let instances = provider.multipass().instances()?;
    ensure!(instances.is_empty(), "machines are left: {instances:?}");
    let rows = database::rows_that_mention(&provider.data_dir(), id)?;
    ensure!(rows.is_empty(), "rows are left: {rows:?}");
    let files = provider.files_named(id)?;
    ensure!(files.is_empty(), "files are left: {files:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_reached_stopped_started_and_deleted_without_a_trace() -> Result<()> {
    let multipass = Multipass::on_paper();
    let ssh = ssh_at(&multipass, 1).await?;
    let provider = provider(&multipass).await?;
    let (client, multipass) = (provider.client(), provider.multipass());

    let (id, port) = create(client, "my-vm").await?;
    StandIn::assert_reached_through(port).await?;
    assert_eq!(ssh.sessions(), 1);
    let launches = multipass.calls("launch")?;
    assert_eq!(launches.len(), 1);
    let words = launches[0].arguments.join(" ");
    let asked = format!("launch 24.04 --name {id} --cpus 1 --memory 1024M --disk 10240M ");
    assert!(words.starts_with(&asked), "{words}");
    let document = &launches[0].stdin;
    let user_data: Value = serde_json::from_str(
        document.strip_prefix("#cloud-config\n").context("no document for cloud-init")?,
    )?;
    assert_eq!(user_data["hostname"], "my-vm");
    assert_eq!(user_data["users"][1]["ssh_authorized_keys"], json!([KEY]));
    // Not what Multipass measures inside, which is less.
    let vm = client.get("/vms/my-vm").await?.expect(200)?;
    assert_eq!(vm["resources"], json!({ "cpu": 1, "memory": 1, "storage": 10 }));

    for _ in 0..2 {
        let answer = client.post("/vms/my-vm/ssh-keys", &json!({ "key": OTHER_KEY })).await?;
        assert!(answer.status < 300, "{} {}", answer.status, answer.text);
    }
    assert_eq!(multipass.added_keys(&id)?, format!("{OTHER_KEY}\n"));

    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    assert_eq!(multipass.instances()?[&id]["power"], "off");
    assert_eq!(multipass.calls("stop")?.len(), 1, "it was asked to, and not forced");
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    StandIn::assert_reached_through(port).await?;

    client.delete("/vms/my-vm").await?.expect(200)?;
    client.get("/vms/my-vm").await?.refusal(404)?;
    assert!(ports::can_be_bound(port));
    assert_nothing_is_left(&provider, &id)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_that_a_machine_has_after_a_restart_is_followed() -> Result<()> {
    let multipass = Multipass::on_paper().with("address_changes", true);
    let (first, second) = (ssh_at(&multipass, 1).await?, ssh_at(&multipass, 2).await?);
    let provider = provider(&multipass).await?;
    let client = provider.client();
    let (_, port) = create(client, "my-vm").await?;
    StandIn::assert_reached_through(port).await?;
    assert_eq!((first.sessions(), second.sessions()), (1, 0));
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    let vm = client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    assert_eq!(vm["ip_address"], multipass.address(2).as_str());
    StandIn::assert_reached_through(port).await?;
    assert_eq!((first.sessions(), second.sessions()), (1, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_times_out_while_the_machine_boots_on_is_no_failure() -> Result<()> {
    let multipass = Multipass::on_paper().with("boot_seconds", 4);
    let provider = provider(&multipass).await?;
    create(provider.client(), "my-vm").await?;
    let codes: Vec<_> =
        provider.multipass().calls("launch")?.into_iter().map(|call| call.code).collect();
    assert_eq!(codes, [5]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_calls_itself_failed_is_judged_by_its_machine() -> Result<()> {
    let multipass = Multipass::on_paper();
    let provider = provider(&multipass).await?;
    for (name, words) in [
        ("one", "launch failed: one: timed out waiting for response"),
        ("two", "launch failed: something odd has happened"),
    ] {
        provider.multipass().set("launch_lies", json!({ "code": 2, "stderr": words }))?;
        create(provider.client(), name).await?;
    }
    assert_eq!(provider.multipass().calls("launch")?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_id_is_too_long_for_multipass_has_a_shorter_name_there() -> Result<()> {
    let provider = provider(&Multipass::on_paper()).await?;
    let name = "a".repeat(64);
    let (id, _) = create(provider.client(), &name).await?;
    let instances = provider.multipass().instances()?;
    let short = instances.keys().next().context("no machine")?;
    assert!(id.len() > 63 && short.len() <= 63 && id.starts_with(&short[..50]), "{short}");
    provider.client().delete(&format!("/vms/{name}")).await?.expect(200)?;
    assert_nothing_is_left(&provider, &id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_takes_longer_than_a_launch_waits_for_is_fetched_all_the_same() -> Result<()>
{
    let multipass = Multipass::on_paper().with("download_seconds", 5);
    let provider = provider(&multipass).await?;
    create(provider.client(), "my-vm").await?;
    // After 2 and 4 seconds the download ended with the command that had asked for it.
    let codes: Vec<_> =
        provider.multipass().calls("launch")?.into_iter().map(|call| call.code).collect();
    assert_eq!(codes, [5, 5, 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_fails_says_why_and_leaves_nothing() -> Result<()> {
    let provider = provider(&Multipass::on_paper()).await?;
    let (client, multipass) = (provider.client(), provider.multipass());
    let full = json!({ "stderr": "launch failed: write: No space left on device" });
    multipass.set("launch_fails", full)?;
    let answer = client.post("/vms", &body("my-vm")).await?;
    assert!(answer.status >= 400 && answer.text.contains("No space left"), "{answer:?}");
    client.delete("/vms/my-vm").await?;
    assert!(multipass.instances()?.is_empty());
    multipass.set("launch_fails", Value::Null)?;
    create(client, "my-vm").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_hangs_and_blocks_everything_ends_with_the_machine_switched_off() -> Result<()>
{
    let multipass = Multipass::on_paper().with("stop_hangs", true).with("hang_seconds", 3);
    let provider = provider(&multipass).await?;
    let (client, multipass) = (provider.client(), provider.multipass());
    let (id, _) = create(client, "my-vm").await?;
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    assert_eq!(multipass.instances()?[&id]["power"], "off");
    let stops: Vec<_> =
        multipass.calls("stop")?.iter().map(|call| call.arguments.join(" ")).collect();
    assert_eq!(stops, [format!("stop {id}"), format!("stop --force {id}")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_never_answers_is_deleted_while_it_boots_and_never_asked_to_shut_down()
-> Result<()> {
    let provider = provider(&Multipass::on_paper().with("never_ready", true)).await?;
    let (client, multipass) = (provider.client(), provider.multipass());
    client.post("/vms?async=true", &body("my-vm")).await?.expect(202)?;
    let id = being_made(&provider).await?;
    client.delete("/vms/my-vm").await?.expect(200)?;
    assert!(multipass.calls("stop")?.is_empty());
    assert_nothing_is_left(&provider, &id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_only_says_that_it_went_well_is_repeated() -> Result<()> {
    let provider = provider(&Multipass::on_paper().with("delete_lies", 2)).await?;
    let (id, _) = create(provider.client(), "my-vm").await?;
    provider.client().delete("/vms/my-vm").await?.expect(200)?;
    assert_eq!(provider.multipass().calls("delete")?.len(), 3);
    assert_nothing_is_left(&provider, &id)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_daemon_is_down_vms_are_left_as_they_are_and_nothing_new_is_promised()
-> Result<()> {
    let multipass = Multipass::on_paper();
    let _ssh = ssh_at(&multipass, 1).await?;
    let mut provider = provider(&multipass).await?;
    let (_, port) = create(provider.client(), "my-vm").await?;
    provider.multipass().set("daemon", "down")?;
    let answer = provider.client().post("/vms", &body("other-vm")).await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.text.contains("multipass socket"), "{}", answer.text);
    // Also where the provider itself is started anew meanwhile.
    provider.kill()?;
    provider.start_again().await?;
    assert_eq!(status(&provider, "my-vm").await?, "running");
    provider.multipass().set("daemon", "up")?;
    wait::until("the VM to be reached", DEADLINE, PAUSE, async || {
        Ok(StandIn::assert_reached_through(port).await.ok())
    })
    .await?;
    provider.client().post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_shut_down_by_hand_is_recorded_as_stopped_with_the_reason() -> Result<()>
{
    let mut provider = provider(&Multipass::on_paper()).await?;
    let (id, _) = create(provider.client(), "my-vm").await?;
    provider.kill()?;
    provider.multipass().by_hand(&["stop", "--force", &id])?;
    provider.start_again().await?;
    let vm = provider.client().get("/vms/my-vm").await?.expect(200)?;
    assert_eq!(vm["status"], "stopped", "{vm}");
    let reason = vm["error_message"].as_str().context("no reason")?;
    assert!(reason.contains("shut down from within or by hand"), "{reason}");
    // `exec` would have started it.
    let key = json!({ "key": OTHER_KEY });
    assert!(provider.client().post("/vms/my-vm/ssh-keys", &key).await?.status >= 400);
    assert_eq!(provider.multipass().instances()?[&id]["power"], "off");
    provider.client().post_nothing("/vms/my-vm/start").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_its_provider_did_not_live_to_see_is_finished_by_the_next_start() -> Result<()>
{
    let mut provider = provider(&Multipass::on_paper().with("prepare_seconds", 3)).await?;
    provider.client().post("/vms?async=true", &body("my-vm")).await?.expect(202)?;
    being_made(&provider).await?;
    provider.kill()?;
    provider.start_again().await?;
    becomes(&provider, "my-vm", "running").await?;
    assert_eq!(provider.multipass().instances()?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_was_cut_off_leaks_no_machine() -> Result<()> {
    let mut provider = provider(&Multipass::on_paper().with("prepare_seconds", 3)).await?;
    provider.client().post("/vms?async=true", &body("my-vm")).await?.expect(202)?;
    let id = being_made(&provider).await?;
    provider.kill()?;
    provider.start_again().await?;
    // Multipass denies that there is such a machine, and makes it all the same.
    provider.client().delete("/vms/my-vm").await?.expect(200)?;
    assert_nothing_is_left(&provider, &id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_killed_after_any_command_leaves_nothing_that_a_delete_does_not_remove()
-> Result<()> {
    let mut provider = provider(&Multipass::on_paper().with("prepare_seconds", 1)).await?;
    let client = provider.client().clone();
    for visit in 1..20 {
        provider.arm(&[(PluginHostCall, visit), (CreateMade, 1)])?;
        // Whether it was answered before the end depends on the moment.
        let _ = client.post("/vms?async=true", &body("my-vm")).await;
        let died_at = provider.death().await?;
        provider.start_again().await?;
        let deleted = client.delete("/vms/my-vm").await?;
        ensure!(matches!(deleted.status, 200 | 404), "{} {}", deleted.status, deleted.text);
        let instances = provider.multipass().instances()?;
        ensure!(instances.is_empty(), "machines are left: {instances:?}");
        let rows = database::rows_that_mention(&provider.data_dir(), "my-vm")?;
        // Of a machine that may yet appear, the plugin remembers for a while that it has to go.
        let left: Vec<_> = rows.iter().filter(|row| !row.starts_with("plugin_state: ")).collect();
        ensure!(left.is_empty(), "rows are left: {left:?}");
        ensure!(rows.is_empty() || rows.iter().any(|row| row.contains("abandoned")), "{rows:?}");
        if died_at == CreateMade {
            return Ok(());
        }
    }
    bail!("a create never comes to its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_killed_after_any_command_is_finished_by_the_next_start() -> Result<()> {
    let mut provider = provider(&Multipass::on_paper()).await?;
    let client = provider.client().clone();
    for visit in 1..20 {
        create(&client, "my-vm").await?;
        provider.arm(&[(PluginHostCall, visit), (DeleteCleared, 1)])?;
        let answer = client.delete("/vms/my-vm").await;
        let died_at = provider.death().await?;
        ensure!(answer.is_err(), "answered before it was done: {answer:?}");
        provider.start_again().await?;
        wait::until("the VM to be gone", DEADLINE, PAUSE, async || {
            Ok((client.get("/vms/my-vm").await?.status == 404).then_some(()))
        })
        .await?;
        assert_nothing_is_left(&provider, "my-vm")?;
        if died_at == DeleteCleared {
            return Ok(());
        }
    }
    bail!("a delete never comes to its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_by_multipass_is_logged_in_to_from_its_making_to_its_end() -> Result<()> {
    let multipass = Multipass::booting(&Image::for_tests()?)?.with("address_changes", true);
    let provider =
        Setup::new()?.with_multipass(&multipass)?.with("DEFAULT_VM_IMAGE", REAL_IMAGE).start();
    let provider = provider.await?;
    let client = provider.client();
    let key = Key::generate(KeyKind::Ed25519).await?;
    let request = json!({ "name": "my-vm", "cpu_cores": 2, "memory_gb": 1, "storage_gb": 10, "ssh_key": key.public });
    let answer = client.post("/vms", &request).await?;
    ensure!(matches!(answer.status, 200 | 201), "{} {}", answer.status, answer.text);
    let vm = answer.json()?;
    let id = vm["id"].as_str().context("no id")?;
    let ssh = Ssh::to(u16::try_from(vm["ssh_port"].as_u64().context("no port")?)?)?;
    let seen = ssh.run(&key, "id -u; hostname; nproc; echo kept >/root/note; sync").await?;
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["0", "my-vm", "2"]);

    let second = Key::generate(KeyKind::Rsa).await?;
    assert_ne!(ssh.try_run(&second, "true", &[]).await?.code, Some(0), "any key logs in");
    let answer = client.post("/vms/my-vm/ssh-keys", &json!({ "key": second.public })).await?;
    ensure!(answer.status < 300, "{} {}", answer.status, answer.text);
    assert_eq!(ssh.run(&second, "cat /root/note").await?, "kept");

    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    assert!(provider.machines().is_empty());
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    assert_eq!(ssh.run(&second, "cat /root/note").await?, "kept");

    client.delete("/vms/my-vm").await?.expect(200)?;
    assert!(provider.machines().is_empty());
    assert_nothing_is_left(&provider, id)
}
