//! Signed requests, and what belongs to whoever signs them. VMs are on paper.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy::{
    primitives::Address,
    signers::{SignerSync, local::PrivateKeySigner},
};
use anyhow::{Context, Result, ensure};
use golem_provider::owners::{Asked, Credentials, Nonce};
use golem_provider_tests::{Answer, Client, Paper, Setup, StandIn, database, wait};
use reqwest::Method;
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const DEADLINE: Duration = Duration::from_secs(120);

fn body(name: &str) -> Value {
    json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": KEY })
}

/// Everything that can be asked about a VM, the end of it last.
fn requests(name: &str) -> [(Method, String, Option<Value>); 7] {
    let vm = format!("/api/v1/vms/{name}");
    [
        (Method::GET, vm.clone(), None),
        (Method::HEAD, vm.clone(), None),
        (Method::GET, format!("{vm}/access"), None),
        (Method::POST, format!("{vm}/ssh-keys"), Some(json!({ "key": KEY }))),
        (Method::POST, format!("{vm}/stop"), None),
        (Method::POST, format!("{vm}/start"), None),
        (Method::DELETE, vm, None),
    ]
}

/// Somebody with a key, at one provider.
struct Requestor<'a> {
    client: &'a Client,
    provider: Address,
    key: PrivateKeySigner,
}

