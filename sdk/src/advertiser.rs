//! The kind of plugin that lists the provider where requestors look.

pub use crate::bindings::discovery_advertiser::exports::golem::provider::advertisements::{
    Advertisement, Change, Listing, Prices, Published, Query, Resources, Schedule,
};

use crate::{Error, Plugin, Result};

/// One place where requestors look. `wit/advertisements.wit` has the whole contract; `golem-provider plugin test` tries it.
///
/// The provider decides when something is advertised and what it says; a plugin brings it there. `publish` and `withdraw`
/// are called one after the other; `look_up` and `search` may come beside them. Any call may be cut off anywhere, so each has to be safe to repeat.
///
/// [`Error::Unavailable`] when the place cannot be asked and [`Error::ResourceExhausted`] when it asks for patience: both are tried
/// again with growing pauses. [`Error::FailedPrecondition`] for what the operator has to do, with what that is.
pub trait Advertiser: Plugin {
    /// When this place wants to hear of the provider. Asked before every [`publish`](Self::publish). At most 5 s.
    fn schedule() -> Result<Schedule>;

    /// Makes our entry say this and last beyond the next interval, whatever was there before. Repeated, it comes to the
    /// same end: one entry. What others entered under our id is left alone. The advertisement was checked already: see
    /// [`check_advertisement`]. At most 150 s.
    fn publish(advertisement: Advertisement) -> Result<Published>;

    /// Takes our entry away. None is a success. At most 60 s.
    fn withdraw(provider_id: String) -> Result<()>;

    /// Every entry under this id, as any requestor would see it now. At most 30 s.
    fn look_up(provider_id: String) -> Result<Vec<Listing>>;

    /// The providers that a requestor would find, at most as many as the query says. At most 60 s.
    fn search(query: Query) -> Result<Vec<Listing>>;
}

/// Refuses what cannot be listed anywhere: an id that is no address, an address that is none, a price that is no number.
/// [`export_discovery_advertiser`](crate::export_discovery_advertiser) calls it before [`Advertiser::publish`].
pub fn check_advertisement(advertisement: &Advertisement) -> Result<()> {
    let wrong = |what: &str, value: &str| {
        Err(Error::InvalidArgument(format!("`{value}` is no {what}, so nothing is advertised")))
    };
    check_provider_id(&advertisement.provider_id)?;
    if advertisement.ip_address.parse::<std::net::IpAddr>().is_err() {
        return wrong("IP address", &advertisement.ip_address);
    }
    if let Some(country) = &advertisement.country
        && !(country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        return wrong("country of two letters", country);
    }
    for prices in [Some(&advertisement.usd), advertisement.glm.as_ref()].into_iter().flatten() {
        for price in
            [&prices.per_core_month, &prices.per_gb_ram_month, &prices.per_gb_storage_month]
        {
            if !is_decimal(price) {
                return wrong("price", price);
            }
        }
    }
    Ok(())
}

/// Refuses what is no Ethereum address: 40 hex digits after `0x`.
pub fn check_provider_id(id: &str) -> Result<()> {
    let digits = id.strip_prefix("0x").unwrap_or_default();
    if digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("`{id}` is no provider's id: 40 hex digits after 0x")))
}

/// Digits, and at most one point between them.
fn is_decimal(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(text),
    }
}

/// Exports a type that implements [`Advertiser`] as this component's plugin. Once per crate.
#[macro_export]
macro_rules! export_discovery_advertiser {
    ($advertiser:ty) => {
        #[doc(hidden)]
        mod golem_provider_export {
            use super::*;
            use $crate::bindings::discovery_advertiser::exports::golem::provider::advertisements;

            $crate::__export_plugin!($advertiser);

            impl advertisements::Guest for Export {
                fn get_schedule() -> $crate::Result<advertisements::Schedule> {
                    $crate::log::report_panics();
                    <$advertiser as $crate::Advertiser>::schedule()
                }
                fn publish(
                    advertisement: advertisements::Advertisement,
                ) -> $crate::Result<advertisements::Published> {
                    $crate::log::report_panics();
                    $crate::advertiser::check_advertisement(&advertisement)?;
                    <$advertiser as $crate::Advertiser>::publish(advertisement)
                }
                fn withdraw(provider_id: String) -> $crate::Result<()> {
                    $crate::log::report_panics();
                    $crate::advertiser::check_provider_id(&provider_id)?;
                    <$advertiser as $crate::Advertiser>::withdraw(provider_id)
                }
                fn look_up(provider_id: String) -> $crate::Result<Vec<advertisements::Listing>> {
                    $crate::log::report_panics();
                    $crate::advertiser::check_provider_id(&provider_id)?;
                    <$advertiser as $crate::Advertiser>::look_up(provider_id)
                }
                fn search(
                    query: advertisements::Query,
                ) -> $crate::Result<Vec<advertisements::Listing>> {
                    $crate::log::report_panics();
                    <$advertiser as $crate::Advertiser>::search(query)
                }
            }

            $crate::bindings::discovery_advertiser::export_discovery_advertiser_bindings!(
                Export with_types_in $crate::bindings::discovery_advertiser
            );
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(core: &str) -> Prices {
        Prices {
            per_core_month: core.into(),
            per_gb_ram_month: "2".into(),
            per_gb_storage_month: "0.1".into(),
        }
    }

    fn advertisement() -> Advertisement {
        Advertisement {
            provider_id: "0x1111111111111111111111111111111111111111".into(),
            name: "mine".into(),
            ip_address: "203.0.113.5".into(),
            country: Some("SE".into()),
            platform: "x86_64".into(),
            network: "mainnet".into(),
            payments_network: "l2.holesky".into(),
            available: Resources { cpu_cores: 4, memory_gb: 8, storage_gb: 100 },
            usd: prices("5.0"),
            glm: None,
        }
    }

    #[test]
    fn what_cannot_be_listed_is_refused() {
        assert!(check_advertisement(&advertisement()).is_ok());
        let countryless = Advertisement { country: None, ..advertisement() };
        assert!(check_advertisement(&countryless).is_ok());
        for id in ["", "0x", "1111111111111111111111111111111111111111", "0x111g"] {
            let wrong = Advertisement { provider_id: id.into(), ..advertisement() };
            assert!(check_advertisement(&wrong).is_err(), "{id}");
        }
        for price in ["", "-1", "1e3", ".5", "1.", "1.2.3", "free", "NaN"] {
            let wrong = Advertisement { glm: Some(prices(price)), ..advertisement() };
            assert!(check_advertisement(&wrong).is_err(), "{price}");
        }
        for country in ["", "se", "SWE"] {
            let wrong = Advertisement { country: Some(country.into()), ..advertisement() };
            assert!(check_advertisement(&wrong).is_err(), "{country}");
        }
        let wrong = Advertisement { ip_address: "example.org".into(), ..advertisement() };
        assert!(check_advertisement(&wrong).is_err());
    }
}
