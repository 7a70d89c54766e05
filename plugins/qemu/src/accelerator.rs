//! What runs the guests: the processor itself (KVM), or QEMU's translator (TCG).
//!
//! A `/dev/kvm` that exists and opens says little: there are machines where it is emulated, a hundred times slower than
//! translation, and dies of the first unusual instruction; QEMU cannot tell. So a tiny guest is made to count, and KVM is
//! taken only if that is as fast as a processor is. The verdict holds until the machine boots again, or until
//! a guest dies of KVM. The firmware and the judgement are pure; [`choose`] tries and remembers.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result, clock, files, host, log,
    process::{Command, ExitStatus, Output},
    state,
};
use serde::{Deserialize, Serialize};

use crate::{
    command_line::{self, Architecture},
    settings::AcceleratorChoice,
};

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// Which accelerator to use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    pub accelerator: Accelerator,
    /// For people.
    pub reason: String,
}

/// What is remembered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Remembered {
    boot_id: String,
    verdict: Verdict,
}

const STATE_KEY: &str = "accelerator";
const FIRMWARE_FILE: &str = "accelerator-trial.bin";

/// How many instructions the trial guest runs.
const TRIAL_INSTRUCTIONS: u32 = 400_000_000;
/// Fewer than this in a second are not those of a processor. Real ones reach billions, the emulated kind two million.
const LEAST_INSTRUCTIONS_PER_SECOND: u64 = 200_000_000;
/// Time for QEMU to start, on a busy machine.
const TRIAL_START: Duration = Duration::from_secs(1);
/// `isa-debug-exit` ends QEMU with twice the written value plus one.
const TRIAL_VALUE: u8 = 0x2a;

/// The accelerator for new starts. The first call after a boot of the machine takes up to three seconds.
pub fn choose(choice: AcceleratorChoice, architecture: Architecture) -> Result<Verdict> {
    let forced = |accelerator| {
        Ok(Verdict { accelerator, reason: "the setting `accelerator` says so".to_owned() })
    };
    match choice {
        AcceleratorChoice::Kvm => return forced(Accelerator::Kvm),
        AcceleratorChoice::Tcg => return forced(Accelerator::Tcg),
        AcceleratorChoice::Auto => {}
    }
    let boot_id = host::boot_id();
    if let Some(remembered) = state::get_json::<Remembered>(STATE_KEY)?
        && remembered.boot_id == boot_id
    {
        return Ok(remembered.verdict);
    }
    let verdict = try_kvm(architecture)?;
    // The operator is told by whoever asked, as the probe does.
    log::debug!("machines run on {:?}: {}", verdict.accelerator, verdict.reason);
    remember(&verdict)?;
    Ok(verdict)
}

/// Remembers, until the machine boots again, that KVM failed a guest.
pub fn give_up_kvm(reason: &str) -> Result<()> {
    log::warn!("KVM is given up until this machine boots again: {reason}");
    remember(&Verdict { accelerator: Accelerator::Tcg, reason: reason.to_owned() })
}

fn remember(verdict: &Verdict) -> Result<()> {
    let remembered = Remembered { boot_id: host::boot_id(), verdict: verdict.clone() };
    state::set_json(STATE_KEY, &remembered)
}

fn try_kvm(architecture: Architecture) -> Result<Verdict> {
    files::write(FIRMWARE_FILE, &counting_firmware(architecture, TRIAL_INSTRUCTIONS))?;
    let firmware = files::host_path(FIRMWARE_FILE)?;
    let limit = TRIAL_START
        + Duration::from_millis(
            u64::from(TRIAL_INSTRUCTIONS) * 1000 / LEAST_INSTRUCTIONS_PER_SECOND,
        );
    let begun = clock::Deadline::after(limit);
    let outcome = Command::new(architecture.qemu())
        .args(command_line::trial(architecture, &firmware))
        .timeout(limit)
        .run();
    let taken = limit.saturating_sub(begun.remaining());
    let outcome = match outcome {
        Ok(output) => Trial::Ended(output),
        Err(Error::DeadlineExceeded(_)) => Trial::TooSlow,
        Err(error) => return Err(error),
    };
    Ok(judge(architecture, &outcome, taken))
}

/// How the trial guest ended.
enum Trial {
    Ended(Output),
    TooSlow,
}

fn judge(architecture: Architecture, trial: &Trial, taken: Duration) -> Verdict {
    let emulate = |reason: String| Verdict { accelerator: Accelerator::Tcg, reason };
    let expected = match architecture {
        Architecture::X86_64 => i32::from(TRIAL_VALUE) * 2 + 1,
        Architecture::Aarch64 => 0,
    };
    match trial {
        Trial::TooSlow => emulate(format!(
            "a guest on KVM ran less than {} million instructions a second",
            LEAST_INSTRUCTIONS_PER_SECOND / 1_000_000
        )),
        Trial::Ended(output) if output.status == ExitStatus::Code(expected) => Verdict {
            accelerator: Accelerator::Kvm,
            reason: format!(
                "a guest counted {} million instructions in {} ms",
                TRIAL_INSTRUCTIONS / 1_000_000,
                taken.as_millis()
            ),
        },
        Trial::Ended(output) => emulate(format!("KVM cannot run a guest: {}", last_words(output))),
    }
}

