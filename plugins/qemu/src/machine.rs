//! One machine's life: from its record to its QEMU process and back.
//!
//! ```text
//!            create, start                      SSH answered
//!  stopped ───────────────▶ starting ───────────────────────────▶ running
//!     ▲                        │ process gone, unasked               │ process gone, unasked
//!     │                        ▼                                     ▼
//!     │                     crashed ◀────────────────────────────────┘
//!     │   process gone         stop (from any of them)
//!     └──────────────────── stopping
//! ```
//! Nobody writes this state down. It follows from three things that are each true by themselves: what was last asked for
//! (`vm.json`), whether the process is there (asked of the provider), and what is known of that process (`run.json`).
//! [`power`] is that rule. What was asked for is written before it is done, so a call that is cut off anywhere leaves
//! something that a repeated call finishes and [`delete`] removes.
//!
//! The rule and the texts are pure and tested; the rest acts through the provider. `lib.rs` calls it for the contract,
//! `readiness.rs` while a machine boots.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result,
    clock::{self, Deadline},
    files, host, log, process, progress, random,
    vm_backend::{Endpoint, Instance, PowerState, SpecRecord},
};

use crate::{
    accelerator::{self, Accelerator},
    catalog::Catalog,
    command_line::{self, Architecture, CONSOLE_CHARDEV, Identity, Launch},
    images, isolation,
    qmp::Monitor,
    record::{self, Boot, Paths, RunRecord, VmRecord, Wanted},
    seed,
    settings::{AcceleratorChoice, Settings},
    ssh_keys,
};

/// How long QEMU may take from its start until it answers on its control socket.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long QEMU may take to end by itself once told to.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The power button is pressed again after this: an operating system that is still booting does not notice the first.
const POWER_BUTTON_INTERVAL: Duration = Duration::from_secs(3);
/// A console that wrote more than this is not read by anybody, and would fill the operator's disk.
const MAX_CONSOLE_BYTES: u64 = 8 << 20;
/// The address that QEMU's user networking gives to every guest.
const GUEST_ADDRESS: &str = "10.0.2.15";

/// A machine's QEMU process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub pid: u32,
    /// Which of the machine's starts it belongs to.
    pub launch: u32,
    pub accelerator: Accelerator,
}

/// The processes of all machines, asked for once.
pub struct Processes(Vec<process::Running>);

impl Processes {
    pub fn now() -> Result<Self> {
        process::processes().map(Self)
    }

    /// The process of one machine.
    pub fn of(&self, paths: &Paths) -> Result<Option<Live>> {
        // Without its directory a machine has no process that could be found again.
        if !files::exists(&paths.directory())? {
            return Ok(None);
        }
        let pid_file = files::host_path(&paths.pid_file())?;
        Ok(self.0.iter().find_map(|process| {
            let Identity { launch, accelerator } =
                command_line::identify(&process.arguments, &pid_file)?;
            Some(Live { pid: process.pid, launch, accelerator })
        }))
    }
}

/// The process of one machine, now.
pub fn live(paths: &Paths) -> Result<Option<Live>> {
    Processes::now()?.of(paths)
}

/// What is known of exactly this process.
pub fn run_of(paths: &Paths, live: Live) -> Result<Option<RunRecord>> {
    Ok(record::load_run(paths)?.filter(|run| (run.pid, run.launch) == (live.pid, live.launch)))
}

/// What the machine is doing.
fn power(record: &VmRecord, live: Option<Live>, run: Option<&RunRecord>) -> PowerState {
    match (live, record.wanted) {
        (Some(_), Wanted::Stopped) => PowerState::Stopping,
        (Some(_), Wanted::Running) if run.is_some_and(|run| run.ssh_answered) => {
            PowerState::Running
        }
        (Some(_), Wanted::Running) => PowerState::Starting,
        (None, Wanted::Running) if record.created => PowerState::Crashed,
        (None, _) => PowerState::Stopped,
    }
}

/// The machine as the provider sees it. Changes nothing.
pub fn inspect(paths: &Paths, processes: &Processes) -> Result<Instance> {
    let record = existing(paths)?;
    let live = processes.of(paths)?;
    let run = live.map(|live| run_of(paths, live)).transpose()?.flatten();
    let power = power(&record, live, run.as_ref());
    let ssh_port = match (live, &run) {
        (None, _) => None,
        (Some(_), Some(run)) => Some(run.ssh_port),
        // The call that started it was cut off before it had written the port down.
        (Some(_), None) => Monitor::connect(&paths.qmp())
            .and_then(|mut monitor| monitor.network())
            .ok()
            .and_then(|network| network.ssh_port),
    };
    let detail = match power {
        PowerState::Crashed => Some(last_words(paths)),
        _ => None,
    };
    Ok(Instance {
        id: paths.id().to_owned(),
        power,
        ssh: ssh_port.map(|port| Endpoint { address: "127.0.0.1".to_owned(), port }),
        ip_address: live.map(|_| GUEST_ADDRESS.to_owned()),
        detail,
    })
}

