//! The text of the unit.
//!
//! What is special about this service: machines outlive it. They are in its control group, so only the provider's own process
//! is ever ended (`KillMode=process`), and one that runs out of memory takes nobody else with it (`OOMPolicy=continue`). What
//! plugins run is inside of the same sandbox; it therefore leaves `/dev/kvm`, the firewall, `/etc` (the user that QEMU runs
//! as is made there) and generated code alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::Manager;
use crate::settings::Settings;

pub const DATA_DIR_KEY: &str = "GOLEM_PROVIDER_DATA_DIR";

/// What a unit is made of.
pub struct Unit<'a> {
    pub manager: Manager,
    pub program: PathBuf,
    pub settings: &'a Settings,
}

const RESTART: &str = "\
Restart=on-failure
RestartSec=5
# Settings that are wrong do not get better by trying again.
RestartPreventExitStatus=2
TimeoutStartSec=300
TimeoutStopSec=60

# Machines outlive the provider: only its own process is told to end.
KillMode=process
OOMPolicy=continue
LimitNOFILE=65536
TasksMax=infinity
UMask=0077
";

/// What every service manager can do. /dev/kvm, the firewall, /etc and generated code have to stay usable.
const SANDBOX: &str = "\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
";

/// What only the system's can do.
const SYSTEM_SANDBOX: &str = "\
ProtectSystem=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
CapabilityBoundingSet=~CAP_BPF CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_SYSLOG CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_PACCT CAP_SYS_RAWIO CAP_SYS_TIME CAP_WAKE_ALARM
";

impl Unit<'_> {
    /// # Errors
    /// A path that systemd cannot be told.
    pub fn text(&self) -> anyhow::Result<String> {
        let data_dir = &self.settings.data_dir;
        let program = quoted(path(&self.program)?, true)?;
        let environment = quoted(&format!("{DATA_DIR_KEY}={}", path(data_dir)?), false)?;
        // Taken as it is up to the end of the line, but for `%`.
        let directory = checked(path(data_dir)?)?.replace('%', "%%");
        let (network, sandbox, target) = match self.manager {
            Manager::System => (
                "Wants=network-online.target\nAfter=network-online.target\n",
                SYSTEM_SANDBOX,
                "multi-user.target",
            ),
            Manager::User => ("", "", "default.target"),
        };
        Ok(format!(
            "\
# Written by `golem-provider service install`, and written anew by it.
[Unit]
Description=Golem provider, which rents out virtual machines of this computer
{network}StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=notify
ExecStart={program} start
# Settings are in .env in this directory.
WorkingDirectory=-{directory}
Environment={environment}
{RESTART}
{SANDBOX}{sandbox}
[Install]
WantedBy={target}
"
        ))
    }
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not text in UTF-8", path.display()))
}

fn checked(text: &str) -> anyhow::Result<&str> {
    if text.chars().any(char::is_control) {
        bail!("the path {text:?} cannot be written into a unit");
    }
    Ok(text)
}

/// As systemd reads one word. In a command line `$` has a meaning, too.
fn quoted(text: &str, in_command: bool) -> anyhow::Result<String> {
    let mut out = String::from("\"");
    for character in checked(text)?.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '%' => out.push_str("%%"),
            '$' if in_command => out.push_str("$$"),
            other => out.push(other),
        }
    }
    out.push('"');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Inputs, Overrides, resolve};

    fn text(manager: Manager, data_dir: &str) -> String {
        let inputs = Inputs {
            environment: vec![(DATA_DIR_KEY.into(), data_dir.into())],
            working_dir: None,
            home_dir: None,
        };
        let settings = resolve(&inputs, &Overrides::default()).unwrap();
        let program = "/opt/golem 100%/golem-provider".into();
        Unit { manager, program, settings: &settings }.text().unwrap()
    }

    #[test]
    fn a_unit_starts_this_program_on_this_data_directory_and_leaves_machines_alone() {
        let system = text(Manager::System, "/srv/a \"b\" $c");
        for line in [
            r#"ExecStart="/opt/golem 100%%/golem-provider" start"#,
            r#"Environment="GOLEM_PROVIDER_DATA_DIR=/srv/a \"b\" $c""#,
            r#"WorkingDirectory=-/srv/a "b" $c"#,
            "Type=notify",
            "KillMode=process",
            "OOMPolicy=continue",
            "RestartPreventExitStatus=2",
            "WantedBy=multi-user.target",
        ] {
            assert!(system.lines().any(|other| other == line), "{line} is not in\n{system}");
        }
        // Either would keep machines from running.
        for harmful in ["MemoryDenyWriteExecute", "PrivateDevices", "DeviceAllow", "ProtectClock"] {
            assert!(!system.contains(harmful), "{harmful}");
        }
        let user = text(Manager::User, "/srv/a");
        assert!(user.contains("WantedBy=default.target") && !user.contains("network-online"));
    }

    #[test]
    fn a_path_with_a_line_break_cannot_smuggle_a_line_into_a_unit() {
        assert!(quoted("/a\nExecStartPre=/bin/evil", true).is_err());
        assert!(checked("/a\nb").is_err());
    }
}
