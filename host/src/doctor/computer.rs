//! The computer itself: processor, memory, disk, and how many files may be open.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit};

use super::{Check, nearest_existing};
use crate::{
    resources::{Amounts, Measurement, Monitor, Rules},
    settings::Settings,
};

pub(super) async fn checks(settings: Arc<Settings>) -> Vec<Check> {
    let mut checks = vec![of_kvm(&Kvm::look())];
    let rules = Rules::from(&settings.resources);
    let vm_data_dir = settings.vm_data_dir();
    let place = nearest_existing(&vm_data_dir);
    // On the file system that disks will lie on, and gone afterwards.
    match tempfile::Builder::new().prefix(".golem-doctor-").tempdir_in(place) {
        Ok(room) => {
            match Monitor::start(room.path().to_owned()).await {
                Ok(monitor) => checks.extend(of_measurement(&monitor.latest(), &rules)),
                Err(error) => checks.push(Check::fail(
                    "memory",
                    error.to_string(),
                    "this computer cannot be measured; is /proc mounted?",
                )),
            }
            let file = fs::File::create(room.path().join("written"));
            // Without a name it is gone with this process, whatever ends that.
            drop(room);
            let speed = tokio::task::spawn_blocking(move || write_speed(file?)).await;
            let speed = speed.unwrap_or_else(|error| Err(io::Error::other(error)));
            checks.push(of_speed(place, speed));
        }
        Err(error) => checks.push(Check::fail(
            "disk space",
            format!("{} cannot be written: {error}", place.display()),
            "run this as the user that the provider runs as, or choose another place with GOLEM_PROVIDER_VM_DATA_DIR",
        )),
    }
    checks.push(of_descriptors(getrlimit(Resource::Nofile).maximum));
    checks
}

/// What there is to see of the processor's virtualisation.
struct Kvm {
    /// The processor says that it can.
    processor: bool,
    /// This computer is itself a virtual machine.
    is_guest: bool,
    /// `/dev/kvm`.
    device: Result<(), io::ErrorKind>,
}

impl Kvm {
    fn look() -> Kvm {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |flags: &[&str]| {
            processors
                .lines()
                .filter(|line| line.starts_with("flags"))
                .any(|line| line.split_whitespace().any(|flag| flags.contains(&flag)))
        };
        let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        Kvm {
            // Other architectures do not say it there.
            processor: has(&["vmx", "svm"]) || std::env::consts::ARCH != "x86_64",
            is_guest: has(&["hypervisor"]),
            device: opened.map(drop).map_err(|error| error.kind()),
        }
    }
}

/// Only whether the kernel lets anybody try; that a guest really runs is for the plugins to say.
fn of_kvm(kvm: &Kvm) -> Check {
    const NAME: &str = "virtualisation";
    let slow = "machines are emulated, which makes them ten times slower";
    match kvm.device {
        Ok(()) => Check::ok(
            NAME,
            "this user may use /dev/kvm; whether guests run on it is for the plugins to say",
        ),
        Err(io::ErrorKind::PermissionDenied) => Check::warn(
            NAME,
            format!("this user may not use /dev/kvm: {slow}"),
            "as root: usermod -aG kvm USER; then log in anew",
        ),
        Err(_) if kvm.processor => Check::warn(
            NAME,
            format!("the processor can virtualise, but there is no usable /dev/kvm: {slow}"),
            "load the kernel's module (modprobe kvm_intel or kvm_amd); in a container, hand /dev/kvm into it",
        ),
        Err(_) if kvm.is_guest => Check::warn(
            NAME,
            format!("this is itself a virtual machine, without virtualisation of its own: {slow}"),
            "ask whoever runs it for nested virtualisation",
        ),
        Err(_) => Check::warn(
            NAME,
            format!("the processor's virtualisation is switched off or missing: {slow}"),
            "switch it on in the firmware's settings (VT-x, AMD-V or SVM)",
        ),
    }
}

fn of_measurement(machine: &Measurement, rules: &Rules) -> [Check; 3] {
    const GB: u64 = 1 << 30;
    let report = rules.report(machine, Amounts::default());
    let minimums = rules.minimums;
    let judge = |name: &str, unit: &str, has: u64, may: u64, free: u64, minimum: u32, key: &str| {
        let sentence = format!("{has}{unit} there, {may} may be let, {free} of them free now");
        if may < u64::from(minimum) {
            Check::fail(
                name,
                format!("{sentence}; the smallest machine takes {minimum}"),
                format!(
                    "add to this computer, or change GOLEM_PROVIDER_{key}_THRESHOLD and GOLEM_PROVIDER_MIN_{key}…"
                ),
            )
        } else if free < u64::from(minimum) {
            Check::warn(
                name,
                format!("{sentence}; the smallest machine takes {minimum}"),
                "end or remove what takes the rest",
            )
        } else {
            Check::ok(name, sentence)
        }
    };
    let (may, free) = (report.allocatable, report.available);
    [
        judge(
            "processor",
            " cores are",
            machine.cpu_cores.into(),
            may.cpu_cores,
            may.cpu_cores,
            minimums.cpu_cores,
            "CPU",
        ),
        judge(
            "memory",
            " GB are",
            machine.memory_total_bytes / GB,
            may.memory_gb,
            free.memory_gb,
            minimums.memory_gb,
            "MEMORY",
        ),
        judge(
            "disk space",
            " GB are",
            machine.storage_total_bytes / GB,
            may.storage_gb,
            free.storage_gb,
            minimums.storage_gb,
            "STORAGE",
        ),
    ]
}

