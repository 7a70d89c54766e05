//! A machine's whole life, with others beside it and with calls that are cut off in the middle.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    Bed, KEY, SECOND_KEY,
    expect::{cut_off, machine, needed, refusal, seen, success},
    heard,
    record::{Missed, Recorder, Tried},
    spec,
};
use crate::plugins::{
    FailureKind,
    harness::{Harness, Loaded},
    vm_backend::{Instance, InstanceSpec, PowerState, VmBackend},
};

/// Which of a call's steps is under way then differs from backend to backend; these are early in all of them.
const CREATE_CUT_OFF: [Duration; 3] =
    [Duration::from_millis(2), Duration::from_millis(40), Duration::from_millis(250)];
const AWAIT_READY_CUT_OFF: Duration = Duration::from_millis(300);
const STOP_CUT_OFF: Duration = Duration::from_millis(200);
/// As long as the provider gives machines.
const GRACE: Duration = Duration::from_secs(30);
const SHORT_GRACE: Duration = Duration::from_secs(1);
/// How long an SSH server is given for its first words once the machine is called ready.
const GREETING: Duration = Duration::from_secs(15);

const UP: &[PowerState] = &[PowerState::Starting, PowerState::Running];
const RUNNING: &[PowerState] = &[PowerState::Running];
const OFF: &[PowerState] = &[PowerState::Stopped];

const NOT_MADE: &str = "there is no machine, since `create` failed";
const NOT_READY: &str = "the machine was never ready";
const NOT_STOPPED: &str = "the machine was not stopped";

pub async fn check(
    bed: &mut Bed<'_>,
    harness: &Harness,
    image: Option<&str>,
    recorder: &mut Recorder,
) {
    let made = created(bed, image, recorder).await;
    side_by_side(bed, image, recorder).await;
    let ready = ready(bed, made, recorder).await;
    restarted(bed, harness, made, recorder).await;
    let stopped = stopped(bed, made, recorder).await;
    started(bed, stopped, ready, recorder).await;
    deleted(bed, made, image, recorder).await;
}

