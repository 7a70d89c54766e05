//! What is needed from the distribution, how to see whether it is there, and how to install it.
//!
//! The list is data ([`Need`]); [`missing`] looks at the machine; [`install`] makes it so through
//! apt, where there is apt and root, and otherwise says what to install by hand.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::ui::{self, Step};

/// How it shows that something is installed.
pub enum Evidence {
    /// A program of this name can be found.
    Program(&'static str),
    /// One of these files exists.
    File(&'static [&'static str]),
}

/// Something that has to be on the machine.
pub struct Need {
    pub evidence: Evidence,
    /// Debian's and Ubuntu's name of the package.
    pub package: &'static str,
    /// What for, in words that complete "… is needed to".
    pub purpose: &'static str,
}

const fn program(name: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { evidence: Evidence::Program(name), package, purpose }
}

#[cfg(target_arch = "aarch64")]
const QEMU: Need = program("qemu-system-aarch64", "qemu-system-arm", "run virtual machines");
#[cfg(not(target_arch = "aarch64"))]
const QEMU: Need = program("qemu-system-x86_64", "qemu-system-x86", "run virtual machines");

/// Goes with [`QEMU`], in the same version.
const QEMU_UTILS: &str = "qemu-utils";

/// What the provider itself uses, and what it takes to build it beside Rust.
pub const PROVIDER: &[Need] = &[
    QEMU,
    program("qemu-img", QEMU_UTILS, "make the disks of virtual machines"),
    program("nft", "nftables", "keep virtual machines away from this machine's own services"),
    program("ssh", "openssh-client", "log in to virtual machines"),
    program("curl", "curl", "talk to the provider's API from a shell"),
    program("gcc", "gcc", "build the database library"),
    Need {
        evidence: Evidence::File(&["/usr/include/stdlib.h"]),
        package: "libc6-dev",
        purpose: "build the database library",
    },
];

/// What building a disk image on this machine takes.
pub const IMAGE_BUILDER: &[Need] = &[
    program("mmdebstrap", "mmdebstrap", "install Debian into a directory"),
    program("mke2fs", "e2fsprogs", "make the image's file system"),
    program("sfdisk", "fdisk", "partition the image"),
    Need {
        evidence: Evidence::File(&["/usr/lib/grub/i386-pc/boot.img"]),
        package: "grub-pc-bin",
        purpose: "make the image bootable by firmware",
    },
    program("grub-mkimage", "grub-common", "make the image bootable by firmware"),
    Need {
        evidence: Evidence::File(&["/usr/share/keyrings/debian-archive-keyring.gpg"]),
        package: "debian-archive-keyring",
        purpose: "check that packages are Debian's",
    },
    program("cpio", "cpio", "pack the image's initrd"),
    program("lz4", "lz4", "unpack the image's kernel"),
    program("zstd", "zstd", "unpack the image's kernel"),
    program("xz", "xz-utils", "unpack the image's kernel"),
    program("python3", "python3", "run the image builder's tools"),
    program("qemu-img", QEMU_UTILS, "write the image"),
    Need {
        evidence: Evidence::File(&[
            "/usr/lib/x86_64-linux-gnu/libc.a",
            "/usr/lib64/libc.a",
            "/usr/lib/libc.a",
        ]),
        package: "libc6-dev",
        purpose: "build the image's first program",
    },
    program("gcc", "gcc", "build the image's first program"),
];

/// What the tests use beyond what the provider uses.
pub const TEST: &[Need] = &[
    program("valgrind", "valgrind", "count instructions"),
    program("ip", "iproute2", "give tests networks of their own"),
    Need {
        evidence: Evidence::File(&[
            "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
            "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        ]),
        package: "libfaketime",
        purpose: "set the clock of a provider in a test",
    },
];

/// What the benchmarks use beyond what the provider uses.
pub const BENCH: &[Need] = &[
    program("haproxy", "haproxy", "compare the proxy with it"),
    program("ip", "iproute2", "give benchmarks a network of their own"),
    program("unshare", "util-linux", "give benchmarks a network of their own"),
    program("taskset", "util-linux", "give server and load a core each"),
];

/// Finds a program in `PATH` or where system programs are on every distribution.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl fmt::Display for Evidence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::Program(name) => write!(formatter, "the program {name}"),
            Evidence::File(files) => write!(formatter, "the file {}", files.join(" or ")),
        }
    }
}

impl Need {
    fn is_there(&self) -> bool {
        match self.evidence {
            Evidence::Program(name) => find_program(name).is_some(),
            Evidence::File(files) => files.iter().any(|file| Path::new(file).exists()),
        }
    }
}

