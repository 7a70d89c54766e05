use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::{
    owners::{Address, Nonce},
    vms::model::{Job, JobStatus, Ownership, Phase, Resources, Vm},
};

fn record(name: &str, port: u16) -> VmRecord {
    let now = Timestamp::now();
    let vm = Vm {
        id: format!("golem-{name}-20260101-000000"),
        name: name.to_owned(),
        backend: "memory".to_owned(),
        phase: Phase::Creating,
        resources: Resources::new(1, 2, 10).unwrap(),
        image: "24.04".to_owned(),
        ownership: Ownership::Nobody,
        ssh_port: Some(port),
        ip_address: None,
        created_at: now,
        updated_at: now,
        error_message: None,
        progress: None,
    };
    VmRecord { vm, ssh_key: Some("ssh-ed25519 AAAA".to_owned()) }
}

fn job(record: &VmRecord) -> JobRecord {
    let job = Job {
        id: Uuid::new_v4(),
        vm_name: record.vm.name.clone(),
        ownership: record.vm.ownership,
        status: JobStatus::Creating,
        error: None,
        created_at: record.vm.created_at,
        updated_at: record.vm.created_at,
    };
    JobRecord { job, vm_id: record.vm.id.clone() }
}

async fn admit(store: &Store, name: &str, port: u16) -> (VmRecord, JobRecord) {
    let record = record(name, port);
    let job = job(&record);
    store.admit(record, job, None, None).await.unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Why the store does not open.
async fn refusal(directory: &TempDir) -> String {
    match Store::open(directory.path()).await {
        Ok(_) => panic!("the store opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let (mut written, mut written_job) = admit(&store, "one", 50800).await;
    written.vm.phase = Phase::Failed;
    written.vm.ssh_port = None;
    written.vm.error_message = Some("no luck".to_owned());
    written_job.job.status = JobStatus::Failed;
    written_job.job.error = Some("no luck".to_owned());
    store.save(written.vm.clone(), Some(written_job.clone())).await.unwrap();
    store.close().await;

    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(store.vms().await.unwrap(), [written.clone()]);
    assert_eq!(store.jobs().await.unwrap(), [written_job]);
    store.remove(&written.vm.id).await.unwrap();
    assert_eq!(store.vms().await.unwrap(), []);
    assert_eq!(store.jobs().await.unwrap(), []);
}

#[tokio::test]
async fn whom_vms_and_jobs_belong_to_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let (a, b) = (Address::repeat_byte(0xaa), Address::repeat_byte(0xbb));
    let owned = [Ownership::Nobody, Ownership::Payer(a), Ownership::Proven(b)];
    for (port, ownership) in (50800..).zip(owned) {
        let mut record = record(&format!("vm-{port}"), port);
        record.vm.ownership = ownership;
        let job = job(&record);
        store.admit(record, job, None, None).await.unwrap();
    }
    store.close().await;
    let at_rest = vms_at_rest(directory.path()).unwrap().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let vms = store.vms().await.unwrap();
    assert_eq!(at_rest, vms);
    let jobs = store.jobs().await.unwrap();
    for (index, ownership) in owned.into_iter().enumerate() {
        assert_eq!(vms[index].vm.ownership, ownership);
        let job = jobs.iter().find(|job| job.vm_id == vms[index].vm.id).unwrap();
        assert_eq!(job.job.ownership, ownership);
    }
}

#[test]
fn a_database_from_before_there_were_owners_can_be_looked_at() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("migrations/0001-vms.sql")).unwrap();
    connection
        .execute_batch(
            "INSERT INTO vms (id, name, backend, phase, cpu_cores, memory_gb, storage_gb, image, ssh_port, created_at, updated_at)
             VALUES ('golem-one', 'one', 'qemu', 'running', 1, 1, 10, '24.04', 50800, '2026-11-23T00:00:00Z', '2026-11-23T00:00:00Z')",
        )
        .unwrap();
    let vms = super::vms::all(&connection).unwrap();
    assert_eq!((vms.len(), vms[0].vm.ownership), (1, Ownership::Nobody));
}

