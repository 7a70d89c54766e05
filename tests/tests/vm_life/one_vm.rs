//! The life of one VM, asked for as the product's brief writes it.

use anyhow::{Context, Result};
use golem_provider_tests::{Image, Key, KeyKind, Setup, Ssh};
use serde_json::json;

use crate::checks::{
    Steps, assert_no_trace, assert_only_here, assert_resets, assert_shape, held, machine, ssh_port,
    text, vm,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_briefs_own_request_gives_a_root_shell_until_a_delete_that_leaves_nothing() -> Result<()>
{
    let _turn = machine().await?;
    let steps = Steps::begin();
    let provider = Setup::new()?.with_images(&[Image::for_tests()?])?.start().await?;
    let client = provider.client();
    let key = Key::generate(KeyKind::Ed25519).await?;

    steps.next("creating");
    let request = json!({
        "name": "my-webserver", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20, "stream_id": 123, "ssh_key": key.public,
    });
    let answer = client.post("/vms", &request).await?;
    assert!(matches!(answer.status, 200 | 201), "{} {}", answer.status, answer.text);
    let made = answer.json()?;
    assert_shape(&made, "running")?;
    assert_eq!(made["name"], "my-webserver");
    assert_eq!(made["resources"], json!({ "cpu": 2, "memory": 4, "storage": 20 }));
    assert_eq!(made["error_message"], json!(null));
    let (id, port) = (text(&made, "id")?, ssh_port(&made)?);
    assert!(provider.ssh_ports().contains(&port), "{port}");
    assert_only_here(port)?;

    steps.next("reading, by either id");
    assert_eq!(vm(client, "my-webserver", "running").await?, made);
    assert_eq!(vm(client, id, "running").await?, made);
    assert_eq!(client.get("/vms").await?.expect(200)?, json!([made]));
    for either in ["my-webserver", id] {
        let access = client.get(&format!("/vms/{either}/access")).await?.expect(200)?;
        assert_eq!(access["ssh_host"], "127.0.0.1");
        assert_eq!(ssh_port(&access)?, port);
        assert_eq!(access["vm_id"], "my-webserver");
        assert_eq!(access["multipass_name"], id);
    }
    assert_eq!(held(client).await?, json!({ "cpu": 2, "memory": 4, "storage": 20 }));
    client.post("/vms?async=true", &request).await?.refusal(409)?;

    steps.next("logging in");
    let ssh = Ssh::to(port)?;
    let look = "id -u; hostname; nproc; awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo; df -B1 --output=size / | tail -n 1";
    let seen = ssh.run(&key, look).await?;
    let seen: Vec<&str> = seen.lines().map(str::trim).collect();
    let [user, hostname, cores, memory, disk] = seen[..] else {
        anyhow::bail!("the VM shows {seen:?}");
    };
    assert_eq!((user, hostname, cores), ("0", "my-webserver", "2"));
    let gib = |bytes: &str| -> Result<f64> {
        Ok(bytes.parse::<f64>().with_context(|| format!("{seen:?}"))? / f64::from(1 << 30))
    };
    // The kernel keeps some of the memory for itself, the file system some of the disk for its tables.
    assert!((3.7..=4.0).contains(&gib(memory)?), "{seen:?}");
    assert!((19.0..=20.0).contains(&gib(disk)?), "{seen:?}");
    ssh.run(&key, "echo kept > /root/note && sync").await?;

    steps.next("adding a key");
    let second = Key::generate(KeyKind::Ed25519).await?;
    assert_ne!(ssh.try_run(&second, "true", &[]).await?.code, Some(0), "any key logs in");
    let add = json!({ "key": second.public, "name": "laptop" });
    let answer = client.post("/vms/my-webserver/ssh-keys", &add).await?;
    assert!(answer.status < 300, "{} {}", answer.status, answer.text);
    assert_eq!(ssh.run(&second, "cat /root/note").await?, "kept");
    let no_key = client.post("/vms/my-webserver/ssh-keys", &json!({ "key": "no key" })).await?;
    no_key.refusal(422)?;

    steps.next("stopping");
    let stopped = client.post_nothing("/vms/my-webserver/stop").await?.expect(200)?;
    assert_shape(&stopped, "stopped")?;
    assert_eq!(stopped["error_message"], json!(null));
    assert!(provider.machines().is_empty());
    assert_resets(port).await?;
    let again = client.post_nothing(&format!("/vms/{id}/stop")).await?.expect(200)?;
    assert_shape(&again, "stopped")?;
    vm(client, "my-webserver", "stopped").await?;
    assert_eq!(held(client).await?, json!({ "cpu": 2, "memory": 4, "storage": 20 }));

    steps.next("starting");
    let started = client.post_nothing("/vms/my-webserver/start").await?.expect(200)?;
    assert_shape(&started, "running")?;
    assert_eq!(ssh_port(&started)?, port);
    assert_eq!(started["created_at"], made["created_at"]);
    assert_eq!(ssh.run(&second, "cat /root/note").await?, "kept");
    let again = client.post_nothing("/vms/my-webserver/start").await?.expect(200)?;
    assert_shape(&again, "running")?;
    let third = Key::generate(KeyKind::Rsa).await?;
    let add = json!({ "public_key": third.public, "name": "desktop" });
    let answer = client.post(&format!("/vms/{id}/ssh-keys"), &add).await?;
    assert!(answer.status < 300, "{} {}", answer.status, answer.text);
    assert_eq!(ssh.run(&third, "cat /root/note").await?, "kept");

    steps.next("deleting");
    let deleted = client.delete("/vms/my-webserver").await?.expect(200)?;
    assert!(deleted.is_null(), "{deleted}");
    assert_no_trace(&provider, &made).await?;
    steps.next("nothing is left");
    Ok(())
}
