//! What a provider does when the ground under it fails: its database, its disk, its clock. It says what to do, loses no VM,
//! and goes on as soon as it can.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Client, Paper, Provider, Setup, StandIn, clock,
    mounts::{self, Mount},
    wait,
};
use jiff::SignedDuration;
use rusqlite::Connection;
use serde_json::{Value, json};

struct Ground {
    provider: Provider,
    client: Client,
    _ssh: StandIn,
}

impl Ground {
    /// A provider with one running VM.
    async fn with_a_vm(setup: Setup) -> Result<Ground> {
        let ssh = StandIn::start().await?;
        let provider =
            setup.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?.start().await?;
        let client = provider.client().clone();
        let ground = Ground { provider, client, _ssh: ssh };
        ground.create("kept").await?;
        Ok(ground)
    }

    async fn create(&self, name: &str) -> Result<Value> {
        let answer = self.client.post("/vms", &request(name)).await?;
        ensure!(answer.status < 300, "{} {}", answer.status, answer.text);
        answer.json()
    }

    /// The VM that was there first runs, can be reached, stopped and started.
    async fn assert_nothing_is_lost(&self) -> Result<()> {
        let vm = self.client.get("/vms/kept").await?.expect(200)?;
        ensure!(vm["status"] == "running", "{vm}");
        let port = vm["ssh_port"].as_u64().context("no port")?;
        StandIn::assert_reached_through(u16::try_from(port)?).await?;
        let id = vm["id"].as_str().context("no id")?;
        ensure!(self.provider.paper_machines().runs(id));
        self.client.post_nothing("/vms/kept/stop").await?.expect(200)?;
        self.client.post_nothing("/vms/kept/start").await?.expect(200)?;
        Ok(())
    }

    fn database(&self) -> PathBuf {
        self.provider.data_dir().join("provider.db")
    }
}

