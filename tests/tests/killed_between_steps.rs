//! The provider killed at every named boundary between two of its steps, in everything that can be asked of it: after the
//! next start each VM, port, machine, file and row is accounted for, and nothing that was answered with success is undone.
//!
//! The machines are on paper, so that a walk through all of it takes seconds. Real ones are killed in
//! `vm_life/killed.rs`, between all effects of the plugin that drives them.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use golem_provider::faults::FaultPoint::{self, *};
use golem_provider_tests::{
    Answer, Client, Paper, Provider, Setup, StandIn, database, ports, wait,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const NAME: &str = "my-vm";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKqP3GRLUWVzUCw5cE6D2Tq8b4AwAWTK8kE5PCnO6oXo two@example.org";

/// What can be asked of a provider for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    /// With a job, whose answer comes before the machine is made.
    CreateWithJob,
    /// The machine dies while it boots.
    CreateThatFails,
    Stop,
    Start,
    /// The machine dies while it boots.
    StartThatFails,
    Delete,
    AddKey,
}

use Operation::*;

impl Operation {
    const ALL: [Operation; 8] =
        [Create, CreateWithJob, CreateThatFails, Stop, Start, StartThatFails, Delete, AddKey];
}

/// Which operation passes a point, and what the next start has to make of it. Without an operation it is none of the
/// service's own steps, and every operation passes it several times.
fn expected(point: FaultPoint) -> Option<(Operation, &'static [&'static str])> {
    Some(match point {
        AdmitPortOpen => (Create, &["gone"]),
        // There was no machine yet, and nobody had an answer.
        AdmitWritten => (Create, &["error"]),
        CreateMade | CreateReady | CreateWritten => (Create, &["running"]),
        UndoFailed | UndoCleared | UndoPortClosed | UndoWritten => (CreateThatFails, &["error"]),
        StopBegun | StopDone | StopWritten => (Stop, &["stopped"]),
        StartBegun | StartMade | StartReady | StartWritten => (Start, &["running"]),
        StartFailed => (StartThatFails, &["stopped"]),
        DeleteBegun | DeleteCleared | DeletePortClosed | DeleteWritten => (Delete, &["gone"]),
        KeyAdded => (AddKey, &["running"]),
        StoreUncommitted | PluginFileUnnamed | PluginHostCall => return None,
        // Those are passed in `earnings.rs`.
        TransactionWritten | TransactionSent | TransactionMined | PayoutPlanned
        | PayoutUnwritten | PayoutWritten => return None,
    })
}

/// What an operation that was cut off somewhere may come to, answered or not.
fn possible(operation: Operation) -> &'static [&'static str] {
    match operation {
        Create | CreateWithJob => &["gone", "error", "running"],
        // The kill may come before the machine has died.
        CreateThatFails => &["gone", "error", "running"],
        Stop => &["running", "stopped"],
        Start => &["running", "stopped"],
        StartThatFails => &["stopped", "running"],
        Delete => &["running", "gone"],
        AddKey => &["running"],
    }
}

/// Visits of a point in one operation; a walk that gets to the end of this has lost its own.
const VISITS: Range<u32> = 1..60;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_any_two_steps_of_the_provider_loses_and_leaves_nothing() -> Result<()> {
    let mut walk = Walk::begin().await?;
    for point in FaultPoint::ALL {
        if let Some((operation, outcomes)) = expected(*point) {
            ensure!(
                walk.killed_in(operation, (*point, 1), outcomes).await? == Death::AtThePoint,
                "{} is not passed",
                point.name()
            );
        }
    }
    Ok(())
}

/// What was promised with a job is kept: the VM is there, and its job says how it ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_a_create_was_accepted_is_made_up_for() -> Result<()> {
    let mut walk = Walk::begin().await?;
    for point in [AdmitWritten, CreateMade, CreateReady, CreateWritten] {
        let outcomes: &[&str] =
            if point == AdmitWritten { &["error", "running"] } else { &["running"] };
        let death = walk.killed_in(CreateWithJob, (point, 1), outcomes).await?;
        ensure!(death == Death::AtThePoint, "{} is not passed", point.name());
    }
    Ok(())
}

