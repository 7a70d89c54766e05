//! Requests that name what is not there, or make no sense.

use std::time::Duration;

use super::{
    Bed,
    expect::{Shown, needed, refusal, seen, success},
    record::{Missed, Recorder, Tried},
    spec,
};
use crate::plugins::{
    Failure, FailureKind,
    harness::unheard,
    vm_backend::{InstanceSpec, VmBackend},
};

const UNKNOWN: &[FailureKind] = &[FailureKind::NotFound];
const WRONG: &[FailureKind] = &[FailureKind::InvalidArgument];

pub async fn check(bed: &Bed<'_>, image: Option<&str>, recorder: &mut Recorder) {
    unknown_ids(bed, recorder).await;
    wrong_specs(bed, image, recorder).await;
}

async fn unknown_ids(bed: &Bed<'_>, recorder: &mut Recorder) {
    const PROMISE: &str = "an unknown id is `not-found`";
    let (plugin, id) = (&bed.plugin, bed.machines.unknown());
    let of = |call: &str| format!("`{call}` of a machine that was never made");
    recorder
        .check("inspect", PROMISE, async {
            refusal(&of("inspect"), plugin.inspect(&id).await, UNKNOWN)
        })
        .await;
    recorder
        .check("start", PROMISE, async {
            refusal(&of("start"), plugin.start(&id, unheard()).await, UNKNOWN)
        })
        .await;
    recorder
        .check("stop", PROMISE, async {
            refusal(&of("stop"), plugin.stop(&id, Duration::from_secs(1)).await, UNKNOWN)
        })
        .await;
    recorder
        .check("await-ready", PROMISE, async {
            refusal(&of("await-ready"), plugin.await_ready(&id, unheard()).await, UNKNOWN)
        })
        .await;
    recorder
        .check("add-ssh-key", PROMISE, async {
            refusal(&of("add-ssh-key"), plugin.add_ssh_key(&id, super::KEY).await, UNKNOWN)
        })
        .await;
    recorder
        .check("delete", "an unknown id is a success, as often as it is asked for", async {
            success(&of("delete"), plugin.delete(&id).await)?;
            success(&of("delete"), plugin.delete(&id).await)?;
            refusal("`inspect` after it", plugin.inspect(&id).await, UNKNOWN)
        })
        .await;
}

async fn wrong_specs(bed: &Bed<'_>, image: Option<&str>, recorder: &mut Recorder) {
    let id = bed.machines.refused();
    let image = || needed(image, "there is no image to make machines from");
    recorder
        .check("create", "an unknown image is `invalid-argument`, and makes nothing", async {
            refused(bed, "an image that is not in `images`", spec(&id, "no-such-image")).await
        })
        .await;
    recorder
        .check("create", "an id outside of the contract is `invalid-argument`", async {
            let image = image()?;
            for wrong in ["", "../outside", "UPPER", "a b", &"a".repeat(101)] {
                let answer = bed.plugin.create(&spec(wrong, image), unheard()).await;
                if answer.is_ok() {
                    // No later check knows of it.
                    let _ = bed.plugin.delete(wrong).await;
                }
                refusal(&format!("`create` with the id `{wrong}`"), answer, WRONG)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check(
            "create",
            "no processor or no memory is `invalid-argument`, and makes nothing",
            async {
                let spec = spec(&id, image()?);
                refused(bed, "no processor", InstanceSpec { cpu_cores: 0, ..spec.clone() }).await?;
                refused(bed, "no memory", InstanceSpec { memory_mib: 0, ..spec }).await
            },
        )
        .await;
    recorder
        .check("create", "a key of two lines is `invalid-argument`, and makes nothing", async {
            let keys = vec![format!("{}\n{}", super::KEY, super::SECOND_KEY)];
            let spec = InstanceSpec { ssh_authorized_keys: keys, ..spec(&id, image()?) };
            refused(bed, "a key of two lines", spec).await
        })
        .await;
}

/// What cannot be made is refused, and nothing of it is there.
async fn refused(bed: &Bed<'_>, what: &str, spec: InstanceSpec) -> Tried<()> {
    let answer = bed.plugin.create(&spec, unheard()).await;
    let outcome = refusal(&format!("`create` with {what}"), answer, WRONG);
    let seen = seen_of(bed.plugin.inspect(&spec.id).await);
    // Whatever it has made is in the way of the next check.
    let deleted = bed.plugin.delete(&spec.id).await;
    outcome?;
    if let Some(seen) = seen {
        return Err(Missed::Failed(format!("it was refused, and still `inspect` answers {seen}")));
    }
    success("`delete` after it", deleted)
}

/// What is there, if there is something.
fn seen_of<T: Shown>(answer: Result<T, Failure>) -> Option<String> {
    match &answer {
        Err(error) if error.kind == FailureKind::NotFound => None,
        _ => Some(seen(&answer)),
    }
}
