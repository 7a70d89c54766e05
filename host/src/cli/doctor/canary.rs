//! `doctor --boot`: one machine through the real path, from the API to a login, and away again.
//!
//! Where a provider runs, it is its requestor. Where none does, it starts one of its own, on loopback and with a data directory
//! for a while, but with the settings, plugins and images of the real one; the real data directory is held meanwhile, so that
//! no other provider begins to work in the plugins' directories. Whatever happens, and also on Ctrl-C, the machine is
//! removed and that provider ended.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    signal::unix::SignalKind,
};

use crate::{
    admin::AdminClient,
    cli::print::Waiting,
    doctor::Check,
    owners::{self, Address, Asked, Credentials, Nonce},
    payments::Wallet,
    settings::{Origin, Settings},
    store,
};

/// One step, and how long it took.
#[derive(Debug, Serialize)]
pub struct Step {
    step: &'static str,
    seconds: f64,
}

/// What became of it.
#[derive(Default)]
pub struct Canary {
    pub checks: Vec<Check>,
    pub steps: Vec<Step>,
}

/// The first start of a slow machine compiles plugins.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// What a provider promises, and some more for a busy machine.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// A large image on a slow line. The boot itself has a deadline of the provider's.
const CREATE_DEADLINE: Duration = Duration::from_secs(3600);
const LOGIN_DEADLINE: Duration = Duration::from_secs(120);
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Deleting a machine may wait for it to shut down.
const DELETE_DEADLINE: Duration = Duration::from_secs(180);

/// Makes a machine, logs in to it and removes it.
pub async fn boot(settings: &Settings, waiting: &Waiting) -> Canary {
    let mut canary = Canary::default();
    // From here on Ctrl-C no longer ends this process in the middle of something: who waits for it hears of it.
    let _listening = tokio::signal::unix::signal(SignalKind::interrupt());
    match super::running(settings).await {
        Some(status) => {
            let api = on_this_computer(status.sections.provider.api);
            canary.through(api, settings, waiting).await;
        }
        None => canary.through_one_of_its_own(settings, waiting).await,
    }
    canary
}

impl Canary {
    fn done(&mut self, step: &'static str, begun: Instant, sentence: &str) {
        let seconds = begun.elapsed().as_secs_f64();
        self.steps.push(Step { step, seconds });
        self.checks.push(Check::ok(step, format!("{sentence} ({seconds:.1} s)")));
    }

    fn failed(&mut self, step: &str, error: &anyhow::Error, remedy: &str) {
        self.checks.push(Check::fail(step, super::super::told(error), remedy));
    }

    async fn through_one_of_its_own(&mut self, settings: &Settings, waiting: &Waiting) {
        const REMEDY: &str = "mend that, and try `golem-provider doctor --boot` again";
        let begun = Instant::now();
        waiting.now_for("starting a provider for the purpose");
        let mut provider = match Private::start(settings).await {
            Ok(provider) => provider,
            Err(error) => return self.failed("canary start", &error, REMEDY),
        };
        match unless_interrupted(provider.answers()).await {
            Ok(()) => {
                self.done("canary start", begun, "a provider for the purpose answers");
                self.through(provider.api, settings, waiting).await;
            }
            Err(error) => {
                let error = error.context(provider.last_words());
                self.failed("canary start", &error, REMEDY);
            }
        }
        waiting.now_for("ending the provider for the purpose");
        if let Err(error) = provider.end().await {
            self.failed("canary end", &error, "end the process by hand");
        }
    }