async fn created(bed: &Bed<'_>, image: Option<&str>, recorder: &mut Recorder) -> Option<()> {
    let (plugin, id) = (&bed.plugin, bed.machines.main());
    let progress = heard(recorder);
    let create = async |spec: &InstanceSpec| plugin.create(spec, Arc::clone(&progress)).await;
    let image = || needed(image, "there is no image to make machines from");
    let made = recorder
        .check("create", "cut off in the middle and repeated, it makes the machine", async {
            let spec = spec(&id, image()?);
            for after in CREATE_CUT_OFF {
                if cut_off(after, create(&spec)).await.is_some() {
                    break;
                }
            }
            let made = success("`create`", create(&spec).await)?;
            machine("`create`", &made, &id, UP)
        })
        .await;
    recorder
        .check("create", "repeated with the same spec, it answers what is there", async {
            needed(made, NOT_MADE)?;
            let again = success("a repeated `create`", create(&spec(&id, image()?)).await)?;
            machine("a repeated `create`", &again, &id, UP)
        })
        .await;
    recorder
        .check("create", "repeated with another spec, it is `already-exists`", async {
            needed(made, NOT_MADE)?;
            let spec = spec(&id, image()?);
            let larger = InstanceSpec { memory_mib: spec.memory_mib * 2, ..spec };
            let answer = create(&larger).await;
            refusal("`create` with twice the memory", answer, &[FailureKind::AlreadyExists])?;
            let still = success("`inspect` after it", plugin.inspect(&id).await)?;
            machine("`inspect` after it", &still, &id, UP)
        })
        .await;
    recorder
        .check("inspect", "it finds the machine, as often as it is asked", async {
            needed(made, NOT_MADE)?;
            for _ in 0..3 {
                let found = success("`inspect`", plugin.inspect(&id).await)?;
                machine("`inspect`", &found, &id, UP)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("inspect-all", "it lists the machine once", async {
            needed(made, NOT_MADE)?;
            listed(bed, &[id.as_str()]).await
        })
        .await;
    made
}

/// `inspect-all` lists exactly these of the run's machines.
async fn listed(bed: &Bed<'_>, ids: &[&str]) -> Tried<()> {
    let all = success("`inspect-all`", bed.plugin.inspect_all().await)?;
    let mut found: Vec<&str> = all.iter().map(|instance| instance.id.as_str()).collect();
    found.retain(|id| bed.machines.are(id));
    found.sort_unstable();
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    if found == ids {
        return Ok(());
    }
    Err(Missed::Failed(format!("it lists [{}] instead of [{}]", found.join(", "), ids.join(", "))))
}

async fn side_by_side(bed: &Bed<'_>, image: Option<&str>, recorder: &mut Recorder) {
    let plugin = &bed.plugin;
    let (main, long, third) = (bed.machines.main(), bed.machines.long(), bed.machines.third());
    let progress = heard(recorder);
    let made = recorder
        .check(
            "create",
            "machines are made side by side, with the longest id and without keys",
            async {
                let image = needed(image, "there is no image to make machines from")?;
                let bare = InstanceSpec { ssh_authorized_keys: Vec::new(), ..spec(&third, image) };
                let spec = spec(&long, image);
                let (one, other, inspected) = tokio::join!(
                    plugin.create(&spec, Arc::clone(&progress)),
                    plugin.create(&bare, Arc::clone(&progress)),
                    plugin.inspect_all(),
                );
                let one = success("`create` with an id of 100 characters", one)?;
                machine("`create`", &one, &long, UP)?;
                let other = success("`create` without keys, beside it", other)?;
                machine("`create`", &other, &third, UP)?;
                success("`inspect-all` beside them", inspected)?;
                Ok(())
            },
        )
        .await;
    recorder
        .check("inspect-all", "it lists exactly the machines there are", async {
            needed(made, "the machines were not made")?;
            let answer = plugin.inspect(&main).await;
            let main_is_there = answer.is_ok();
            match main_is_there {
                true => listed(bed, &[&main, &long, &third]).await,
                false => listed(bed, &[&long, &third]).await,
            }
        })
        .await;
    recorder
        .check("stop", "a machine that does not shut down in its grace is switched off", async {
            needed(made, "the machines were not made")?;
            let off = success("`stop`", plugin.stop(&long, SHORT_GRACE).await)?;
            machine("`stop`", &off, &long, OFF)
        })
        .await;
    recorder
        .check("delete", "machines are removed side by side, running or not", async {
            needed(made, "the machines were not made")?;
            let (one, other) = tokio::join!(plugin.delete(&long), plugin.delete(&third));
            success("`delete` of a stopped machine", one)?;
            success("`delete` of a running machine", other)?;
            for id in [&long, &third] {
                let after = plugin.inspect(id).await;
                refusal("`inspect` after it", after, &[FailureKind::NotFound])?;
            }
            Ok(())
        })
        .await;
}

async fn ready(bed: &Bed<'_>, made: Option<()>, recorder: &mut Recorder) -> Option<SocketAddr> {
    let (plugin, id) = (&bed.plugin, bed.machines.main());
    let progress = heard(recorder);
    let endpoint = recorder
        .check(
            "await-ready",
            "cut off and repeated, it ends with `running` and an endpoint",
            async {
                needed(made, NOT_MADE)?;
                let begun = plugin.await_ready(&id, Arc::clone(&progress));
                cut_off(AWAIT_READY_CUT_OFF, begun).await;
                booted(plugin, &id, &progress).await
            },
        )
        .await;
    recorder
        .check("await-ready", "an SSH server answers at that endpoint", async {
            greeted(needed(endpoint, NOT_READY)?).await
        })
        .await;
    recorder
        .check("await-ready", "a machine that is ready is `running` at once", async {
            needed(endpoint, NOT_READY)?;
            let again =
                success("`await-ready`", plugin.await_ready(&id, Arc::clone(&progress)).await)?;
            machine("`await-ready`", &again, &id, RUNNING)?;
            let seen = success("`inspect`", plugin.inspect(&id).await)?;
            machine("`inspect`", &seen, &id, RUNNING)
        })
        .await;
    recorder
        .check("start", "a machine that runs stays as it is", async {
            let endpoint = needed(endpoint, NOT_READY)?;
            let same = success("`start`", plugin.start(&id, Arc::clone(&progress)).await)?;
            machine("`start`", &same, &id, RUNNING)?;
            unchanged("`start`", &same, endpoint)
        })
        .await;
    recorder
        .check("add-ssh-key", "a key is taken, and taken again", async {
            needed(endpoint, NOT_READY)?;
            success("`add-ssh-key`", plugin.add_ssh_key(&id, SECOND_KEY).await)?;
            success("a repeated `add-ssh-key`", plugin.add_ssh_key(&id, SECOND_KEY).await)?;
            success("`add-ssh-key` of the first key", plugin.add_ssh_key(&id, KEY).await)
        })
        .await;
    recorder
        .check("add-ssh-key", "a key of two lines is `invalid-argument`", async {
            needed(endpoint, NOT_READY)?;
            let answer = plugin.add_ssh_key(&id, &format!("{KEY}\n{SECOND_KEY}")).await;
            refusal("`add-ssh-key` of two lines", answer, &[FailureKind::InvalidArgument])
        })
        .await;
    endpoint
}

async fn booted(
    plugin: &Loaded,
    id: &str,
    progress: &crate::plugins::vm_backend::ProgressSink,
) -> Tried<SocketAddr> {
    let ready = success("`await-ready`", plugin.await_ready(id, Arc::clone(progress)).await)?;
    machine("`await-ready`", &ready, id, RUNNING)?;
    match ready.ssh {
        Some(endpoint) if endpoint.port() != 0 => Ok(endpoint),
        _ => Err(Missed::failed("`await-ready` answers a machine without an SSH endpoint")),
    }
}

fn unchanged(what: &str, instance: &Instance, endpoint: SocketAddr) -> Tried<()> {
    match instance.ssh {
        Some(now) if now == endpoint => Ok(()),
        Some(now) => Err(Missed::Failed(format!(
            "{what} answers the endpoint {now}; before it was {endpoint}"
        ))),
        None => Err(Missed::Failed(format!("{what} answers no SSH endpoint any more"))),
    }
}

/// RFC 4253, 4.2: other lines may come before the server's own.
async fn greeted(endpoint: SocketAddr) -> Tried<()> {
    const MOST_BYTES: usize = 16 * 1024;
    let greeting = async {
        let mut stream = TcpStream::connect(endpoint).await?;
        let mut said = Vec::new();
        while said.len() < MOST_BYTES {
            if stream.read_buf(&mut said).await? == 0 {
                break;
            }
            if said.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"SSH-")) {
                return Ok(None);
            }
        }
        let said = String::from_utf8_lossy(&said).chars().take(100).collect::<String>();
        Ok::<_, std::io::Error>(Some(said))
    };
    match tokio::time::timeout(GREETING, greeting).await {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(said))) => {
            Err(Missed::Failed(format!("{endpoint} says {said:?}, which no SSH server does")))
        }
        Ok(Err(error)) => Err(Missed::Failed(format!("{endpoint} cannot be reached: {error}"))),
        Err(_) => {
            Err(Missed::Failed(format!("{endpoint} says nothing within {} s", GREETING.as_secs())))
        }
    }
}

