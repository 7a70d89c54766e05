//! Several advertisers at work at the same time: each with a schedule and a health of its own, chosen, replaced and removed
//! while the provider runs. The places are directories, by the plugin `tests/plugins/blackboard`; VMs are on paper.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Paper, Provider, Setup, StandIn, component, wait};
use serde_json::Value;

/// On a loaded machine everything takes longer.
const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// The component of the blackboard as a plugin of another name, which has to be as long.
fn called(name: &str) -> Result<Vec<u8>> {
    const NAME: &[u8] = b"blackboard";
    ensure!(name.len() == NAME.len());
    let mut bytes = fs::read(component("blackboard")?)?;
    let places: Vec<usize> =
        (0..bytes.len() - NAME.len()).filter(|&at| bytes[at..].starts_with(NAME)).collect();
    for at in places {
        bytes[at..at + NAME.len()].copy_from_slice(name.as_bytes());
    }
    Ok(bytes)
}

/// A provider that is listed with all of these, each with its configuration.
async fn provider(ssh: &StandIn, advertisers: &[(&str, &str)]) -> Result<Provider> {
    let names: Vec<&str> = advertisers.iter().map(|(name, _)| *name).collect();
    let setup = Setup::new()?
        .with_command(&["start"])
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with("HOST", "127.0.0.1")
        .with("PUBLIC_IP", "203.0.113.5")
        .with("SKIP_PORT_VERIFICATION", true)
        .with("PRICING_UPDATE_ENABLED", false)
        .with("RATE_LIMIT_PER_MINUTE", 0)
        .with("CPU_THRESHOLD", 100)
        .with("MEMORY_THRESHOLD", 100)
        .with("ADVERTISER_TYPE", names.join(","));
    for (name, configuration) in advertisers {
        fs::write(setup.plugin_dir().join(format!("{name}.wasm")), called(name)?)?;
        fs::write(setup.plugin_dir().join(format!("{name}.toml")), configuration)?;
    }
    setup.start().await
}

fn place(provider: &Provider, advertiser: &str) -> PathBuf {
    provider.data_dir().join("vms").join(advertiser)
}

/// How many providers are listed there.
fn entries(provider: &Provider, advertiser: &str) -> usize {
    place(provider, advertiser).join("entries").read_dir().map_or(0, Iterator::count)
}

