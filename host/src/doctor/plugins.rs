//! The plugins: whether each can work on this computer, has the programs that it asks for, and knows the default image.

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};

use super::{Check, State};
use crate::{
    plugins::{
        Finding, Severity,
        catalog::{Catalog, Loaded, PluginError},
        manifest::GrantKind,
    },
    settings::Settings,
};

/// What was found about one plugin that is switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    pub name: String,
    pub version: Option<String>,
    /// Why it cannot be used at all.
    pub problem: Option<String>,
    pub findings: Vec<Finding>,
    /// The programs that it asks for and may run.
    pub programs: Vec<Program>,
    /// The origins that it may fetch from.
    pub origins: Vec<String>,
    /// What it asks for and does not have, as `kind value`.
    pub not_granted: Vec<String>,
    /// The aliases that it knows.
    pub images: Vec<String>,
    pub images_problem: Option<String>,
}

/// A program that a plugin asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name, or its path.
    pub name: String,
    pub reason: String,
}

impl Examination {
    fn works(&self) -> bool {
        self.problem.is_none() && !self.findings.iter().any(Finding::blocks)
    }
}

/// Tries every plugin that is switched on, all at the same time. For whoever has their directories: the provider that runs, or
/// anybody where none does.
pub async fn examine(catalog: &Catalog) -> Vec<Examination> {
    let names = catalog.names().await;
    let examined = join_all(names.iter().map(|name| examine_one(catalog, name))).await;
    examined.into_iter().flatten().collect()
}

async fn examine_one(catalog: &Catalog, name: &str) -> Option<Examination> {
    let loaded = match catalog.load_named(name).await {
        Ok(loaded) => loaded,
        Err(PluginError::Disabled { .. }) => return None,
        Err(error) => {
            return Some(Examination {
                name: name.to_owned(),
                problem: Some(error.to_string()),
                ..Examination::default()
            });
        }
    };
    let granted = loaded.about.asks.iter().filter(|ask| !loaded.about.missing.contains(ask));
    let (programs, others): (Vec<_>, Vec<_>) =
        granted.partition(|ask| ask.kind == GrantKind::Programs);
    let mut examination = Examination {
        name: name.to_owned(),
        version: Some(loaded.about.version.clone()),
        problem: None,
        programs: programs
            .into_iter()
            .map(|ask| Program { name: ask.value.clone(), reason: ask.reason.clone() })
            .collect(),
        origins: others
            .into_iter()
            .filter(|ask| ask.kind == GrantKind::Http)
            .map(|ask| ask.value.clone())
            .collect(),
        not_granted: loaded
            .about
            .missing
            .iter()
            .map(|ask| ask.kind.arguments(&ask.value))
            .collect(),
        findings: loaded.findings,
        images: Vec::new(),
        images_problem: None,
    };
    if let (true, Loaded::VmBackend(backend)) = (examination.works(), loaded.plugin) {
        match backend.images().await {
            Ok(images) => {
                examination.images = images.into_iter().map(|image| image.alias).collect();
            }
            Err(error) => examination.images_problem = Some(error.to_string()),
        }
    }
    Some(examination)
}

pub(super) async fn checks(
    settings: Arc<Settings>,
    online: bool,
    examining: BoxFuture<'static, Result<Vec<Examination>, String>>,
) -> Vec<Check> {
    let examinations = match examining.await {
        Ok(examinations) => examinations,
        Err(reason) => return vec![Check::skipped("plugins", reason)],
    };
    let default = default_of(&examinations, settings.vm_backend.as_deref());
    let mut checks: Vec<Check> = examinations
        .iter()
        .flat_map(|examination| of_plugin(examination, is_there))
        // Where another one makes the machines, a plugin that cannot is no reason not to start.
        .map(|check| match (check.state, default) {
            (State::Fail, Some(_)) => Check { state: State::Warn, ..check },
            _ => check,
        })
        .collect();
    checks.push(of_default(default, settings.vm_backend.as_deref()));
    if let Some(default) = default {
        checks.push(of_image(default, &settings.vms.default_image));
        if online && !default.origins.is_empty() {
            let reached = any_answers(&default.origins).await;
            checks.push(of_downloads(&default.origins, reached));
        }
    }
    checks
}

