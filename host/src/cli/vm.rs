//! `vm …`: what an operator does to VMs, whoever they belong to. To look at them, there is `status`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::print::{self, Waiting};
use crate::{admin::AdminClient, settings::Settings};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Delete a VM with everything that is on its disk
    #[command(long_about = DELETE)]
    Delete(Delete),
}

const DELETE: &str = "\
Deletes a VM of the provider that runs, with everything that is on its disk, whoever it belongs to. A VM that was made by a signed \
request can otherwise be deleted by its owner alone. `golem-provider status` lists all there are.

Exit status: 0 it is gone, 1 it is not, 2 nothing was done, since nobody agreed.";

#[derive(Debug, Args)]
pub struct Delete {
    /// Its name or instance id
    vm: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Command {
    /// # Errors
    /// What was asked for could not be done.
    pub async fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let Self::Delete(delete) = self;
        let Some(client) = AdminClient::connect(&settings.data_dir).await? else {
            bail!(
                "no provider runs on {}; machines are deleted by the one that runs",
                settings.data_dir.display()
            );
        };
        let known = client.status().await?.sections.vms.list;
        let wanted = known.iter().find(|vm| vm.id == delete.vm || vm.name == delete.vm);
        let vm = wanted.with_context(|| {
            format!("there is no VM `{}`; `golem-provider status` lists those there are", delete.vm)
        })?;
        if !delete.yes && !consent(&vm.name, vm.owner.as_deref())? {
            return Ok(ExitCode::from(2));
        }
        let waiting = Waiting::for_(format!("deleting the VM {}", vm.name));
        client.delete_vm(&vm.id).await?;
        drop(waiting);
        match delete.json {
            true => print::print_json(&json!({ "deleted": { "id": vm.id, "name": vm.name } }))?,
            false => print::print(&format!("the VM {} is gone\n", vm.name))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn consent(name: &str, owner: Option<&str>) -> io::Result<bool> {
    let mut out = io::stderr().lock();
    if !io::stdin().is_terminal() {
        writeln!(
            out,
            "The VM {name} is not deleted, since nobody can be asked here. --yes does it."
        )?;
        return Ok(false);
    }
    let whose = owner.map(|owner| format!(" of {owner}")).unwrap_or_default();
    write!(out, "Delete the VM {name}{whose}, with everything that is on its disk? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        writeln!(out, "Nothing was deleted.")?;
    }
    Ok(yes)
}
