//! The section of being reached and being found.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    discovery::{AdvertiserReport, Advertising},
    ports::verification::Reachability,
};

/// Can requestors get here, and do they find the way?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkSection {
    /// The address that may be advertised.
    pub advertisable_at: Option<IpAddr>,
    /// Why nothing may be advertised, if so.
    pub not_advertisable: Option<String>,
    pub reachability: Reachability,
    pub advertisers: Vec<AdvertiserReport>,
    /// Advertisers that should take part and are no plugins that can be used.
    pub missing_advertisers: Vec<String>,
}

impl NetworkSection {
    pub(super) fn of(reachability: Reachability, advertising: &Advertising) -> NetworkSection {
        let may = reachability.may_be_advertised();
        NetworkSection {
            advertisable_at: may.as_ref().ok().copied(),
            not_advertisable: may.err().map(|reason| reason.to_string()),
            reachability,
            advertisers: advertising.reports(),
            missing_advertisers: advertising.missing(),
        }
    }
}