/// The record of a machine that has to be there.
pub fn existing(paths: &Paths) -> Result<VmRecord> {
    record::load(paths)?
        .ok_or_else(|| Error::NotFound(format!("there is no machine {}", paths.id())))
}

/// # Errors
/// [`Error::FailedPrecondition`] if the machine was asked to stop, so that waiting for it makes no sense.
pub fn refuse_if_stopped(record: &VmRecord) -> Result<()> {
    match record.wanted {
        Wanted::Running => Ok(()),
        Wanted::Stopped => Err(Error::FailedPrecondition(format!(
            "the machine {} was asked to stop",
            record.spec.id
        ))),
    }
}

/// Makes a machine and starts it, or goes on where an earlier call stopped.
pub fn create(spec: SpecRecord, settings: &Settings) -> Result<Instance> {
    let paths = Paths::of(&spec.id)?;
    let catalog = catalog(settings)?;
    let image = catalog.find(&spec.image).map_err(Error::InvalidArgument)?;
    let mut record = match record::load(&paths)? {
        Some(record) if record.spec == spec => record,
        Some(_) => {
            return Err(Error::AlreadyExists(format!(
                "the machine {} exists and differs from what was asked for",
                spec.id
            )));
        }
        None => {
            let record = VmRecord::new(spec, random_identity()?);
            record::save(&paths, &record)?;
            record
        }
    };
    if !record.created {
        if record.boot.is_none() {
            let boot = images::fetch(image)?;
            progress::stage("making the disk");
            make_disk(&paths, &record, &boot)?;
            record.boot = Some(boot);
            write_seed(&paths, &record)?;
            record::save(&paths, &record)?;
        }
        progress::stage("starting the machine");
        ensure_started(&paths, &mut record, settings)?;
    }
    inspect(&paths, &Processes::now()?)
}

/// Starts a machine that does not run.
pub fn start(paths: &Paths, settings: &Settings) -> Result<Instance> {
    let mut record = existing(paths)?;
    let Some(boot) = &record.boot else {
        return Err(Error::FailedPrecondition(format!(
            "the machine {} was never finished: create it again, or delete it",
            paths.id()
        )));
    };
    if live(paths)?.is_none()
        && let Ok(catalog) = catalog(settings)
        && let Ok(image) = catalog.find(&record.spec.image)
    {
        images::mend(image, boot)?;
    }
    ensure_started(paths, &mut record, settings)?;
    inspect(paths, &Processes::now()?)
}

fn ensure_started(paths: &Paths, record: &mut VmRecord, settings: &Settings) -> Result<()> {
    if let Some(live) = live(paths)? {
        if record.wanted == Wanted::Stopped {
            return Err(Error::FailedPrecondition(format!(
                "the machine {} is still stopping; start it again when it has stopped",
                paths.id()
            )));
        }
        // The call that started it was cut off before it had written down what follows.
        if run_of(paths, live)?.is_none() {
            await_qemu(paths, live)?;
        }
        return mark_created(paths, record);
    }
    let architecture = architecture()?;
    let verdict = accelerator::choose(settings.accelerator, architecture)?;
    match launch(paths, record, settings, architecture, verdict.accelerator) {
        Err(error)
            if verdict.accelerator == Accelerator::Kvm
                && settings.accelerator == AcceleratorChoice::Auto
                && error.message().to_ascii_lowercase().contains("kvm") =>
        {
            accelerator::give_up_kvm(error.message())?;
            launch(paths, record, settings, architecture, Accelerator::Tcg)?;
        }
        other => other?,
    }
    mark_created(paths, record)
}

fn mark_created(paths: &Paths, record: &mut VmRecord) -> Result<()> {
    if record.created {
        return Ok(());
    }
    record.created = true;
    record::save(paths, record)
}