/// The one that would make new machines.
fn default_of<'a>(
    examinations: &'a [Examination],
    wanted: Option<&str>,
) -> Option<&'a Examination> {
    examinations.iter().find(|examination| {
        examination.works() && wanted.is_none_or(|wanted| wanted == examination.name)
    })
}

fn of_default(default: Option<&Examination>, wanted: Option<&str>) -> Check {
    const NAME: &str = "backend";
    match (default, wanted) {
        (Some(default), _) => Check::ok(NAME, format!("new machines are made by {}", default.name)),
        (None, Some(wanted)) => Check::fail(
            NAME,
            format!("new machines are to be made by {wanted}, which cannot work"),
            format!(
                "mend what is said of the plugin {wanted}, or choose another: golem-provider plugin use vm-backend NAME"
            ),
        ),
        (None, None) => Check::fail(
            NAME,
            "no plugin can make machines on this computer",
            "mend what is said of one of the plugins, or install another: golem-provider plugin install FILE",
        ),
    }
}

/// What is said of one plugin, as if it were the only one.
fn of_plugin(examination: &Examination, is_there: impl Fn(&str) -> bool) -> Vec<Check> {
    let plugin = &examination.name;
    let name = format!("plugin {plugin}");
    if let Some(problem) = &examination.problem {
        let remedy = format!(
            "install another version of it, or do without: golem-provider plugin disable {plugin}"
        );
        return vec![Check::fail(&name, problem, remedy)];
    }
    let mut checks = Vec::new();
    let version = examination.version.as_deref().unwrap_or("?");
    if examination.works() {
        checks.push(Check::ok(&name, format!("version {version} can work here")));
    }
    for finding in &examination.findings {
        let remedy = finding.remedy.clone().unwrap_or_else(|| {
            format!("if that is no matter: nothing; without the plugin: golem-provider plugin disable {plugin}")
        });
        checks.push(match finding.severity {
            Severity::Info => Check::ok(&name, &finding.message),
            Severity::Warning => Check::warn(&name, &finding.message, remedy),
            Severity::Blocking => Check::fail(&name, &finding.message, remedy),
        });
    }
    for missing in &examination.not_granted {
        checks.push(Check::warn(
            &name,
            format!("it asks for {missing} and may not use it"),
            format!("golem-provider plugin grant {plugin} {missing}"),
        ));
    }
    checks.extend(of_programs(examination, is_there));
    checks
}