async fn restarted(
    bed: &mut Bed<'_>,
    harness: &Harness,
    made: Option<()>,
    recorder: &mut Recorder,
) {
    let id = bed.machines.main();
    let fresh = recorder
        .check("plugin", "a provider that starts anew finds the machine as it was", async {
            needed(made, NOT_MADE)?;
            let before = success("`inspect`", bed.plugin.inspect(&id).await)?;
            let fresh = harness.load().await.map_err(|error| Missed::Failed(error.to_string()))?;
            let after = success("`inspect` after it", fresh.inspect(&id).await)?;
            let kept = (after.power, after.ssh) == (before.power, before.ssh);
            if !kept {
                return Err(Missed::Failed(format!(
                    "before: {}; after: {}",
                    seen(&Ok(before)),
                    seen(&Ok(after))
                )));
            }
            Ok(fresh)
        })
        .await;
    if let Some(fresh) = fresh {
        bed.plugin = Arc::new(fresh);
    }
}

async fn stopped(bed: &Bed<'_>, made: Option<()>, recorder: &mut Recorder) -> Option<()> {
    let (plugin, id) = (&bed.plugin, bed.machines.main());
    let progress = heard(recorder);
    let stopped = recorder
        .check("stop", "cut off in the middle and repeated, it ends with `stopped`", async {
            needed(made, NOT_MADE)?;
            cut_off(STOP_CUT_OFF, plugin.stop(&id, GRACE)).await;
            let off = success("`stop`", plugin.stop(&id, GRACE).await)?;
            machine("`stop`", &off, &id, OFF)
        })
        .await;
    recorder
        .check("stop", "a machine that is stopped stays as it is", async {
            needed(stopped, NOT_STOPPED)?;
            let off = success("a repeated `stop`", plugin.stop(&id, GRACE).await)?;
            machine("a repeated `stop`", &off, &id, OFF)?;
            let off = success("`inspect`", plugin.inspect(&id).await)?;
            machine("`inspect`", &off, &id, OFF)
        })
        .await;
    recorder
        .check("inspect-all", "it lists every machine, also a stopped one", async {
            needed(stopped, NOT_STOPPED)?;
            listed(bed, &[id.as_str()]).await
        })
        .await;
    let precondition = &[FailureKind::FailedPrecondition];
    recorder
        .check("await-ready", "a stopped machine is `failed-precondition`", async {
            needed(stopped, NOT_STOPPED)?;
            let answer = plugin.await_ready(&id, Arc::clone(&progress)).await;
            refusal("`await-ready` of a stopped machine", answer, precondition)
        })
        .await;
    recorder
        .check("add-ssh-key", "a stopped machine is `failed-precondition`", async {
            needed(stopped, NOT_STOPPED)?;
            let answer = plugin.add_ssh_key(&id, SECOND_KEY).await;
            refusal("`add-ssh-key` to a stopped machine", answer, precondition)
        })
        .await;
    stopped
}