#[tokio::test]
async fn used_nonces_are_kept_until_they_are_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let used = |number: u64| UsedNonce {
        address: Address::repeat_byte(0xaa),
        nonce: Nonce::parse(&format!("nonce-{number:04}")).unwrap(),
        timestamp: 1_000 + number,
    };
    store.keep_nonce(used(1), 940).await.unwrap();
    store.keep_nonce_soon(used(2), 940);
    store.close().await;
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(store.used_nonces().await.unwrap(), [used(1), used(2)]);
    store.keep_nonce(used(3), 1_002).await.unwrap();
    assert_eq!(store.used_nonces().await.unwrap(), [used(2), used(3)]);
}

#[tokio::test]
async fn an_id_is_never_issued_twice() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let (first, _) = admit(&store, "one", 50800).await;
    store.remove(&first.vm.id).await.unwrap();
    let (second, second_job) = admit(&store, "one", 50800).await;
    assert_eq!(second.vm.id, format!("{}-2", first.vm.id));
    assert_eq!(second_job.vm_id, second.vm.id);
    let asked = vec![first.vm.id.clone(), "golem-other-20260101-000000".to_owned()];
    assert_eq!(store.issued(asked).await.unwrap(), [first.vm.id].into());
}

#[tokio::test]
async fn the_database_itself_refuses_a_second_vm_with_the_same_name_or_port() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    admit(&store, "one", 50800).await;
    for (name, port) in [("one", 50801), ("two", 50800)] {
        let second = record(name, port);
        let second_job = job(&second);
        assert!(store.admit(second, second_job, None, None).await.is_err());
    }
    assert_eq!(store.vms().await.unwrap().len(), 1);
    assert_eq!(store.jobs().await.unwrap().len(), 1, "neither or both");
}

#[tokio::test]
async fn a_new_vm_takes_the_place_of_a_failed_one_whose_job_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let (failed, _) = admit(&store, "one", 50800).await;
    let second = record("one", 50800);
    let second_job = job(&second);
    store.admit(second, second_job, Some(failed.vm.id), None).await.unwrap();
    assert_eq!(store.vms().await.unwrap().len(), 1);
    assert_eq!(store.jobs().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_provider_on_the_directory_is_refused_and_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let text = refusal(&directory).await;
    assert!(text.contains("in use by another provider"), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    store.close().await;
    assert!(matches!(store.vms().await, Err(StoreError::Closed)));
    Store::open(directory.path()).await.unwrap();
}

#[tokio::test]
async fn directory_and_database_are_closed_to_other_users() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b");
    let store = Store::open(&path).await.unwrap();
    admit(&store, "one", 50800).await;
    assert_eq!(mode(&path), 0o700);
    for file in fs::read_dir(&path).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    store.close().await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&path).await.unwrap();
    assert_eq!(mode(&path), 0o700, "closed again");
}

#[tokio::test]
async fn a_directory_full_of_other_things_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("other"), "").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    Store::open(directory.path()).await.unwrap();
    assert_eq!(mode(directory.path()), 0o777);
}

