//! Consent: what a plugin asks for, why, and whether it gets it.

use std::io::{self, BufRead, IsTerminal, Write};

use super::show;
use crate::plugins::catalog::About;

/// Shows what is asked for and asks. Whoever is no terminal is told how to consent instead.
///
/// # Errors
/// The terminal cannot be used.
pub fn consent(about: &About) -> anyhow::Result<bool> {
    let mut out = io::stderr().lock();
    writeln!(out, "{} {} asks for:\n", about.name, about.version)?;
    write!(out, "{}", show::asks(&about.missing))?;
    if !io::stdin().is_terminal() {
        writeln!(
            out,
            "\nNothing was installed, since nobody can be asked here. To consent: --yes for all of it, or --grant KIND=VALUE for some of it."
        )?;
        return Ok(false);
    }
    write!(out, "\nGrant all of this? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        writeln!(out, "Nothing was installed.")?;
    }
    Ok(yes)
}
