//! The long texts of `--help` that several commands share. The list of keys is made from the table in `settings::keys`.

use crate::settings::keys::{self, AnyKey};

pub const ABOUT: &str = "\
Rents out virtual machines of this computer on the Golem Network: requestors ask for a machine through a REST API \
and log in to it over SSH, through a port that the provider forwards.

What differs from operator to operator, such as the hypervisor, is a WebAssembly component. The bundled one drives QEMU.";

/// What stands below the options.
pub fn after() -> String {
    let all = || keys::ALL.iter().map(|key| key.description().name);
    let width = all().map(str::len).max().unwrap_or_default();
    let line = |key: &&dyn AnyKey| {
        let description = key.description();
        let default = key.default().filter(|default| !default.is_empty());
        let default = default.map(|default| format!(" [{default}]")).unwrap_or_default();
        format!("  {:width$}  {}{default}\n", description.name, description.about)
    };
    let keys: String = keys::ALL.iter().filter(|key| !key.description().later).map(line).collect();
    format!(
        "\
Examples:
  golem-provider dev                                  try it out on this computer
  curl -s http://127.0.0.1:7466/api/v1/vms -d '{{\"name\": \"first\", \"ssh_key\": \"'\"$(cat ~/.ssh/id_ed25519.pub)\"'\"}}'
  GOLEM_PROVIDER_MAX_VMS=3 golem-provider start       offer at most three machines
  golem-provider config show                          which settings count, and where they come from
  golem-provider pricing show                         what machines cost, in USD and in GLM
  golem-provider streams earnings                     what machines have earned
  golem-provider wallet show                          the provider's address, which is its id
  golem-provider sign-request --help                  as a requestor: own what a request makes
  golem-provider doctor                               what would be in the way here, and what to do about it
  golem-provider start --daemon                       in the background; then status, logs -f, stop

Settings are read from the environment, from .env in the working directory and from .env in the data directory; the \
first that has a key wins. A key that is misspelt or out of range is an error, before anything starts:
{keys}  {:width$}  a setting of a plugin, e.g. GOLEM_PROVIDER_PLUGIN_QEMU_ACCELERATOR=tcg (two _ after a name with dashes)

Exit status: 0 all went well, 1 it failed while working, 2 command line or settings are wrong.",
        "GOLEM_PROVIDER_PLUGIN_<NAME>_<KEY>"
    )
}
