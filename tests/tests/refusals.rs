//! What a provider refuses, and how it says so, to requestors and to operators. No VM is made in here.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result};
use golem_provider_tests::{Client, DEFAULT_IMAGE, Image, Provider, Setup, ports};
use reqwest::Method;
use serde_json::{Value, json};

/// A provider that could make VMs.
async fn provider() -> Result<Provider> {
    Setup::new()?.with_images(&[Image::for_tests()?])?.start().await
}

/// Sees to it that nothing was made.
async fn assert_nothing_is_there(provider: &Provider) -> Result<()> {
    assert_eq!(provider.client().get("/vms").await?.expect(200)?, json!([]));
    assert!(provider.machines().is_empty());
    Ok(())
}

async fn refused(client: &Client, status: u16, body: Value) -> Result<String> {
    let answer = client.post("/vms?async=true", &body).await?;
    answer.refusal(status).with_context(|| format!("creating {body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_met_is_refused_by_the_post_itself() -> Result<()> {
    let provider = provider().await?;
    let client = provider.client();

    for image in ["windows-95", "--mount=/etc:/mnt", "../../etc/passwd"] {
        let refusal = refused(client, 400, json!({ "name": "my-vm", "image": image })).await?;
        assert!(refusal.contains(DEFAULT_IMAGE), "known images are not named: {refusal}");
    }
    for name in ["ab", "My-Vm", "-vm-", "my--vm", "my_vm", "../vm", "-rf", &"a".repeat(65)] {
        let refusal = refused(client, 422, json!({ "name": name })).await?;
        assert!(refusal.contains(r#""name""#), "{refusal}");
    }
    refused(client, 422, json!({ "name": "my-vm", "image": "debian-12\n--mount=/etc:/mnt" }))
        .await?;
    let everything_wrong =
        json!({ "name": "", "cpu_cores": 3, "memory_gb": 5, "storage_gb": 9, "ssh_key": "no key" });
    let answer = client.post("/vms", &everything_wrong).await?.expect(422)?;
    let problems = answer["detail"].as_array().context("no list of problems")?;
    for field in ["name", "cpu_cores", "memory_gb", "storage_gb", "ssh_key"] {
        let named = |problem: &&Value| {
            problem["loc"].as_array().is_some_and(|loc| loc.contains(&json!(field)))
                && problem["msg"].is_string()
                && problem["type"].is_string()
        };
        assert!(problems.iter().any(|problem| named(&problem)), "{field} is not in {answer}");
    }
    for key in [
        "ssh-ed25519 AAAA",
        "command=\"sh\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio",
    ] {
        refused(client, 422, json!({ "name": "my-vm", "ssh_key": key })).await?;
    }
    // More than any machine that runs this test has: the largest that may be asked for, and a petabyte.
    let huge =
        json!({ "name": "my-vm", "cpu_cores": 16, "memory_gb": 64, "storage_gb": 1_000_000 });
    let answer = client.post("/vms", &huge).await?;
    assert!(matches!(answer.status, 409 | 422), "{} {}", answer.status, answer.text);
    answer.refusal(answer.status)?;

    assert_nothing_is_there(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_for_which_there_is_no_room_is_refused_with_what_there_is() -> Result<()> {
    let provider = provider().await?;
    let total = &provider.client().get("/summary").await?.expect(200)?["resources"]["total"];
    let cores = total["cpu"].as_u64().context("no cores in /summary")?;
    let Some(too_many) = [1, 2, 4, 8, 16].into_iter().find(|sold| *sold > cores) else {
        anyhow::bail!("this machine has {cores} cores; no VM is too large for it");
    };
    let body = json!({ "name": "my-vm", "cpu_cores": too_many, "memory_gb": 1, "storage_gb": 10 });
    let refusal = refused(provider.client(), 409, body).await?;
    assert!(refusal.contains(&too_many.to_string()), "{refusal}");
    assert!(refusal.contains(&cores.to_string()), "{refusal}");
    assert_nothing_is_there(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_has_as_many_vms_as_it_may_refuses_more() -> Result<()> {
    let setup = Setup::new()?.with("MAX_VMS", 0).with_images(&[Image::for_tests()?])?;
    let provider = setup.start().await?;
    refused(provider.client(), 409, json!({ "name": "my-vm" })).await?;
    assert_nothing_is_there(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_at_all_is_refused_in_the_form_that_clients_read() -> Result<()> {
    let provider = provider().await?;
    let client = provider.client();
    let post = |body: &str| client.send(Method::POST, "/api/v1/vms", Some(body.to_owned()));
    for body in ["", "{", "[]", "null", "{\"name\": 7}", "\u{0}"] {
        let answer = post(body).await?;
        assert!(matches!(answer.status, 400 | 422), "{body}: {} {}", answer.status, answer.text);
        answer.refusal(answer.status)?;
    }
    let too_long = format!("{{\"name\": \"{}\"}}", "a".repeat(70_000));
    post(&too_long).await?.refusal(413)?;
    client.send(Method::PUT, "/api/v1/vms", None).await?.refusal(405)?;
    client.get("/no-such-thing").await?.refusal(404)?;
    // Nobody ends the provider from outside.
    for path in ["/api/v1/admin/shutdown", "/admin/shutdown"] {
        client.send(Method::POST, path, None).await?.refusal(404)?;
    }
    assert_nothing_is_there(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_not_there_is_not_found_whatever_is_asked_of_it() -> Result<()> {
    let provider = provider().await?;
    let client = provider.client();
    for id in ["nobody", "golem-nobody-20250219-130424", "jobs"] {
        let path = format!("/vms/{id}");
        for answer in [
            client.get(&path).await?,
            client.get(&format!("{path}/access")).await?,
            client.post_nothing(&format!("{path}/stop")).await?,
            client.post_nothing(&format!("{path}/start")).await?,
            client.delete(&path).await?,
        ] {
            let refusal = answer.refusal(404)?;
            assert!(refusal.contains("Not Found"), "{}: {refusal}", answer.request);
        }
    }
    let unknown_job = "/vms/jobs/6b1f3c2a-0000-4000-8000-000000000000";
    client.get(unknown_job).await?.refusal(404)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_too_often_is_told_when_to_come_back() -> Result<()> {
    let setup =
        Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 5).with_images(&[Image::for_tests()?])?;
    let provider = setup.start().await?;
    let client = provider.client();
    let mut limited = None;
    for _ in 0..10 {
        let answer = client.get("/vms").await?;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
        answer.expect(200)?;
    }
    let limited = limited.context("ten requests at once were within a limit of five a minute")?;
    limited.refusal(429)?;
    let seconds = limited.headers.get("retry-after").context("no Retry-After")?.to_str()?;
    let seconds: u64 = seconds.parse().context("Retry-After is no number of seconds")?;
    assert!((1..=60).contains(&seconds), "{seconds}");
    // Whoever watches over the provider is no requestor.
    client.send(Method::GET, "/health", None).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_development_nobody_else_on_the_network_reaches_the_provider() -> Result<()> {
    let provider = provider().await?;
    let listeners = ports::listeners(provider.api_port())?;
    assert!(listeners.iter().all(IpAddr::is_loopback), "{listeners:?}");
    assert_eq!(listeners.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_provider_on_the_same_data_is_refused_and_the_first_goes_on() -> Result<()> {
    let mut provider = provider().await?;
    let second = provider.run_a_second_one().await?;
    assert_eq!(second.status.code(), Some(1), "{}", second.stderr);
    let data_dir = provider.data_dir().display().to_string();
    assert!(second.stderr.contains(&data_dir), "{}", second.stderr);
    assert!(second.stderr.contains(&provider.pid()?.to_string()), "{}", second.stderr);
    provider.client().get("/vms").await?.expect(200)?;
    assert_eq!(provider.terminate().await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong_are_all_told_before_anything_starts() -> Result<()> {
    let setup = Setup::new()?.with("RATE_LIMT_PER_MINUTE", 5).with("MAX_VMS", "many");
    let ended = setup.run_to_the_end().await?;
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
    for told in [
        "GOLEM_PROVIDER_RATE_LIMT_PER_MINUTE",
        "GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTE",
        "GOLEM_PROVIDER_MAX_VMS",
        "many",
    ] {
        assert!(ended.stderr.contains(told), "{told} is not in: {}", ended.stderr);
    }
    assert!(!setup.data_dir().join("provider.db").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn help_needs_nothing_and_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?.with_command(&["--help"]).with("MAX_VMS", "many");
    let ended = setup.run_to_the_end().await?;
    assert!(ended.status.success(), "{}", ended.stderr);
    for taught in ["start", "dev", "GOLEM_PROVIDER_DATA_DIR", "GOLEM_PROVIDER_VM_BACKEND"] {
        assert!(ended.stdout.contains(taught), "{taught} is not in: {}", ended.stdout);
    }
    let unknown = Setup::new()?.with_command(&["strat"]).run_to_the_end().await?;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(unknown.stderr.contains("start"), "{}", unknown.stderr);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_file_that_is_no_plugin_is_named_to_the_operator_and_to_requestors() -> Result<()>
{
    let setup = Setup::new()?.with_images(&[Image::for_tests()?])?;
    let file = setup.plugin_dir().join("qemu.wasm");
    fs::write(&file, "this is no component")?;
    let provider = setup.start().await?;
    let log = provider.log()?;
    assert!(log.contains(&file.display().to_string()), "{log}");
    let refusal = refused(provider.client(), 503, json!({ "name": "my-vm" })).await?;
    assert!(refusal.contains("qemu"), "{refusal}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_setting_that_is_misspelt_is_named_with_its_file() -> Result<()> {
    let setup = Setup::new()?;
    let file = setup.plugin_dir().join("qemu.toml");
    fs::write(&file, "[settings]\nacelerator = \"tcg\"\n")?;
    let provider = setup.start().await?;
    let log = provider.log()?;
    assert!(log.contains("acelerator") && log.contains(&file.display().to_string()), "{log}");
    Ok(())
}