async fn started(
    bed: &Bed<'_>,
    stopped: Option<()>,
    ready: Option<SocketAddr>,
    recorder: &mut Recorder,
) {
    let (plugin, id) = (&bed.plugin, bed.machines.main());
    let progress = heard(recorder);
    let started = recorder
        .check("start", "a stopped machine starts, and a repeated start changes nothing", async {
            needed(stopped, NOT_STOPPED)?;
            for what in ["`start`", "a repeated `start`"] {
                let up = success(what, plugin.start(&id, Arc::clone(&progress)).await)?;
                machine(what, &up, &id, UP)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("await-ready", "after a start SSH answers again", async {
            needed(started, "the machine was not started")?;
            needed(ready, NOT_READY)?;
            greeted(booted(plugin, &id, &progress).await?).await
        })
        .await;
}

async fn deleted(bed: &Bed<'_>, made: Option<()>, image: Option<&str>, recorder: &mut Recorder) {
    let (plugin, id) = (&bed.plugin, bed.machines.main());
    let gone = &[FailureKind::NotFound];
    recorder
        .check(
            "delete",
            "a running machine is removed, and deleting it again is a success",
            async {
                needed(made, NOT_MADE)?;
                success("`delete`", plugin.delete(&id).await)?;
                success("a repeated `delete`", plugin.delete(&id).await)?;
                refusal("`inspect` after it", plugin.inspect(&id).await, gone)
            },
        )
        .await;
    let short_lived = bed.machines.short_lived();
    let progress = heard(recorder);
    recorder
        .check("delete", "a machine whose create was cut off is removed", async {
            let image = needed(image, "there is no image to make machines from")?;
            needed(made, NOT_MADE)?;
            let spec = spec(&short_lived, image);
            for after in CREATE_CUT_OFF {
                cut_off(after, plugin.create(&spec, Arc::clone(&progress))).await;
                success("`delete`", plugin.delete(&short_lived).await)?;
                refusal("`inspect` after it", plugin.inspect(&short_lived).await, gone)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("inspect-all", "it lists none of the machines that were removed", async {
            listed(bed, &[]).await
        })
        .await;
}
