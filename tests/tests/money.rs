//! Keys, money and prices, as an operator handles them. No VM is made in here; the chain is anvil, on loopback.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Anvil, CaptchaFaucet, Ended, PriceSource, Provider, Puzzles, Setup, anvil::ACCOUNTS, wait,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// A source that failed is asked again after seconds, at first.
const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Runs a command with these settings to its end; `input` is what it is given to read.
async fn run(setup: &Setup, arguments: &[&str], input: &str) -> Result<Ended> {
    let mut command = setup.program(arguments)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // One that does not read has ended or will, with a reason.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let name = arguments.join(" ");
    let output = wait::within(&name, Duration::from_secs(120), child.wait_with_output()).await??;
    Ok(Ended {
        status: output.status,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// What a command printed that ended in this way.
async fn printed(setup: &Setup, code: i32, arguments: &[&str], input: &str) -> Result<Ended> {
    let ended = run(setup, arguments, input).await?;
    ensure!(ended.status.code() == Some(code), "{arguments:?}: {ended:?}");
    Ok(ended)
}

async fn told(setup: &Setup, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&printed(setup, 0, arguments, "").await?.stdout)?)
}

async fn told_by(provider: &Provider, arguments: &[&str]) -> Result<Value> {
    let ended = provider.command(arguments).await?;
    ensure!(ended.status.success(), "{arguments:?}: {ended:?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

async fn pricing(provider: &Provider) -> Result<Value> {
    Ok(provider.client().get("/summary").await?.expect(200)?["pricing"].take())
}

async fn glm_per_core(provider: &Provider) -> Result<Option<String>> {
    Ok(pricing(provider).await?["glm_per_core_month"].as_str().map(str::to_owned))
}

/// Waits until the source has been asked so many times.
async fn asked(source: &PriceSource, times: usize) -> Result<()> {
    let what = format!("question {times} for the price of GLM");
    wait::until(&what, SOON, PAUSE, async || Ok((source.questions().len() >= times).then_some(())))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_in_glm_come_with_a_price_source_and_outlive_it() -> Result<()> {
    let source = PriceSource::start().await?;
    let address = source.address();
    let setup =
        Setup::new()?.with("COINGECKO_API_URL", source.url()).with("RATE_LIMIT_PER_MINUTE", 0);
    let mut provider = setup.start().await?;

    // Out of order, then wrong in one way after another: there is no price, and never one of zero.
    asked(&source, 1).await?;
    ensure!(
        source.questions()[0]
            == "GET /api/v3/simple/price?ids=golem%2Cgolem-network-tokens&vs_currencies=usd HTTP/1.1",
        "{:?}",
        source.questions()
    );
    assert_eq!(glm_per_core(&provider).await?, None);
    assert_eq!(pricing(&provider).await?["usd_per_core_month"], 5.0);
    source.say("0");
    let questions = source.questions().len();
    asked(&source, questions + 1).await?;
    source.answer_with("<html>sorry</html>");
    assert_eq!(glm_per_core(&provider).await?, None);
    let shown = provider.command(&["pricing", "show"]).await?.stdout;
    ensure!(shown.contains("No price of GLM is known"), "{shown}");

    source.say("0.25");
    wait::until("a price in GLM", SOON, PAUSE, async || {
        Ok(glm_per_core(&provider).await?.filter(|price| price == "20"))
    })
    .await?;
    let prices = told_by(&provider, &["pricing", "show", "--json"]).await?;
    assert_eq!(prices["rate"]["usd_per_glm"], "0.25");
    assert_eq!(prices["rate"]["source"], format!("http://{address}"));
    assert_eq!(
        prices["examples"][0]["wei_per_second"],
        json!((32_000_000_000_000_000_000_u128 / 2_628_000).to_string())
    );

    // Without its source it counts on, also after a restart, and as one that does not run shows it.
    drop(source);
    assert_eq!(provider.terminate().await?, 0);
    let offline = told_by(&provider, &["pricing", "show", "--json"]).await?;
    assert_eq!(offline["glm"], prices["glm"]);
    provider.start_again().await?;
    assert_eq!(glm_per_core(&provider).await?.as_deref(), Some("20"));
    ensure!(pricing(&provider).await?["rate_age_seconds"].is_u64());
    assert_eq!(provider.terminate().await?, 0);

    // One that lies by a factor of a thousand is not believed at once.
    let liar = PriceSource::start_at(address).await?;
    liar.say("250");
    provider.start_again().await?;
    asked(&liar, 1).await?;
    wait::until("a remark about the lie", SOON, PAUSE, async || {
        Ok(provider.log()?.contains("it says 250 USD").then_some(()))
    })
    .await?;
    assert_eq!(glm_per_core(&provider).await?.as_deref(), Some("20"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_are_changed_while_the_provider_runs_and_stay_after_a_restart() -> Result<()> {
    let mut provider = Setup::new()?.start().await?;
    let set = ["pricing", "set", "--usd-per-core", "7.50", "--usd-per-disk", "0.125", "--json"];
    let prices = told_by(&provider, &set).await?;
    assert_eq!(
        prices["usd"],
        json!({ "per_core": "7.50", "per_gb_ram": "2.0", "per_gb_storage": "0.125" })
    );
    assert_eq!(pricing(&provider).await?["usd_per_core_month"], 7.5);

    for wrong in ["-1", "free", "1e3", "1000001", "0.0000000001", ""] {
        let ended =
            provider.command(&["pricing", "set", &format!("--usd-per-mem={wrong}")]).await?;
        ensure!(ended.status.code() == Some(2), "{wrong}: {ended:?}");
    }
    assert_eq!(provider.command(&["pricing", "set"]).await?.status.code(), Some(2));

    assert_eq!(provider.terminate().await?, 0);
    provider.start_again().await?;
    let after = pricing(&provider).await?;
    assert_eq!(
        (&after["usd_per_core_month"], &after["usd_per_gb_storage_month"]),
        (&json!(7.5), &json!(0.125))
    );

    // What the environment says counts from the next start on, and the operator is told.
    assert_eq!(provider.terminate().await?, 0);
    provider.set("PRICE_USD_PER_CORE_MONTH", "9");
    provider.start_again().await?;
    let ended = provider.command(&["pricing", "set", "--usd-per-core", "8"]).await?;
    ensure!(ended.stderr.contains("PRICE_USD_PER_CORE_MONTH is set by environment"), "{ended:?}");
    assert_eq!(pricing(&provider).await?["usd_per_core_month"], 8.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_imported_exported_and_encrypted_without_being_shown() -> Result<()> {
    let (address, key) = ACCOUNTS[1];
    let (_, other_key) = ACCOUNTS[2];
    let mut setup = Setup::new()?;
    let none_yet = printed(&setup, 1, &["wallet", "show"], "").await?;
    ensure!(none_yet.stderr.contains("no key yet"), "{none_yet:?}");

    let imported = printed(&setup, 0, &["wallet", "import", "-"], key).await?;
    ensure!(imported.stdout.contains(address) && !imported.stdout.contains(key), "{imported:?}");
    let refused = printed(&setup, 1, &["wallet", "import", "-"], other_key).await?;
    ensure!(
        refused.stderr.contains("--replace") && !refused.stderr.contains(other_key),
        "{refused:?}"
    );
    let nonsense = printed(&setup, 1, &["wallet", "import", "-"], &key[1..]).await?;
    ensure!(!nonsense.stderr.contains(&key[1..]), "{nonsense:?}");
    assert_eq!(told(&setup, &["wallet", "show", "--json"]).await?["address"], address);

    // Nobody is at a terminal, so nobody can consent.
    let kept = printed(&setup, 2, &["wallet", "export"], "y\n").await?;
    ensure!(kept.stdout.is_empty() && kept.stderr.contains("--yes"), "{kept:?}");
    assert_eq!(
        printed(&setup, 0, &["wallet", "export", "--yes"], "").await?.stdout,
        format!("0x{key}\n")
    );

    let passphrase = setup.directory().join("passphrase");
    fs::write(&passphrase, "open, sesame\n")?;
    let file = |name: &str| setup.directory().join(name).display().to_string();
    let (copy, passphrase_file) = (file("copy.json"), file("passphrase"));
    let export = ["wallet", "export", "--keystore", &copy, "--passphrase-file", &passphrase_file];
    printed(&setup, 0, &export, "").await?;
    assert_eq!(mode(Path::new(&copy))?, 0o600);
    printed(&setup, 1, &export, "").await?;

    let no_passphrase = printed(&setup, 1, &["wallet", "encrypt"], "").await?;
    ensure!(no_passphrase.stderr.contains("KEYSTORE_PASSPHRASE_FILE"), "{no_passphrase:?}");
    setup = setup.with("ETHEREUM_KEYSTORE_PASSPHRASE_FILE", passphrase.display());
    printed(&setup, 0, &["wallet", "encrypt"], "").await?;
    let shown = told(&setup, &["wallet", "show", "--json"]).await?;
    assert_eq!((&shown["address"], &shown["key"]["encrypted"]), (&json!(address), &json!(true)));
    let keys = setup.data_dir().join("keys");
    assert_eq!(mode(&keys)?, 0o700);
    for entry in fs::read_dir(&keys)? {
        let path = entry?.path();
        assert_eq!(mode(&path)?, 0o600, "{}", path.display());
        ensure!(!fs::read_to_string(&path)?.contains(key), "{} has the key", path.display());
    }

    // Another key, and the first one back out of its copy.
    printed(&setup, 0, &["wallet", "import", "-", "--replace"], other_key).await?;
    let import = ["wallet", "import", &copy, "--passphrase-file", &passphrase_file, "--replace"];
    let back = printed(&setup, 0, &import, "").await?;
    ensure!(back.stdout.contains("provider.json.old-2"), "{back:?}");

    let provider = setup.start().await?;
    let info = provider.client().get("/provider/info").await?.expect(200)?;
    assert_eq!(info["provider_id"], address);
    let other = provider.data_dir().join("other.hex");
    fs::write(&other, other_key)?;
    let import = ["wallet", "import", &other.display().to_string(), "--replace"];
    let while_it_runs = provider.command(&import).await?;
    ensure!(while_it_runs.stdout.contains("keeps its old key until"), "{while_it_runs:?}");
    let info = provider.client().get("/provider/info").await?.expect(200)?;
    assert_eq!(info["provider_id"], address);
    ensure!(!provider.log()?.contains(key) && !provider.log()?.contains("sesame"));
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

/// Code of a contract that answers this number to every call.
fn answering(number: u64) -> String {
    format!("0x7f{number:064x}60005260206000f3")
}

#[tokio::test(flavor = "multi_thread")]
async fn balances_are_asked_of_both_chains_and_a_node_that_is_down_is_said_so() -> Result<()> {
    let (address, key) = ACCOUNTS[3];
    let token = format!("0x{}", "70".repeat(20));
    let (golem_base, payments) =
        (Anvil::start().await?, Anvil::start_with(0, &["--chain-id", "7"]).await?);
    golem_base.set_balance_wei(address, 1_500_000_000_000_000_001).await?;
    payments.set_balance_wei(address, 20).await?;
    let setup = Setup::new()?.with("ETHEREUM_PRIVATE_KEY", key);
    let nothing_set = printed(&setup, 2, &["wallet", "balance"], "").await?;
    ensure!(nothing_set.stderr.contains("GOLEM_BASE_RPC_URL"), "{nothing_set:?}");

    let secret_url = format!("{}/?key=a-secret", payments.url());
    let setup = setup
        .with("GOLEM_BASE_RPC_URL", golem_base.url())
        .with("POLYGON_RPC_URL", &secret_url)
        .with("GLM_TOKEN_ADDRESS", &token);
    let no_token = printed(&setup, 1, &["wallet", "balance"], "").await?;
    ensure!(no_token.stderr.contains("there is no token"), "{no_token:?}");
    payments.rpc("anvil_setCode", json!([token, answering(3_000)])).await?;
    let balance = told(&setup, &["wallet", "balance", "--json"]).await?;
    assert_eq!(
        balance,
        json!({ "address": address, "chains": [
            { "chain": "golem-base", "chain_id": 1337, "balance_wei": "1500000000000000001", "glm_wei": null, "error": null },
            { "chain": "payments", "chain_id": 7, "balance_wei": "20", "glm_wei": "3000", "error": null },
        ]})
    );
    let table = printed(&setup, 0, &["wallet", "balance"], "").await?.stdout;
    ensure!(
        table.contains("1.500000000000000001") && table.contains("0.000000000000003"),
        "{table}"
    );

    drop(payments);
    let down = printed(&setup, 1, &["wallet", "balance"], "").await?;
    ensure!(down.stdout.contains("1.5") && down.stderr.contains("payments: no node"), "{down:?}");
    ensure!(!down.stderr.contains("a-secret"), "{down:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faucet_gives_money_to_whoever_has_little_and_solves_its_puzzles() -> Result<()> {
    let chain = Anvil::start().await?;
    let setup = Setup::new()?;
    let missing = printed(&setup, 2, &["wallet", "faucet"], "").await?;
    for key in ["FAUCET_URL", "CAPTCHA_URL", "CAPTCHA_API_KEY"] {
        ensure!(missing.stderr.contains(key), "{missing:?}");
    }
    let setup = setup.with("CAPTCHA_API_KEY", "a-secret");
    printed(&setup, 0, &["wallet", "import", "-"], &"12".repeat(32)).await?;
    let address = told(&setup, &["wallet", "show", "--json"]).await?;
    let address = address["address"].as_str().context("no address")?.to_owned();

    let sent = CaptchaFaucet::start(&chain, Puzzles::Sent).await?;
    let setup = setup
        .with("FAUCET_URL", sent.faucet_url())
        .with("CAPTCHA_URL", sent.captcha_url())
        .with("GOLEM_BASE_RPC_URL", chain.url());
    let got = told(&setup, &["wallet", "faucet", "--json"]).await?;
    assert_eq!((&got["asked"], &got["balance_wei"]), (&json!(true), &json!("100000000000000000")));
    assert_eq!(chain.balance_wei(&address).await?, 100_000_000_000_000_000);

    // Who has enough asks nobody, unless told to.
    let enough = told(&setup, &["wallet", "faucet", "--json"]).await?;
    assert_eq!((&enough["asked"], sent.questions()?), (&json!(false), 3));
    told(&setup, &["wallet", "faucet", "--force", "--json"]).await?;
    assert_eq!(chain.balance_wei(&address).await?, 200_000_000_000_000_000);

    let derived = CaptchaFaucet::start(&chain, Puzzles::Derived).await?;
    let setup = setup
        .with("L2_FAUCET_URL", derived.faucet_url())
        .with("CAPTCHA_URL", derived.captcha_url());
    let got = printed(&setup, 0, &["wallet", "faucet-l2"], "").await?;
    ensure!(got.stdout.contains("in transaction 0x"), "{got:?}");
    assert_eq!(chain.balance_wei(&address).await?, 300_000_000_000_000_000);

    drop(derived);
    let down = printed(&setup, 1, &["wallet", "faucet", "--chain", "payments"], "").await?;
    ensure!(
        down.stderr.contains("the captcha server") && !down.stderr.contains("a-secret"),
        "{down:?}"
    );
    Ok(())
}
