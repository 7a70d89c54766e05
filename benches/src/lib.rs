//! What the programs of the benchmarks share. They are in `groups/`, one for each group of rows; `cargo xtask bench` runs
//! them and makes one table of what they print.
//!
//! A figure alone says little on a machine that does other work too. So every row ([`rows`]) stands beside a reference that
//! was measured in the same run, in turns with what it is compared to, round by round; what counts is the median, and for
//! a comparison the median of the rounds' ratios.
//!
//! What is measured runs in a process of its own ([`processes`]), apart from what makes the load: the same program under
//! another [`role`](processes::Role), or the provider as an operator starts it. [`network`] gives such programs a network of
//! their own, [`http`] makes requests, [`provider`] is a provider whose machines are in memory, [`plugin`] one that
//! has loaded a plugin.
//!
//! The instruction counts that `make test` checks are in `tests/instructions.rs`.

pub mod http;
pub mod network;
pub mod plugin;
pub mod processes;
pub mod provider;
pub mod rows;

use anyhow::{Result, bail};

/// How much a program is to measure.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A first impression instead of figures to rely on.
    pub quick: bool,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// When it holds something unknown.
    pub fn read() -> Result<Options> {
        let mut options = Options { quick: false };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--quick" => options.quick = true,
                // What `cargo bench` says to every benchmark.
                "--bench" => {}
                other => bail!("`{other}` is unknown; there is only --quick"),
            }
        }
        Ok(options)
    }

    /// One of the two, for instance of numbers of rounds.
    pub fn choose<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Says on standard error what is being measured.
pub fn progress(what: impl std::fmt::Display) {
    eprintln!("    {what}");
}
