//! What a transaction offers to pay for gas (EIP-1559). Pure.

use serde::{Deserialize, Serialize};

/// The most that is paid for one unit of gas, and the part of it that goes to whoever makes the block. In wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fees {
    pub most_wei: u128,
    pub tip_wei: u128,
}

/// What blocks take at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Market {
    /// Of the latest block. The next one's is at most an eighth higher.
    pub base_wei: u128,
    /// That a node advises.
    pub tip_wei: u128,
}

/// Gas costs more than the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooExpensive {
    pub price_wei: u128,
}

impl Fees {
    /// What a transaction offers that is to take the place of one that offers this. Nodes want a tenth more of both, some an
    /// eighth.
    pub fn outbidding(self) -> Fees {
        let raised = |wei: u128| wei.saturating_add(wei / 4).saturating_add(1);
        Fees { most_wei: raised(self.most_wei), tip_wei: raised(self.tip_wei) }
    }

    /// The same where it is not known how much the other one offers.
    pub fn doubled(self) -> Fees {
        let raised = |wei: u128| wei.saturating_mul(2).max(1);
        Fees { most_wei: raised(self.most_wei), tip_wei: raised(self.tip_wei) }
    }
}

/// What to offer: room for the base fee to double, but never more than `cap_wei`, and at least `floor`.
///
/// # Errors
/// With so little no block takes it, or it does not outbid the one whose place it is to take.
pub fn offer(market: Market, floor: Option<Fees>, cap_wei: u128) -> Result<Fees, TooExpensive> {
    let floor = floor.unwrap_or(Fees { most_wei: 0, tip_wei: 0 });
    let tip_wei = market.tip_wei.max(floor.tip_wei);
    let needed_wei = market.base_wei.saturating_add(tip_wei).max(floor.most_wei);
    if needed_wei > cap_wei {
        return Err(TooExpensive { price_wei: needed_wei });
    }
    let roomy_wei = market.base_wei.saturating_mul(2).saturating_add(tip_wei);
    Ok(Fees { most_wei: roomy_wei.max(needed_wei).min(cap_wei), tip_wei })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gas_is_paid_up_to_the_cap_and_not_beyond() {
        let market = Market { base_wei: 100, tip_wei: 10 };
        assert_eq!(offer(market, None, 1000), Ok(Fees { most_wei: 210, tip_wei: 10 }));
        // Less room for the base fee, but enough for the next block.
        assert_eq!(offer(market, None, 150), Ok(Fees { most_wei: 150, tip_wei: 10 }));
        assert_eq!(offer(market, None, 109), Err(TooExpensive { price_wei: 110 }));
        let hanging = Fees { most_wei: 400, tip_wei: 4 };
        let outbid = offer(market, Some(hanging.outbidding()), 1000).unwrap();
        assert_eq!(outbid, Fees { most_wei: 501, tip_wei: 10 });
        assert!(offer(market, Some(hanging.outbidding()), 500).is_err());
    }

    proptest! {
        #[test]
        fn what_is_offered_is_taken_by_blocks_outbids_and_stays_below_the_cap(
            base_wei: u128, tip_wei: u128, most_wei: u128, floor_tip_wei: u128, cap_wei: u128,
        ) {
            let hanging = Fees { most_wei, tip_wei: floor_tip_wei.min(most_wei) };
            let market = Market { base_wei, tip_wei };
            if let Ok(fees) = offer(market, Some(hanging.outbidding()), cap_wei) {
                prop_assert!(fees.most_wei <= cap_wei && fees.tip_wei <= fees.most_wei);
                prop_assert!(fees.most_wei - fees.tip_wei >= base_wei);
                prop_assert!(fees.most_wei >= hanging.outbidding().most_wei);
                prop_assert!(fees.tip_wei >= hanging.outbidding().tip_wei);
            }
        }
    }
}