#[tokio::test]
async fn a_database_from_a_newer_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).await.unwrap().close().await;
    let path = directory.path().join("provider.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let text = refusal(&directory).await;
    assert!(text.contains("newer version") && text.contains("schema 99"), "{text}");
    let version: i64 = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[tokio::test]
async fn a_damaged_database_is_told_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    for number in 0..50 {
        admit(&store, &format!("vm-{number}"), 50800 + number).await;
    }
    store.close().await;
    let path = directory.path().join("provider.db");
    let good = fs::read(&path).unwrap();
    let mut scribbled = good.clone();
    for byte in &mut scribbled[4096..16384] {
        *byte = 0x5a;
    }
    let broken: [&[u8]; 4] = [b"", b"not a database", &good[..good.len() / 2], &scribbled];
    for bytes in broken {
        fs::write(&path, bytes).unwrap();
        let text = refusal(&directory).await;
        assert!(text.contains("is damaged") && text.contains("put a copy back"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "left as it was found");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(Store::open(directory.path()).await.unwrap().vms().await.unwrap().len(), 50);
}

#[tokio::test]
async fn a_database_that_another_program_has_locked_is_told_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let other = Connection::open(directory.path().join("provider.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = record("one", 50800);
    let first_job = job(&first);
    let text = store.admit(first, first_job, None, None).await.unwrap_err().to_string();
    assert!(text.contains("is locked by another program"), "{text}");
    other.execute_batch("ROLLBACK").unwrap();
    admit(&store, "one", 50800).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("file"), "").unwrap();
    for path in ["file", "file/below"] {
        let path = parent.path().join(path);
        let error = Store::open(&path).await.err().unwrap().to_string();
        assert!(
            error.contains(&format!("cannot use the data directory {}", path.display())),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_plugins_values_have_a_room_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let state = store.plugin_state();
    assert!(state.set("qemu", "a", vec![0; 59], 100).await.unwrap());
    assert!(!state.set("qemu", "b", vec![0; 40], 100).await.unwrap());
    assert_eq!(state.get("qemu", "b").await.unwrap(), None);
    // What takes the place of a value does not come on top of it, and others have rooms of their own.
    assert!(state.set("qemu", "a", vec![0; 99], 100).await.unwrap());
    assert!(state.set("other", "a", vec![0; 99], 100).await.unwrap());
    assert!(!state.set("qemu", "a", vec![0; 100], 100).await.unwrap());
    assert_eq!(state.get("qemu", "a").await.unwrap(), Some(vec![0; 99]));
}

#[tokio::test]
async fn plugins_keep_their_values_apart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let state = store.plugin_state();
    state.set("qemu", "vm/b", b"1".to_vec(), 1000).await.unwrap();
    state.set("qemu", "vm/a", b"2".to_vec(), 1000).await.unwrap();
    state.set("qemu", "vm/a", b"3".to_vec(), 1000).await.unwrap();
    state.set("other", "vm/c", b"4".to_vec(), 1000).await.unwrap();
    assert_eq!(state.get("qemu", "vm/a").await.unwrap(), Some(b"3".to_vec()));
    assert_eq!(state.get("qemu", "vm/c").await.unwrap(), None);
    assert_eq!(state.keys("qemu", "vm/").await.unwrap(), ["vm/a", "vm/b"]);
    assert_eq!(state.keys("qemu", "%").await.unwrap(), Vec::<String>::new());
    state.delete("qemu", "vm/a").await.unwrap();
    state.delete("qemu", "vm/a").await.unwrap();
    store.close().await;
    let state = Store::open(directory.path()).await.unwrap().plugin_state();
    assert_eq!(state.keys("qemu", "").await.unwrap(), ["vm/b"]);
}

#[tokio::test]
async fn the_last_price_of_a_token_is_kept_and_can_be_looked_at_while_the_store_is_open() {
    let directory = TempDir::new().unwrap();
    assert_eq!(read_glm_rate(directory.path()).unwrap(), None);
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(store.glm_rate().await.unwrap(), None);
    let rate = |usd: &str, second| RateRecord {
        usd: usd.parse().unwrap(),
        at: Timestamp::from_second(second).unwrap(),
        source: "https://prices.example".to_owned(),
    };
    for (usd, second) in
        [("0.25", 1_800_000_000), ("0.2500000000000000000000000001", 1_800_000_001)]
    {
        store.save_glm_rate(rate(usd, second)).await.unwrap();
        assert_eq!(store.glm_rate().await.unwrap(), Some(rate(usd, second)));
        assert_eq!(read_glm_rate(directory.path()).unwrap(), Some(rate(usd, second)));
    }
    store.close().await;
    assert_eq!(read_glm_rate(directory.path()).unwrap().unwrap().at.as_second(), 1_800_000_001);
}

#[test]
fn a_database_of_an_older_version_has_no_price() {
    let directory = TempDir::new().unwrap();
    Connection::open(directory.path().join("provider.db")).unwrap();
    assert_eq!(read_glm_rate(directory.path()).unwrap(), None);
}
