//! The rules of renting out a part of this machine. Pure.
//!
//! Two rules for memory and storage, because a machine may be full of other things than VMs: what all VMs hold together
//! stays below a threshold of the total, and what is free at the moment stays above the rest. Cores are shared by
//! time, so for them only the first rule makes sense. A stopped VM holds everything it was given.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Measurement;
use crate::settings::ResourceSettings;

/// 1 GB as requestors buy it.
pub(super) const GB: u64 = 1 << 30;

/// How much of the machine may be rented out, in percent of its total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// The part of the cores, rounded to the nearest whole core and at least one: 90 % of 2 cores are 2, of 4 are 4, of 8
    /// are 7.
    pub cpu_percent: u8,
    pub memory_percent: u8,
    pub storage_percent: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { cpu_percent: 90, memory_percent: 85, storage_percent: 90 }
    }
}

/// The smallest VM that is let; what asks for less of anything is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minimums {
    pub cpu_cores: u32,
    pub memory_gb: u32,
    pub storage_gb: u32,
}

impl Default for Minimums {
    fn default() -> Self {
        Minimums { cpu_cores: 1, memory_gb: 1, storage_gb: 10 }
    }
}

/// Amounts of each resource, each of which may be zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    pub cpu_cores: u64,
    pub memory_gb: u64,
    pub storage_gb: u64,
}

impl Amounts {
    /// What is left of these when `taken` is gone; zero where more is taken than there was.
    pub fn less(self, taken: Amounts) -> Amounts {
        Amounts {
            cpu_cores: self.cpu_cores.saturating_sub(taken.cpu_cores),
            memory_gb: self.memory_gb.saturating_sub(taken.memory_gb),
            storage_gb: self.storage_gb.saturating_sub(taken.storage_gb),
        }
    }
}

impl std::iter::Sum for Amounts {
    fn sum<I: Iterator<Item = Amounts>>(all: I) -> Amounts {
        all.fold(Amounts::default(), |sum, next| Amounts {
            cpu_cores: sum.cpu_cores + next.cpu_cores,
            memory_gb: sum.memory_gb + next.memory_gb,
            storage_gb: sum.storage_gb + next.storage_gb,
        })
    }
}

/// What there is, for people and dashboards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// What the machine has.
    pub total: Amounts,
    /// What of it may be rented out.
    pub allocatable: Amounts,
    /// What VMs hold, running or not.
    pub allocated: Amounts,
    /// What one more VM could get at this moment. Moves with whatever else runs on the machine.
    pub available: Amounts,
}

/// A VM that this provider has no room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Shortage(pub(super) String);

#[derive(Debug, Clone, Copy)]
enum Resource {
    Cpu,
    Memory,
    Storage,
}

impl Resource {
    fn amount(self, value: u64) -> String {
        match self {
            Resource::Cpu if value == 1 => "1 CPU core".to_owned(),
            Resource::Cpu => format!("{value} CPU cores"),
            Resource::Memory => format!("{value} GB of memory"),
            Resource::Storage => format!("{value} GB of storage"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Cpu => "CPU",
            Resource::Memory => "memory",
            Resource::Storage => "storage",
        })
    }
}

/// The operator's part of the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    pub thresholds: Thresholds,
    pub minimums: Minimums,
}

impl From<&ResourceSettings> for Rules {
    fn from(settings: &ResourceSettings) -> Rules {
        Rules {
            thresholds: Thresholds {
                cpu_percent: settings.cpu_threshold_percent,
                memory_percent: settings.memory_threshold_percent,
                storage_percent: settings.storage_threshold_percent,
            },
            minimums: Minimums {
                cpu_cores: settings.min_cpu_cores,
                memory_gb: settings.min_memory_gb,
                storage_gb: settings.min_storage_gb,
            },
        }
    }
}

impl Rules {
    /// What of the machine may be rented out to all VMs together.
    pub fn allocatable(&self, machine: &Measurement) -> Amounts {
        Amounts {
            cpu_cores: ((u64::from(machine.cpu_cores) * u64::from(self.thresholds.cpu_percent)
                + 50)
                / 100)
                .max(1),
            memory_gb: percent_of(machine.memory_total_bytes, self.thresholds.memory_percent) / GB,
            storage_gb: percent_of(machine.storage_total_bytes, self.thresholds.storage_percent)
                / GB,
        }
    }

