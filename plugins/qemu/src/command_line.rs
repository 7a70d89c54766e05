//! The command line of a machine's QEMU process.
//!
//! A machine has what a server in a cloud has and nothing more: a disk, the seed of cloud-init, one network card,
//! randomness, a serial console, and the channels to the guest agent. What it costs QEMU to emulate anything
//! else, a guest would pay for at every boot. Pure: `machine.rs` gathers a [`Launch`] and starts what comes out.

use std::fmt::Write as _;

use crate::{accelerator::Accelerator, record::VmRecord};

/// Everything that a start depends on. Paths are absolute unless they say otherwise.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    pub record: &'a VmRecord,
    pub architecture: Architecture,
    pub accelerator: Accelerator,
    pub tb_size_mib: u32,
    pub firmware: Option<&'a str>,
    /// May the guest open connections of its own?
    pub outgoing: bool,
    /// Whom QEMU becomes once it has opened its files; only root can become somebody else.
    pub run_as: Option<&'a str>,
    pub disk: &'a str,
    pub seed: &'a str,
    pub pid_file: &'a str,
    pub console: &'a str,
    /// Kernel, initial file system and command line, where QEMU starts the kernel itself.
    pub direct: Option<(&'a str, &'a str, &'a str)>,
    /// In the plugin's directory, which is QEMU's when it opens them.
    pub qmp_socket: &'a str,
    pub agent_socket: &'a str,
    pub keys_socket: &'a str,
}

/// What kind of machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// By the name that Rust and the contract use; absent for one that this plugin makes no machines of.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The program that emulates it.
    pub fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }
}

/// The channel on which the guest agent listens; its name is QEMU's.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";
/// The channel on which the helper listens that `ssh_keys.rs` puts into guests without an agent.
pub const KEYS_CHANNEL: &str = "org.golem.ssh-keys.0";
/// The serial console's name in QMP, given by QEMU to the first `-serial`.
pub const CONSOLE_CHARDEV: &str = "serial0";
/// The machine's network in QMP.
const NETWORK_ID: &str = "n0";
/// Where the firmware is that Debian and Ubuntu install for aarch64.
const AARCH64_FIRMWARE: &str = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd";

/// The arguments for QEMU.
pub fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let mut arguments = Arguments(Vec::new());
    let spec = &launch.record.spec;
    arguments.flag("-no-user-config").flag("-nodefaults").pair("-display", "none");
    arguments
        .pair("-name", process_name(&spec.id, launch.record.launches))
        .pair("-uuid", &launch.record.uuid)
        .pair("-pidfile", launch.pid_file);
    arguments.pair("-sandbox", sandbox(launch.run_as.is_some()));
    if let Some(user) = launch.run_as {
        arguments.pair("-runas", user);
    }
    machine(launch, &mut arguments);
    arguments
        .pair("-smp", format!("cpus={}", spec.cpu_cores))
        .pair("-m", format!("{}M", spec.memory_mib));
    arguments
        .pair("-serial", format!("file:{}", launch.console))
        .pair("-qmp", format!("unix:{},server=on,wait=off", escaped(launch.qmp_socket)));
    if let Some((kernel, initrd, append)) = launch.direct {
        arguments.pair("-kernel", kernel).pair("-initrd", initrd).pair("-append", append);
    }
    arguments
        .pair(
            "-drive",
            format!(
                "id=disk,if=none,file={},format=qcow2,cache=writeback,discard=unmap",
                escaped(launch.disk)
            ),
        )
        .pair("-device", "virtio-blk-pci,drive=disk")
        .pair(
            "-drive",
            format!("id=seed,if=none,file={},format=raw,readonly=on", escaped(launch.seed)),
        )
        .pair("-device", "virtio-blk-pci,drive=seed");
    // Port 0 lets the kernel choose a free one, without a moment in which another program could take it.
    let restrict = if launch.outgoing { "" } else { ",restrict=on" };
    arguments
        .pair(
            "-netdev",
            format!("user,id={NETWORK_ID},ipv6=off,hostfwd=tcp:127.0.0.1:0-:22{restrict}"),
        )
        .pair(
            "-device",
            format!("virtio-net-pci,netdev={NETWORK_ID},mac={},romfile=", launch.record.mac),
        );
    arguments.pair("-device", "virtio-rng-pci").pair("-device", "virtio-serial-pci");
    for (id, socket, channel) in
        [("agent", launch.agent_socket, AGENT_CHANNEL), ("keys", launch.keys_socket, KEYS_CHANNEL)]
    {
        arguments
            .pair("-chardev", format!("socket,id={id},path={},server=on,wait=off", escaped(socket)))
            .pair("-device", format!("virtserialport,chardev={id},name={channel}"));
    }
    arguments.0
}

/// What QEMU may ask of the kernel. It may change its user where it has to, which it does once, right after opening its
/// files: from then on it has no privilege left, and the kernel grants it no new one, because installing the filter sets
/// no-new-privileges. `spawn=deny` rules out QEMU's own way into the background, so the provider starts it there.
fn sandbox(changes_user: bool) -> String {
    let privileges = if changes_user { "allow" } else { "deny" };
    format!("on,obsolete=deny,elevateprivileges={privileges},spawn=deny,resourcecontrol=deny")
}

