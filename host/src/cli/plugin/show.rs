//! What the `plugin` commands print.

use serde_json::json;

use super::Output;
use crate::{
    admin::{PluginReport, PluginState},
    cli::print::{print, print_json, table},
    plugins::{Kind, catalog::About, manifest::Ask, schema::Setting},
};

fn state(report: &PluginReport) -> String {
    let state = match report.state {
        PluginState::Working => "working",
        PluginState::Degraded => "degraded",
        PluginState::Disabled => "disabled",
        PluginState::Unusable => "unusable",
        PluginState::Idle => "not running",
    };
    if report.in_use { format!("{state}, in use") } else { state.to_owned() }
}

pub fn list(reports: &[PluginReport], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return print_json(&reports);
    }
    let head = ["NAME", "VERSION", "KIND", "STATE", "FROM"].map(str::to_owned).to_vec();
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |report: &PluginReport| {
        let listed = &report.listed;
        vec![
            listed.name.clone(),
            or_dash(&listed.version),
            listed.kind.map_or("-", Kind::world).to_owned(),
            state(report),
            listed.origin.clone(),
        ]
    };
    let mut text = table(&[vec![head], reports.iter().map(row).collect()].concat());
    for report in reports {
        let listed = &report.listed;
        if let Some(problem) = &listed.problem {
            text += &format!("\n{}: {problem}\n", listed.name);
        }
        for missing in &listed.not_granted {
            text += &format!(
                "\n{} asks for {missing} and does not have it; to grant it: golem-provider plugin grant {} {missing}\n",
                listed.name, listed.name
            );
        }
    }
    print(&text)?;
    Ok(())
}

/// What is asked for, a line each.
pub fn asks(asks: &[Ask]) -> String {
    let row =
        |ask: &Ask| vec![format!("  {}", ask.kind.as_str()), ask.value.clone(), ask.reason.clone()];
    table(&asks.iter().map(row).collect::<Vec<_>>())
}

pub fn about(about: &About, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let schema = about.settings_schema.as_deref().map(serde_json::from_str);
        let mut value = serde_json::to_value(about)?;
        // One that is no JSON is refused when the plugin is loaded.
        value["settings_schema"] = schema.and_then(Result::ok).unwrap_or_default();
        return print_json(&value);
    }
    let field = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let mut text = table(&[
        field("name", &about.name),
        field("version", &about.version),
        field("kind", about.kind.world()),
        field("summary", &about.summary),
        field("licence", &about.license),
        field("contract", about.contract),
        field("sha256", &about.sha256),
    ]);
    if about.asks.is_empty() {
        text += "\nIt asks for nothing beyond its own directory.\n";
    } else {
        text += &format!("\nIt asks for:\n\n{}", asks(&about.asks));
    }
    if !about.missing.is_empty() && about.missing != about.asks {
        text += &format!("\nOf that is not granted yet:\n\n{}", asks(&about.missing));
    }
    print(&text)?;
    Ok(())
}

pub fn settings(name: &str, settings: &[Setting], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return print_json(&settings);
    }
    if settings.is_empty() {
        print(&format!("nothing can be set for the plugin {name}\n"))?;
        return Ok(());
    }
    let written = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or("-".into());
    let head = ["SETTING", "TYPE", "DEFAULT", "SET TO", "WHERE"].map(str::to_owned).to_vec();
    let row = |setting: &Setting| {
        vec![
            setting.name.clone(),
            or_dash(Some(setting.kind.clone())),
            or_dash(setting.default.as_ref().map(written)),
            or_dash(setting.value.as_ref().map(written)),
            or_dash(setting.origin.clone()),
        ]
    };
    let mut text = table(&[vec![head], settings.iter().map(row).collect()].concat());
    let described = settings.iter().filter_map(|setting| {
        let secret = if setting.secret { " (secret)" } else { "" };
        let description = setting.description.as_deref()?;
        Some(vec![format!("  {}", setting.name), format!("{description}{secret}")])
    });
    let described: Vec<_> = described.collect();
    if !described.is_empty() {
        text += &format!("\n{}", table(&described));
    }
    print(&text)?;
    Ok(())
}

pub fn installed(report: &PluginReport, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return print_json(report);
    }
    let listed = &report.listed;
    let version = listed.version.as_deref().unwrap_or("");
    let mut text = match report.state {
        PluginState::Working => format!("{} {version} takes the calls from now on\n", listed.name),
        _ => format!("{} {version} is installed and counts from the next start on\n", listed.name),
    };
    for missing in &listed.not_granted {
        text += &format!(
            "not granted: {missing} (golem-provider plugin grant {} {missing})\n",
            listed.name
        );
    }
    print(&text)?;
    Ok(())
}

pub fn done(output: &Output, name: &str, what: &str) -> anyhow::Result<()> {
    if output.json {
        return print_json(&json!({ "plugin": name, "done": what }));
    }
    print(&format!("{what}\n"))?;
    Ok(())
}