impl<'a> Requestor<'a> {
    async fn of(client: &'a Client) -> Result<Requestor<'a>> {
        let info = client.get("/provider/info").await?.expect(200)?;
        let id = info["provider_id"].as_str().context("no id")?.parse()?;
        Ok(Requestor { client, provider: id, key: PrivateKeySigner::random() })
    }

    fn sign(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<String> {
        self.sign_at(0, method, path, body)
    }

    /// So many seconds from now.
    fn sign_at(
        &self,
        offset: i64,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let asked = Asked::new(method.as_str(), path, body.as_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let at = now.saturating_add_signed(offset);
        Ok(Credentials::sign(&self.key, self.provider, asked, at, Nonce::random())?.to_string())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let line = self.sign(&method, path, body)?;
        self.client.signed(&line, method, path, body.map(Value::to_string)).await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, &format!("/api/v1{path}"), None).await?.expect(200)
    }

    async fn create(&self, name: &str) -> Result<Value> {
        self.ask(Method::POST, "/api/v1/vms", Some(&body(name))).await?.expect(201)
    }
}

/// Refused with this status and code. The body of an answer to HEAD is not sent.
fn assert_refused(answer: &Answer, status: u16, code: &str) -> Result<()> {
    if !answer.request.starts_with("HEAD") {
        answer.refusal(status)?;
        ensure!(answer.json()?["code"] == code, "{}: {}", answer.request, answer.text);
    }
    ensure!(answer.status == status, "{} answered {}", answer.request, answer.status);
    let challenge = answer.headers.get("www-authenticate").map(|value| value.as_bytes());
    ensure!(challenge == (status == 401).then_some(b"Golem".as_slice()), "{challenge:?}");
    Ok(())
}

/// Nobody but its owner gets anywhere with a VM that is there.
async fn assert_closed_to_all_but(
    owner: &Requestor<'_>,
    stranger: &Requestor<'_>,
    name: &str,
) -> Result<()> {
    for (method, path, body) in requests(name) {
        let text = body.as_ref().map(Value::to_string);
        let unsigned = owner.client.send(method.clone(), &path, text).await?;
        assert_refused(&unsigned, 401, "signature_required")?;
        let signed = stranger.ask(method, &path, body.as_ref()).await?;
        assert_refused(&signed, 403, "not_the_owner")?;
    }
    for summary in
        [owner.client.get("/summary").await?.expect(200)?, stranger.get("/summary").await?]
    {
        ensure!(!summary.to_string().contains(name), "{summary}");
        ensure!(summary["vms_total"].as_u64() >= Some(1), "{summary}");
        ensure!(summary["resources"]["allocated"]["storage"].as_u64() >= Some(10), "{summary}");
    }
    for list in [owner.client.get("/vms").await?.expect(200)?, stranger.get("/vms").await?] {
        ensure!(!list.to_string().contains(name), "{list}");
    }
    let list = owner.get("/vms").await?;
    ensure!(list.to_string().contains(name), "{list}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_a_signed_request_is_its_owners_alone_also_after_a_restart() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 0);
    let mut provider =
        setup.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?.start().await?;
    let client = provider.client().clone();
    let owner = Requestor::of(&client).await?;
    let stranger =
        Requestor { client: &client, key: PrivateKeySigner::random(), provider: owner.provider };

    let vm = owner.create("mine").await?;
    ensure!(vm["status"] == "running" && vm["needs_signature"] == true, "{vm}");
    ensure!(vm["owner"] == owner.key.address().to_checksum(None), "{vm}");
    assert_closed_to_all_but(&owner, &stranger, "mine").await?;

    // One signature for a change and one for a question, both used before the provider ends.
    let (path, key) = ("/api/v1/vms/mine/ssh-keys", json!({ "key": KEY }));
    let change = owner.sign(&Method::POST, path, Some(&key))?;
    let question = owner.sign(&Method::GET, "/api/v1/vms", None)?;
    let changing = || client.signed(&change, Method::POST, path, Some(key.to_string()));
    let asking = || client.signed(&question, Method::GET, "/api/v1/vms", None);
    changing().await?.expect(200)?;
    asking().await?.expect(200)?;
    assert_refused(&changing().await?, 401, "signature_replayed")?;
    assert_refused(&asking().await?, 401, "signature_replayed")?;
    ensure!(provider.terminate().await? == 0);
    provider.start_again().await?;
    assert_refused(&changing().await?, 401, "signature_replayed")?;
    assert_refused(&asking().await?, 401, "signature_replayed")?;
    // A change is on the disk before it is made.
    let change = owner.sign(&Method::POST, path, Some(&key))?;
    let changing = || client.signed(&change, Method::POST, path, Some(key.to_string()));
    changing().await?.expect(200)?;
    provider.kill()?;
    provider.start_again().await?;
    assert_refused(&changing().await?, 401, "signature_replayed")?;

    assert_closed_to_all_but(&owner, &stranger, "mine").await?;
    for (method, path, body) in requests("mine") {
        let answer = owner.ask(method, &path, body.as_ref()).await?;
        ensure!(answer.status == 200, "{} answered {}", answer.request, answer.text);
    }
    // No trace of it but nonces.
    let id = vm["id"].as_str().context("no id")?;
    ensure!(database::rows_that_mention(&provider.data_dir(), id)?.is_empty());
    // One of an unsigned request is anybody's, as ever.
    client.post("/vms", &body("open")).await?.expect(201)?;
    for (method, path, body) in requests("open") {
        let answer = client.send(method, &path, body.map(|body| body.to_string())).await?;
        ensure!(answer.status == 200, "{} answered {}", answer.request, answer.text);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_are_old_forged_or_for_another_provider_do_not_count() -> Result<()> {
    let provider = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 0).start().await?;
    let owner = Requestor::of(provider.client()).await?;
    let (method, path) = (Method::GET, "/api/v1/vms?x=1");
    let ask =
        async |line: &str, path: &str| owner.client.signed(line, Method::GET, path, None).await;
    for offset in [-120, -65, 70, 3600] {
        let line = owner.sign_at(offset, &method, path, None)?;
        assert_refused(&ask(&line, path).await?, 401, "signature_expired")?;
    }
    for offset in [-40, 40] {
        ask(&owner.sign_at(offset, &method, path, None)?, path).await?.expect(200)?;
    }
    let line = owner.sign(&method, path, None)?;
    assert_refused(&ask(&line, "/api/v1/vms").await?, 401, "signature_invalid")?;
    assert_refused(&ask(&line, "/api/v1/vms?x=2").await?, 401, "signature_invalid")?;
    let elsewhere = Requestor { provider: Address::ZERO, key: owner.key.clone(), ..owner };
    let elsewhere = elsewhere.sign(&method, path, None)?;
    assert_refused(&ask(&elsewhere, path).await?, 401, "signature_invalid")?;
    // What the wallet signed for somebody else's purposes.
    let mail = owner.key.sign_message_sync(b"please log me in")?;
    let (head, tail) = line.split_at(line.find(":0x").context("no signature")? + 1);
    let forged = format!("{head}{mail}{}", &tail[tail.find(';').context("no end")?..]);
    assert_refused(&ask(&forged, path).await?, 401, "signature_invalid")?;
    assert_refused(&ask("Golem nonsense", path).await?, 401, "signature_malformed")?;
    ask("Bearer nonsense", path).await?.expect(200)?;
    ask(&line, path).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_requires_signatures_makes_nothing_without_one() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with("REQUIRE_SIGNED_REQUESTS", true)
        .start()
        .await?;
    let refused = provider.client().post("/vms", &body("open")).await?;
    assert_refused(&refused, 401, "signature_required")?;
    ensure!(refused.text.contains("golem-provider sign-request"), "{}", refused.text);
    ensure!(provider.paper_machines().ids()?.is_empty());
    let owner = Requestor::of(provider.client()).await?;
    let vm = owner.create("mine").await?;

    // The operator sees whose it is, and needs nobody's signature.
    let status = provider.command(&["status", "--json"]).await?.stdout;
    let status: Value = serde_json::from_str(&status)?;
    assert_eq!(status["vms"]["list"][0]["owner"], vm["owner"]);
    let asked = provider.command(&["vm", "delete", "mine"]).await?;
    ensure!(asked.code(2)?.stderr.contains("--yes"), "{asked:?}");
    ensure!(provider.paper_machines().ids()?.len() == 1);
    let gone = provider.command(&["vm", "delete", "mine", "--yes", "--json"]).await?.json(0)?;
    assert_eq!(gone["deleted"]["id"], vm["id"]);
    ensure!(provider.paper_machines().ids()?.is_empty());
    let missing = provider.command(&["vm", "delete", "mine", "--yes"]).await?;
    ensure!(missing.code(1)?.stderr.contains("no VM `mine`"), "{missing:?}");
    Ok(())
}

/// The commands for a shell in a document.
fn commands(document: &str) -> String {
    let mut script = String::from("set -eu\n");
    let mut inside = false;
    for line in document.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => {
                script.push_str(command);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_commands_make_use_and_delete_a_vm_that_nobody_else_sees() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider =
        Setup::new()?.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?.start().await?;
    let id = provider.client().get("/provider/info").await?.expect(200)?["provider_id"].take();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(source.join("docs/requests.md"))?;
    let requestor = Setup::new()?;
    let directory = tempfile::tempdir()?;
    let programs = directory.path().join("bin");
    fs::create_dir(&programs)?;
    std::os::unix::fs::symlink(golem_provider_tests::program()?, programs.join("golem-provider"))?;
    let shell = requestor
        .shell(&commands(&document))
        .current_dir(directory.path())
        .env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH")?))
        .env("API", format!("http://127.0.0.1:{}", provider.api_port()))
        .env("PROVIDER", id.as_str().context("no id")?)
        .env("no_proxy", "127.0.0.1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let ended = wait::within("the commands of docs/requests.md", DEADLINE, shell).await??;
    let said = String::from_utf8(ended.stdout)?;
    ensure!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    let file = |name: &str| -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(directory.path().join(name))?)?)
    };
    let (made, refused) = (file("made.json")?, file("refused.json")?);
    ensure!(made["status"] == "running" && made["needs_signature"] == true, "{made}");
    ensure!(refused["code"] == "signature_required", "{refused}");
    ensure!(said.contains("401\n[]") && said.ends_with("null"), "{said}");
    let key = fs::metadata(directory.path().join("owner.key"))?;
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    ensure!(provider.paper_machines().ids()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_signed_with_a_key_from_a_file_a_keystore_or_the_environment() -> Result<()> {
    let setup = Setup::new()?;
    let directory = setup.directory();
    let key = PrivateKeySigner::random();
    let hex: String = key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let write = |name: &str, text: &str| fs::write(directory.join(name), text);
    write("key", &format!("{hex}\n"))?;
    write("body", "{}")?;
    write("long", &"x".repeat(64 * 1024 + 1))?;
    write("passphrase", "open, sesame\n")?;
    PrivateKeySigner::encrypt_keystore(
        directory,
        &mut alloy::signers::k256::elliptic_curve::rand_core::OsRng,
        key.to_bytes(),
        "open, sesame",
        Some("keystore"),
    )?;
    let provider = Address::repeat_byte(0x11).to_checksum(None);
    let asked =
        ["sign-request", "--method", "post", "--path", "/api/v1/vms", "--provider", &provider];
    let run = async |more: &[&str], environment: Option<&str>| -> Result<(i32, String, String)> {
        let mut command = setup.program(&[&asked[..], more].concat())?;
        command.envs(environment.map(|key| ("GOLEM_REQUESTOR_KEY", key)));
        let output = wait::within("signing", DEADLINE, command.output()).await??;
        let code = output.status.code().context("no exit code")?;
        Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };
    let (body, json) = (["--body", "body"], ["--json"]);
    for (more, environment) in [
        (&["--key-file", "key"][..], None),
        (&["--key-file", "keystore", "--passphrase-file", "passphrase"], None),
        (&[], Some(hex.as_str())),
    ] {
        let (code, line, _) = run(&[more, &body].concat(), environment).await?;
        let line = line.strip_prefix("Authorization: Golem ").context("no header")?;
        let signed = Credentials::parse(line.trim_end())?;
        assert_eq!((code, signed.address), (0, key.address()));
        let asked = Asked::new("POST", "/api/v1/vms", b"{}");
        signed.check(Address::repeat_byte(0x11), asked)?;
    }
    let (_, told, _) = run(&[&["--key-file", "key"], &json[..]].concat(), None).await?;
    let told: Value = serde_json::from_str(&told)?;
    let text = told["text"].as_str().context("no text")?;
    ensure!(text.starts_with("Golem provider request, version 1\nprovider: 0x1111"), "{text}");
    ensure!(told["address"] == key.address().to_checksum(None), "{told}");
    for (more, environment, code, reason) in [
        (&[][..], None, 1, "--key-file"),
        (&[], Some("nonsense"), 1, "GOLEM_REQUESTOR_KEY gives no key"),
        (&["--key-file", "body"], None, 1, "body gives no key"),
        (&["--key-file", "key", "--body", "long"], None, 1, "64 KiB"),
        (&["--key-file", "key", "--body", "nowhere"], None, 1, "nowhere"),
        (&["--key-file", "-", "--body", "-"], None, 1, "standard input"),
    ] {
        let (ended, said, told) = run(more, environment).await?;
        ensure!(ended == code && said.is_empty() && told.contains(reason), "{more:?}: {told}");
        ensure!(!told.contains("nonsense") && !told.contains(&hex), "{told}");
    }
    let wrong = ["sign-request", "--method", "GET", "--path", "vms", "--provider", &provider];
    let wrong = setup.command(&wrong).await?;
    ensure!(wrong.code(2)?.stderr.contains("begins with /"), "{wrong:?}");
    Ok(())
}