/// The next start dies too, while it makes up for the first death.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_the_last_one_is_made_up_for_loses_and_leaves_nothing() -> Result<()> {
    let mut walk = Walk::begin().await?;
    for second in [StoreUncommitted, PluginHostCall, UndoCleared, DeleteCleared, StartMade] {
        walk.second_death = Some((second, 1));
        for point in [CreateMade, UndoFailed, StopBegun, StartBegun, DeleteBegun] {
            if let Some((operation, outcomes)) = expected(point) {
                walk.killed_in(operation, (point, 1), outcomes).await?;
            }
        }
    }
    ensure!(walk.second_deaths >= 5, "only {} second deaths", walk.second_deaths);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_any_commit_loses_and_leaves_nothing() -> Result<()> {
    walk_through_all_visits(StoreUncommitted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_anything_that_is_done_for_a_plugin_loses_and_leaves_nothing() -> Result<()> {
    walk_through_all_visits(PluginHostCall).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_plugins_file_is_replaced_loses_and_leaves_nothing() -> Result<()> {
    walk_through_all_visits(PluginFileUnnamed).await
}

async fn walk_through_all_visits(point: FaultPoint) -> Result<()> {
    let mut walk = Walk::begin().await?;
    for operation in Operation::ALL {
        for visit in VISITS {
            let death = walk.killed_in(operation, (point, visit), possible(operation)).await?;
            if death == Death::AtTheEnd {
                break;
            }
            ensure!(visit + 1 < VISITS.end, "{operation:?} never comes to its end");
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Death {
    AtThePoint,
    /// The operation was over before.
    AtTheEnd,
}

struct Walk {
    provider: Provider,
    client: Client,
    /// How machines behave whose boot is to be seen.
    slow: Paper,
    fast: Paper,
    /// Where the start after a death dies again.
    second_death: Option<(FaultPoint, u32)>,
    second_deaths: usize,
    _ssh: StandIn,
}

impl Walk {
    async fn begin() -> Result<Walk> {
        let ssh = StandIn::start().await?;
        let fast = Paper::with_ssh_at(ssh.address());
        let slow = Paper { boot: Duration::from_secs(40), ..fast.clone() };
        let provider = Setup::new()?.with_paper_backend(&fast)?.start().await?;
        let client = provider.client().clone();
        Ok(Walk { provider, client, slow, fast, second_death: None, second_deaths: 0, _ssh: ssh })
    }

    /// Brings a VM to where the operation begins, lets the provider die in it, and looks at everything after the next
    /// start. Leaves no VM behind.
    async fn killed_in(
        &mut self,
        operation: Operation,
        point: (FaultPoint, u32),
        outcomes: &[&str],
    ) -> Result<Death> {
        let what = format!("{operation:?}, killed at {} {}", point.0.name(), point.1);
        self.try_killed_in(operation, point, outcomes).await.context(what)
    }

    async fn try_killed_in(
        &mut self,
        operation: Operation,
        point: (FaultPoint, u32),
        outcomes: &[&str],
    ) -> Result<Death> {
        let before = self.prepare(operation).await?;
        self.provider.arm(&[point])?;
        let answer = self.ask(operation).await?;
        let death = match &answer {
            // The point may lie between the end of the work and the arrival of the answer.
            Some(answer) if self.lives_on().await? => {
                let succeeds = !matches!(operation, CreateThatFails | StartThatFails);
                ensure!((answer.status < 300) == succeeds, "{} {}", answer.status, answer.text);
                self.provider.disarm()?;
                self.provider.kill()?;
                Death::AtTheEnd
            }
            _ => {
                let died_at = self.provider.death().await?;
                ensure!(died_at == point.0, "died at {}", died_at.name());
                Death::AtThePoint
            }
        };
        self.provider.set_paper(&self.fast)?;
        if let Some(point) = self.second_death {
            self.die_while_starting(point).await?;
        }
        self.provider.start_again().await?;
        let outcome = self.settled().await?;
        if let Some(accepted) = answer.as_ref().filter(|answer| answer.status == 202) {
            self.assert_job_has_ended(accepted, &outcome).await?;
        } else if death == Death::AtTheEnd
            || answer.as_ref().is_some_and(|answer| answer.status < 300)
        {
            let done = match operation {
                Create | CreateWithJob | Start | AddKey => "running",
                CreateThatFails => "error",
                Stop | StartThatFails => "stopped",
                Delete => "gone",
            };
            ensure!(outcome == done, "answered with success, and {outcome}");
        }
        ensure!(outcomes.contains(&outcome.as_str()), "{outcome} instead of {outcomes:?}");
        self.assert_accounted_for(&outcome, before.as_ref()).await?;
        if matches!((operation, &death, &outcome[..]), (AddKey, Death::AtTheEnd, _)) {
            let keys = self.provider.paper_machines();
            let id = keys.ids()?.pop().context("no machine")?;
            ensure!(keys.authorized_keys(&id)?.contains(OTHER_KEY), "the key is lost");
        }
        self.clear().await?;
        Ok(death)
    }

    /// Gives what the VM was before, if the operation needs one.
    async fn prepare(&mut self, operation: Operation) -> Result<Option<Value>> {
        if matches!(operation, Create | CreateWithJob | CreateThatFails) {
            if operation == CreateThatFails {
                self.restart_slowly().await?;
            }
            return Ok(None);
        }
        let answer = self.client.post("/vms", &request()).await?;
        ensure!(answer.status < 300, "{} {}", answer.status, answer.text);
        if matches!(operation, Start | StartThatFails) {
            self.client.post_nothing(&path("/stop")).await?.expect(200)?;
        }
        if operation == StartThatFails {
            self.restart_slowly().await?;
        }
        Ok(Some(self.client.get(&path("")).await?.expect(200)?))
    }

    /// From now on a boot takes long enough to die in.
    async fn restart_slowly(&mut self) -> Result<()> {
        self.provider.terminate().await?;
        self.provider.set_paper(&self.slow)?;
        self.provider.start_again().await
    }

    /// The answer, if there is one before the provider dies.
    async fn ask(&self, operation: Operation) -> Result<Option<Answer>> {
        let client = &self.client;
        let answer = match operation {
            Create => client.post("/vms", &request()).await,
            CreateWithJob => {
                let accepted = client.post("/vms?async=true", &request()).await;
                if accepted.is_ok() {
                    self.job_or_death().await?;
                }
                accepted
            }
            Stop => client.post_nothing(&path("/stop")).await,
            Start => client.post_nothing(&path("/start")).await,
            Delete => client.delete(&path("")).await,
            AddKey => client.post(&path("/ssh-keys"), &json!({ "key": OTHER_KEY })).await,
            CreateThatFails | StartThatFails => {
                let request = request();
                let start = path("/start");
                let asked = async {
                    match operation {
                        CreateThatFails => client.post("/vms", &request).await,
                        _ => client.post_nothing(&start).await,
                    }
                };
                tokio::pin!(asked);
                tokio::select! {
                    answer = &mut asked => answer,
                    crashed = self.crash_the_booting_machine() => {
                        crashed?;
                        asked.await
                    }
                }
            }
        };
        Ok(answer.ok())
    }

    /// Waits until the VM that is being made is there, or the provider is not.
    async fn job_or_death(&self) -> Result<()> {
        let (deadline, pause) = (Duration::from_secs(30), Duration::from_millis(10));
        wait::until("the end of a job", deadline, pause, async || {
            Ok(match self.client.get(&path("")).await {
                Ok(vm) => (vm.status != 200 || vm.json()?["status"] != "creating").then_some(()),
                Err(_) => Some(()),
            })
        })
        .await
    }

    /// Starts, dies at this point if the start comes to it, and where it does not, a moment later.
    async fn die_while_starting(&mut self, point: (FaultPoint, u32)) -> Result<()> {
        self.provider.arm(&[point])?;
        let started = self.provider.start_again().await;
        if started.is_ok() && self.settled().await.is_ok() && self.lives_on().await? {
            self.provider.disarm()?;
            return self.provider.kill();
        }
        self.provider.death().await?;
        self.second_deaths += 1;
        Ok(())
    }

    async fn crash_the_booting_machine(&self) -> Result<()> {
        let machines = self.provider.paper_machines();
        let (deadline, pause) = (Duration::from_secs(30), Duration::from_millis(20));
        let id = wait::until("a machine that boots", deadline, pause, async || {
            Ok(machines.ids()?.into_iter().find(|id| machines.runs(id)))
        })
        .await?;
        machines.crash(&id)
    }

    /// Whether the provider is there a moment later.
    async fn lives_on(&self) -> Result<bool> {
        Ok(self.client.get("/vms").await.is_ok_and(|answer| answer.status == 200))
    }

    /// The VM's status, once nothing is under way for it.
    async fn settled(&self) -> Result<String> {
        let (deadline, pause) = (Duration::from_secs(30), Duration::from_millis(50));
        wait::until("nothing to be under way", deadline, pause, async || {
            let data_dir = self.provider.data_dir();
            let Some(phase) = database::phase_of(&data_dir, NAME)? else {
                return Ok(Some("gone".to_owned()));
            };
            // The database is ahead of what the API shows for a moment.
            let vm = self.client.get(&path("")).await?;
            if vm.status == 404 {
                return Ok(None);
            }
            let vm = vm.expect(200)?;
            let status = vm["status"].as_str().with_context(|| vm.to_string())?;
            let settled = match &phase[..] {
                "running" | "stopped" => status == phase,
                // A failed create is done with when it has given everything back.
                "failed" => status == "error" && vm["ssh_port"].is_null(),
                _ => false,
            };
            Ok(settled.then(|| status.to_owned()))
        })
        .await
    }

    async fn assert_job_has_ended(&self, accepted: &Answer, outcome: &str) -> Result<()> {
        let accepted = accepted.json()?;
        let id = accepted["job_id"].as_str().context("no job")?;
        let job = self.client.get(&format!("/vms/jobs/{id}")).await?.expect(200)?;
        let status = match outcome {
            "running" => "ready",
            "error" => "failed",
            _ => bail!("it was accepted, and is {outcome}"),
        };
        ensure!(job["status"] == status, "the VM is {outcome}, and its job {job}");
        Ok(())
    }

    async fn assert_accounted_for(&self, outcome: &str, before: Option<&Value>) -> Result<()> {
        let machines = self.provider.paper_machines();
        let (ids, vms) = (machines.ids()?, self.client.get("/vms").await?.expect(200)?);
        let vms = vms.as_array().context("no list")?;
        ensure!(machines.half_deleted()?.is_empty(), "half deleted: {:?}", machines.half_deleted());
        let partial = self.provider.files_named(".partial")?;
        ensure!(partial.is_empty(), "half written: {partial:?}");
        let summary = self.client.get("/summary").await?.expect(200)?;
        let allocated = match outcome {
            "gone" | "error" => json!({ "cpu": 0, "memory": 0, "storage": 0 }),
            _ => json!({ "cpu": 1, "memory": 1, "storage": 10 }),
        };
        ensure!(summary["resources"]["allocated"] == allocated, "{}", summary["resources"]);
        let open: Vec<u16> = self.open_ports().await;
        if matches!(outcome, "gone" | "error") {
            ensure!(ids.is_empty(), "machines are left: {ids:?}");
            ensure!(open.is_empty(), "ports are left: {open:?}");
            ensure!(vms.len() == usize::from(outcome == "error"), "{vms:?}");
            return Ok(());
        }
        let [vm] = &vms[..] else { bail!("{vms:?}") };
        let id = vm["id"].as_str().context("no id")?;
        ensure!(ids == [id], "{ids:?} instead of {id}");
        ensure!(machines.runs(id) == (outcome == "running"), "{outcome}, and the machine differs");
        ensure!(
            open.iter().map(|port| json!(port)).collect::<Vec<_>>() == [vm["ssh_port"].clone()]
        );
        if outcome == "running" {
            StandIn::assert_reached_through(open[0]).await?;
        }
        if let Some(before) = before {
            for field in ["id", "ssh_port", "resources", "created_at"] {
                ensure!(vm[field] == before[field], "{field} is not as before: {vm}");
            }
        }
        Ok(())
    }

    async fn open_ports(&self) -> Vec<u16> {
        let mut open = Vec::new();
        for port in self.provider.ssh_ports() {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                open.push(port);
            }
        }
        open
    }

    /// Deletes the VM, if there is one; nothing at all is left then.
    async fn clear(&mut self) -> Result<()> {
        let deleted = self.client.delete(&path("")).await?;
        ensure!(matches!(deleted.status, 200 | 404), "{} {}", deleted.status, deleted.text);
        ensure!(self.settled().await? == "gone");
        self.assert_accounted_for("gone", None).await?;
        let rows = database::rows_that_mention(&self.provider.data_dir(), NAME)?;
        ensure!(rows.is_empty(), "rows are left: {rows:?}");
        let files = self.provider.files_named(NAME)?;
        ensure!(files.is_empty(), "files are left: {files:?}");
        ensure!(self.provider.ssh_ports().all(ports::can_be_bound));
        Ok(())
    }
}

fn path(rest: &str) -> String {
    format!("/vms/{NAME}{rest}")
}

fn request() -> Value {
    json!({ "name": NAME, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": KEY })
}
