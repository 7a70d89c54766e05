//! What the provider says of itself, or why it says nothing. Pure.

use std::net::IpAddr;

use crate::{
    plugins::advertiser::{Advertisement, Prices, Resources},
    resources::{Amounts, Minimums},
};

/// What advertisers are to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// Not known yet. Whatever an earlier run has published stays.
    Undecided(String),
    /// This.
    Advertise(Box<Advertisement>),
    /// Nothing, for this reason: what was published is withdrawn.
    Withhold(String),
}

/// Who and where the provider is, which does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The provider's address, with the checksum of EIP-55.
    pub provider_id: String,
    pub name: String,
    pub country: Option<String>,
    /// `x86_64` or `arm64`.
    pub platform: String,
    pub network: String,
    pub payments_network: String,
}

/// What could be rented now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    pub amounts: Amounts,
    /// How many machines more may be made.
    pub machines: u32,
}

/// Can requestors get here?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It is being found out.
    Unknown(String),
    At(IpAddr),
    /// No, or nobody could say, and that is not enough for the operator.
    Not(String),
}

/// Puts together what is said.
pub fn compose(
    identity: &Identity,
    free: Free,
    minimums: Minimums,
    usd: Prices,
    glm: Option<Prices>,
    reach: &Reach,
) -> Offer {
    let ip_address = match reach {
        Reach::At(address) => *address,
        Reach::Unknown(reason) => return Offer::Undecided(reason.clone()),
        Reach::Not(reason) => return Offer::Withhold(reason.clone()),
    };
    if free.machines == 0 {
        return Offer::Withhold("as many machines as may be are there already".into());
    }
    if let Some(short) = short_of(free.amounts, minimums) {
        return Offer::Withhold(short);
    }
    let narrow = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
    Offer::Advertise(Box::new(Advertisement {
        provider_id: identity.provider_id.clone(),
        name: identity.name.clone(),
        ip_address,
        country: identity.country.clone(),
        platform: identity.platform.clone(),
        network: identity.network.clone(),
        payments_network: identity.payments_network.clone(),
        available: Resources {
            cpu_cores: narrow(free.amounts.cpu_cores),
            memory_gb: narrow(free.amounts.memory_gb),
            storage_gb: narrow(free.amounts.storage_gb),
        },
        usd,
        glm,
    }))
}

/// What there is too little of for the smallest machine that is let.
fn short_of(free: Amounts, minimums: Minimums) -> Option<String> {
    // Nothing at all is never an offer, whatever the operator's minimum.
    let wanted = |minimum: u32| u64::from(minimum.max(1));
    let resources = [
        ("cores", free.cpu_cores, wanted(minimums.cpu_cores)),
        ("GB of memory", free.memory_gb, wanted(minimums.memory_gb)),
        ("GB of storage", free.storage_gb, wanted(minimums.storage_gb)),
    ];
    let short: Vec<String> = resources
        .into_iter()
        .filter(|(_, free, wanted)| free < wanted)
        .map(|(what, free, wanted)| format!("{free} of at least {wanted} {what} are free"))
        .collect();
    (!short.is_empty()).then(|| short.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            provider_id: "0x1111111111111111111111111111111111111111".into(),
            name: "mine".into(),
            country: None,
            platform: "x86_64".into(),
            network: "mainnet".into(),
            payments_network: "l2.holesky".into(),
        }
    }

    fn usd() -> Prices {
        Prices {
            per_core_month: 5.into(),
            per_gb_ram_month: 2.into(),
            per_gb_storage_month: 1.into(),
        }
    }

    fn offer(
        cpu_cores: u64,
        memory_gb: u64,
        storage_gb: u64,
        machines: u32,
        reach: &Reach,
    ) -> Offer {
        let free = Free { amounts: Amounts { cpu_cores, memory_gb, storage_gb }, machines };
        compose(&identity(), free, Minimums::default(), usd(), None, reach)
    }

    #[test]
    fn what_is_free_is_offered_and_less_than_the_minimum_is_not() {
        let here = Reach::At([203, 0, 113, 5].into());
        let Offer::Advertise(said) = offer(3, 7, 90, 2, &here) else { panic!("withheld") };
        let available = Resources { cpu_cores: 3, memory_gb: 7, storage_gb: 90 };
        assert_eq!((said.available, said.glm), (available, None));
        let Offer::Withhold(reason) = offer(0, 7, 9, 2, &here) else { panic!("offered") };
        assert_eq!(
            reason,
            "0 of at least 1 cores are free, 9 of at least 10 GB of storage are free"
        );
        assert!(matches!(offer(3, 7, 90, 0, &here), Offer::Withhold(_)));
    }

    #[test]
    fn who_cannot_be_reached_is_not_offered_and_who_does_not_know_yet_says_nothing() {
        let closed = Reach::Not("port 7466 is closed".into());
        assert_eq!(offer(3, 7, 90, 2, &closed), Offer::Withhold("port 7466 is closed".into()));
        let unknown = Reach::Unknown("ports are being verified".into());
        assert!(matches!(offer(3, 7, 90, 2, &unknown), Offer::Undecided(_)));
    }
}