fn request(name: &str) -> Value {
    json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used_ends_the_start_with_what_to_do_and_is_left_as_it_is()
-> Result<()> {
    let mut ground = Ground::with_a_vm(Setup::new()?).await?;
    ground.provider.terminate().await?;
    let database = ground.database();
    let whole = fs::read(&database)?;
    let newer = {
        let connection = Connection::open(&database)?;
        connection.pragma_update(None, "user_version", 99)?;
        connection.close().map_err(|(_, error)| error)?;
        let newer = fs::read(&database)?;
        fs::write(&database, &whole)?;
        newer
    };
    let cases: [(&str, &[u8], &[&str]); 4] = [
        ("empty", b"", &["damaged", "put a copy back"]),
        ("half", &whole[..whole.len() / 2], &["damaged", "put a copy back"]),
        ("garbage", &[0x5a; 40_000], &["damaged", "put a copy back"]),
        ("newer", &newer, &["newer version", "99"]),
    ];
    for (case, contents, told) in cases {
        fs::write(&database, contents)?;
        let ended = ground.provider.run_a_second_one().await?;
        ensure!(ended.status.code() == Some(1), "{case}: {:?} {}", ended.status, ended.stderr);
        for words in told.iter().copied().chain([&*database.to_string_lossy()]) {
            ensure!(ended.stderr.contains(words), "{case}: {words} is not in {}", ended.stderr);
        }
        ensure!(fs::read(&database)? == contents, "{case}: the file was changed");
    }
    fs::write(&database, &whole)?;
    ground.provider.start_again().await?;
    ground.assert_nothing_is_lost().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_another_program_has_locked_is_told_to_whoever_waits_for_it() -> Result<()>
{
    let mut ground = Ground::with_a_vm(Setup::new()?).await?;
    let other = Connection::open(ground.database())?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    let refusal = ground.client.post("/vms", &request("late")).await?.refusal(503)?;
    ensure!(refusal.contains("locked by another program"), "{refusal}");
    ground.client.get("/vms/kept").await?.expect(200)?;
    ground.client.get("/vms/late").await?.refusal(404)?;
    other.execute_batch("ROLLBACK")?;
    ground.create("late").await?;
    ground.assert_nothing_is_lost().await?;

    ground.provider.terminate().await?;
    other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")?;
    let ended = ground.provider.run_a_second_one().await?;
    ensure!(ended.status.code() == Some(1), "{:?}", ended.status);
    ensure!(ended.stderr.contains("locked by another program"), "{}", ended.stderr);
    drop(other);
    ground.provider.start_again().await?;
    ground.assert_nothing_is_lost().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_became_read_only_ends_the_start_and_loses_no_vm() -> Result<()> {
    if !mounts::are_allowed() {
        return Ok(());
    }
    let setup = Setup::new()?;
    // Before anything in it is open: the kernel refuses to take the right to write from whoever writes.
    let data_dir = setup.data_dir();
    let mount = Mount::of_itself(&data_dir)?;
    let mut ground = Ground::with_a_vm(setup.with_mount(mount)).await?;
    ground.provider.terminate().await?;
    mounts::set_read_only(&data_dir, true)?;
    let ended = ground.provider.run_a_second_one().await?;
    ensure!(ended.status.code() == Some(1), "{:?}", ended.status);
    ensure!(ended.stderr.contains(&*data_dir.to_string_lossy()), "{}", ended.stderr);
    ensure!(ended.stderr.to_lowercase().contains("read-only"), "{}", ended.stderr);
    ensure!(ended.stderr.contains("check that it exists, is writable"), "{}", ended.stderr);
    mounts::set_read_only(&data_dir, false)?;
    ground.provider.start_again().await?;
    ground.assert_nothing_is_lost().await?;
    ground.create("late").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_database_refuses_changes_until_there_is_space() -> Result<()> {
    if !mounts::are_allowed() {
        return Ok(());
    }
    let elsewhere = tempfile::tempdir()?;
    let setup = Setup::new()?.with("VM_DATA_DIR", elsewhere.path().join("vms").display());
    let plugins = setup.plugin_dir();
    let mount = Mount::in_memory(&setup.data_dir(), 256 << 20)?;
    fs::create_dir_all(&plugins)?;
    let ground = Ground::with_a_vm(setup.with_mount(mount)).await?;
    let filler = ground.provider.data_dir().join("filler");
    fill(&filler)?;
    let late = ground.client.post("/vms", &request("late")).await?.refusal(503)?;
    ensure!(late.contains("disk is full"), "{late}");
    ground.client.get("/vms/late").await?.refusal(404)?;
    let vm = ground.client.get("/vms/kept").await?.expect(200)?;
    ensure!(vm["status"] == "running", "{vm}");
    fs::remove_file(filler)?;
    ground.create("late").await?;
    for change in ["stop", "start"] {
        ground.client.post_nothing(&format!("/vms/kept/{change}")).await?.expect(200)?;
    }
    Ok(())
}

/// Writes until nothing more fits.
fn fill(path: &Path) -> Result<()> {
    use std::io::Write;
    let mut file = File::create(path)?;
    let mut size = 1 << 20;
    while size > 0 {
        match file.write_all(&vec![0; size]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
            Err(error) => return Err(error).context("filling a file system"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_loses_no_vm_and_mixes_none_up() -> Result<()> {
    let mut ground = Ground::with_a_vm(Setup::new()?).await?;
    let failed = ground.client.post("/vms?async=true", &request("second")).await?.expect(202)?;
    let job = format!("/vms/jobs/{}", failed["job_id"].as_str().context("no job")?);
    let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(50));
    wait::until("the second VM", deadline, pause, async || {
        let vm = ground.client.get("/vms/second").await?.expect(200)?;
        Ok((vm["status"] == "running").then_some(()))
    })
    .await?;
    ground.provider.terminate().await?;
    // All that is written down comes from a time that the clock says has not come yet.
    let connection = Connection::open(ground.database())?;
    for (table, column) in [
        ("vms", "created_at"),
        ("vms", "updated_at"),
        ("jobs", "created_at"),
        ("jobs", "updated_at"),
    ] {
        let changed = connection
            .execute(&format!("UPDATE {table} SET {column} = '2099' || substr({column}, 5)"), [])?;
        ensure!(changed >= 2, "{table} has {changed} rows");
    }
    drop(connection);
    ground.provider.start_again().await?;
    ground.client.get(&job).await?.expect(200)?;
    ground.assert_nothing_is_lost().await?;
    let vm = ground.client.get("/vms/kept").await?.expect(200)?;
    ensure!(vm["updated_at"].as_str() > vm["created_at"].as_str(), "it became older: {vm}");
    let vms = ground.client.get("/vms").await?.expect(200)?;
    ensure!(vms.as_array().is_some_and(|vms| vms.len() == 2), "{vms}");
    ground.client.delete("/vms/second").await?.expect(200)?;
    let third = ground.create("third").await?;
    for name in ["kept", "third"] {
        ground.client.delete(&format!("/vms/{name}")).await?.expect(200)?;
    }
    // A new VM of the same name in the same second is still another one.
    let again = ground.create("third").await?;
    ensure!(again["id"] != third["id"], "{again}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_while_the_provider_runs_disturbs_nothing() -> Result<()> {
    if !clock::can_be_set() {
        return Ok(());
    }
    let mut ground = Ground::with_a_vm(Setup::new()?.with_clock()?).await?;
    let clock = ground.provider.clock()?.clone();
    let mut made = vec![ground.create("again").await?];
    for days in [-400, 400, 0] {
        clock.set_off_by(SignedDuration::from_hours(24 * days))?;
        let before = ground.client.get("/vms/kept").await?.expect(200)?;
        ground.assert_nothing_is_lost().await?;
        let after = ground.client.get("/vms/kept").await?.expect(200)?;
        ensure!(after["created_at"] == before["created_at"], "{before} {after}");
        ensure!(after["updated_at"].as_str() >= before["updated_at"].as_str(), "{before} {after}");

        ground.client.delete("/vms/again").await?.expect(200)?;
        let accepted =
            ground.client.post("/vms?async=true", &request("again")).await?.expect(202)?;
        let job = format!("/vms/jobs/{}", accepted["job_id"].as_str().context("no job")?);
        let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(50));
        wait::until("the job's end", deadline, pause, async || {
            let job = ground.client.get(&job).await?.expect(200)?;
            Ok((job["status"] == "ready").then_some(()))
        })
        .await?;
        let vm = ground.client.get("/vms/again").await?.expect(200)?;
        ensure!(made.iter().all(|earlier| earlier["id"] != vm["id"]), "{vm} {made:?}");
        let year = vm["created_at"].as_str().and_then(|time| time.get(..4)).context("no time")?;
        let seen = (jiff::Timestamp::now() + SignedDuration::from_hours(24 * days)).to_string();
        ensure!(seen.starts_with(year), "made in {year}, by a clock that says {seen}");
        made.push(vm);
        ground.provider.terminate().await?;
        ground.provider.start_again().await?;
    }
    ground.assert_nothing_is_lost().await
}