/// Starts QEMU, and waits until it answers.
fn launch(
    paths: &Paths,
    record: &mut VmRecord,
    settings: &Settings,
    architecture: Architecture,
    accelerator: Accelerator,
) -> Result<()> {
    let isolation = isolation::establish(settings);
    if let isolation::State::Failed { reason, .. } = &isolation.state {
        log::warn!("the machine {} starts without internet: {reason}", paths.id());
    }
    if record.launches > 0 && !files::exists(&paths.booted())? {
        renew_disk(paths, record)?;
    }
    record.launches += 1;
    record.wanted = Wanted::Running;
    record::save(paths, record)?;
    files::remove(&paths.run_record())?;
    files::create_directory(record::SOCKETS)?;
    for socket in paths.sockets() {
        files::remove(&socket)?;
    }
    let direct = record.boot.as_ref().and_then(|boot| boot.direct.as_ref());
    let direct = direct
        .map(|direct| {
            Ok::<_, Error>((
                files::host_path(&direct.kernel)?,
                files::host_path(&direct.initrd)?,
                direct.append.as_str(),
            ))
        })
        .transpose()?;
    let arguments = command_line::arguments(&Launch {
        record,
        architecture,
        accelerator,
        tb_size_mib: settings.tb_size_mib,
        firmware: settings.firmware.as_deref(),
        outgoing: isolation.outgoing,
        run_as: isolation.run_as,
        disk: &files::host_path(&paths.disk())?,
        seed: &files::host_path(&paths.seed())?,
        pid_file: &files::host_path(&paths.pid_file())?,
        console: &files::host_path(&paths.console())?,
        direct: direct
            .as_ref()
            .map(|(kernel, initrd, append)| (kernel.as_str(), initrd.as_str(), *append)),
        qmp_socket: &paths.qmp(),
        agent_socket: &paths.agent(),
        keys_socket: &paths.keys(),
    });
    let pid =
        process::Command::new(architecture.qemu()).args(arguments).spawn(&paths.qemu_log())?;
    await_qemu(paths, Live { pid, launch: record.launches, accelerator })
}

/// Gives a machine whose first boot was cut off the disk that it began with. Nobody has logged in yet, so nothing of
/// anybody's is on it, and an operating system that finds its first boot half done does not finish it.
fn renew_disk(paths: &Paths, record: &VmRecord) -> Result<()> {
    let Some(boot) = &record.boot else { return Ok(()) };
    log::info!("the first boot of {} was cut off and begins anew", paths.id());
    make_disk(paths, record, boot)
}

fn make_disk(paths: &Paths, record: &VmRecord, boot: &Boot) -> Result<()> {
    images::make_disk(&boot.image, &paths.disk(), &paths.unfinished_disk(), record.spec.storage_mib)
}

/// Waits until QEMU answers on its control socket, and writes down what it says of itself.
fn await_qemu(paths: &Paths, live: Live) -> Result<()> {
    let deadline = Deadline::after(LAUNCH_TIMEOUT);
    let ssh_port = loop {
        let answer = Monitor::connect(&paths.qmp()).and_then(|mut monitor| monitor.network());
        match answer {
            Ok(network) => match network.ssh_port {
                Some(port) => break port,
                None => {
                    return Err(Error::Internal(
                        "QEMU forwards no port to the machine's SSH server".into(),
                    ));
                }
            },
            Err(error) => {
                if self::live(paths)? != Some(live) {
                    return Err(Error::Internal(format!(
                        "QEMU ended at once: {}",
                        qemu_words(paths).unwrap_or_else(|| "it said nothing".to_owned())
                    )));
                }
                if deadline.has_passed() {
                    kill(paths)?;
                    return Err(error.context("QEMU does not answer"));
                }
                clock::sleep(Duration::from_millis(50));
            }
        }
    };
    let run = RunRecord {
        pid: live.pid,
        launch: live.launch,
        ssh_port,
        accelerator: live.accelerator,
        ssh_answered: false,
    };
    record::save_run(paths, &run)
}

/// Ends a machine that KVM failed, and starts it under emulation.
pub fn restart_emulated(paths: &Paths, settings: &Settings, reason: &str) -> Result<()> {
    accelerator::give_up_kvm(reason)?;
    kill(paths)?;
    let mut record = existing(paths)?;
    refuse_if_stopped(&record)?;
    launch(paths, &mut record, settings, architecture()?, Accelerator::Tcg)
}

/// Shuts a machine down: by its power button, and when the time is over by ending QEMU.
pub fn stop(paths: &Paths, grace: Duration) -> Result<Instance> {
    let mut record = existing(paths)?;
    if record.wanted != Wanted::Stopped {
        record.wanted = Wanted::Stopped;
        record::save(paths, &record)?;
    }
    if live(paths)?.is_some() && !shut_down(paths, grace)? {
        log::warn!(
            "the machine {} did not shut down within {} s and is switched off",
            paths.id(),
            grace.as_secs()
        );
        switch_off(paths)?;
    }
    inspect(paths, &Processes::now()?)
}