    /// May `asked` be given away, when VMs hold `held` already?
    ///
    /// # Errors
    /// Everything that speaks against it, in one text.
    pub fn admit(
        &self,
        machine: &Measurement,
        held: Amounts,
        asked: Amounts,
    ) -> Result<(), Shortage> {
        let minimums = &self.minimums;
        let total = total(machine);
        let allocatable = self.allocatable(machine);
        let free_now = self.free_now(machine, held);
        let each = [
            (
                Resource::Cpu,
                asked.cpu_cores,
                minimums.cpu_cores,
                total.cpu_cores,
                allocatable.cpu_cores,
                held.cpu_cores,
                u64::MAX,
            ),
            (
                Resource::Memory,
                asked.memory_gb,
                minimums.memory_gb,
                total.memory_gb,
                allocatable.memory_gb,
                held.memory_gb,
                free_now.memory_gb,
            ),
            (
                Resource::Storage,
                asked.storage_gb,
                minimums.storage_gb,
                total.storage_gb,
                allocatable.storage_gb,
                held.storage_gb,
                free_now.storage_gb,
            ),
        ];
        let mut problems = Vec::new();
        for (resource, asked, minimum, total, allocatable, held, free_now) in each {
            if asked < u64::from(minimum) {
                problems.push(format!(
                    "{resource}: {} asked for, this provider lets no less than {minimum}",
                    resource.amount(asked)
                ));
            } else if held + asked > allocatable {
                problems.push(format!(
                    "not enough {resource}: {} asked for, {} left ({allocatable} of the machine's {total} can be rented, VMs hold {held})",
                    resource.amount(asked),
                    allocatable.saturating_sub(held),
                ));
            } else if asked > free_now {
                problems.push(format!(
                    "not enough {resource}: {} asked for, {free_now} can be given at the moment, because other programs use the machine too",
                    resource.amount(asked),
                ));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Shortage(problems.join("; "))) }
    }

    /// What there is, what is let, and what is left.
    pub fn report(&self, machine: &Measurement, held: Amounts) -> ResourceReport {
        let allocatable = self.allocatable(machine);
        let left = allocatable.less(held);
        let free_now = self.free_now(machine, held);
        ResourceReport {
            total: total(machine),
            allocatable,
            allocated: held,
            available: Amounts {
                cpu_cores: left.cpu_cores,
                memory_gb: left.memory_gb.min(free_now.memory_gb),
                storage_gb: left.storage_gb.min(free_now.storage_gb),
            },
        }
    }

    /// What is free at this moment beyond what has to stay free. Disks of VMs grow as they are written, so what was
    /// promised and is not written yet is not free.
    fn free_now(&self, machine: &Measurement, held: Amounts) -> Amounts {
        let memory_reserve = reserve(machine.memory_total_bytes, self.thresholds.memory_percent);
        let storage_reserve = reserve(machine.storage_total_bytes, self.thresholds.storage_percent);
        let unwritten = held.storage_gb.saturating_mul(GB).saturating_sub(machine.vm_bytes_written);
        Amounts {
            cpu_cores: u64::from(machine.cpu_cores),
            memory_gb: machine.memory_available_bytes.saturating_sub(memory_reserve) / GB,
            storage_gb: machine
                .storage_free_bytes
                .saturating_sub(storage_reserve)
                .saturating_sub(unwritten)
                / GB,
        }
    }
}

fn total(machine: &Measurement) -> Amounts {
    Amounts {
        cpu_cores: u64::from(machine.cpu_cores),
        memory_gb: machine.memory_total_bytes / GB,
        storage_gb: machine.storage_total_bytes / GB,
    }
}

fn percent_of(bytes: u64, percent: u8) -> u64 {
    // At most 100 times a machine's size, so it fits in 128 bits and the result in 64.
    (u128::from(bytes) * u128::from(percent.min(100)) / 100) as u64
}

