//! A plugin is a component, whatever it was written in: an advertiser in Python does what the same one in Rust does, in the same
//! engine, and in a provider.

use std::{fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider::plugins::{
    conformance,
    harness::{
        Advertisement, Advertiser, AdvertiserComponent, Change, FailureKind, Harness, Loaded,
        Prices, Query, Resources,
    },
};
use golem_provider_tests::{
    Noticeboard, Paper, Provider, Setup, StandIn, component, noticeboard, wait,
};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ID: &str = "0x1111111111111111111111111111111111111111";
const IN_PYTHON: &str = "noticeboard-python";

/// The advertiser in both languages, as far as it could be built.
fn both() -> Result<Vec<PathBuf>> {
    Ok([component("noticeboard")?].into_iter().chain(noticeboard::python_component()?).collect())
}

async fn load(file: &PathBuf, settings: Value) -> Result<Loaded<AdvertiserComponent>> {
    load_as(file, settings, |harness| harness).await
}

async fn load_as(
    file: &PathBuf,
    settings: Value,
    change: impl FnOnce(Harness) -> Harness,
) -> Result<Loaded<AdvertiserComponent>> {
    // Compiled once for all tests, and for the providers that they start.
    let cache = component("noticeboard")?.with_file_name("compiled").join("plugins");
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let harness = Harness::new(bytes)?.compiled_in(cache).settings(settings);
    Ok(change(harness).load_advertiser().await?)
}

fn prices(per_core_month: i64) -> Prices {
    Prices {
        per_core_month: Decimal::from(per_core_month),
        per_gb_ram_month: Decimal::from(2),
        per_gb_storage_month: Decimal::new(1, 1),
    }
}

fn advertisement() -> Advertisement {
    Advertisement {
        provider_id: ID.into(),
        name: "Ünser Rechner".into(),
        ip_address: IpAddr::from([203, 0, 113, 5]),
        country: Some("SE".into()),
        platform: "x86_64".into(),
        network: "mainnet".into(),
        payments_network: "l2.holesky".into(),
        available: Resources { cpu_cores: 4, memory_gb: 8, storage_gb: 100 },
        usd: prices(5),
        glm: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_made_renewed_changed_found_and_taken_away_in_either_language() -> Result<()> {
    for file in both()? {
        entry_comes_and_goes(&file).await.with_context(|| file.display().to_string())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_of_an_advertiser_is_kept_in_either_language() -> Result<()> {
    for file in both()? {
        let board = Noticeboard::start().await?;
        let harness = Harness::new(fs::read(&file)?)?
            .compiled_in(component("noticeboard")?.with_file_name("compiled").join("plugins"))
            .settings(json!({ "url": board.url() }));
        let never = CancellationToken::new();
        let report = conformance::run_advertiser(&harness, Arc::new(|_| {}), &never).await;
        ensure!(report.passed(), "{}: {:#?}", file.display(), report.outcomes);
    }
    Ok(())
}

async fn entry_comes_and_goes(file: &PathBuf) -> Result<()> {
    let board = Noticeboard::start().await?;
    board.ask_for_token("s3cret");
    let settings = json!({ "url": board.url(), "token": "s3cret", "interval-seconds": 60 });
    let plugin = load(file, settings).await?;
    ensure!(plugin.description().license == "Apache-2.0");
    ensure!(plugin.probe().await?.is_empty());
    let schedule = plugin.schedule().await?;
    ensure!(schedule.interval == Duration::from_secs(60), "{schedule:?}");
    ensure!(plugin.look_up(ID).await?.is_empty());

    let made = plugin.publish(&advertisement()).await?;
    ensure!(made.change == Change::Created && made.reference.is_some(), "{made:?}");
    ensure!(made.expires_in.is_some_and(|left| left > schedule.interval), "{made:?}");
    let document = board.document(ID).context("nothing is on the board")?;
    ensure!(document["available"]["memory_gb"] == 8 && document["glm"].is_null(), "{document}");
    ensure!(plugin.publish(&advertisement()).await?.change == Change::Renewed);
    let dearer = Advertisement { glm: Some(prices(70)), ..advertisement() };
    ensure!(plugin.publish(&dearer).await?.change == Change::Updated);

    // What others write is there too: nonsense, what has expired, and a machine of another network.
    board.pin("0x2", json!({ "provider_id": 7 }));
    board.pin("0x3", json!(["nonsense"]));
    let mut other = board.document(ID).context("it is gone")?;
    other["provider_id"] = json!("0x4444444444444444444444444444444444444444");
    other["expires_at"] = json!(1);
    board.pin("0x4", other.clone());
    other["expires_at"] = json!(u32::MAX);
    other["network"] = json!("testnet");
    board.pin("0x5", other);

    let found = plugin.look_up(ID).await?;
    let [listing] = found.as_slice() else { anyhow::bail!("{found:?}") };
    ensure!(listing.name.as_deref() == Some("Ünser Rechner"), "{listing:?}");
    ensure!(listing.glm == Some(prices(70)) && listing.usd == Some(prices(5)), "{listing:?}");
    ensure!(listing.available == advertisement().available && listing.owner.is_none());
    let all = Query { limit: 10, ..Query::default() };
    ensure!(plugin.search(&all).await?.len() == 2);
    ensure!(plugin.search(&Query { limit: 1, ..all.clone() }).await?.len() == 1);
    let mainnet = Query { network: Some("mainnet".into()), ..all.clone() };
    ensure!(plugin.search(&mainnet).await? == found);
    ensure!(plugin.search(&Query { min_cpu_cores: Some(5), ..all }).await?.is_empty());

    plugin.withdraw(ID).await?;
    plugin.withdraw(ID).await?;
    ensure!(board.document(ID).is_none() && plugin.look_up(ID).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_a_board_is_the_same_error_in_either_language() -> Result<()> {
    for file in both()? {
        errors_are_told_apart(&file).await.with_context(|| file.display().to_string())?;
    }
    Ok(())
}

async fn errors_are_told_apart(file: &PathBuf) -> Result<()> {
    let board = Noticeboard::start().await?;
    let settings = json!({ "url": board.url() });
    let plugin = load(file, settings.clone()).await?;
    for (status, body, kind, words) in [
        (500, "disk full", FailureKind::Unavailable, "answers 500: disk full"),
        (302, "", FailureKind::Unavailable, "answers 302"),
        (429, "", FailureKind::ResourceExhausted, "answers 429"),
        (403, "", FailureKind::FailedPrecondition, "check `token`"),
        (422, "too long", FailureKind::FailedPrecondition, "too long"),
        (200, "<html>", FailureKind::Unavailable, "answers no JSON"),
    ] {
        board.fail_with(status, body);
        let error = plugin.publish(&advertisement()).await.err().context("it was published")?;
        ensure!(error.kind == kind && error.message.contains(words), "{status}: {error:?}");
    }
    board.fail_with(404, "");
    let all = Query { limit: 10, ..Query::default() };
    let error = plugin.search(&all).await.err().context("there is a board")?;
    ensure!(error.kind == FailureKind::FailedPrecondition, "{error:?}");
    board.recover();
    plugin.publish(&advertisement()).await?;

    for id in ["0x1", "../admin", ""] {
        let error = plugin.look_up(id).await.err().context("it was looked up")?;
        ensure!(error.kind == FailureKind::InvalidArgument, "{id}: {error:?}");
    }
    let refused = load_as(file, settings, Harness::without_asked_grants).await?;
    let error = refused.look_up(ID).await.err().context("it was not granted")?;
    ensure!(error.kind == FailureKind::PermissionDenied, "{error:?}");
    ensure!(error.message.contains("golem-provider plugin grant"), "{error:?}");

    let unset = load(file, json!({})).await?;
    let findings = unset.probe().await?;
    ensure!(findings.len() == 1 && findings[0].sentence().contains("url ="), "{findings:?}");
    let error = unset.withdraw(ID).await.err().context("from nowhere")?;
    ensure!(error.kind == FailureKind::FailedPrecondition, "{error:?}");
    let wrong = load(file, json!({ "url": "ftp://a.example" })).await.err();
    ensure!(wrong.is_some_and(|error| error.to_string().contains("url")));
    Ok(())
}

async fn provider(ssh: &StandIn, board: &Noticeboard) -> Result<Provider> {
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_command(&["start"])
        .with("HOST", "127.0.0.1")
        .with("PUBLIC_IP", "203.0.113.5")
        .with("ADVERTISER_TYPE", IN_PYTHON)
        // Nobody but the board is asked anything.
        .with("PRICING_UPDATE_ENABLED", false)
        .with("SKIP_PORT_VERIFICATION", true);
    let configuration = format!("[settings]\nurl = \"{}\"\ninterval-seconds = 60\n", board.url());
    fs::write(setup.plugin_dir().join(format!("{IN_PYTHON}.toml")), configuration)?;
    setup.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertiser_in_python_is_installed_into_a_running_provider_which_then_is_listed()
-> Result<()> {
    let Some(file) = noticeboard::python_component()? else { return Ok(()) };
    let (ssh, board) = (StandIn::start().await?, Noticeboard::start().await?);
    let mut provider = provider(&ssh, &board).await?;
    let info = provider.client().get("/provider/info").await?.expect(200)?;
    let id = info["provider_id"].as_str().context("the provider has no id")?.to_owned();
    ensure!(board.document(&id).is_none());

    // A debug build takes half a minute to compile it, which is no concern of this test.
    load(&file, json!({ "url": board.url() })).await?;
    let ended = provider.command(&["plugin", "install", &file.to_string_lossy(), "--yes"]).await?;
    ensure!(ended.status.success(), "{} {}", ended.stdout, ended.stderr);
    let pause = Duration::from_millis(100);
    let listed = wait::until("an entry on the board", Duration::from_secs(60), pause, async || {
        Ok(board.document(&id))
    });
    let listed = listed.await?;
    ensure!(listed["ip_address"] == "203.0.113.5" && listed["provider_id"] == id.as_str());

    // Taken away when the provider ends.
    ensure!(provider.terminate().await? == 0);
    ensure!(board.document(&id).is_none());
    Ok(())
}