fn machine(launch: &Launch<'_>, arguments: &mut Arguments) {
    match launch.accelerator {
        Accelerator::Kvm => {
            arguments.pair("-accel", "kvm").pair("-cpu", "host");
        }
        Accelerator::Tcg => {
            let tb_size = launch.tb_size_mib.clamp(32, 4096);
            arguments.pair("-accel", format!("tcg,tb-size={tb_size}"));
        }
    }
    if (launch.architecture, launch.accelerator) == (Architecture::Aarch64, Accelerator::Tcg) {
        // Its default is a 32-bit processor; that of x86-64 boots as fast as any.
        arguments.pair("-cpu", "max");
    }
    match launch.architecture {
        Architecture::X86_64 => {
            arguments.pair("-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off");
        }
        Architecture::Aarch64 => {
            arguments
                .pair("-machine", "virt,gic-version=max")
                .pair("-bios", launch.firmware.unwrap_or(AARCH64_FIRMWARE));
        }
    }
}

/// QEMU's `-name`: which machine, and which of its starts.
fn process_name(id: &str, launch: u32) -> String {
    format!("{id}@{launch}")
}

/// What the arguments of a process say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which of the machine's starts it belongs to.
    pub launch: u32,
    pub accelerator: Accelerator,
}

/// Is this a process of the machine with that process file?
pub fn identify(arguments: &[String], pid_file: &str) -> Option<Identity> {
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)
    };
    if value("-pidfile")? != pid_file {
        return None;
    }
    let launch = value("-name")?.rsplit_once('@')?.1.parse().ok()?;
    let accelerator = match value("-accel")?.as_str() {
        "kvm" => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    Some(Identity { launch, accelerator })
}

/// In QEMU's option lists a comma ends a value unless it is doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<String>) -> &mut Self {
        self.0.push(flag.to_owned());
        self.0.push(value.into());
        self
    }
}

/// A small machine that only runs the given firmware, for finding out what an accelerator is worth.
pub fn trial(architecture: Architecture, firmware: &str) -> Vec<String> {
    let mut text =
        String::from("-no-user-config -nodefaults -display none -accel kvm -cpu host -m 16 ");
    // Writing to a `String` cannot fail.
    let _ = match architecture {
        Architecture::X86_64 => write!(
            text,
            "-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off -device isa-debug-exit,iobase=0xf4,iosize=4"
        ),
        Architecture::Aarch64 => write!(text, "-machine virt,gic-version=max"),
    };
    let mut arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    arguments.extend(["-bios".to_owned(), firmware.to_owned()]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    fn launch(record: &VmRecord) -> Launch<'_> {
        Launch {
            record,
            architecture: Architecture::X86_64,
            accelerator: Accelerator::Tcg,
            tb_size_mib: 256,
            firmware: None,
            outgoing: true,
            run_as: Some("golem-vm"),
            disk: "/data/a,b/disk.qcow2",
            seed: "/data/seed.img",
            pid_file: "/data/vms/golem-web-1/qemu.pid",
            console: "/data/a,b/console.log",
            direct: None,
            qmp_socket: "sockets/0.qmp",
            agent_socket: "sockets/0.agent",
            keys_socket: "sockets/0.keys",
        }
    }

    fn value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).map(String::as_str)
    }

    #[test]
    fn a_machine_without_protection_for_the_host_gets_no_way_out() {
        let record = record::tests::example();
        let open = arguments(&launch(&record));
        let closed = arguments(&Launch { outgoing: false, ..launch(&record) });
        assert!(!value(&open, "-netdev").is_some_and(|network| network.contains("restrict")));
        assert!(value(&closed, "-netdev").is_some_and(|network| network.contains("restrict=on")));
    }

    #[test]
    fn qemu_may_never_start_other_programs_and_only_root_changes_user() {
        let record = record::tests::example();
        let as_root = arguments(&launch(&record));
        let as_user = arguments(&Launch { run_as: None, ..launch(&record) });
        for (arguments, privileges) in [(&as_root, "allow"), (&as_user, "deny")] {
            let sandbox = value(arguments, "-sandbox").unwrap_or_default();
            assert!(sandbox.contains("spawn=deny"), "{sandbox}");
            assert!(sandbox.contains(&format!("elevateprivileges={privileges}")), "{sandbox}");
        }
        assert_eq!(value(&as_root, "-runas"), Some("golem-vm"));
        assert_eq!(value(&as_user, "-runas"), None);
    }

    #[test]
    fn a_comma_in_a_path_stays_part_of_the_path() {
        let record = record::tests::example();
        let arguments = arguments(&launch(&record));
        assert!(
            value(&arguments, "-drive")
                .is_some_and(|drive| drive.contains("file=/data/a,,b/disk.qcow2,"))
        );
        assert_eq!(value(&arguments, "-serial"), Some("file:/data/a,b/console.log"));
    }

    #[test]
    fn a_process_is_recognised_by_its_own_process_file_and_tells_which_start_it_is() {
        let mut record = record::tests::example();
        record.launches = 7;
        let arguments = arguments(&launch(&record));
        assert_eq!(
            identify(&arguments, "/data/vms/golem-web-1/qemu.pid"),
            Some(Identity { launch: 7, accelerator: Accelerator::Tcg })
        );
        assert_eq!(identify(&arguments, "/data/vms/golem-web-10/qemu.pid"), None);
        assert_eq!(identify(&[], "/data/vms/golem-web-1/qemu.pid"), None);
    }

    #[test]
    fn an_image_with_its_own_kernel_file_boots_without_a_boot_loader() {
        let record = record::tests::example();
        let direct = Launch { direct: Some(("/k", "/i", "root=/dev/vda2 ro")), ..launch(&record) };
        let arguments = arguments(&direct);
        assert_eq!(value(&arguments, "-kernel"), Some("/k"));
        assert_eq!(value(&arguments, "-append"), Some("root=/dev/vda2 ro"));
    }
}
