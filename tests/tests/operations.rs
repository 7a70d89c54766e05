//! What an operator does with a provider: start it in the background, look at it, read its log, stop it, make it a service, and
//! find out what is in its way. VMs are on paper.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Daemon, Ended, Paper, Setup, StandIn, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout},
};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const ANSWER: Duration = Duration::from_secs(60);

/// What it prints from now on, until it is dropped.
fn lines_of(setup: &Setup, arguments: &[&str]) -> Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut child = setup.program(arguments)?.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    Ok((child, lines))
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    wait::within("a line", ANSWER, lines.next_line()).await??.context("no more lines")
}

fn codes(status: &Value) -> Vec<&str> {
    let issues = status["issues"].as_array().map(Vec::as_slice).unwrap_or_default();
    issues.iter().filter_map(|issue| issue["code"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_in_the_background_is_started_looked_at_read_and_stopped() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?;
    let background = Daemon { setup };
    let setup = &background.setup;

    setup.command(&["status"]).await?.code(2)?;
    setup.command(&["stop"]).await?.code(2)?;
    setup.command(&["logs"]).await?.code(1)?;
    let started = setup.command(&["dev", "--daemon"]).await?;
    started.code(0)?;
    let process = background.process().context("none runs")?;
    ensure!(started.stdout.contains(&format!("process {}", process.pid)), "{started:?}");
    let session = rustix::process::getsid(
        i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw),
    )?;
    assert_eq!(
        session.as_raw_nonzero().get().cast_unsigned(),
        process.pid,
        "it has the terminal's session"
    );
    let log = setup.data_dir().join("logs/provider.log");
    assert_eq!(fs::metadata(&log)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(log.with_file_name("start.log"))?, "");

    for second in [["dev", "--daemon"].as_slice(), &["dev"]] {
        let refused = setup.command(second).await?;
        refused.code(1)?;
        ensure!(refused.stderr.contains(&format!("process {}", process.pid)), "{refused:?}");
    }

    // One VM with a connection, as the status shows it.
    let vm =
        json!({ "name": "web", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": KEY });
    let vm = setup.client()?.post("/vms", &vm).await?.json()?;
    let (id, port) =
        (vm["id"].as_str().context("no id")?, vm["ssh_port"].as_u64().context("no port")?);
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, u16::try_from(port)?)).await?;
    connection.read_exact(&mut [0; 4]).await?;
    let status = setup.command(&["status", "--json"]).await?.json(0)?;
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["provider"]["running"]["pid"], process.pid);
    assert_eq!(status["provider"]["running"]["log"]["path"], json!(log));
    assert_eq!(status["vms"]["list"][0]["id"], id);
    assert_eq!(status["vms"]["list"][0]["ssh_port"], port);
    assert_eq!(status["vms"]["list"][0]["traffic"]["connections_open"], 1);
    assert_eq!(status["proxy"]["connections_open"], 1);
    assert_eq!(status["resources"]["allocated"]["storage_gb"], 10);
    assert_eq!(status["plugins"]["default_backend"], "paper");
    let screen = setup.command(&["status"]).await?;
    for part in ["healthy", "web", id, &port.to_string(), "Nothing is wrong"] {
        ensure!(screen.stdout.contains(part), "{part} is not in {}", screen.stdout);
    }
    let (_watching, mut lines) = lines_of(setup, &["status", "--watch", "--json"])?;
    for _ in 0..2 {
        let status: Value = serde_json::from_str(&next(&mut lines).await?)?;
        assert_eq!(status["health"], "healthy");
    }

    let logs = setup.command(&["logs", "-n", "2000"]).await?;
    ensure!(logs.code(0)?.stdout.contains("ready on http://127.0.0.1"), "{logs:?}");
    let (_following, mut lines) = lines_of(setup, &["logs", "-f", "-n", "0"])?;
    // Until it follows, what is written meanwhile is not shown; so it is written again and again.
    let followed = wait::until("a new line", ANSWER, Duration::from_millis(100), async || {
        setup.client()?.get("/vms/no-such-vm").await?;
        let line = tokio::time::timeout(Duration::from_millis(500), lines.next_line()).await;
        Ok(line.ok().transpose()?.flatten())
    });
    ensure!(!followed.await?.is_empty());

    // Machines outlive it, and are there again.
    let stopped = setup.command(&["stop", "--json"]).await?.json(0)?;
    assert_eq!(stopped["stopped"]["pid"], process.pid);
    assert!(!process.runs());
    assert!(setup.paper_machines().runs(id));
    let status = setup.command(&["status", "--json"]).await?.json(2)?;
    assert_eq!((status["health"].as_str(), codes(&status)), (Some("down"), vec!["down"]));
    assert_eq!(status["vms"]["list"][0]["state"], "running");
    ensure!(status["issues"][0]["sentence"].to_string().contains("a machine that ran"), "{status}");

    setup.command(&["dev", "--daemon"]).await?.code(0)?;
    assert_eq!(setup.client()?.get("/vms/web").await?.expect(200)?["ssh_port"], port);
    setup.command(&["stop", "--stop-vms"]).await?.code(0)?;
    assert!(!setup.paper_machines().runs(id));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_start_in_the_background_says_why() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?;
    let background = Daemon { setup };
    let setup = &background.setup;
    let in_the_way = TcpListener::bind((Ipv4Addr::LOCALHOST, setup.api_port()))?;

    let failed = setup.command(&["dev", "--daemon"]).await?;
    ensure!(failed.code(1)?.stderr.contains("cannot listen on"), "{failed:?}");
    ensure!(background.process().is_none(), "it runs");
    let status = setup.command(&["status", "--json"]).await?.json(2)?;
    assert_eq!(codes(&status), ["down", "address"]);
    let logs = setup.command(&["logs"]).await?;
    ensure!(logs.code(0)?.stdout.contains("cannot listen on"), "{logs:?}");

    drop(in_the_way);
    setup.command(&["dev", "--daemon"]).await?.code(0)?;
    setup.command(&["stop"]).await?.code(0)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_with_issues_says_what_to_do_about_them() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_plugin("misbehaving", "[settings]\nimages = \"trap\"\n")?;
    fs::write(setup.plugin_dir().join("broken.wasm"), "no component")?;
    let provider = setup.start().await?;
    // As often as it takes until the plugin is no longer asked.
    let vm = json!({ "name": "my-vm", "backend": "misbehaving" });
    for _ in 0..12 {
        let refused = provider.client().post("/vms", &vm).await?;
        ensure!(refused.status >= 400, "{}", refused.text);
    }

    let status = provider.command(&["status", "--json"]).await?.json(1)?;
    assert_eq!(status["health"], "issues");
    assert_eq!(codes(&status), ["plugin-unusable", "plugin-degraded"]);
    let remedy = status["issues"][0]["remedy"].as_str().context("no remedy")?;
    ensure!(remedy.contains("golem-provider plugin disable broken"), "{remedy}");
    let plugins = status["plugins"]["list"].as_array().context("no plugins")?;
    let degraded = plugins.iter().find(|plugin| plugin["name"] == "misbehaving");
    let failing = &degraded.context("no plugin misbehaving")?["failing"][0];
    assert_eq!((&failing["function"], &failing["failures"]), (&json!("images"), &json!(10)));
    let time = |field: &str| failing[field].as_str().map(str::to_owned).context("no time");
    ensure!(time("since")? < time("next_try")?, "{failing}");

    let screen = provider.command(&["status"]).await?;
    let screen = &screen.code(1)?.stdout;
    for part in ["plugin broken is not used", "`images` has failed 10 times", "tried again in"] {
        ensure!(screen.contains(part), "{part} is not in {screen}");
    }
    let logs = provider.command(&["logs"]).await?;
    ensure!(logs.code(1)?.stderr.contains("where it was started"), "{logs:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_when_requests_are_answered_and_when_the_end_begins()
-> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?;
    let socket = setup.directory().join("notify");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(ANSWER))?;
    let told = || -> Result<String> {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).context("the service manager is told nothing")?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let mut provider = setup.program(&["dev"])?.env("NOTIFY_SOCKET", &socket).spawn()?;
    assert_eq!(told()?, "READY=1");
    setup.client()?.send(reqwest::Method::GET, "/health", None).await?.expect(200)?;
    let stopping = setup.command(&["stop"]);
    let (stopped, ended) = tokio::join!(stopping, wait::within("its end", ANSWER, provider.wait()));
    stopped?.code(0)?;
    assert_eq!(told()?, "STOPPING=1");
    assert_eq!(ended??.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_is_written_that_systemd_understands_and_removed_again() -> Result<()> {
    let setup = Setup::new()?;
    // Nothing of the service manager of whoever runs this test is touched.
    let service = async |arguments: &[&str]| -> Result<Ended> {
        let mut command = setup.program(&[&["service"], arguments].concat())?;
        command.env_remove("XDG_RUNTIME_DIR").env_remove("XDG_CONFIG_HOME");
        let output = wait::within("the command", ANSWER, command.output()).await??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended {
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    };
    let file = setup.directory().join(".config/systemd/user/golem-provider.service");
    service(&["show", "--user"]).await?.code(2)?;
    let written = service(&["install", "--user", "--no-start"]).await?;
    // What is set here by the environment would not count for the service.
    ensure!(written.code(0)?.stderr.contains("GOLEM_PROVIDER_PORT is set"), "{written:?}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o644);
    let shown = service(&["show", "--user", "--json"]).await?.json(0)?;
    assert_eq!(shown["text"], fs::read_to_string(&file)?);

    let system = setup.directory().join("golem-provider.service");
    let printed = service(&["install", "--system", "--print"]).await?;
    fs::write(&system, &printed.code(0)?.stdout)?;
    verify(&["--user"], &file, setup.directory())?;
    verify(&[], &system, setup.directory())?;

    service(&["uninstall", "--user"]).await?.code(0)?;
    assert!(!file.exists());
    service(&["uninstall", "--user"]).await?.code(1)?;
    Ok(())
}

/// By systemd's own checker, where there is one.
fn verify(arguments: &[&str], unit: &Path, room: &Path) -> Result<()> {
    let checked = Command::new("systemd-analyze")
        .arg("verify")
        .args(arguments)
        .arg(unit)
        .env("XDG_RUNTIME_DIR", room)
        .output();
    let Ok(output) = checked else {
        eprintln!("there is no systemd-analyze here: the unit is not verified");
        return Ok(());
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    // Keys that it does not know are warnings.
    ensure!(!said.contains("golem-provider.service"), "{said}");
    Ok(())
}

fn state<'a>(report: &'a Value, name: &str) -> Vec<&'a str> {
    let checks = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    checks
        .iter()
        .filter(|check| check["name"] == name)
        .filter_map(|check| check["state"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_in_the_way_and_what_to_do_about_it() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?
        .in_development()
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        // Of this computer and of nobody else: the greeting of a server that speaks no HTTP, and a port that is closed.
        .with("DISCOVERY_URL", format!("http://{}", ssh.address()))
        .with("GOLEM_BASE_RPC_URL", "http://127.0.0.1:1/secret");
    let report = setup.command(&["doctor", "--json"]).await?.json(1)?;
    for (name, expected) in [
        ("data directory", "ok"),
        ("memory", "ok"),
        ("disk speed", "ok"),
        ("plugin paper", "ok"),
        ("backend", "ok"),
        ("image", "ok"),
        ("API port", "ok"),
        ("SSH ports", "ok"),
        ("firewall", "skipped"),
        ("discovery", "warn"),
        ("Golem Base", "warn"),
    ] {
        let states = state(&report, name);
        ensure!(!states.is_empty(), "{name}: {report}");
        // A slow disk is no fault of the doctor's.
        ensure!(
            states
                .iter()
                .all(|state| *state == expected || (name == "disk speed" && *state == "warn")),
            "{name}: {report}"
        );
    }
    ensure!(!report.to_string().contains("secret"), "{report}");
    assert_eq!(
        fs::read_dir(setup.data_dir().join("vms")).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().contains("doctor"))
                .count()
        }),
        0,
        "something is left"
    );

    let in_the_way = TcpListener::bind((Ipv4Addr::LOCALHOST, setup.api_port()))?;
    let setup = setup.with("DEFAULT_VM_IMAGE", "windows-95");
    let found = setup.command(&["doctor", "--offline"]).await?;
    let text = &found.code(2)?.stdout;
    for part in ["FAIL  API port", "ss -ltnp", "FAIL  image", "GOLEM_PROVIDER_DEFAULT_VM_IMAGE"] {
        ensure!(text.contains(part), "{part} is not in {text}");
    }
    drop(in_the_way);

    let misspelt = setup.with("MAX_VMSS", 3);
    let report = misspelt.command(&["doctor", "--json"]).await?.json(2)?;
    assert_eq!(state(&report, "settings"), ["fail"]);
    ensure!(report.to_string().contains("did you mean GOLEM_PROVIDER_MAX_VMS?"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_asks_a_provider_that_runs_about_its_plugins_and_its_machines() -> Result<()> {
    let ssh = StandIn::start().await?;
    // It is a requestor like any other, and signs.
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with("REQUIRE_SIGNED_REQUESTS", true);
    let provider = setup.start().await?;
    let report = provider.command(&["doctor", "--json", "--offline", "--boot"]).await?.json(2)?;
    assert_eq!(state(&report, "plugin paper"), ["ok", "ok"]);
    assert_eq!(state(&report, "ports"), ["skipped"]);
    assert_eq!(state(&report, "canary boot"), ["ok"]);
    // Whoever stands in for the machine's SSH server lets nobody in.
    assert_eq!(state(&report, "canary login"), ["fail"]);
    assert_eq!(state(&report, "canary removal"), ["ok"]);
    assert_eq!(provider.client().get("/summary").await?.expect(200)?["vms_total"], 0);
    assert!(provider.paper_machines().ids()?.is_empty());
    Ok(())
}
