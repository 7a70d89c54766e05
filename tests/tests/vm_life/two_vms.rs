//! Two VMs at once, made as the existing client makes them, apart from each other and from the computer they run on; and
//! what becomes of them when the provider, or one of them, ends.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Client, Image, Key, KeyKind, Provider, Setup, Ssh, ports, processes::Process, wait,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::checks::{
    Steps, StoredImages, assert_no_trace, assert_resets, held, machines, nothing, running,
    ssh_port, text, vm,
};

/// A setting whose value may not turn up in a VM's process.
const CANARY: &str = "a-name-that-no-vm-is-told";

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_at_once_stay_apart_and_outlive_the_provider() -> Result<()> {
    let _turn = machines(2).await?;
    let steps = Steps::begin();
    let setup = Setup::new()?.with("NAME", CANARY).with_images(&[Image::for_tests()?])?;
    let mut provider = setup.start().await?;
    let client = provider.client().clone();
    let key = Key::generate(KeyKind::Rsa).await?;

    steps.next("creating two");
    let alpha = json!({ "name": "alpha", "resources": { "cpu": 1, "memory": 1, "storage": 10 }, "ssh_key": key.public });
    let beta = json!({ "name": "beta", "size": "small" });
    let (alpha, beta) =
        tokio::join!(client.post("/vms?async=true", &alpha), client.post("/vms?async=true", &beta));
    let jobs = [accepted(&alpha?.expect(202)?, "alpha")?, accepted(&beta?.expect(202)?, "beta")?];
    for name in ["alpha", "beta"] {
        vm(&client, name, "creating").await?;
        let access = client.get(&format!("/vms/{name}/access")).await?.expect(202)?;
        ensure!(access["status"] == "creating" && access["ssh_port"].is_null(), "{access}");
    }
    for job in &jobs {
        assert_eq!(client.get(job).await?.expect(200)?["status"], "creating");
    }
    assert_eq!(held(&client).await?, json!({ "cpu": 2, "memory": 2, "storage": 20 }));
    let (alpha, beta) = tokio::join!(running(&client, "alpha"), running(&client, "beta"));
    let (alpha, beta) = (alpha?, beta?);
    assert_jobs_are_ready(&client, &jobs).await?;

    steps.next("logging in to both");
    let access = client.get("/vms/alpha/access").await?.expect(200)?;
    let on_alpha = Ssh::to(ssh_port(&access)?)?;
    let on_beta = Ssh::to(ssh_port(&beta)?)?;
    assert_ne!(ssh_port(&alpha)?, ssh_port(&beta)?);
    // Beta was made without a key, so nobody gets in before it is given one.
    let betas_key = Key::generate(KeyKind::Ed25519).await?;
    assert_ne!(on_beta.try_run(&betas_key, "true", &[]).await?.code, Some(0));
    let answer = client.post("/vms/beta/ssh-keys", &json!({ "key": betas_key.public })).await?;
    assert!(answer.status < 300, "{} {}", answer.status, answer.text);
    assert_ne!(on_beta.try_run(&key, "true", &[]).await?.code, Some(0), "alpha's key opens beta");
    let (alphas, betas) = tokio::join!(
        Identity::of(&on_alpha, &key), //
        Identity::of(&on_beta, &betas_key)
    );
    let (alphas, betas) = (alphas?, betas?);
    assert_eq!((alphas.hostname.as_str(), betas.hostname.as_str()), ("alpha", "beta"));
    assert_ne!(alphas.machine_id, betas.machine_id);
    assert_ne!(alphas.host_key, betas.host_key);

    steps.next("looking for ways out of a VM");
    assert_out_of_reach(&on_alpha, &key, provider.api_port()).await?;
    assert_processes_are_confined(&provider)?;

    steps.next("sending 20 MB there and back");
    assert_an_answer_follows_the_end_of_the_input(&on_alpha, &key, ssh_port(&alpha)?).await?;

    steps.next("ending the provider");
    assert_eq!(provider.terminate().await?, 0);
    assert_eq!(provider.machines().len(), 2);
    provider.start_again().await?;
    assert_is_as_before(&client, &alpha, &alphas, &on_alpha, &key).await?;
    assert_jobs_are_ready(&client, &jobs).await?;

    steps.next("killing the provider");
    provider.kill()?;
    provider.set("STOP_VMS_ON_EXIT", true);
    provider.start_again().await?;
    assert_is_as_before(&client, &alpha, &alphas, &on_alpha, &key).await?;
    assert_is_as_before(&client, &beta, &betas, &on_beta, &betas_key).await?;

    steps.next("killing beta's process");
    on_beta.run(&betas_key, "echo kept > /root/note && sync").await?;
    process_of(&provider, &beta)?.kill()?;
    let (deadline, pause) = (Duration::from_secs(60), Duration::from_secs(1));
    let fallen = wait::until("beta to be seen stopped", deadline, pause, async || {
        let vm = client.get("/vms/beta").await?.expect(200)?;
        Ok((vm["status"] == "stopped").then_some(vm))
    })
    .await?;
    let message = text(&fallen, "error_message")?;
    for told in
        ["crashed or was killed", "its disk is kept, start it again", "its QEMU process was ended"]
    {
        ensure!(message.contains(told), "{message}");
    }
    assert_resets(ssh_port(&beta)?).await?;
    steps.next("starting beta, beneath which the image was damaged");
    // Alpha goes on with the file that it has open.
    let damaged = StoredImages::of(&provider)?.damage()?;
    let risen = client.post_nothing("/vms/beta/start").await?.expect(200)?;
    assert_eq!(risen["status"], "running");
    assert_eq!(ssh_port(&risen)?, ssh_port(&beta)?);
    assert_eq!(risen["error_message"], json!(null));
    assert_eq!(on_beta.run(&betas_key, "cat /root/note").await?, "kept");
    damaged.assert_mended(&provider)?;
    assert_is_as_before(&client, &alpha, &alphas, &on_alpha, &key).await?;

    steps.next("ending the provider and its VMs");
    assert_eq!(provider.terminate().await?, 0);
    assert!(provider.machines().is_empty(), "{:?}", provider.machines());
    provider.start_again().await?;
    for name in ["alpha", "beta"] {
        let stopped = vm(&client, name, "stopped").await?;
        assert_eq!(stopped["error_message"], json!(null), "{name}");
    }
    assert_resets(ssh_port(&alpha)?).await?;

    steps.next("deleting both");
    let betas_path = format!("/vms/{}", text(&beta, "id")?);
    let (one, other) = tokio::join!(client.delete("/vms/alpha"), client.delete(&betas_path));
    one?.expect(200)?;
    other?.expect(200)?;
    assert_eq!(held(&client).await?, nothing());
    assert_no_trace(&provider, &alpha).await?;
    assert_no_trace(&provider, &beta).await?;
    steps.next("nothing is left");
    Ok(())
}

