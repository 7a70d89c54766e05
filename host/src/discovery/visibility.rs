//! What a listing says about us. Pure.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::plugins::advertiser::{Advertisement, Listing, Prices};

/// Whether requestors see what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// They see it as it was said last.
    Visible,
    /// They see an entry of ours that says something else.
    Stale,
    /// Somebody else has written over it.
    OverwrittenByAStranger,
    NotFound,
}

impl Visibility {
    /// For people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Stale => "stale",
            Self::OverwrittenByAStranger => "overwritten by a stranger",
            Self::NotFound => "not found",
        }
    }
}

/// `said` is what was published, oldest first; the last one is what should be seen.
pub fn judge(said: &[Advertisement], provider_id: &str, listings: &[Listing]) -> Visibility {
    let Some(latest) = said.last() else { return Visibility::NotFound };
    // Where a place can prove who made an entry, strangers' entries under our id are not ours and do us no harm.
    let ours = |listing: &&Listing| {
        let by_us =
            listing.owner.as_ref().is_none_or(|owner| owner.eq_ignore_ascii_case(provider_id));
        by_us && listing.provider_id.eq_ignore_ascii_case(provider_id)
    };
    let mut found = listings.iter().filter(ours).peekable();
    if found.peek().is_none() {
        return Visibility::NotFound;
    }
    let found: Vec<_> = found.collect();
    if found.iter().any(|listing| says(listing, latest)) {
        return Visibility::Visible;
    }
    // An entry that leads somewhere else than anything that we said is not from us.
    let from_us = |listing: &&Listing| {
        listing.owner.is_some()
            || said.iter().any(|said| listing.ip_address == said.ip_address.to_string())
    };
    match found.iter().any(from_us) {
        true => Visibility::Stale,
        false => Visibility::OverwrittenByAStranger,
    }
}

/// Does it say the same, as far as the place keeps it?
fn says(listing: &Listing, said: &Advertisement) -> bool {
    let kept = |found: &Option<String>, said: &str| {
        found.as_ref().is_none_or(|found| found.eq_ignore_ascii_case(said))
    };
    let country = match (&listing.country, &said.country) {
        (Some(found), Some(said)) => found.eq_ignore_ascii_case(said),
        (None, _) | (_, None) => true,
    };
    listing.ip_address == said.ip_address.to_string()
        && country
        && kept(&listing.name, &said.name)
        && kept(&listing.platform, &said.platform)
        && kept(&listing.network, &said.network)
        && kept(&listing.payments_network, &said.payments_network)
        && listing.available == said.available
        && listing.usd.is_none_or(|found| same_prices(&found, &said.usd))
        && match (&listing.glm, &said.glm) {
            (Some(found), Some(said)) => same_prices(found, said),
            (Some(_), None) => false,
            (None, _) => true,
        }
}

fn same_prices(found: &Prices, said: &Prices) -> bool {
    same(found.per_core_month, said.per_core_month)
        && same(found.per_gb_ram_month, said.per_gb_ram_month)
        && same(found.per_gb_storage_month, said.per_gb_storage_month)
}

/// A place may keep prices as binary floating-point numbers, which have 15 digits.
fn same(found: Decimal, said: Decimal) -> bool {
    let tolerance = (said.abs() * Decimal::new(1, 12)).max(Decimal::new(1, 18));
    (found - said).abs() <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::tests::{US, advertisement, listing_of};

    #[test]
    fn an_entry_is_visible_stale_a_strangers_or_not_there() {
        let (old, new) = (advertisement(4), advertisement(2));
        let said = [old.clone(), new.clone()];
        let judge = |listings: &[Listing]| judge(&said, US, listings);
        assert_eq!(judge(&[]), Visibility::NotFound);
        assert_eq!(judge(&[listing_of(&new)]), Visibility::Visible);
        assert_eq!(judge(&[listing_of(&old)]), Visibility::Stale);
        let elsewhere = Listing { ip_address: "198.51.100.7".into(), ..listing_of(&new) };
        assert_eq!(judge(std::slice::from_ref(&elsewhere)), Visibility::OverwrittenByAStranger);
        // A chain proves who made what.
        let owned =
            |listing: Listing, owner: &str| Listing { owner: Some(owner.into()), ..listing };
        let stranger = owned(elsewhere.clone(), "0x2222222222222222222222222222222222222222");
        assert_eq!(judge(std::slice::from_ref(&stranger)), Visibility::NotFound);
        let ours = owned(listing_of(&new), &US.to_lowercase());
        assert_eq!(judge(&[stranger, ours]), Visibility::Visible);
        assert_eq!(judge(&[owned(elsewhere, US)]), Visibility::Stale);
    }

    #[test]
    fn what_a_place_does_not_keep_is_not_missed_and_floats_are_close_enough() {
        let mut said = advertisement(4);
        said.usd.per_core_month = "0.1234567890123456".parse().unwrap();
        let kept = Listing {
            name: None,
            platform: None,
            network: None,
            payments_network: None,
            ..listing_of(&said)
        };
        let mut rounded = kept.clone();
        rounded.usd.as_mut().unwrap().per_core_month = "0.12345678901234559".parse().unwrap();
        assert_eq!(judge(std::slice::from_ref(&said), US, &[rounded]), Visibility::Visible);
        let mut dearer = kept;
        dearer.usd.as_mut().unwrap().per_core_month = "0.1234567891".parse().unwrap();
        assert_eq!(judge(&[said], US, &[dearer]), Visibility::Stale);
    }
}
