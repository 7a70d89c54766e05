//! The life of VMs whose machines are on paper: everything of the provider but a hypervisor, in seconds.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Client, Paper, Provider, Setup, StandIn, database, ports, wait};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKqP3GRLUWVzUCw5cE6D2Tq8b4AwAWTK8kE5PCnO6oXo two@example.org";

async fn provider(paper: &Paper) -> Result<Provider> {
    Setup::new()?.with_paper_backend(paper)?.start().await
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

async fn status(client: &Client, id: &str) -> Result<Value> {
    Ok(client.get(&format!("/vms/{id}")).await?.expect(200)?["status"].clone())
}

async fn assert_reset(port: u16) -> Result<()> {
    let connect = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.read(&mut [0; 1]).await
    };
    let end = wait::within("a connection to a stopped VM", Duration::from_secs(5), connect).await?;
    ensure!(
        end.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
        "not reset: {end:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_reached_stopped_started_and_deleted_without_a_trace() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = provider(&Paper::with_ssh_at(ssh.address())).await?;
    let (client, machines) = (provider.client(), provider.paper_machines());

    let (id, port) = create(client, "my-vm").await?;
    assert_eq!(machines.ids()?, [id.as_str()]);
    assert_eq!(machines.authorized_keys(&id)?, format!("{KEY}\n"));
    StandIn::assert_reached_through(port).await?;
    assert_eq!(ssh.sessions(), 1);

    client.post("/vms/my-vm/ssh-keys", &json!({ "key": OTHER_KEY })).await?.expect(200)?;
    assert_eq!(machines.authorized_keys(&id)?, format!("{KEY}\n{OTHER_KEY}\n"));

    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    assert!(!machines.runs(&id));
    assert_reset(port).await?;
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    assert!(machines.runs(&id));
    StandIn::assert_reached_through(port).await?;

    client.delete("/vms/my-vm").await?.expect(200)?;
    client.get("/vms/my-vm").await?.refusal(404)?;
    assert!(machines.ids()?.is_empty() && machines.half_deleted()?.is_empty());
    assert!(ports::can_be_bound(port));
    assert!(provider.files_named(&id)?.is_empty());
    assert!(database::rows_that_mention(&provider.data_dir(), &id)?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_outlives_its_provider_and_has_its_port_again() -> Result<()> {
    let ssh = StandIn::start().await?;
    let mut provider = provider(&Paper::with_ssh_at(ssh.address())).await?;
    let (id, port) = create(provider.client(), "my-vm").await?;
    provider.kill()?;
    assert!(provider.paper_machines().runs(&id));
    provider.start_again().await?;
    assert_eq!(status(provider.client(), "my-vm").await?, "running");
    StandIn::assert_reached_through(port).await?;
    provider.client().delete("/vms/my-vm").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_by_itself_is_recorded_as_stopped_with_the_reason() -> Result<()> {
    let ssh = StandIn::start().await?;
    let mut provider = provider(&Paper::with_ssh_at(ssh.address())).await?;
    let (id, _) = create(provider.client(), "my-vm").await?;
    provider.kill()?;
    provider.paper_machines().crash(&id)?;
    provider.start_again().await?;
    let vm = provider.client().get("/vms/my-vm").await?.expect(200)?;
    assert_eq!(vm["status"], "stopped", "{vm}");
    let reason = vm["error_message"].as_str().context("no reason")?;
    assert!(reason.contains("the power was cut from outside"), "{reason}");
    provider.client().post_nothing("/vms/my-vm/start").await?.expect(200)?;
    assert!(provider.paper_machines().runs(&id));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_cut_off_while_the_machine_boots_is_finished_by_the_next_start()
-> Result<()> {
    let ssh = StandIn::start().await?;
    let boot = Duration::from_millis(1500);
    let mut provider = provider(&Paper { boot, ..Paper::with_ssh_at(ssh.address()) }).await?;
    for killed in [true, false] {
        provider.client().post("/vms?async=true", &body("my-vm")).await?.expect(202)?;
        let machines = provider.paper_machines();
        let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(20));
        wait::until("the machine to be switched on", deadline, pause, async || {
            Ok(machines.ids()?.into_iter().find(|id| machines.runs(id)))
        })
        .await?;
        if killed {
            provider.kill()?;
        } else {
            ensure!(provider.terminate().await? == 0);
        }
        provider.start_again().await?;
        wait::until("my-vm to run", deadline, pause, async || {
            Ok((status(provider.client(), "my-vm").await? == "running").then_some(()))
        })
        .await?;
        provider.client().delete("/vms/my-vm").await?.expect(200)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_its_backend_cannot_carry_out_is_told_and_finished_by_the_next_start()
-> Result<()> {
    let ssh = StandIn::start().await?;
    let paper = Paper::with_ssh_at(ssh.address());
    let mut provider = provider(&Paper { fault: Some("delete-fails"), ..paper.clone() }).await?;
    let client = provider.client().clone();
    let (id, _) = create(&client, "my-vm").await?;
    let refusal = client.delete("/vms/my-vm").await?.refusal(502)?;
    ensure!(refusal.contains("my-vm") && refusal.contains("the paper does not burn"), "{refusal}");
    let vm = client.get("/vms/my-vm").await?.expect(200)?;
    ensure!(vm["id"] == id && vm["phase"] == "deleting", "{vm}");
    ensure!(vm["error_message"].as_str().is_some_and(|text| text.contains("not burn")), "{vm}");
    client.post("/vms", &body("my-vm")).await?.refusal(409)?;

    provider.set_paper(&paper)?;
    provider.terminate().await?;
    // What was asked for once is done as soon as it can be.
    provider.start_again().await?;
    let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(50));
    wait::until("the delete to be finished", deadline, pause, async || {
        Ok((client.get("/vms/my-vm").await?.status == 404).then_some(()))
    })
    .await?;
    ensure!(provider.paper_machines().ids()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operations_at_once_one_wins_and_the_other_is_told_what_is_under_way() -> Result<()>
{
    let ssh = StandIn::start().await?;
    let slow = Duration::from_millis(1000);
    let paper = Paper { shutdown: slow, boot: slow, ..Paper::with_ssh_at(ssh.address()) };
    let provider = provider(&paper).await?;
    let client = provider.client();
    create(client, "my-vm").await?;
    for (winner, loser, meanwhile, result) in
        [("stop", "start", "stopping", "stopped"), ("start", "stop", "starting", "running")]
    {
        let winning = {
            let client = client.clone();
            tokio::spawn(async move { client.post_nothing(&format!("/vms/my-vm/{winner}")).await })
        };
        let (deadline, pause) = (Duration::from_secs(10), Duration::from_millis(10));
        wait::until(meanwhile, deadline, pause, async || {
            let vm = client.get("/vms/my-vm").await?.expect(200)?;
            Ok((vm["phase"] == meanwhile).then_some(()))
        })
        .await?;
        let refused = client.post_nothing(&format!("/vms/my-vm/{loser}")).await?.expect(409)?;
        ensure!(refused["code"] == "vm_busy", "{refused}");
        let told =
            format!("VM 'my-vm' is busy: a {winner} is under way; try again when that has ended");
        ensure!(refused["detail"] == told, "{refused}");
        winning.await??.expect(200)?;
        ensure!(status(client, "my-vm").await? == result);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_creates_at_once_as_many_succeed_as_there_is_room_for() -> Result<()> {
    // Each takes a core; a computer with two has room for two.
    let room = std::thread::available_parallelism()?.get().min(3);
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with("RATE_LIMIT_PER_MINUTE", 0)
        .with("CPU_THRESHOLD", 100)
        .with("MEMORY_THRESHOLD", 100)
        .with("MAX_VMS", 3);
    let provider = setup.start().await?;
    let mut creates = tokio::task::JoinSet::new();
    for number in 0..50 {
        let client = provider.client().clone();
        creates.spawn(async move {
            client.post("/vms?async=true", &body(&format!("vm-{number}"))).await
        });
    }
    let (mut made, mut refused) = (0, 0);
    while let Some(answer) = creates.join_next().await {
        let answer = answer??;
        match answer.status {
            202 => made += 1,
            409 => {
                refused += 1;
                let reason = answer.refusal(409)?;
                ensure!(reason.contains("not enough CPU") || reason.contains('3'), "{reason}");
            }
            _ => anyhow::bail!("{} {}", answer.status, answer.text),
        }
    }
    assert_eq!((made, refused), (room, 50 - room));
    let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(50));
    wait::until("running VMs", deadline, pause, async || {
        let vms = provider.client().get("/vms").await?.expect(200)?;
        let vms = vms.as_array().context("no list")?.clone();
        ensure!(vms.len() == room, "{vms:?}");
        Ok(vms.iter().all(|vm| vm["status"] == "running").then_some(()))
    })
    .await?;
    assert_eq!(provider.paper_machines().ids()?.len(), room);
    let taken = provider.ssh_ports().filter(|port| !ports::can_be_bound(*port)).count();
    assert_eq!(taken, room);
    Ok(())
}
