//! `plugin new`: a project for a plugin, out of the files in `template/`.
//!
//! What it makes is a whole plugin whose machines, listings or payments are only remembered: it builds, passes its own tests and
//! what the conformance suite can try on it, and has one file in which a hypervisor, a place or a contract takes the place of memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use super::Unusable;

#[derive(Debug, Args)]
pub struct New {
    /// The plugin's name, which the project's directory gets too: a-z, 0-9 and `-`
    name: String,
    /// What the plugin is for
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// What it is written in
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
    /// Where the SDK is: a checkout of the provider, its directory `sdk`, or a git address
    #[arg(long, value_name = "PATH|URL")]
    sdk: String,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Kind {
    /// Makes and runs virtual machines
    #[default]
    VmBackend,
    /// Lists the provider where requestors look
    DiscoveryAdvertiser,
    /// Reads what requestors pay
    PaymentVerifier,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Language {
    #[default]
    Rust,
}

/// By kind and language: path in the project, and content with `@NAME@`, `@MODULE@` and `@SDK@` to be filled in.
const fn template(kind: Kind, language: Language) -> &'static [(&'static str, &'static str)] {
    match (kind, language) {
        (Kind::VmBackend, Language::Rust) => &[
            ("Cargo.toml", include_str!("template/vm-backend/Cargo.toml.in")),
            ("plugin.toml", include_str!("template/vm-backend/plugin.toml.in")),
            ("README.md", include_str!("template/vm-backend/README.md.in")),
            (".gitignore", include_str!("template/gitignore.in")),
            ("src/lib.rs", include_str!("template/vm-backend/src/lib.rs.in")),
            ("src/hypervisor.rs", include_str!("template/vm-backend/src/hypervisor.rs.in")),
            ("src/machine.rs", include_str!("template/vm-backend/src/machine.rs.in")),
            ("src/settings.rs", include_str!("template/vm-backend/src/settings.rs.in")),
        ],
        (Kind::DiscoveryAdvertiser, Language::Rust) => &[
            ("Cargo.toml", include_str!("template/discovery-advertiser/Cargo.toml.in")),
            ("plugin.toml", include_str!("template/discovery-advertiser/plugin.toml.in")),
            ("README.md", include_str!("template/discovery-advertiser/README.md.in")),
            (".gitignore", include_str!("template/gitignore.in")),
            ("src/lib.rs", include_str!("template/discovery-advertiser/src/lib.rs.in")),
            ("src/entry.rs", include_str!("template/discovery-advertiser/src/entry.rs.in")),
            ("src/place.rs", include_str!("template/discovery-advertiser/src/place.rs.in")),
            ("src/settings.rs", include_str!("template/discovery-advertiser/src/settings.rs.in")),
        ],
        (Kind::PaymentVerifier, Language::Rust) => &[
            ("Cargo.toml", include_str!("template/payment-verifier/Cargo.toml.in")),
            ("plugin.toml", include_str!("template/payment-verifier/plugin.toml.in")),
            ("README.md", include_str!("template/payment-verifier/README.md.in")),
            (".gitignore", include_str!("template/gitignore.in")),
            ("src/lib.rs", include_str!("template/payment-verifier/src/lib.rs.in")),
            ("src/payment.rs", include_str!("template/payment-verifier/src/payment.rs.in")),
            ("src/contract.rs", include_str!("template/payment-verifier/src/contract.rs.in")),
            ("src/settings.rs", include_str!("template/payment-verifier/src/settings.rs.in")),
        ],
    }
}

impl New {
    pub fn run(&self) -> Result<ExitCode, Unusable> {
        let directory = PathBuf::from(&self.name);
        self.make(&directory, &dependency(&self.sdk)?)?;
        println!("{} is made; its README.md says how to go on:", directory.display());
        println!("  cd {} && cargo test", directory.display());
        Ok(ExitCode::SUCCESS)
    }

    fn make(&self, directory: &Path, sdk: &str) -> Result<(), Unusable> {
        check_name(&self.name)?;
        let failed = |error: io::Error| Unusable::file("make", directory, error);
        // Not into one that is there: nothing of anybody's is overwritten.
        fs::create_dir(directory).map_err(failed)?;
        for (path, content) in template(self.kind, self.lang) {
            let content = content
                .replace("@NAME@", &self.name)
                .replace("@MODULE@", &self.name.replace('-', "_"))
                .replace("@SDK@", sdk);
            let file = directory.join(path);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent).map_err(failed)?;
            }
            fs::write(&file, content).map_err(failed)?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Unusable> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(allowed);
    if fits {
        return Ok(());
    }
    Err(Unusable(format!(
        "`{name}` cannot name a plugin: it begins with a letter, and has at most 64 of a-z, 0-9 and `-`"
    )))
}

/// The SDK as cargo's manifest has it.
fn dependency(sdk: &str) -> Result<String, Unusable> {
    if sdk.contains("://") || sdk.starts_with("git@") {
        return Ok(format!("{{ git = {} }}", toml::Value::from(sdk)));
    }
    let given = PathBuf::from(sdk);
    let found = [given.join("sdk"), given.clone()].into_iter().find(|directory| is_sdk(directory));
    let found = found.ok_or_else(|| {
        Unusable(format!(
            "{} is neither a checkout of the provider nor its directory `sdk`",
            given.display()
        ))
    })?;
    let path = found.canonicalize().map_err(|error| Unusable::file("use", &found, error))?;
    Ok(format!("{{ path = {} }}", toml::Value::from(path.to_string_lossy().into_owned())))
}

fn is_sdk(directory: &Path) -> bool {
    fs::read_to_string(directory.join("Cargo.toml"))
        .is_ok_and(|manifest| manifest.contains("name = \"golem-provider-sdk\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, kind: Kind) -> New {
        New { name: name.into(), kind, lang: Language::Rust, sdk: String::new() }
    }

    #[test]
    fn a_project_has_every_name_filled_in_and_takes_no_directory_that_is_there() {
        for kind in [Kind::VmBackend, Kind::DiscoveryAdvertiser, Kind::PaymentVerifier] {
            let directory = tempfile::tempdir().unwrap();
            let project = directory.path().join("my-plugin");
            let sdk = dependency(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap();
            new("my-plugin", kind).make(&project, &sdk).unwrap();
            for (path, _) in template(kind, Language::Rust) {
                let text = fs::read_to_string(project.join(path)).unwrap();
                for open in ["@NAME@", "@MODULE@", "@SDK@"] {
                    assert!(!text.contains(open), "{path}: {text}");
                }
            }
            let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
            let manifest: toml::Table = toml::from_str(&manifest).unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some("golem-plugin-my-plugin"));
            let sdk = manifest["dependencies"]["golem-provider-sdk"]["path"].as_str().unwrap();
            assert!(Path::new(sdk).join("src/lib.rs").is_file(), "{sdk}");
            assert!(new("my-plugin", kind).make(&project, "").is_err());
        }
    }

    #[test]
    fn a_name_that_could_not_be_a_plugins_is_refused() {
        for wrong in ["", "-a", "a-", "A", "a_b", "../a", "1a"] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
        assert!(check_name("my-backend2").is_ok());
    }

    #[test]
    fn the_sdk_is_a_checkout_or_a_git_address() {
        assert_eq!(
            dependency("https://git.example.org/provider.git").unwrap(),
            "{ git = \"https://git.example.org/provider.git\" }"
        );
        assert!(dependency("/nowhere").is_err());
    }
}
