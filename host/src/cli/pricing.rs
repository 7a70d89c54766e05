//! `pricing …`: what machines cost, in USD and in GLM.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::{Value, json};

use super::{on_runtime, print};
use crate::{
    admin::AdminClient,
    payments::pricing::{MonthlyPrices, PriceChange, Prices, Rate, month_of, wei_per_second},
    settings::{self, Settings},
    store,
    vms::model::NAMED_SIZES,
};

#[derive(Debug, Subcommand)]
pub enum Pricing {
    /// Show the prices, and what machines of the usual sizes cost
    Show(Output),
    /// Change prices in USD
    #[command(long_about = SET)]
    Set(Set),
}

const SET: &str = "\
Changes prices in USD a month. What is not named stays. The new prices are written to .env in the data directory, and a \
provider that runs takes them over at once; prices in GLM follow.

  golem-provider pricing set --usd-per-core 4.50 --usd-per-mem 1.80";

/// A month, for all of the network.
const HOURS_A_MONTH: Decimal = Decimal::from_parts(730, 0, 0, false, 0);
/// In tables; `--json` has all digits.
const SHOWN_DIGITS: u32 = 6;
/// A rate that is older is worth a remark.
const OLD: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub struct Output {
    /// For programs: all digits, as texts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(id = "changes", required = true, multiple = true, args = ["usd_per_core", "usd_per_mem", "usd_per_disk"])]
pub struct Set {
    /// USD a month for a core
    #[arg(long, value_name = "USD", value_parser = price)]
    usd_per_core: Option<Decimal>,
    /// USD a month for a GB of memory
    #[arg(long, value_name = "USD", value_parser = price)]
    usd_per_mem: Option<Decimal>,
    /// USD a month for a GB of storage
    #[arg(long, value_name = "USD", value_parser = price)]
    usd_per_disk: Option<Decimal>,
    #[command(flatten)]
    output: Output,
}

fn price(text: &str) -> Result<Decimal, String> {
    settings::amount(text).map_err(|allowed| format!("allowed is {allowed}"))
}

impl Pricing {
    /// # Errors
    /// The provider that runs does not answer, or the settings cannot be written.
    pub fn run(self, settings: &Settings) -> anyhow::Result<()> {
        match self {
            Self::Show(output) => {
                let prices = on_runtime(async {
                    match AdminClient::connect(&settings.data_dir).await? {
                        Some(client) => Ok(client.prices().await?),
                        None => offline(settings, settings.pricing.usd),
                    }
                })??;
                show(&prices, &output)
            }
            Self::Set(set) => set.run(settings),
        }
    }
}

/// As a provider would begin with them.
fn offline(settings: &Settings, usd: MonthlyPrices) -> anyhow::Result<Prices> {
    Ok(Prices::new(usd, store::read_glm_rate(&settings.data_dir)?.map(Rate::from)))
}

impl Set {
    fn run(self, settings: &Settings) -> anyhow::Result<()> {
        let file = settings.data_dir.join(".env");
        let changes = [
            ("GOLEM_PROVIDER_PRICE_USD_PER_CORE_MONTH", self.usd_per_core),
            ("GOLEM_PROVIDER_PRICE_USD_PER_GB_RAM_MONTH", self.usd_per_mem),
            ("GOLEM_PROVIDER_PRICE_USD_PER_GB_STORAGE_MONTH", self.usd_per_disk),
        ];
        for (key, price) in changes {
            if let Some(price) = price {
                settings::write_setting(&file, key, &price.to_string())
                    .with_context(|| format!("cannot write {}", file.display()))?;
                if let Some(origin) = super::overridden(settings, key, &file) {
                    eprintln!(
                        "note: {key} is set by {origin} too, which counts from the next start on; change it there"
                    );
                }
            }
        }
        let change = PriceChange {
            usd_per_core: self.usd_per_core,
            usd_per_gb_ram: self.usd_per_mem,
            usd_per_gb_storage: self.usd_per_disk,
        };
        let prices = on_runtime(async {
            match AdminClient::connect(&settings.data_dir).await? {
                Some(client) => Ok(client.set_prices(&change).await?),
                None => offline(settings, change.apply(settings.pricing.usd)),
            }
        })??;
        show(&prices, &self.output)
    }
}

fn show(prices: &Prices, output: &Output) -> anyhow::Result<()> {
    match output.json {
        true => print::print_json(&as_json(prices)),
        false => Ok(print::print(&as_text(prices, Timestamp::now()))?),
    }
}

fn as_json(prices: &Prices) -> Value {
    let examples: Vec<Value> = NAMED_SIZES
        .iter()
        .map(|(name, size)| {
            let text = |amount: Option<Decimal>| amount.map(|amount| amount.to_string());
            let glm = prices.glm.as_ref();
            json!({
                "size": name,
                "cpu_cores": size.cpu_cores, "memory_gb": size.memory_gb, "storage_gb": size.storage_gb,
                "usd_per_month": text(month_of(&prices.usd, (*size).into())),
                "usd_per_hour": text(hour_of(&prices.usd, *size)),
                "glm_per_month": text(glm.and_then(|glm| month_of(glm, (*size).into()))),
                "glm_per_hour": text(glm.and_then(|glm| hour_of(glm, *size))),
                "wei_per_second": glm.and_then(|glm| wei_per_second(glm, (*size).into())).map(|wei| wei.to_string()),
            })
        })
        .collect();
    let age = prices.rate.as_ref().map(|rate| rate.age(Timestamp::now()).as_secs());
    json!({
        "usd": prices.usd, "glm": prices.glm, "rate": prices.rate, "rate_age_seconds": age,
        "examples": examples,
    })
}

fn hour_of(prices: &MonthlyPrices, size: crate::vms::Resources) -> Option<Decimal> {
    Some((month_of(prices, size.into())? / HOURS_A_MONTH).normalize())
}

fn as_text(prices: &Prices, now: Timestamp) -> String {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let glm = prices.glm.as_ref();
    let mut rows = vec![row(&["A MONTH", "USD", "GLM"])];
    let each = |prices: &MonthlyPrices| [prices.per_core, prices.per_gb_ram, prices.per_gb_storage];
    let in_glm = glm.map_or([None; 3], |glm| each(glm).map(Some));
    let names = ["core", "GB of memory", "GB of storage"];
    for ((name, usd), glm) in names.into_iter().zip(each(&prices.usd)).zip(in_glm) {
        rows.push(row(&[name, &shown(Some(usd)), &shown(glm)]));
    }
    let mut text = print::table(&rows);
    let mut rows = vec![row(&[
        "SIZE",
        "CORES",
        "MEMORY",
        "STORAGE",
        "USD/MONTH",
        "USD/HOUR",
        "GLM/MONTH",
        "GLM/HOUR",
    ])];
    for (name, size) in NAMED_SIZES {
        rows.push(row(&[
            name,
            &size.cpu_cores.to_string(),
            &format!("{} GB", size.memory_gb),
            &format!("{} GB", size.storage_gb),
            &shown(month_of(&prices.usd, size.into())),
            &shown(hour_of(&prices.usd, size)),
            &shown(glm.and_then(|glm| month_of(glm, size.into()))),
            &shown(glm.and_then(|glm| hour_of(glm, size))),
        ]));
    }
    text += &format!("\n{}\n", print::table(&rows));
    match &prices.rate {
        Some(rate) => {
            let age = rate.age(now);
            text += &format!(
                "1 GLM = {} USD, says {}, {} ago.\n",
                rate.usd_per_glm,
                rate.source,
                print::duration(age)
            );
            if age > OLD {
                text += "That is old: the source has not answered since, or no provider has run.\n";
            }
        }
        None => {
            text += "No price of GLM is known yet, so nothing is offered for GLM. A provider that runs asks for it; one in \
                     development only where GOLEM_PROVIDER_COINGECKO_API_URL is set.\n";
        }
    }
    text
}

/// At most [`SHOWN_DIGITS`] after the point, but never zero for what is not.
fn shown(amount: Option<Decimal>) -> String {
    let Some(amount) = amount else { return "-".to_owned() };
    let rounded =
        amount.round_dp_with_strategy(SHOWN_DIGITS, RoundingStrategy::MidpointAwayFromZero);
    match rounded.is_zero() && !amount.is_zero() {
        true => "< 0.000001".to_owned(),
        false => rounded.normalize().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(usd_per_glm: Option<&str>) -> Prices {
        let decimal = |text| Decimal::from_str_exact(text).unwrap();
        let usd = MonthlyPrices {
            per_core: decimal("5.0"),
            per_gb_ram: decimal("2.0"),
            per_gb_storage: decimal("0.1"),
        };
        let rate = usd_per_glm.map(|usd_per_glm| Rate {
            usd_per_glm: decimal(usd_per_glm),
            at: Timestamp::from_second(1_800_000_000).unwrap(),
            source: "https://prices.example".into(),
        });
        Prices::new(usd, rate)
    }

    fn text(usd_per_glm: Option<&str>, second: i64) -> String {
        as_text(&prices(usd_per_glm), Timestamp::from_second(1_800_000_000 + second).unwrap())
    }

    fn line<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
        let line = text.lines().find(|line| line.starts_with(begin));
        line.unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn the_table_shows_what_the_usual_sizes_cost() {
        let text = text(Some("0.25"), 90);
        assert_eq!(line(&text, "core"), ["core", "5", "20"]);
        assert_eq!(
            line(&text, "medium"),
            ["medium", "2", "4 GB", "20 GB", "20", "0.027397", "80", "0.109589"]
        );
        assert!(text.ends_with("1 GLM = 0.25 USD, says https://prices.example, 1 min ago.\n"));
        assert!(self::text(Some("0.25"), 90_000).contains("1 d 1 h ago.\nThat is old"));
    }

    #[test]
    fn without_a_rate_no_price_in_glm_is_shown() {
        let text = text(None, 0);
        assert_eq!(line(&text, "core"), ["core", "5", "-"]);
        assert_eq!(line(&text, "small")[6..], ["-", "-"]);
        assert!(text.contains("No price of GLM is known yet"), "{text}");
        assert_eq!(as_json(&prices(None))["examples"][0]["glm_per_month"], Value::Null);
    }

    #[test]
    fn programs_get_all_digits() {
        let json = as_json(&prices(Some("0.3")));
        assert_eq!(json["glm"]["per_core"], "16.666666666666666667");
        assert_eq!(json["examples"][0]["usd_per_month"], "8");
        assert_eq!(json["examples"][0]["wei_per_second"], "10147133434804");
        assert_eq!(json["rate"]["usd_per_glm"], "0.3");
    }

    #[test]
    fn a_tiny_price_is_not_shown_as_nothing() {
        let shown = |text| shown(Some(Decimal::from_str_exact(text).unwrap()));
        assert_eq!(shown("0.0000001"), "< 0.000001");
        assert_eq!([shown("0.00"), shown("1.50"), shown("0.0000019")], ["0", "1.5", "0.000002"]);
    }
}
