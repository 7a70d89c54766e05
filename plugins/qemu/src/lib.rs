//! The VM backend that comes with the provider: machines by QEMU, on KVM where that really works and emulated where not.
//!
//! A component without state: every call reads what it needs from the plugin's directory and asks the operating system
//! which QEMU processes run. Modules, from the inside out:
//!
//! | Module | What it decides or does |
//! |---|---|
//! | `settings` | what an operator can set |
//! | `catalog` | which images there are |
//! | `command_line` | QEMU's arguments |
//! | `seed` | what cloud-init in a guest reads |
//! | `qmp` | talking to a QEMU process |
//! | `record` | what is remembered of a machine, and where its files are |
//! | `accelerator` | KVM or emulation, by trying |
//! | `isolation` | keeping guests away from the machine they run on |
//! | `images` | fetching images, making disks |
//! | `ssh_keys` | adding a key to a machine that runs |
//! | `machine` | a machine's life |
//! | `readiness` | waiting until SSH answers |
//!
//! Decisions are functions of values and are tested natively; only thin layers around them call the provider.

mod accelerator;
mod catalog;
mod command_line;
mod images;
mod isolation;
mod machine;
mod qmp;
mod readiness;
mod record;
mod seed;
mod settings;
mod ssh_keys;

use core::time::Duration;

use golem_provider_sdk::{
    Description, Error, Finding, Plugin, Result, VmBackend, host, log, process,
    vm_backend::{BootLimits, Image, Instance, Spec},
};

use crate::{
    accelerator::Accelerator, command_line::Architecture, machine::Processes, record::Paths,
    settings::AcceleratorChoice,
};

/// The backend.
pub struct Qemu;