    async fn through(&mut self, api: SocketAddr, settings: &Settings, waiting: &Waiting) {
        let login = Login::prepare().await;
        let key = login.as_ref().map_or_else(|_| None, |login| Some(login.public.clone()));
        let requestor = match Requestor::of(api, settings).await {
            Ok(requestor) => requestor,
            Err(error) => {
                return self.failed("canary", &error, "`golem-provider status` may say more");
            }
        };
        let begun = Instant::now();
        waiting.now_for("asking for a machine");
        let asked = requestor.ask_for_a_machine(key.as_deref()).await;
        if let Err(error) = asked {
            return self.failed(
                "canary boot",
                &error,
                "the provider says why; `golem-provider logs` may say more",
            );
        }
        match unless_interrupted(requestor.until_it_runs(waiting)).await {
            Ok(port) => {
                self.done("canary boot", begun, "a machine was made and answers on its SSH port");
                self.log_in(login, SocketAddr::new(api.ip(), port), waiting).await;
            }
            Err(error) => self.failed(
                "canary boot",
                &error,
                "the machine's console and the provider's log say more; GOLEM_PROVIDER_LAUNCH_TIMEOUT_SECONDS gives a slow computer more time",
            ),
        }
        let begun = Instant::now();
        waiting.now_for("removing the machine");
        match requestor.remove().await {
            Ok(()) => self.done("canary removal", begun, "the machine is gone"),
            Err(error) => {
                let name = &requestor.name;
                self.failed(
                    "canary removal",
                    &error,
                    &format!("remove the machine by hand: golem-provider vm delete {name}"),
                );
            }
        }
    }

    async fn log_in(
        &mut self,
        login: anyhow::Result<Login>,
        address: SocketAddr,
        waiting: &Waiting,
    ) {
        const STEP: &str = "canary login";
        let login = match login {
            Ok(login) => login,
            Err(error) => {
                let sentence = format!("not tried: {}", super::super::told(&error));
                return self.checks.push(Check::warn(
                    STEP,
                    sentence,
                    "install the OpenSSH client (openssh-client)",
                ));
            }
        };
        let begun = Instant::now();
        waiting.now_for("logging in to the machine");
        match unless_interrupted(login.run(address)).await {
            Ok(()) => self.done(STEP, begun, "root logged in over SSH with a throw-away key"),
            Err(error) => self.failed(
                STEP,
                &error,
                "the image has to have cloud-init and an SSH server; `ssh -v` by hand says more",
            ),
        }
    }
}

/// What comes of it, unless the operator has seen enough.
async fn unless_interrupted<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