/// Answers whether the machine ended in time.
fn shut_down(paths: &Paths, grace: Duration) -> Result<bool> {
    let deadline = Deadline::after(grace);
    while !deadline.has_passed() {
        // While QEMU ends it does not answer, which is no reason not to wait for it.
        if let Err(error) =
            Monitor::connect(&paths.qmp()).and_then(|mut monitor| monitor.power_down())
        {
            log::debug!("{}: {}", paths.id(), error.message());
        }
        let pressed = Deadline::after(POWER_BUTTON_INTERVAL.min(deadline.remaining()));
        loop {
            if live(paths)?.is_none() {
                return Ok(true);
            }
            if pressed.has_passed() {
                break;
            }
            clock::sleep(Duration::from_millis(200).min(pressed.remaining()));
        }
    }
    Ok(live(paths)?.is_none())
}

/// Ends QEMU: by asking it, so that it finishes its writes, and by force if it does not answer.
fn switch_off(paths: &Paths) -> Result<()> {
    if Monitor::connect(&paths.qmp()).and_then(|mut monitor| monitor.quit()).is_ok() {
        let deadline = Deadline::after(QUIT_TIMEOUT);
        while !deadline.has_passed() {
            if live(paths)?.is_none() {
                return Ok(());
            }
            clock::sleep(Duration::from_millis(50));
        }
    }
    kill(paths)
}

