//! What the provider's key has on its chains. An entry on Golem Base costs gas.

use std::{sync::Arc, time::Duration};

use alloy::primitives::U256;

use super::Check;
use crate::{
    chains::{Nodes, in_whole},
    payments::wallet::Wallet,
    settings::Settings,
};

const NAME: &str = "balance";

/// For all nodes of one chain.
const DEADLINE: Duration = Duration::from_secs(20);

pub async fn checks(settings: Arc<Settings>, online: bool) -> Vec<Check> {
    if settings.chains.nodes.is_empty() {
        return vec![Check::skipped(NAME, "no chain is set, so there is nobody to ask")];
    }
    if !online {
        return vec![Check::skipped(NAME, "nobody was to be asked")];
    }
    let wallet_settings = settings.wallet.clone();
    let finding = tokio::task::spawn_blocking(move || Wallet::find(&wallet_settings));
    let wallet = match finding.await {
        Ok(Ok(Some(wallet))) => wallet,
        Ok(Ok(None)) => {
            return vec![Check::skipped(NAME, "there is no key yet; the first start makes one")];
        }
        Ok(Err(error)) => {
            let remedy = "`golem-provider wallet show` says more of the key";
            return vec![Check::fail(NAME, error.to_string(), remedy)];
        }
        Err(error) => return vec![Check::skipped(NAME, format!("was broken off: {error}"))],
    };
    let nodes = match Nodes::new(&settings.chains.nodes) {
        Ok(nodes) => nodes,
        Err(error) => return vec![Check::skipped(NAME, error.to_string())],
    };
    let asking = settings.chains.nodes.keys().map(async |chain| {
        let asked = nodes.balance_wei(chain, wallet.address());
        let answer = match tokio::time::timeout(DEADLINE, asked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
        };
        // An advertiser and the chain that it writes to have the same name.
        let is_needed = settings.discovery.advertisers.contains(chain);
        judge(chain, &wallet.provider_id(), is_needed, answer)
    });
    futures_util::future::join_all(asking).await
}

fn judge(chain: &str, address: &str, is_needed: bool, answer: Result<U256, String>) -> Check {
    match answer {
        Ok(wei) if wei.is_zero() && is_needed => Check::warn(
            NAME,
            format!("{address} has nothing on {chain}, where an advertisement costs gas"),
            "send a little to that address; on a test network: golem-provider wallet faucet",
        ),
        Ok(wei) => Check::ok(NAME, format!("{address} has {} on {chain}", in_whole(wei))),
        // That its node cannot be reached is told with the other servers.
        Err(reason) => Check::skipped(NAME, format!("what is on {chain} is not known: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn an_empty_purse_is_a_problem_only_where_something_has_to_be_paid() {
        let judged = |is_needed, answer| judge("golem-base", "0xaB", is_needed, answer);
        let empty = judged(true, Ok(U256::ZERO));
        assert_eq!(empty.state, State::Warn);
        assert!(empty.sentence.contains("0xaB") && empty.remedy.unwrap().contains("faucet"));
        assert_eq!(judged(false, Ok(U256::ZERO)).state, State::Ok);
        let some = judged(true, Ok(U256::from(1_500_000_000_000_000_000_u64)));
        assert_eq!(some.state, State::Ok);
        assert!(some.sentence.contains("1.5"), "{}", some.sentence);
        assert_eq!(judged(true, Err("down".into())).state, State::Skipped);
    }
}