fn publications(provider: &Provider, advertiser: &str) -> u64 {
    let count = fs::read_to_string(place(provider, advertiser).join("publications"));
    count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

async fn listed_with(provider: &Provider, advertiser: &str, wanted: usize) -> Result<()> {
    let what = format!("{wanted} entries with {advertiser}");
    wait::until(&what, SOON, PAUSE, async || {
        Ok((entries(provider, advertiser) == wanted).then_some(()))
    })
    .await
}

async fn run(provider: &Provider, arguments: &[&str]) -> Result<String> {
    let ended = provider.command(arguments).await?;
    ensure!(ended.status.success(), "{arguments:?}: {:?} {}", ended.status, ended.stderr);
    Ok(ended.stdout)
}

async fn plugin(provider: &Provider, name: &str) -> Result<Value> {
    let list: Value = serde_json::from_str(&run(provider, &["plugin", "list", "--json"]).await?)?;
    let all = list.as_array().context("no list")?;
    let found = all.iter().find(|plugin| plugin["name"] == name);
    found.cloned().with_context(|| format!("{name} is not in {list}"))
}

async fn is_in_state(provider: &Provider, name: &str, state: &str) -> Result<Value> {
    wait::until(&format!("{name} to be {state}"), SOON, PAUSE, async || {
        let report = plugin(provider, name).await?;
        Ok((report["state"] == state).then_some(report))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn advertisers_work_side_by_side_and_are_chosen_while_the_provider_runs() -> Result<()> {
    let ssh = StandIn::start().await?;
    let often = "[settings]\ninterval-seconds = 1\n";
    let seldom = "[settings]\ninterval-seconds = 3600\n";
    let mut provider = provider(&ssh, &[("blackboard", seldom), ("whiteboard", often)]).await?;

    // Each has its own schedule.
    wait::until("publications", SOON, PAUSE, async || {
        let often = publications(&provider, "whiteboard");
        let seldom = publications(&provider, "blackboard");
        Ok((seldom >= 1 && often >= seldom + 3).then_some(()))
    })
    .await?;
    for name in ["blackboard", "whiteboard"] {
        let report = plugin(&provider, name).await?;
        ensure!(report["state"] == "working" && report["in_use"] == true, "{report}");
        ensure!(report["kind"] == "discovery-advertiser", "{report}");
        ensure!(entries(&provider, name) == 1);
    }

    // What is not chosen any more withdraws, and the other one goes on.
    let choose = ["plugin", "use", "discovery-advertiser"];
    run(&provider, &[&choose[..], &["whiteboard"]].concat()).await?;
    listed_with(&provider, "blackboard", 0).await?;
    ensure!(plugin(&provider, "blackboard").await?["in_use"] == false);
    ensure!(entries(&provider, "whiteboard") == 1);
    run(&provider, &[&choose[..], &["blackboard", "whiteboard"]].concat()).await?;
    listed_with(&provider, "blackboard", 1).await?;

    // So does one that is removed.
    run(&provider, &["plugin", "remove", "whiteboard"]).await?;
    listed_with(&provider, "whiteboard", 0).await?;
    ensure!(entries(&provider, "blackboard") == 1);
    let unknown = provider.command(&[&choose[..], &["whiteboard"]].concat()).await?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");

    ensure!(provider.terminate().await? == 0);
    ensure!(entries(&provider, "blackboard") == 0, "the entry outlives the provider");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_advertiser_is_degraded_until_it_is_mended_and_a_working_one_is_swapped()
-> Result<()> {
    let ssh = StandIn::start().await?;
    let broken = "[settings]\ninterval-seconds = 1\nfault = \"traps\"\n";
    let whole = "[settings]\ninterval-seconds = 1\n";
    let provider = provider(&ssh, &[("blackboard", broken), ("whiteboard", whole)]).await?;

    let report = is_in_state(&provider, "blackboard", "degraded").await?;
    ensure!(report["problem"].as_str().is_some_and(|why| why.contains("publish")), "{report}");
    ensure!(provider.log()?.contains("the chalk is broken"));
    // The other one has not noticed.
    ensure!(plugin(&provider, "whiteboard").await?["state"] == "working");
    ensure!(entries(&provider, "whiteboard") == 1 && entries(&provider, "blackboard") == 0);

    // With other settings it is loaded anew.
    let plugins = provider.data_dir().join("plugins");
    fs::write(plugins.join("blackboard.toml"), whole)?;
    is_in_state(&provider, "blackboard", "working").await?;
    listed_with(&provider, "blackboard", 1).await?;

    // Another version in place of one that works is dropped in, without its entry being away for a moment.
    let before = publications(&provider, "whiteboard");
    let mut other = called("whiteboard")?;
    other.extend([0, 3, 1, b'x', 1]);
    fs::write(plugins.join("whiteboard.new"), &other)?;
    fs::rename(plugins.join("whiteboard.new"), plugins.join("whiteboard.wasm"))?;
    wait::until("the other version to publish", SOON, Duration::from_millis(5), async || {
        ensure!(entries(&provider, "whiteboard") == 1, "the entry was away");
        let swapped = provider.log()?.matches("the plugin whiteboard 0.1.0 takes").count() > 0;
        Ok((swapped && publications(&provider, "whiteboard") > before + 1).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_secret_in_a_plugins_settings_is_shown_nowhere() -> Result<()> {
    const TOKEN: &str = "xyzzy-plugh";
    let ssh = StandIn::start().await?;
    let telling =
        format!("[settings]\ninterval-seconds = 2\ntoken = \"{TOKEN}\"\nfault = \"tells-token\"\n");
    let provider = provider(&ssh, &[("blackboard", &telling)]).await?;
    wait::until("the plugin to tell", SOON, PAUSE, async || {
        Ok(provider.log()?.contains("the token is <hidden>").then_some(()))
    })
    .await?;
    wait::until("the failure to be told", SOON, PAUSE, async || {
        Ok(provider.log()?.contains("the token <hidden> was not taken").then_some(()))
    })
    .await?;

    let shown = run(&provider, &["plugin", "settings", "blackboard"]).await?;
    ensure!(shown.contains("token") && shown.contains("<hidden>"), "{shown}");
    ensure!(shown.contains("blackboard.toml") && shown.contains("Needed for nothing"), "{shown}");
    let settings = run(&provider, &["plugin", "settings", "blackboard", "--json"]).await?;
    let settings: Value = serde_json::from_str(&settings)?;
    let all = settings.as_array().context("no list")?;
    let token = all.iter().find(|setting| setting["name"] == "token").context("no token")?;
    ensure!(token["secret"] == true && token["value"] == "<hidden>", "{token}");
    let interval = all.iter().find(|setting| setting["name"] == "interval-seconds");
    ensure!(interval.is_some_and(|setting| setting["value"] == 2 && setting["default"] == 240));
    let unknown = provider.command(&["plugin", "settings", "nobody"]).await?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    ensure!(unknown.stderr.contains("there is no plugin `nobody`"), "{unknown:?}");

    // Neither is one that is wrong.
    let file = provider.data_dir().join("plugins/blackboard.toml");
    fs::write(&file, "[settings]\ntoken = \"plover\"\n")?;
    wait::until("the wrong setting to be told", SOON, PAUSE, async || {
        Ok(provider.log()?.contains("token: <hidden> is shorter than").then_some(()))
    })
    .await?;
    let log = provider.log()?;
    let list = run(&provider, &["plugin", "list"]).await?;
    for secret in [TOKEN, "plover"] {
        for text in [&log, &list, &shown] {
            ensure!(!text.contains(secret), "{text}");
        }
    }
    Ok(())
}