/// Checks the answer of an asynchronous create; gives the path of its job.
fn accepted(answer: &Value, name: &str) -> Result<String> {
    ensure!(answer["vm_id"] == name && answer["status"] == "creating", "{answer}");
    Ok(format!("/vms/jobs/{}", text(answer, "job_id")?))
}

async fn assert_jobs_are_ready(client: &Client, jobs: &[String]) -> Result<()> {
    for path in jobs {
        let job = client.get(path).await?.expect(200)?;
        ensure!(job["status"] == "ready" && job["error"].is_null(), "{job}");
        for field in ["job_id", "vm_id", "created_at", "updated_at"] {
            text(&job, field)?;
        }
    }
    Ok(())
}

/// What tells one VM from another, and one boot of it from the next.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    hostname: String,
    machine_id: String,
    boot_id: String,
    host_key: String,
}

impl Identity {
    async fn of(ssh: &Ssh, key: &Key) -> Result<Identity> {
        let files = "/etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_ed25519_key.pub";
        let lines = ssh.run(key, &format!("cat {files}")).await?;
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        let [hostname, machine_id, boot_id, host_key] = <[String; 4]>::try_from(lines)
            .map_err(|lines| anyhow::anyhow!("the VM shows {lines:?}"))?;
        // The comment names the host, which is not what is meant here.
        let host_key = host_key.split(' ').take(2).collect::<Vec<_>>().join(" ");
        Ok(Identity { hostname, machine_id, boot_id, host_key })
    }
}

/// Sees to it that a VM runs, answers on its old port, and has not been started anew.
async fn assert_is_as_before(
    client: &Client,
    before: &Value,
    identity: &Identity,
    ssh: &Ssh,
    key: &Key,
) -> Result<()> {
    let now = vm(client, text(before, "name")?, "running").await?;
    for field in ["id", "ssh_port", "resources", "created_at", "error_message"] {
        ensure!(now[field] == before[field], "{field} is not as before: {now}, {before}");
    }
    let now = Identity::of(ssh, key).await?;
    ensure!(now == *identity, "{now:?} is not {identity:?}");
    Ok(())
}

fn process_of(provider: &Provider, vm: &Value) -> Result<Process> {
    let id = text(vm, "id")?;
    let machines = provider.machines();
    let own = |process: &&Process| process.arguments.iter().any(|word| word.contains(id));
    machines.iter().find(own).cloned().with_context(|| format!("{id} is not in {machines:?}"))
}

