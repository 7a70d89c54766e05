//! What an operator can set for this plugin. Pure, but for [`load`].

use alloy_primitives::Address;
use golem_provider_sdk::{Error, Result, settings};
use serde::Deserialize;
use serde_json::json;

const CONTRACT: &str = "GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS";

/// The settings as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    contract: Option<String>,
    glm_token: Option<String>,
    accept_coin: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { contract: None, glm_token: None, accept_coin: true }
    }
}

impl Settings {
    /// What holds the streams.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: none is set.
    pub fn contract(&self) -> Result<Address> {
        address("contract", self.contract.as_deref())?.ok_or_else(|| {
            Error::FailedPrecondition(format!("no payment contract is set: {CONTRACT} names it"))
        })
    }

    /// Nobody has asked for payments.
    pub fn wants_nothing(&self) -> bool {
        address("contract", self.contract.as_deref()).is_ok_and(|contract| contract.is_none())
    }

    /// What streams may be paid in. Zero is the chain's own coin, which stands for GLM where no token does.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: the token is no address.
    pub fn tokens(&self) -> Result<Vec<Address>> {
        let token = address("glm-token", self.glm_token.as_deref())?;
        let coin = Some(Address::ZERO).filter(|_| self.accept_coin || token.is_none());
        Ok(coin.into_iter().chain(token).collect())
    }
}

/// The settings of this call.
pub fn load() -> Result<Settings> {
    settings::get()
}

/// Zero is none, as settings of the provider have it.
fn address(setting: &str, text: Option<&str>) -> Result<Option<Address>> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 40);
    let address: Option<Address> = digits.and_then(|digits| digits.parse().ok());
    let address = address.ok_or_else(|| {
        Error::FailedPrecondition(format!(
            "the setting `{setting}` is `{text}`, which is no address"
        ))
    })?;
    Ok(Some(address).filter(|address| !address.is_zero()))
}

/// The JSON Schema of the settings.
pub fn schema() -> String {
    let address = |about: &str| json!({ "description": about, "type": "string", "pattern": "^0x[0-9a-fA-F]{40}$" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "contract": address(
                "The contract that holds the streams, on the chain that requestors pay on"
            ),
            "glm-token": address("The token that streams are paid in; zero: the chain's own coin"),
            "accept-coin": {
                "description": "Whether the chain's own coin is taken beside the token; set it to false on a chain whose coin is worth less than GLM",
                "type": "boolean", "default": Settings::default().accept_coin
            },
        }
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: &str = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
    const ZERO: &str = "0x0000000000000000000000000000000000000000";

    fn settings(text: serde_json::Value) -> Settings {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn without_a_contract_it_says_which_setting_is_missing() {
        for none in [json!({}), json!({ "contract": ZERO })] {
            assert!(settings(none.clone()).wants_nothing());
            let error = settings(none).contract().unwrap_err();
            assert!(matches!(&error, Error::FailedPrecondition(text) if text.contains(CONTRACT)));
        }
        let set = settings(json!({ "contract": SOME.to_lowercase() }));
        assert_eq!(set.contract().unwrap().to_checksum(None), SOME);
        for wrong in ["", "0x12", &SOME[2..], "0xzz", &format!("{SOME}00")] {
            let wrong = settings(json!({ "contract": wrong }));
            assert!(wrong.contract().is_err() && !wrong.wants_nothing(), "{wrong:?}");
        }
        assert!(serde_json::from_value::<Settings>(json!({ "contrakt": SOME })).is_err());
        assert!(serde_json::from_str::<serde_json::Value>(&schema()).is_ok());
    }

    #[test]
    fn the_coin_is_taken_unless_there_is_a_token_and_the_operator_wants_that_alone() {
        let token: Address = SOME.parse().unwrap();
        for (set, tokens) in [
            (json!({}), vec![Address::ZERO]),
            (json!({ "glm-token": ZERO, "accept-coin": false }), vec![Address::ZERO]),
            (json!({ "glm-token": SOME }), vec![Address::ZERO, token]),
            (json!({ "glm-token": SOME, "accept-coin": false }), vec![token]),
        ] {
            assert_eq!(settings(set.clone()).tokens().unwrap(), tokens, "{set}");
        }
        assert!(settings(json!({ "glm-token": "GLM" })).tokens().is_err());
    }
}
