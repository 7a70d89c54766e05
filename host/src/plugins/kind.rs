//! The kinds of plugins there are. Each has a world in `wit/`, and is told by the interface that it exports.

use serde::{Deserialize, Serialize};

/// What a plugin is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Makes and runs virtual machines.
    VmBackend,
    /// Lists the provider where requestors look.
    DiscoveryAdvertiser,
    /// Reads what requestors pay.
    PaymentVerifier,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::VmBackend, Self::DiscoveryAdvertiser, Self::PaymentVerifier];

    /// As its world is called.
    pub fn world(self) -> &'static str {
        match self {
            Self::VmBackend => "vm-backend",
            Self::DiscoveryAdvertiser => "discovery-advertiser",
            Self::PaymentVerifier => "payment-verifier",
        }
    }

    /// As people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::VmBackend => "VM backend",
            Self::DiscoveryAdvertiser => "advertiser",
            Self::PaymentVerifier => "payment verifier",
        }
    }

    /// The interface that makes a component one of this kind, without its version.
    pub(super) fn interface(self) -> &'static str {
        match self {
            Self::VmBackend => "golem:provider/vms",
            Self::DiscoveryAdvertiser => "golem:provider/advertisements",
            Self::PaymentVerifier => "golem:provider/payments",
        }
    }

    /// What can be called of that interface by name.
    pub(super) fn functions(self) -> &'static [&'static str] {
        match self {
            Self::VmBackend => &[
                "images",
                "limits",
                "create",
                "start",
                "await-ready",
                "stop",
                "delete",
                "inspect",
                "inspect-all",
                "add-ssh-key",
            ],
            Self::DiscoveryAdvertiser => {
                &["get-schedule", "publish", "withdraw", "look-up", "search"]
            }
            Self::PaymentVerifier => &[
                "get-terms",
                "check-reference",
                "read",
                "changed-since",
                "collect",
                "close",
                "payouts",
            ],
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.world())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.world() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::world).join(", ");
            format!("`{text}` is no kind of plugin: {known}")
        })
    }
}
