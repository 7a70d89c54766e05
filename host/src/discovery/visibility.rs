//! What a listing says about us. Pure.

use serde::{Deserialize, Serialize};

use crate::plugins::advertiser::{Advertisement, Listing};

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
    let mut found = listings.iter().filter(|listing| listing.is_of(provider_id)).peekable();
    if found.peek().is_none() {
        return Visibility::NotFound;
    }
    let found: Vec<_> = found.collect();
    if found.iter().any(|listing| listing.differences(latest).is_empty()) {
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