/// What the threshold wants to stay free.
fn reserve(total: u64, percent: u8) -> u64 {
    total - percent_of(total, percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine(cpu_cores: u32, memory_gb: u64, storage_gb: u64) -> Measurement {
        Measurement {
            cpu_cores,
            memory_total_bytes: memory_gb * GB,
            memory_available_bytes: memory_gb * GB,
            storage_total_bytes: storage_gb * GB,
            storage_free_bytes: storage_gb * GB,
            vm_bytes_written: 0,
        }
    }

    fn amounts(cpu_cores: u64, memory_gb: u64, storage_gb: u64) -> Amounts {
        Amounts { cpu_cores, memory_gb, storage_gb }
    }

    #[test]
    fn cores_are_rounded_to_the_nearest_and_one_can_always_be_let() {
        let rules = Rules::default();
        for (cores, let_out) in [(1, 1), (2, 2), (4, 4), (6, 5), (8, 7), (16, 14), (64, 58)] {
            assert_eq!(
                rules.allocatable(&machine(cores, 8, 100)).cpu_cores,
                let_out,
                "{cores} cores"
            );
        }
        let tenth =
            Rules { thresholds: Thresholds { cpu_percent: 10, ..Thresholds::default() }, ..rules };
        assert_eq!(tenth.allocatable(&machine(2, 8, 100)).cpu_cores, 1);
    }

    #[test]
    fn memory_and_storage_are_rounded_down() {
        let let_out = Rules::default().allocatable(&machine(4, 15, 99));
        assert_eq!((let_out.memory_gb, let_out.storage_gb), (12, 89));
    }

    #[test]
    fn a_refusal_names_the_resource_what_was_asked_and_what_is_left() {
        let refusal = Rules::default()
            .admit(&machine(4, 16, 1000), amounts(1, 9, 10), amounts(1, 8, 10))
            .unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "not enough memory: 8 GB of memory asked for, 4 left (13 of the machine's 16 can be rented, VMs hold 9)"
        );
        let refusal = Rules::default()
            .admit(&machine(2, 4, 15), amounts(2, 0, 0), amounts(4, 8, 20))
            .unwrap_err()
            .to_string();
        for resource in ["4 CPU cores asked for, 0 left", "8 GB of memory", "20 GB of storage"] {
            assert!(refusal.contains(resource), "{refusal}");
        }
    }

    #[test]
    fn memory_that_other_programs_use_cannot_be_let() {
        let mut busy = machine(8, 16, 1000);
        busy.memory_available_bytes = 5 * GB;
        let rules = Rules::default();
        let refusal =
            rules.admit(&busy, amounts(0, 0, 0), amounts(1, 4, 10)).unwrap_err().to_string();
        assert!(refusal.contains("2 can be given at the moment"), "{refusal}");
        assert_eq!(rules.admit(&busy, amounts(0, 0, 0), amounts(1, 2, 10)), Ok(()));
    }

    #[test]
    fn storage_that_was_promised_and_not_written_is_not_free() {
        let mut disk = machine(8, 64, 100);
        disk.storage_free_bytes = 60 * GB;
        let rules = Rules::default();
        // 60 free - 10 reserve - 40 promised.
        assert!(rules.admit(&disk, amounts(0, 0, 40), amounts(1, 1, 20)).is_err());
        disk.vm_bytes_written = 35 * GB;
        // 60 free - 10 reserve - 5 promised and not written.
        assert_eq!(rules.admit(&disk, amounts(0, 0, 40), amounts(1, 1, 20)), Ok(()));
    }

    #[test]
    fn less_than_the_minimum_is_refused() {
        let minimums = Minimums { cpu_cores: 2, memory_gb: 4, storage_gb: 20 };
        let rules = Rules { minimums, ..Rules::default() };
        let refusal = rules
            .admit(&machine(64, 256, 1000), amounts(0, 0, 0), amounts(1, 4, 20))
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("no less than 2"), "{refusal}");
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_what_vms_hold_never_exceeds_what_can_be_let(
            cores in 1u32..64,
            memory in 1u64..256,
            storage in 10u64..2000,
            asked in prop::collection::vec((1u64..17, 1u64..65, 10u64..200), 0..40),
        ) {
            let machine = machine(cores, memory, storage);
            let rules = Rules::default();
            let let_out = rules.allocatable(&machine);
            let mut given = Vec::new();
            for (cpu, memory, storage) in asked {
                let asked = amounts(cpu, memory, storage);
                let held: Amounts = given.iter().copied().sum();
                let report = rules.report(&machine, held);
                let admitted = rules.admit(&machine, held, asked);
                let fits = asked.less(report.available) == Amounts::default();
                prop_assert_eq!(admitted.is_ok(), fits, "the report and the decision agree");
                if admitted.is_ok() { given.push(asked); }
            }
            let held: Amounts = given.into_iter().sum();
            prop_assert_eq!(held.less(let_out), Amounts::default());
        }
    }
}