/// Ends QEMU by force and waits until it is gone.
fn kill(paths: &Paths) -> Result<()> {
    let deadline = Deadline::after(KILL_TIMEOUT);
    while let Some(live) = live(paths)? {
        match process::kill(live.pid, true) {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        if deadline.has_passed() {
            return Err(Error::Unavailable(format!(
                "the QEMU process {} of {} does not end",
                live.pid,
                paths.id()
            )));
        }
        clock::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes a machine and everything that was made for it.
pub fn delete(paths: &Paths) -> Result<()> {
    kill(paths)?;
    if files::exists(&paths.directory())? {
        // In one step it is no longer a machine, and what an earlier call left in the way goes first.
        files::create_directory("trash")?;
        files::remove(&paths.trash())?;
        files::rename(&paths.directory(), &paths.trash())?;
    }
    for socket in paths.sockets() {
        files::remove(&socket)?;
    }
    files::remove(&paths.trash())
}

/// Lets one more key log in, now and later.
pub fn add_ssh_key(paths: &Paths, key: &str) -> Result<()> {
    let mut record = existing(paths)?;
    if record.wanted == Wanted::Stopped || live(paths)?.is_none() {
        return Err(Error::FailedPrecondition(format!(
            "the machine {} does not run; start it first",
            paths.id()
        )));
    }
    // Also a key that is known: its owner may have removed it inside.
    ssh_keys::add(paths, key)?;
    if record.ssh_keys().contains(&key) {
        return Ok(());
    }
    record.added_ssh_keys.push(key.to_owned());
    record::save(paths, &record)?;
    write_seed(paths, &record)
}

fn write_seed(paths: &Paths, record: &VmRecord) -> Result<()> {
    let image = seed::image(record)
        .map_err(|error| Error::Internal(format!("the seed disk cannot be made: {error}")))?;
    files::write(&paths.seed(), &image)
}

/// Every machine there is.
pub fn all() -> Result<Vec<Paths>> {
    let names = match files::list_directory(record::VMS) {
        Ok(names) => names,
        Err(Error::NotFound(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    names
        .into_iter()
        .filter_map(|name| Paths::of(&name).ok())
        .filter_map(|paths| match files::exists(&paths.vm_record()) {
            Ok(true) => Some(Ok(paths)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        })
        .collect()
}

/// Looks after machines that run: keeps the firewall rules in place and consoles from filling the disk.
pub fn tend(machines: &[Paths], processes: &Processes, settings: &Settings) {
    let mut any_runs = false;
    for paths in machines {
        if !matches!(processes.of(paths), Ok(Some(_))) {
            continue;
        }
        any_runs = true;
        let console = files::info(&paths.console()).map_or(0, |info| info.size_bytes);
        if console > MAX_CONSOLE_BYTES {
            let stopped = Monitor::connect(&paths.qmp())
                .and_then(|mut monitor| monitor.stop_console_log(CONSOLE_CHARDEV))
                // QEMU has closed the file, so that removing it gives the space back.
                .and_then(|()| files::remove(&paths.console()));
            match stopped {
                Ok(()) => log::info!(
                    "the console of {} wrote more than {} MiB and is no longer kept",
                    paths.id(),
                    MAX_CONSOLE_BYTES >> 20
                ),
                Err(error) => log::warn!("the console of {}: {}", paths.id(), error.message()),
            }
        }
    }
    if any_runs {
        isolation::restore(settings);
    }
}

/// Why a machine ended, as far as its console and QEMU tell.
pub fn last_words(paths: &Paths) -> String {
    explain(&tail(&paths.console()), qemu_words(paths).as_deref())
}

/// Did an operating system say that it is done?
fn was_shut_down_inside(console: &str) -> bool {
    ["reboot: Power down", "reboot: System halted"].iter().any(|words| console.contains(words))
}

/// The end of a machine's console, in one line; empty if it wrote nothing.
pub fn console_end(paths: &Paths) -> String {
    last_lines(&tail(&paths.console()))
}

fn last_lines(console: &str) -> String {
    const LINES: usize = 4;
    let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

fn explain(console: &str, qemu: Option<&str>) -> String {
    if let Some(words) = qemu {
        return format!("QEMU ended and said: {words}");
    }
    if was_shut_down_inside(console) {
        return "it was shut down from inside".to_owned();
    }
    match last_lines(console).as_str() {
        "" => "its QEMU process was ended".to_owned(),
        last => format!("its QEMU process was ended; its console ends with: {last}"),
    }
}

/// The last thing that QEMU itself wrote.
fn qemu_words(paths: &Paths) -> Option<String> {
    let text = tail(&paths.qemu_log());
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

/// The end of a text file, without what would confuse a terminal.
fn tail(path: &str) -> String {
    const BYTES: u32 = 4096;
    let bytes = files::info(path)
        .and_then(|info| files::read(path, info.size_bytes.saturating_sub(BYTES.into()), BYTES));
    printable(&bytes.unwrap_or_default())
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    text.chars().filter(|character| *character == '\n' || !character.is_control()).collect()
}

/// The images there are.
pub fn catalog(settings: &Settings) -> Result<Catalog> {
    Catalog::new(&host::architecture(), &settings.images).map_err(Error::InvalidArgument)
}

/// The kind of machine that this one can run.
pub fn architecture() -> Result<Architecture> {
    let name = host::architecture();
    Architecture::named(&name).ok_or_else(|| {
        Error::Unsupported(format!("there are no machines for the architecture {name}"))
    })
}

fn random_identity() -> Result<[u8; 19]> {
    random::bytes(19)
        .try_into()
        .map_err(|_| Error::Internal("the provider gave too few random bytes".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(wanted: Wanted, created: bool) -> VmRecord {
        VmRecord { wanted, created, ..record::tests::example() }
    }

    fn run(ssh_answered: bool) -> RunRecord {
        RunRecord {
            pid: 1,
            launch: 1,
            ssh_port: 40_000,
            accelerator: Accelerator::Tcg,
            ssh_answered,
        }
    }

    const LIVE: Option<Live> = Some(Live { pid: 1, launch: 1, accelerator: Accelerator::Tcg });

    #[test]
    fn the_state_follows_from_what_was_asked_for_and_what_is_there() {
        use PowerState::*;
        let (answered, silent) = (run(true), run(false));
        for (wanted, created, live, run, expected) in [
            (Wanted::Running, true, LIVE, Some(&answered), Running),
            (Wanted::Running, true, LIVE, Some(&silent), Starting),
            (Wanted::Running, true, LIVE, None, Starting),
            (Wanted::Running, false, LIVE, None, Starting),
            (Wanted::Stopped, true, LIVE, Some(&answered), Stopping),
            (Wanted::Running, true, None, None, Crashed),
            (Wanted::Stopped, true, None, None, Stopped),
            // Being made: nothing has ended.
            (Wanted::Running, false, None, None, Stopped),
        ] {
            assert_eq!(power(&record(wanted, created), live, run), expected);
        }
    }

    #[test]
    fn a_machine_that_ended_leaves_words_for_people() {
        assert_eq!(
            explain("[  OK  ] Reached target\n[ 42.0] reboot: Power down\n", None),
            "it was shut down from inside"
        );
        assert!(explain("", Some("KVM internal error")).contains("KVM internal error"));
        let console = "one\ntwo\n\nthree\nfour\nfive\n";
        assert!(explain(console, None).ends_with("two | three | four | five"));
        assert_eq!(explain("", None), "its QEMU process was ended");
    }

    #[test]
    fn a_console_cannot_send_control_characters_to_the_operators_terminal() {
        assert_eq!(printable(b"\x1b[31mred\x07\r\nnext"), "[31mred\nnext");
    }
}