/// The first line that QEMU wrote: what follows is consequence.
fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    match (line, &output.status) {
        (Some(line), _) => line.to_owned(),
        (None, ExitStatus::Code(code)) => format!("QEMU ended with status {code} and said nothing"),
        (None, ExitStatus::Signal(signal)) => format!("QEMU was ended by signal {signal}"),
    }
}

/// A firmware that counts down and switches the machine off, with as many instructions as are asked for.
fn counting_firmware(architecture: Architecture, instructions: u32) -> Vec<u8> {
    let rounds = (instructions / 2).to_le_bytes();
    match architecture {
        Architecture::X86_64 => {
            // 64 KiB that end at 4 GiB and are also seen below 1 MiB, where a processor starts at F000:FFF0.
            let mut image = vec![0xf4; 0x1_0000];
            let mut code = vec![0xfa, 0x66, 0xb9]; // cli; mov ecx, rounds
            code.extend(rounds);
            code.extend([0x66, 0x49]); // again: dec ecx
            code.extend([0x75, 0xfc]); // jnz again
            code.extend([0xb0, TRIAL_VALUE, 0xe6, 0xf4]); // mov al, value; out 0xf4, al
            code.extend([0xf4, 0xeb, 0xfd]); // stop: hlt; jmp stop
            image[..code.len()].copy_from_slice(&code);
            image[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]); // jmp 0000 (wraps around the segment)
            image
        }
        Architecture::Aarch64 => {
            let (low, high) = (
                u32::from(u16::from_le_bytes([rounds[0], rounds[1]])),
                u32::from(u16::from_le_bytes([rounds[2], rounds[3]])),
            );
            [
                0x5280_0001 | low << 5,  // mov  w1, low half of rounds
                0x72a0_0001 | high << 5, // movk w1, high half, lsl 16
                0x7100_0421,             // again: subs w1, w1, 1
                0x54ff_ffe1,             // b.ne again
                0x5280_0100,             // mov  w0, 0x8
                0x72b0_8000,             // movk w0, 0x8400, lsl 16: PSCI SYSTEM_OFF
                0xd400_0002,             // hvc  0
                0x1400_0000,             // stop: b stop
            ]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: ExitStatus, stderr: &str) -> Trial {
        Trial::Ended(Output { status, stdout: Vec::new(), stderr: stderr.into() })
    }

    fn judged(trial: &Trial) -> Verdict {
        judge(Architecture::X86_64, trial, Duration::from_millis(300))
    }

    #[test]
    fn kvm_is_taken_when_a_guest_counted_to_the_end_in_time() {
        let verdict = judged(&ended(ExitStatus::Code(0x55), ""));
        assert_eq!(verdict.accelerator, Accelerator::Kvm);
    }

    #[test]
    fn a_kvm_that_is_slow_is_not_taken() {
        let verdict = judged(&Trial::TooSlow);
        assert_eq!(verdict.accelerator, Accelerator::Tcg);
        assert!(verdict.reason.contains("200 million"));
    }

    #[test]
    fn a_kvm_that_fails_is_not_taken_and_the_reason_is_qemus() {
        let words =
            "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69\nassertion failed\n";
        let verdict = judged(&ended(ExitStatus::Signal(6), words));
        assert_eq!(verdict.accelerator, Accelerator::Tcg);
        assert!(verdict.reason.contains("MSR 0x10a"), "{}", verdict.reason);
        assert!(!verdict.reason.contains("assertion"));
        assert_eq!(judged(&ended(ExitStatus::Code(0), "")).accelerator, Accelerator::Tcg);
    }

    #[test]
    fn the_trial_firmware_jumps_from_the_reset_vector_to_its_beginning() {
        let image = counting_firmware(Architecture::X86_64, 400_000_000);
        assert_eq!(image.len(), 0x1_0000);
        let [0xe9, low, high] = image[0xfff0..0xfff3] else { panic!("no near jump") };
        let target = 0xfff3_u16.wrapping_add(u16::from_le_bytes([low, high]));
        assert_eq!(target, 0);
        assert_eq!(&image[3..7], &200_000_000_u32.to_le_bytes());
    }

    #[test]
    fn the_trial_firmware_for_arm_loads_all_of_its_count() {
        let image = counting_firmware(Architecture::Aarch64, 400_000_000);
        let word = |at: usize| {
            u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
        };
        let half = |word: u32| word >> 5 & 0xffff;
        assert_eq!(half(word(0)) | half(word(4)) << 16, 200_000_000);
    }
}