/// Sees to it that a VM reaches nothing that listens on this computer: neither by the addresses that QEMU's network stands
/// for it with, nor by its own.
async fn assert_out_of_reach(ssh: &Ssh, key: &Key, api_port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    let accept = tokio::spawn(async move { listener.accept().await });

    let mut targets = vec![(Ipv4Addr::LOCALHOST, 22)];
    for port in [port, api_port] {
        // The gateway, the name server, and an address in the same network that nobody has.
        targets.extend([2, 3, 4].map(|last| (Ipv4Addr::new(10, 0, 2, last), port)));
    }
    targets.extend(ports::own_addresses()?.into_iter().map(|address| (address, port)));
    let mut script = "probe() { timeout 10 bash -c \": <> /dev/tcp/$1/$2\" 2> /dev/null && echo $1:$2 open || echo $1:$2 closed; }\n".to_owned();
    for (address, port) in &targets {
        script += &format!("probe {address} {port} &\n");
    }
    script += "wait";
    let seen = ssh.run(key, &script).await?;
    let seen: BTreeMap<&str, &str> = seen.lines().filter_map(|line| line.split_once(' ')).collect();
    for (address, port) in targets {
        // The VM's own SSH server shows that a probe finds what can be reached.
        let expected = if address.is_loopback() { "open" } else { "closed" };
        let found = seen.get(format!("{address}:{port}").as_str());
        ensure!(found == Some(&expected), "{address}:{port} should be {expected}: {seen:?}");
    }
    ensure!(!accept.is_finished(), "a VM has reached this computer: {:?}", accept.await);
    // From here, it can be reached.
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    wait::within("a connection to a listener", Duration::from_secs(5), accept).await???;
    drop(stream);
    Ok(())
}

/// Sees to it that a VM that breaks out into its process finds nothing there that is the provider's.
fn assert_processes_are_confined(provider: &Provider) -> Result<()> {
    let own = Process::with_id(provider.pid()?)?;
    let mut providers_files = own.open_files()?;
    providers_files.remove(Path::new("/dev/null"));
    let names = own.environment()?;
    ensure!(names.contains(CANARY), "the provider's environment cannot be read");
    let names: Vec<&str> = names
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        // Every program has these two, whatever the provider's own are.
        .filter(|name| !["PATH", "LANG"].contains(name))
        .collect();
    for process in provider.machines() {
        ensure!(process.status("Seccomp")? == ["2"], "no system call filter: {process:?}");
        ensure!(process.status("NoNewPrivs")? == ["1"], "may gain privileges: {process:?}");
        let environment = process.environment()?;
        ensure!(!environment.contains(CANARY), "told the provider's settings: {environment}");
        let inherited = names.iter().find(|name| environment.contains(&format!("{name}=")));
        ensure!(inherited.is_none(), "inherited {inherited:?}: {environment}");
        let mut inherited = process.open_files()?;
        inherited.retain(|file| providers_files.contains(file));
        ensure!(inherited.is_empty(), "holds the provider's files {inherited:?}");
        if own.status("Uid")? == ["0"; 4] {
            let users = process.status("Uid")?;
            ensure!(users.iter().all(|user| *user != "0"), "runs as root: {users:?}");
            let groups = [process.status("Gid")?, process.status("Groups")?].concat();
            ensure!(groups.iter().all(|group| *group != "0"), "has root's groups: {groups:?}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                let set = process.status(set)?;
                ensure!(set == ["0000000000000000"], "has root's powers: {set:?}");
            }
        }
    }
    Ok(())
}

/// Sees to it that the port passes on the end of one direction while the other goes on, and loses nothing.
async fn assert_an_answer_follows_the_end_of_the_input(
    ssh: &Ssh,
    key: &Key,
    port: u16,
) -> Result<()> {
    // Bytes that no layer can make fewer.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let sent: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(20_000_000 / 8)
    .flatten()
    .collect();
    let output =
        ssh.try_run(key, "cat > /root/sent && cat /root/sent; rm /root/sent", &sent).await?;
    ensure!(output.code == Some(0), "{:?} {}", output.code, output.stderr);
    ensure!(output.stdout == sent, "{} bytes came back, or other ones", output.stdout.len());

    // The same one layer below: a client that has nothing more to say is still greeted.
    let greeting = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.shutdown().await?;
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).await?;
        anyhow::Ok(greeting)
    };
    let greeting = wait::within("a greeting", Duration::from_secs(60), greeting).await??;
    ensure!(greeting.starts_with("SSH-2.0-"), "greeted with {greeting:?}");
    Ok(())
}