/// Those of `needs` that are not on this machine, each package once.
pub fn missing(needs: impl IntoIterator<Item = &'static Need>) -> Vec<&'static Need> {
    let mut missing: Vec<&Need> = Vec::new();
    for need in needs {
        if !need.is_there() && missing.iter().all(|other| other.package != need.package) {
            missing.push(need);
        }
    }
    missing
}

/// Installs what is missing, saying what and why; does nothing when `missing` is empty.
///
/// # Errors
/// Where there is no apt or no root (nothing has been changed then, and the error says what to
/// install), or when apt fails.
pub fn install(missing: &[&Need], log: &Path) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Missing on this machine:");
    for need in missing {
        eprintln!("    {:<24} to {}", need.package, need.purpose);
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    // Named together, so that apt makes their versions agree.
    if packages.contains(&QEMU.package) && !packages.contains(&QEMU_UTILS) {
        packages.push(QEMU_UTILS);
    }
    let apt = match Apt::find() {
        Ok(apt) => apt,
        Err(why) => bail!(
            "{why}. Nothing has been changed.\n{}",
            by_hand(&packages, &Distribution::of_this_machine())
        ),
    };
    apt.install(&packages, log)?;
    for need in missing {
        if !need.is_there() {
            bail!("the package {} is installed, but {} is not there", need.package, need.evidence);
        }
    }
    Ok(())
}

/// What goes before a program to run it as root: nothing, sudo, or `None` where neither works.
pub fn root_prefix() -> Option<&'static [&'static str]> {
    if user_id() == Some(0) {
        return Some(&[]);
    }
    ui::output_of(Command::new("sudo").args(["-n", "true"])).is_some().then_some(&["sudo", "-n"])
}

/// A way to run apt-get as root.
struct Apt {
    /// What goes before `apt-get`; see [`root_prefix`].
    through: &'static [&'static str],
}

impl Apt {
    fn find() -> Result<Apt, String> {
        if find_program("apt-get").is_none() {
            return Err(
                "This machine has no apt-get, so they have to be installed by hand".to_owned()
            );
        }
        let Some(through) = root_prefix() else {
            return Err("Installing them takes root, and this user neither is root nor can use sudo without a password".to_owned());
        };
        Ok(Apt { through })
    }

    fn command(&self) -> Command {
        const ENVIRONMENT: [(&str, &str); 2] =
            [("DEBIAN_FRONTEND", "noninteractive"), ("NEEDRESTART_MODE", "a")];
        let mut command = match self.through {
            [] => {
                let mut command = Command::new("apt-get");
                command.envs(ENVIRONMENT);
                command
            }
            [sudo, options @ ..] => {
                // Through `env`, since sudo clears the environment.
                let mut command = Command::new(sudo);
                command.args(options).arg("env");
                command.args(ENVIRONMENT.map(|(name, value)| format!("{name}={value}")));
                command.arg("apt-get");
                command
            }
        };
        command.args(["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"]);
        command
    }

    fn install(&self, packages: &[&str], log: &Path) -> Result<()> {
        self.update(log);
        let step =
            Step::start(format!("installing {}", packages.join(" ")), Some("10 s to a minute"));
        // Without --no-remove apt would rather remove a package that is in the way than fail.
        let plain = ["install", "-y", "--no-install-recommends", "--no-remove"];
        let Err(error) = ui::run_logged(self.command().args(plain).args(packages), log) else {
            step.done();
            return Ok(());
        };
        let Some(pattern) = downgrade_of_qemu_utils(packages) else {
            return Err(error.context("installing packages"));
        };
        step.gave_up("held back by a qemu-utils of another version");
        let step = Step::start(
            format!("installing them, and qemu-utils in the version {pattern}"),
            Some("a minute"),
        );
        let utils = format!("{QEMU_UTILS}={pattern}");
        let others = packages.iter().filter(|package| **package != QEMU_UTILS);
        ui::run_logged(
            self.command().args(plain).arg("--allow-downgrades").args(others).arg(&utils),
            log,
        )
        .context("installing packages")?;
        step.done();
        Ok(())
    }

    /// Renews apt's list of packages, once in a run of this program.
    fn update(&self, log: &Path) {
        static DONE: Once = Once::new();
        DONE.call_once(|| {
            let step = Step::start("updating the list of packages", Some("10 s"));
            match ui::run_logged(self.command().arg("update"), log) {
                Ok(()) => step.done(),
                // One source of many that does not answer is no reason to stop: what matters is
                // whether these packages can be had.
                Err(_) => step.gave_up(&format!("see {}", log.display())),
            }
        });
    }
}

/// A qemu-utils from backports, newer than the QEMU that can be had, keeps that from being
/// installed: both come from one source and want the same version. When this is so, and QEMU is
/// among `packages`: a pattern for the version of qemu-utils that goes with it.
fn downgrade_of_qemu_utils(packages: &[&str]) -> Option<String> {
    if !packages.contains(&QEMU.package) {
        return None;
    }
    let mut policy = Command::new("apt-cache");
    let policy = ui::output_of(policy.args(["policy", QEMU.package]).env("LC_ALL", "C"))?;
    let wanted = upstream(candidate(&policy)?)?;
    let mut query = Command::new("dpkg-query");
    let installed = ui::output_of(query.args(["-W", "-f", "${Version}", QEMU_UTILS]))?;
    (upstream(&installed)? != wanted).then(|| format!("{wanted}*"))
}