/// Where this computer reaches what listens there.
fn on_this_computer(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// The path of the API.
const PREFIX: &str = "/api/v1";

/// A client of the API that wants one small machine. It signs with a key of its own, so that a provider that makes machines
/// for signed requests alone makes one, and nobody else touches it.
struct Requestor {
    http: reqwest::Client,
    origin: String,
    name: String,
    key: PrivateKeySigner,
    provider: Address,
}

impl Requestor {
    /// Where machines have to be paid for, the provider's own key makes one without a stream; else nobody's key does.
    async fn of(api: SocketAddr, settings: &Settings) -> anyhow::Result<Requestor> {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
        let number = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("doctor-{}", &number[..8]);
        let origin = format!("http://{api}");
        let asked = http.get(format!("{origin}{PREFIX}/provider/info")).send().await;
        let info: Value = asked.context("the provider does not answer")?.json().await?;
        // On this computer there is nobody in between who could put another address there.
        let provider = info["provider_id"].as_str().and_then(owners::address);
        let provider = provider.context("the provider does not say who it is")?;
        let key = match settings.payments.verifier {
            Some(_) => {
                let wallet = settings.wallet.clone();
                let opening = tokio::task::spawn_blocking(move || Wallet::open(&wallet));
                opening.await?.context("a machine has to be paid for")?.signer().clone()
            }
            None => PrivateKeySigner::random(),
        };
        Ok(Requestor { http, origin, name, key, provider })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        deadline: Duration,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let path = format!("{PREFIX}{path}");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let signed = Credentials::sign(
            &self.key,
            self.provider,
            Asked::new(method.as_str(), &path, body.as_bytes()),
            u64::try_from(Timestamp::now().as_second())?,
            Nonce::random(),
        )?;
        let request = self
            .http
            .request(method, format!("{}{path}", self.origin))
            .header(reqwest::header::AUTHORIZATION, signed.to_string())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .timeout(deadline)
            .body(body);
        let answer = request.send().await.context("the provider does not answer")?;
        let status = answer.status();
        let text = answer.text().await.context("the provider does not answer to the end")?;
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    async fn ask_for_a_machine(&self, key: Option<&str>) -> anyhow::Result<()> {
        let mut body =
            json!({ "name": self.name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
        if let Some(key) = key {
            body["ssh_key"] = key.into();
        }
        let (status, answer) =
            self.send(Method::POST, "/vms?async=true", Some(body), ANSWER_DEADLINE).await?;
        if !status.is_success() {
            bail!("the provider refuses a machine: {}", refusal(status, &answer));
        }
        Ok(())
    }

    /// Answers the port of its SSH.
    async fn until_it_runs(&self, waiting: &Waiting) -> anyhow::Result<u16> {
        let path = format!("/vms/{}", self.name);
        let begun = Instant::now();
        while begun.elapsed() < CREATE_DEADLINE {
            let (status, vm) = self.send(Method::GET, &path, None, ANSWER_DEADLINE).await?;
            // Too many requests: this one is in no hurry.
            if !status.is_success() && status != StatusCode::TOO_MANY_REQUESTS {
                bail!("the machine cannot be looked at: {}", refusal(status, &vm));
            }
            match vm["status"].as_str() {
                Some("running") => {
                    let port = vm["ssh_port"].as_u64().and_then(|port| u16::try_from(port).ok());
                    return port.context("the machine runs and has no port");
                }
                Some("error") => {
                    let reason = vm["error_message"].as_str().unwrap_or("no reason is known");
                    bail!("the machine was not made: {reason}");
                }
                _ => {}
            }
            let percent = vm["progress"]["percent"].as_u64();
            let stage = vm["progress"]["stage"].as_str().unwrap_or("making the machine");
            let percent = percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
            waiting.now_for(format!("{stage}{percent}"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        bail!("the machine does not run after {} minutes", CREATE_DEADLINE.as_secs() / 60)
    }

    /// A success also where it is gone already.
    async fn remove(&self) -> anyhow::Result<()> {
        let path = format!("/vms/{}", self.name);
        let (status, answer) = self.send(Method::DELETE, &path, None, DELETE_DEADLINE).await?;
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            bail!("the machine is not removed: {}", refusal(status, &answer));
        }
        Ok(())
    }
}

fn refusal(status: StatusCode, answer: &Value) -> String {
    match &answer["detail"] {
        Value::String(text) => text.clone(),
        Value::Null => status.to_string(),
        other => other.to_string(),
    }
}

/// A key for one login, and the system's own client.
struct Login {
    directory: TempDir,
    public: String,
}

impl Login {
    async fn prepare() -> anyhow::Result<Login> {
        let directory = tempfile::tempdir().context("cannot make a directory for a key")?;
        let file = directory.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "golem-provider-doctor", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let made = tokio::time::timeout(LOGIN_DEADLINE, made).await.context("ssh-keygen hangs")?;
        let made = made.context("there is no ssh-keygen")?;
        if !made.status.success() {
            bail!("ssh-keygen failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        let public = fs::read_to_string(file.with_extension("pub")).context("reading the key")?;
        Ok(Login { directory, public: public.trim().to_owned() })
    }

    /// Once; the provider has seen the machine's SSH server answer.
    async fn run(&self, address: SocketAddr) -> anyhow::Result<()> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-p", &address.port().to_string(), "-i"])
            .arg(self.directory.path().join("key"))
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.directory.path().join("hosts").display()));
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "PreferredAuthentications=publickey",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "ConnectTimeout=60",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("root@{}", address.ip()))
            .arg("true")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LOGIN_DEADLINE, ssh.output())
            .await
            .map_err(|_| anyhow!("ssh has not logged in after {} s", LOGIN_DEADLINE.as_secs()))?
            .context("there is no ssh")?;
        if !output.status.success() {
            bail!("ssh does not log in: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// A provider for this computer alone, with a data directory that is gone afterwards.
struct Private {
    process: Child,
    directory: TempDir,
    api: SocketAddr,
    /// Gone last, so that the plugins' directories are left before others may come.
    _held: Option<store::Held>,
}

/// What is not taken over from the settings: it is this one's own, or a secret that it has no use for.
const OWN_KEYS: [&str; 12] = [
    "GOLEM_ENVIRONMENT",
    "GOLEM_PROVIDER_DATA_DIR",
    "GOLEM_PROVIDER_VM_DATA_DIR",
    "GOLEM_PROVIDER_PLUGIN_DIR",
    "GOLEM_PROVIDER_ETHEREUM_KEY_DIR",
    "GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY",
    "GOLEM_PROVIDER_HOST",
    "GOLEM_PROVIDER_PORT",
    "GOLEM_PROVIDER_PORT_RANGE_START",
    "GOLEM_PROVIDER_PORT_RANGE_END",
    "GOLEM_PROVIDER_STOP_VMS_ON_EXIT",
    "GOLEM_PROVIDER_PUBLIC_IP",
];

impl Private {
    async fn start(settings: &Settings) -> anyhow::Result<Private> {
        let held = match settings.data_dir.is_dir() {
            true => Some(store::Held::take(&settings.data_dir)?),
            false => None,
        };
        let directory = tempfile::Builder::new()
            .prefix("golem-doctor-")
            .tempdir()
            .context("cannot make a directory for a while")?;
        let data_dir = directory.path().join("data");
        fs::DirBuilder::new().mode(0o700).create(&data_dir)?;
        let cache = settings.data_dir.join("cache");
        if cache.is_dir() {
            // What is compiled need not be compiled again.
            std::os::unix::fs::symlink(&cache, data_dir.join("cache"))?;
        }
        let [api, ssh] = free_ports()?;
        let log = File::create(directory.path().join("provider.log"))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("GOLEM_")) {
                command.env_remove(name);
            }
        }
        let taken_over = settings
            .effective
            .iter()
            .filter(|key| key.origin != Origin::Default && !OWN_KEYS.contains(&key.key.as_str()));
        for key in taken_over {
            // Those that are secret are hidden here, and stay so.
            if let Some(value) = key.value.as_deref().filter(|value| *value != "<hidden>") {
                command.env(&key.key, value);
            }
        }
        command
            .arg("dev")
            .arg("--stop-vms-on-exit")
            .env("GOLEM_PROVIDER_DATA_DIR", &data_dir)
            .env("GOLEM_PROVIDER_VM_DATA_DIR", settings.vm_data_dir())
            .env("GOLEM_PROVIDER_PLUGIN_DIR", &settings.plugin_dir)
            .env("GOLEM_PROVIDER_PORT", api.to_string())
            .env("GOLEM_PROVIDER_PORT_RANGE_START", ssh.to_string())
            .env("GOLEM_PROVIDER_PORT_RANGE_END", (ssh + 1).to_string())
            // Its working directory has no `.env`.
            .current_dir(&data_dir)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the one who asked, who then ends this one in order.
            .process_group(0)
            .kill_on_drop(true);
        let process = command.spawn().context("cannot start a provider for the purpose")?;
        let api = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), api);
        Ok(Private { process, directory, api, _held: held })
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < START_DEADLINE {
            if let Some(status) = self.process.try_wait()? {
                bail!("a provider for the purpose has ended with {status}");
            }
            if let Some(client) = AdminClient::connect(&self.data_dir()).await?
                && client.status().await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("a provider for the purpose does not answer after {} s", START_DEADLINE.as_secs())
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        last_line(&self.directory.path().join("provider.log"))
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        let Some(pid) = self.process.id() else { return Ok(()) };
        if let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // One that has ended is what is wanted.
            let _ = kill_process(id, Signal::TERM);
        }
        let ended = tokio::time::timeout(END_DEADLINE, self.process.wait()).await;
        ended
            .map_err(|_| anyhow!("the provider for the purpose (process {pid}) does not end"))?
            .context("looking after the provider for the purpose")?;
        Ok(())
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

/// Two that nobody has at the moment, of which the second has room for one more behind it.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    for _ in 0..100 {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (one, other) = (free()?, free()?);
        let ports = [one.local_addr()?.port(), other.local_addr()?.port()];
        if ports[1] < u16::MAX {
            return Ok(ports);
        }
    }
    bail!("no ports of this computer are free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_on_loopback() {
        let reached = |text: &str| on_this_computer(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:7466"), "127.0.0.1:7466");
        assert_eq!(reached("[::]:7466"), "[::1]:7466");
        assert_eq!(reached("192.0.2.1:80"), "192.0.2.1:80");
    }

    #[test]
    fn a_refusal_is_told_in_the_providers_own_words() {
        let told = |answer| refusal(StatusCode::CONFLICT, &answer);
        assert_eq!(told(json!({ "detail": "no room" })), "no room");
        assert_eq!(told(json!({ "detail": [{ "msg": "x" }] })), r#"[{"msg":"x"}]"#);
        assert_eq!(told(Value::Null), "409 Conflict");
    }
}