/// Bytes that have reached the disk, and how long that took.
type Written = (u64, Duration);

/// Writes for two seconds at most, and at most so much, then waits until it is on the disk.
fn write_speed(mut file: fs::File) -> io::Result<Written> {
    const MOST_BYTES: u64 = 128 << 20;
    const LONGEST: Duration = Duration::from_secs(2);
    const STEP: usize = 4 << 20;
    // Not all the same, for disks that compress.
    let block: Vec<u8> = (0..STEP).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let begun = Instant::now();
    let mut bytes = 0;
    while bytes < MOST_BYTES && begun.elapsed() < LONGEST {
        file.write_all(&block)?;
        // Small steps, so that a slow disk is not given minutes of work.
        file.sync_data()?;
        bytes += STEP as u64;
    }
    Ok((bytes, begun.elapsed()))
}

fn of_speed(place: &Path, speed: io::Result<Written>) -> Check {
    const NAME: &str = "disk speed";
    const SLOW_MB_PER_S: f64 = 50.0;
    match speed {
        Ok((bytes, took)) => {
            let mb_per_s = bytes as f64 / 1e6 / took.as_secs_f64().max(1e-6);
            let sentence = format!("{} takes {mb_per_s:.0} MB/s", place.display());
            if mb_per_s < SLOW_MB_PER_S {
                Check::warn(
                    NAME,
                    format!("{sentence}, which several machines at a time will find slow"),
                    "put disks on a faster one: GOLEM_PROVIDER_VM_DATA_DIR",
                )
            } else {
                Check::ok(NAME, sentence)
            }
        }
        Err(error) => Check::fail(
            NAME,
            format!("{} cannot be written: {error}", place.display()),
            "free some space, or choose another place with GOLEM_PROVIDER_VM_DATA_DIR",
        ),
    }
}

/// `most`: how many files one process may open at the same time, if that is limited.
fn of_descriptors(most: Option<u64>) -> Check {
    const NAME: &str = "open files";
    const WANTED: u64 = 65_536;
    const NEEDED: u64 = 4096;
    match most {
        Some(most) if most < WANTED => {
            let sentence = format!(
                "a process may open {most} files; an SSH connection takes two, and {WANTED} are wanted"
            );
            let remedy = "raise it: LimitNOFILE= in a systemd unit, `nofile` in /etc/security/limits.conf, --ulimit of a container";
            match most < NEEDED {
                true => Check::fail(NAME, sentence, remedy),
                false => Check::warn(NAME, sentence, remedy),
            }
        }
        Some(most) => Check::ok(NAME, format!("a process may open {most}")),
        None => Check::ok(NAME, "a process may open any number"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn each_reason_why_there_is_no_virtualisation_has_its_own_remedy() {
        let judged = |processor, is_guest, device| of_kvm(&Kvm { processor, is_guest, device });
        assert_eq!(judged(true, false, Ok(())).state, State::Ok);
        let remedies: Vec<String> = [
            judged(true, false, Err(io::ErrorKind::PermissionDenied)),
            judged(true, false, Err(io::ErrorKind::NotFound)),
            judged(false, true, Err(io::ErrorKind::NotFound)),
            judged(false, false, Err(io::ErrorKind::NotFound)),
        ]
        .into_iter()
        .map(|check| check.remedy.unwrap())
        .collect();
        for (remedy, part) in remedies.iter().zip(["usermod", "modprobe", "nested", "firmware"]) {
            assert!(remedy.contains(part), "{remedy}");
        }
    }

    #[test]
    fn a_computer_is_measured_against_the_smallest_machine() {
        let gb = |gb: u64| gb << 30;
        let machine = Measurement {
            cpu_cores: 2,
            memory_total_bytes: gb(16),
            memory_available_bytes: gb(12),
            storage_total_bytes: gb(100),
            storage_free_bytes: gb(80),
            vm_bytes_written: 0,
        };
        let states = |machine| of_measurement(&machine, &Rules::default()).map(|check| check.state);
        assert_eq!(states(machine), [State::Ok; 3]);
        let small =
            Measurement { memory_total_bytes: gb(1), memory_available_bytes: gb(1), ..machine };
        assert_eq!(states(small)[1], State::Fail);
        let full = Measurement { storage_free_bytes: gb(12), ..machine };
        assert_eq!(states(full)[2], State::Warn);
    }

    #[test]
    fn a_disk_is_judged_by_what_it_takes_in_a_second() {
        let judged = |speed| of_speed(Path::new("/d"), speed).state;
        assert_eq!(judged(Ok((128 << 20, Duration::from_millis(500)))), State::Ok);
        assert_eq!(judged(Ok((32 << 20, Duration::from_secs(2)))), State::Warn);
        assert_eq!(judged(Err(io::Error::from(io::ErrorKind::StorageFull))), State::Fail);
    }

    #[test]
    fn the_limit_of_open_files_is_judged_by_the_connections_it_allows() {
        assert_eq!(of_descriptors(Some(1024)).state, State::Fail);
        assert_eq!(of_descriptors(Some(10_000)).state, State::Warn);
        assert_eq!(of_descriptors(Some(1 << 20)).state, State::Ok);
        assert_eq!(of_descriptors(None).state, State::Ok);
    }
}