/// The version that `apt-cache policy` says would be installed.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then_some(version)
}

/// A version without Debian's part of it: `1:7.2+dfsg-7` → `1:7.2`.
fn upstream(version: &str) -> Option<&str> {
    version.split(['+', '-', '~']).next().filter(|upstream| !upstream.is_empty())
}

/// The effective user's id, where `/proc` tells it.
fn user_id() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata("/proc/self").ok()?.uid())
}

/// The families of distributions for which we know a command.
#[derive(Debug, PartialEq)]
enum Distribution {
    Debian,
    Fedora,
    Arch,
    Suse,
    Alpine,
    Other,
}

impl Distribution {
    fn of_this_machine() -> Distribution {
        Distribution::from_os_release(
            &std::fs::read_to_string("/etc/os-release").unwrap_or_default(),
        )
    }

    fn from_os_release(text: &str) -> Distribution {
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
            .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace());
        for name in names {
            return match name {
                "debian" | "ubuntu" => Distribution::Debian,
                "fedora" | "rhel" | "centos" => Distribution::Fedora,
                "arch" => Distribution::Arch,
                "suse" | "opensuse" => Distribution::Suse,
                "alpine" => Distribution::Alpine,
                _ => continue,
            };
        }
        Distribution::Other
    }
}

/// What a person has to type, or look for, to install Debian's `packages`.
fn by_hand(packages: &[&str], distribution: &Distribution) -> String {
    let qemu = packages.iter().any(|package| package.starts_with("qemu-"));
    let (command, known): (&str, &[&str]) = match distribution {
        Distribution::Debian => {
            return format!(
                "As root:\n  apt-get update && apt-get install --no-install-recommends {}",
                packages.join(" ")
            );
        }
        Distribution::Fedora => {
            ("dnf install", &["qemu-kvm", "qemu-img", "nftables", "openssh-clients", "curl", "gcc"])
        }
        Distribution::Arch => ("pacman -S", &["qemu-base", "nftables", "openssh", "curl", "gcc"]),
        Distribution::Suse => (
            "zypper install",
            &["qemu-x86", "qemu-tools", "nftables", "openssh-clients", "curl", "gcc"],
        ),
        Distribution::Alpine => (
            "apk add",
            &["qemu-system-x86_64", "qemu-img", "nftables", "openssh-client", "curl", "build-base"],
        ),
        Distribution::Other => {
            return format!(
                "With this system's own package manager, what Debian calls:\n  {}",
                packages.join(" ")
            );
        }
    };
    let mut text = String::new();
    if qemu || packages.iter().any(|package| PROVIDER.iter().any(|need| need.package == *package)) {
        text = format!("As root:\n  {command} {}\n", known.join(" "));
    }
    if packages.iter().any(|package| IMAGE_BUILDER.iter().any(|need| need.package == *package)) {
        text.push_str(
            "The image builder works on Debian and Ubuntu only. With internet access none is needed: \
             published cloud images are downloaded.",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_utils_are_asked_for_in_the_version_of_the_qemu_that_can_be_had() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u18+b3\n  Version table:\n";
        assert_eq!(candidate(policy).and_then(upstream), Some("1:7.2"));
        assert_eq!(candidate("qemu:\n  Candidate: (none)\n"), None);
    }

    #[test]
    fn a_derived_distribution_is_told_its_familys_command() {
        let distribution = Distribution::from_os_release(
            "NAME=\"Rocky\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
        );
        assert_eq!(distribution, Distribution::Fedora);
        assert!(by_hand(&["qemu-system-x86"], &distribution).contains("dnf install qemu-kvm"));
        assert_eq!(
            Distribution::from_os_release("ID=linuxmint\nID_LIKE=\"ubuntu debian\""),
            Distribution::Debian
        );
        assert_eq!(Distribution::from_os_release("ID=void\n"), Distribution::Other);
    }

    #[test]
    fn where_it_takes_a_hand_every_missing_package_is_named() {
        for distribution in [Distribution::Debian, Distribution::Other] {
            let text = by_hand(&["qemu-utils", "cpio"], &distribution);
            assert!(text.contains("qemu-utils") && text.contains("cpio"), "{text}");
        }
    }

    #[test]
    fn a_package_that_gives_two_missing_things_is_listed_once() {
        static NEEDS: [Need; 3] = [
            program("no-such-program-1", "one", "x"),
            program("no-such-program-2", "one", "x"),
            program("sh", "dash", "x"),
        ];
        let found: Vec<&str> = missing(&NEEDS).iter().map(|need| need.package).collect();
        assert_eq!(found, ["one"]);
    }
}