/// A plugin may ask for programs of which it needs only one, or none on this computer; so a missing one is wrong only where
/// the plugin says that it cannot work.
fn of_programs(examination: &Examination, is_there: impl Fn(&str) -> bool) -> Option<Check> {
    let (there, missing): (Vec<&Program>, Vec<&Program>) =
        examination.programs.iter().partition(|program| is_there(&program.name));
    if examination.programs.is_empty() {
        return None;
    }
    let name = format!("programs of {}", examination.name);
    let names = |programs: &[&Program]| {
        programs.iter().map(|program| program.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    if missing.is_empty() {
        return Some(Check::ok(&name, format!("{} are there", names(&there))));
    }
    if examination.works() {
        return Some(Check::ok(
            &name,
            format!("{} are there; not needed or not there: {}", names(&there), names(&missing)),
        ));
    }
    let reasons: Vec<String> =
        missing.iter().map(|program| format!("{} ({})", program.name, program.reason)).collect();
    Some(Check::warn(
        &name,
        format!("not there: {}", reasons.join("; ")),
        "install what is needed, with the system's package manager",
    ))
}

/// Is this a file that can be run, or the name of one in the `PATH`?
fn is_there(program: &str) -> bool {
    let can_run = |path: PathBuf| {
        path.is_file() && rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return can_run(program.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).any(|directory| can_run(directory.join(program)))
}

fn of_image(examination: &Examination, image: &str) -> Check {
    const NAME: &str = "image";
    let plugin = &examination.name;
    let known = examination.images.join(", ");
    match &examination.images_problem {
        Some(problem) => Check::fail(
            NAME,
            format!("{plugin} cannot say which images there are: {problem}"),
            "look at the images in its configuration",
        ),
        None if examination.images.iter().any(|alias| alias == image) => {
            Check::ok(NAME, format!("{plugin} knows {known}; the default is {image}"))
        }
        None => Check::fail(
            NAME,
            format!("the default image is {image}, and {plugin} knows {known}"),
            "choose one of those with GOLEM_PROVIDER_DEFAULT_VM_IMAGE, or add it to the plugin's configuration",
        ),
    }
}

/// Whether any of them answers, whatever it says.
async fn any_answers(origins: &[String]) -> bool {
    const DEADLINE: Duration = Duration::from_secs(5);
    let Ok(client) = reqwest::Client::builder().timeout(DEADLINE).build() else { return false };
    let asked = join_all(origins.iter().map(|origin| client.head(origin).send())).await;
    asked.iter().any(Result::is_ok)
}

fn of_downloads(origins: &[String], reached: bool) -> Check {
    const NAME: &str = "image downloads";
    match reached {
        true => Check::ok(NAME, "images that are not here yet can be fetched"),
        false => Check::warn(
            NAME,
            format!(
                "none of {} can be reached: only images that are here already, or lie in local files, can be used",
                origins.join(", ")
            ),
            "check the network and its proxy, or add a local image to the plugin's configuration",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding { severity, message: "KVM is missing".into(), remedy: Some("load it".into()) }
    }

    fn qemu(findings: Vec<Finding>) -> Examination {
        Examination {
            name: "qemu".into(),
            version: Some("0.1.0".into()),
            findings,
            programs: vec![
                Program { name: "qemu-img".into(), reason: "makes disks".into() },
                Program { name: "nft".into(), reason: "keeps machines away".into() },
            ],
            images: vec!["24.04".into()],
            ..Examination::default()
        }
    }

    fn states(checks: &[Check]) -> Vec<State> {
        checks.iter().map(|check| check.state).collect()
    }

    #[test]
    fn what_a_probe_finds_is_shown_with_its_remedy() {
        let everything = |_: &str| true;
        assert_eq!(states(&of_plugin(&qemu(vec![]), everything)), [State::Ok, State::Ok]);
        let slow = of_plugin(&qemu(vec![finding(Severity::Warning)]), everything);
        assert_eq!(states(&slow), [State::Ok, State::Warn, State::Ok]);
        assert_eq!(slow[1].remedy.as_deref(), Some("load it"));
        let blocked = of_plugin(&qemu(vec![finding(Severity::Blocking)]), everything);
        assert_eq!(states(&blocked), [State::Fail, State::Ok]);
        let broken = Examination { problem: Some("no component".into()), ..qemu(vec![]) };
        assert_eq!(states(&of_plugin(&broken, everything)), [State::Fail]);
    }

    #[test]
    fn a_missing_program_is_wrong_only_where_the_plugin_cannot_work() {
        let only = |there: &'static str| move |program: &str| program == there;
        let works = of_programs(&qemu(vec![]), only("qemu-img")).unwrap();
        assert_eq!(works.state, State::Ok);
        assert!(works.sentence.ends_with("not there: nft"), "{}", works.sentence);
        let blocked = of_programs(&qemu(vec![finding(Severity::Blocking)]), only("nft")).unwrap();
        assert_eq!(blocked.state, State::Warn);
        assert!(blocked.sentence.contains("qemu-img (makes disks)"), "{}", blocked.sentence);
    }

    #[test]
    fn the_backend_is_the_one_that_is_wanted_or_the_first_that_works() {
        let blocked = qemu(vec![finding(Severity::Blocking)]);
        let other = Examination { name: "other".into(), ..qemu(vec![]) };
        let all = [blocked, other];
        assert_eq!(default_of(&all, None).unwrap().name, "other");
        assert!(default_of(&all, Some("qemu")).is_none());
        assert_eq!(of_default(None, Some("qemu")).state, State::Fail);
        assert_eq!(of_default(None, None).state, State::Fail);
        assert_eq!(of_default(default_of(&all, Some("other")), Some("other")).state, State::Ok);
    }

    #[test]
    fn the_default_image_has_to_be_one_that_the_backend_knows() {
        assert_eq!(of_image(&qemu(vec![]), "24.04").state, State::Ok);
        let unknown = of_image(&qemu(vec![]), "25.10");
        assert_eq!(unknown.state, State::Fail);
        assert!(unknown.sentence.contains("qemu knows 24.04"), "{}", unknown.sentence);
    }

    #[test]
    fn a_program_is_looked_for_where_the_system_keeps_them() {
        assert!(is_there("sh") && is_there("/bin/sh"));
        assert!(!is_there("/bin") && !is_there("no-such-program-at-all"));
    }
}
