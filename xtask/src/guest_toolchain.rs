//! How plugins are compiled: which compiler has the standard library for WebAssembly.
//!
//! Two ways, tried in this order: rustup's own target, which is a download; and Debian's packages
//! of a Rust compiler with the standard library's source, for machines that reach Debian's
//! packages but not Rust's. Only this module knows the difference.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::packages::{self, Evidence, Need};
use crate::ui::{self, Step};
use crate::workspace::{Workspace, cargo};

/// The target plugins are compiled for: no WASI, every import is one of the contract's.
pub const TARGET: &str = "wasm32-unknown-unknown";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "wasm-ld-19";

/// Debian's packages for the second way.
const DEBIAN: &[Need] = &[
    Need {
        // Not the compiler's own path: another Rust package of Debian's has the same.
        evidence: Evidence::File(&["/var/lib/dpkg/info/rustc-web.list"]),
        package: "rustc-web",
        purpose: "compile plugins (a Rust compiler that goes with the source below)",
    },
    Need {
        evidence: Evidence::File(&["/var/lib/dpkg/info/rust-web-src.list"]),
        package: "rust-web-src",
        purpose: "compile plugins (the standard library, as source)",
    },
    Need { evidence: Evidence::Program(DEBIAN_LINKER), package: "lld-19", purpose: "link plugins" },
];

/// The way a person asked for, if any.
#[derive(clap::Args)]
pub struct Preference {
    /// How to compile plugins, instead of the first way that works
    #[arg(long = "toolchain", value_enum, value_name = "WAY")]
    way: Option<GuestToolchain>,
}

/// A way of compiling plugins that is installed.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum GuestToolchain {
    /// The wasm32-unknown-unknown target of the Rust toolchain in use
    Rustup,
    /// Debian's packages rustc-web, rust-web-src and lld-19
    Debian,
}

impl GuestToolchain {
    /// Picks the first way that works, installing what it takes.
    ///
    /// # Errors
    /// When none does; says what to install.
    pub fn find_or_install(
        preference: &Preference,
        workspace: &Workspace,
    ) -> Result<GuestToolchain> {
        let ways: &[GuestToolchain] = match &preference.way {
            Some(way) => std::slice::from_ref(way),
            // What is installed already comes before what would have to be downloaded.
            None if !rustup_target_is_installed() && packages::missing(DEBIAN).is_empty() => {
                &[GuestToolchain::Debian]
            }
            None => &[GuestToolchain::Rustup, GuestToolchain::Debian],
        };
        let mut failures = String::new();
        for way in ways {
            let outcome = match way {
                GuestToolchain::Rustup => install_rustup_target(workspace),
                GuestToolchain::Debian => {
                    packages::install(&packages::missing(DEBIAN), &workspace.log("apt-guest"))
                }
            };
            match outcome {
                Ok(()) => return Ok(*way),
                Err(error) => failures.push_str(&format!("\n- {error:#}")),
            }
        }
        bail!(
            "plugins are WebAssembly components, and no compiler for them could be set up:{failures}\n\
             Install one of:\n  rustup target add {TARGET}\n  apt-get install rustc-web rust-web-src lld-19   (Debian 12)"
        );
    }

    /// What this way is, for people.
    pub fn description(self) -> &'static str {
        match self {
            GuestToolchain::Rustup => "the Rust toolchain's own WebAssembly target",
            GuestToolchain::Debian => {
                "Debian's Rust compiler, building the standard library from source"
            }
        }
    }

    /// A `cargo build` for the target; the caller adds profile, packages and directories.
    pub fn cargo_build(self) -> Command {
        let mut command = cargo();
        command.args(["build", "--target", TARGET]);
        // Flags meant for the machine's own processor would reach the guest's as well.
        command
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_RUSTFLAGS");
        if self == GuestToolchain::Debian {
            command
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC", DEBIAN_RUSTC)
                // -Zbuild-std is unstable, and these compilers are stable ones.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER)
                .env_remove("RUSTC_WRAPPER")
                .env_remove("RUSTC_WORKSPACE_WRAPPER");
        }
        command
    }
}

fn rustup_target_is_installed() -> bool {
    // Asking the compiler where the target's libraries would be also works without rustup, for
    // distributions that package the target.
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    ui::output_of(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))
        .is_some_and(|directory| Path::new(directory.trim()).is_dir())
}

fn install_rustup_target(workspace: &Workspace) -> Result<()> {
    if rustup_target_is_installed() {
        return Ok(());
    }
    if packages::find_program("rustup").is_none() {
        bail!("there is no rustup on this machine, and the compiler in use has no target {TARGET}");
    }
    let step = Step::start(
        format!("adding {TARGET} to the Rust toolchain, to compile plugins"),
        Some("10 s"),
    );
    match ui::run_logged(
        Command::new("rustup").args(["target", "add", TARGET]),
        &workspace.log("rustup"),
    ) {
        Ok(()) => {
            step.done();
            Ok(())
        }
        Err(error) => {
            step.gave_up("trying Debian's packages next");
            Err(error)
        }
    }
}