impl Plugin for Qemu {
    fn describe() -> Description {
        Description {
            name: "qemu".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "Virtual machines by QEMU, on KVM where it works and emulated where not"
                .to_owned(),
            license: env!("CARGO_PKG_LICENSE").to_owned(),
            settings_schema: settings::schema(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        let Some(architecture) = Architecture::named(&host::architecture()) else {
            return Ok(vec![Finding::blocking(
                format!("there are no machines for the architecture {}", host::architecture()),
                "use another backend on this machine",
            )]);
        };
        let settings = match settings::load() {
            Ok(settings) => settings,
            Err(error) => return Ok(vec![wrong_settings(&error)]),
        };
        if let Err(error) = machine::catalog(&settings) {
            return Ok(vec![wrong_settings(&error)]);
        }
        let mut findings = missing_programs(architecture)?;
        if !findings.is_empty() {
            return Ok(findings);
        }
        let verdict = accelerator::choose(settings.accelerator, architecture)?;
        findings.push(accelerator_finding(&verdict, settings.accelerator));
        findings.push(isolation::expect(&settings).finding());
        Ok(findings)
    }
}

impl VmBackend for Qemu {
    fn images() -> Result<Vec<Image>> {
        let catalog = machine::catalog(&settings::load()?)?;
        Ok(catalog
            .iter()
            .map(|(alias, image)| Image {
                alias: alias.to_owned(),
                description: image.description.clone(),
            })
            .collect())
    }

    fn limits() -> Result<BootLimits> {
        let settings = settings::load()?;
        let verdict = accelerator::choose(settings.accelerator, machine::architecture()?)?;
        let timeout = readiness::boot_timeout(verdict.accelerator);
        Ok(BootLimits {
            parallel_boots: parallel_boots(verdict.accelerator, host::cpu_cores()),
            boot_timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        })
    }

    fn create(spec: Spec) -> Result<Instance> {
        machine::create(spec.into(), &settings::load()?)
    }

    fn start(id: String) -> Result<Instance> {
        machine::start(&Paths::of(&id)?, &settings::load()?)
    }

    fn await_ready(id: String) -> Result<Instance> {
        readiness::await_ready(&Paths::of(&id)?, &settings::load()?)
    }

    fn stop(id: String, grace: Duration) -> Result<Instance> {
        machine::stop(&Paths::of(&id)?, grace)
    }

    fn delete(id: String) -> Result<()> {
        machine::delete(&Paths::of(&id)?)
    }

    fn inspect(id: String) -> Result<Instance> {
        machine::inspect(&Paths::of(&id)?, &Processes::now()?)
    }

    fn inspect_all() -> Result<Vec<Instance>> {
        let processes = Processes::now()?;
        let machines = machine::all()?;
        let mut instances = Vec::new();
        for paths in &machines {
            match machine::inspect(paths, &processes) {
                Ok(instance) => instances.push(instance),
                // Deleted since the list was made.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match settings::load() {
            Ok(settings) => machine::tend(&machines, &processes, &settings),
            Err(error) => log::warn!("{}", error.message()),
        }
        Ok(instances)
    }

    fn add_ssh_key(id: String, key: String) -> Result<()> {
        machine::add_ssh_key(&Paths::of(&id)?, &key)
    }
}

/// A boot keeps a core busy for as long as it takes where every instruction is translated; on KVM it mostly waits.
fn parallel_boots(accelerator: Accelerator, cpu_cores: u32) -> u32 {
    let cores = cpu_cores.max(1);
    match accelerator {
        Accelerator::Tcg => cores,
        Accelerator::Kvm => cores.saturating_mul(4),
    }
}

fn wrong_settings(error: &Error) -> Finding {
    Finding::blocking(error.message(), "correct the settings of the plugin qemu")
}

/// Programs without which nothing works, and where to get them.
fn missing_programs(architecture: Architecture) -> Result<Vec<Finding>> {
    let (apt, dnf) = match architecture {
        Architecture::X86_64 => ("qemu-system-x86", "qemu-system-x86-core"),
        Architecture::Aarch64 => ("qemu-system-arm qemu-efi-aarch64", "qemu-system-aarch64-core"),
    };
    let mut findings = Vec::new();
    for (program, apt, dnf, pacman) in [
        (architecture.qemu(), apt, dnf, "qemu-base"),
        ("qemu-img", "qemu-utils", "qemu-img", "qemu-img"),
    ] {
        match process::find(program) {
            Ok(_) => {}
            Err(Error::NotFound(_)) => findings.push(Finding::blocking(
                format!("{program} is not installed"),
                format!(
                    "apt install {apt} · dnf install {dnf} · pacman -S {pacman} · brew install qemu"
                ),
            )),
            Err(error) => return Err(error),
        }
    }
    Ok(findings)
}

fn accelerator_finding(verdict: &accelerator::Verdict, choice: AcceleratorChoice) -> Finding {
    match verdict.accelerator {
        Accelerator::Kvm => Finding::info(format!("machines run on KVM: {}", verdict.reason)),
        Accelerator::Tcg => Finding::warning(
            format!(
                "machines are emulated ({}): they compute about ten times slower, and a boot takes 20 to 60 s of a whole core instead of a few",
                verdict.reason
            ),
            match choice {
                AcceleratorChoice::Tcg => "set `accelerator` to `auto`",
                _ => {
                    "use a machine with hardware virtualisation switched on (in its firmware, or as nested virtualisation at its host) and with access to /dev/kvm"
                }
            },
        ),
    }
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_vm_backend!(Qemu);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_machines_boot_one_per_core() {
        assert_eq!(parallel_boots(Accelerator::Tcg, 2), 2);
        assert_eq!(parallel_boots(Accelerator::Tcg, 0), 1);
        assert!(parallel_boots(Accelerator::Kvm, 2) > 2);
    }

    #[test]
    fn emulation_is_a_warning_that_says_what_it_costs() {
        let verdict = accelerator::Verdict {
            accelerator: Accelerator::Tcg,
            reason: "KVM cannot run a guest".to_owned(),
        };
        let finding = accelerator_finding(&verdict, AcceleratorChoice::Auto);
        assert_eq!(finding.severity, golem_provider_sdk::Severity::Warning);
        assert!(finding.message.contains("ten times slower"));
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains("virtualisation")));
    }

    #[test]
    fn the_description_needs_nothing_of_the_provider() {
        assert_eq!(Qemu::describe().name, "qemu");
    }
}
