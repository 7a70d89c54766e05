//! What a plugin asks for, and what the operator granted: two lists, and a call needs both.
//!
//! A component carries its manifest in the custom section [`SECTION`]: TOML, written by the plugin's author, with a reason
//! for people beside everything asked for. Of a bundled plugin the whole list is granted, since it was reviewed with the
//! provider. For any other, and for whatever a bundled one asks beyond its own list, the operator writes
//! grants into the plugin's configuration file. What the operator writes there is granted to that plugin whether its
//! manifest asks for it or not, such as the directory of an image that no author could know of.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use url::Url;

/// Name of the custom section that holds the manifest.
pub const SECTION: &str = golem_provider_sdk_pack::MANIFEST_SECTION;

/// A plugin's own list, as it stands in its component.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(default)]
    grants: Asked,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    programs: Vec<AskedProgram>,
    http: Vec<AskedOrigin>,
    sockets: Vec<AskedPath>,
    files: Vec<AskedPath>,
    loopback: Option<AskedPlain>,
}

// The reasons are for people who read the manifest; nothing is decided by them, but none may be left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedProgram {
    name: String,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedOrigin {
    origin: String,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedPath {
    path: PathBuf,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedPlain {
    #[serde(rename = "reason")]
    _reason: String,
}

/// The operator's list: the table `[grants]` of the plugin's configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrantList {
    pub programs: Vec<String>,
    pub http: Vec<String>,
    pub sockets: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
    pub loopback: bool,
}

/// The manifest or a grant cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the plugin's manifest cannot be read: {0}")]
    Syntax(#[from] Box<toml::de::Error>),
    #[error("the plugin's file is damaged: {0}")]
    Damaged(&'static str),
    #[error("`{0}` is not a program's name: give the name alone, without a path")]
    Program(String),
    #[error(
        "`{0}` is not an origin: write scheme, host and, where it differs from the usual, port, such as https://example.com"
    )]
    Origin(String),
    #[error("`{0}` is not an absolute path")]
    Path(PathBuf),
}

impl Manifest {
    /// Reads the manifest out of a component. One without the section asks for nothing.
    pub fn of_component(component: &[u8]) -> Result<Self, ManifestError> {
        match Self::text_of_component(component)? {
            None => Ok(Self::default()),
            Some(text) => {
                toml::from_str(text).map_err(|error| ManifestError::Syntax(Box::new(error)))
            }
        }
    }

    /// The manifest as its author wrote it.
    pub fn text_of_component(component: &[u8]) -> Result<Option<&str>, ManifestError> {
        let text = custom_section(component, SECTION)?.map(std::str::from_utf8).transpose();
        text.map_err(|_| ManifestError::Damaged("its manifest is not text"))
    }

    fn asked(&self) -> GrantList {
        GrantList {
            programs: self.grants.programs.iter().map(|asked| asked.name.clone()).collect(),
            http: self.grants.http.iter().map(|asked| asked.origin.clone()).collect(),
            sockets: self.grants.sockets.iter().map(|asked| asked.path.clone()).collect(),
            files: self.grants.files.iter().map(|asked| asked.path.clone()).collect(),
            loopback: self.grants.loopback.is_some(),
        }
    }
}

/// What one plugin may use. Every import asks here, and nothing else decides.
#[derive(Debug, Default)]
pub struct Grants {
    /// For the text of refusals.
    configuration_file: PathBuf,
    programs: BTreeSet<String>,
    origins: BTreeSet<String>,
    sockets: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    loopback: bool,
}

/// The plugin asked for something it was not granted.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not granted to this plugin; to allow it, add {line} under [grants] in {file}", file = configuration_file.display())]
pub struct Refused {
    what: String,
    line: String,
    configuration_file: PathBuf,
}

impl Grants {
    /// `reviewed` is the manifest that the provider was shipped with for a plugin of this name. Of what the plugin asks for
    /// it gets what stands there too, and in any case what the operator granted.
    pub fn new(
        asked: &Manifest,
        reviewed: Option<&Manifest>,
        operator: &GrantList,
        configuration_file: PathBuf,
    ) -> Result<Self, ManifestError> {
        let asked = Self::of_list(&asked.asked(), PathBuf::new())?;
        let reviewed = match reviewed {
            Some(reviewed) => Self::of_list(&reviewed.asked(), PathBuf::new())?,
            None => Self::default(),
        };
        let operator = Self::of_list(operator, configuration_file)?;
        let both = |asked: &BTreeSet<String>, reviewed: &BTreeSet<String>| {
            asked.intersection(reviewed).cloned().collect::<Vec<_>>()
        };
        let both_paths = |asked: &BTreeSet<PathBuf>, reviewed: &BTreeSet<PathBuf>| {
            asked.intersection(reviewed).cloned().collect::<Vec<_>>()
        };
        let mut grants = operator;
        grants.programs.extend(both(&asked.programs, &reviewed.programs));
        grants.origins.extend(both(&asked.origins, &reviewed.origins));
        grants.sockets.extend(both_paths(&asked.sockets, &reviewed.sockets));
        grants.files.extend(both_paths(&asked.files, &reviewed.files));
        grants.loopback |= asked.loopback && reviewed.loopback;
        Ok(grants)
    }

    fn of_list(list: &GrantList, configuration_file: PathBuf) -> Result<Self, ManifestError> {
        let mut grants = Self { configuration_file, loopback: list.loopback, ..Self::default() };
        for program in &list.programs {
            if program.is_empty() || program.contains('/') {
                return Err(ManifestError::Program(program.clone()));
            }
            grants.programs.insert(program.clone());
        }
        for origin in &list.http {
            let normal = Url::parse(origin)
                .ok()
                .filter(|url| {
                    url.path() == "/" && url.query().is_none() && url.username().is_empty()
                })
                .and_then(|url| normal_origin(&url))
                .ok_or_else(|| ManifestError::Origin(origin.clone()))?;
            grants.origins.insert(normal);
        }
        for (from, to) in [(&list.sockets, &mut grants.sockets), (&list.files, &mut grants.files)] {
            for path in from {
                if !path.is_absolute() {
                    return Err(ManifestError::Path(path.clone()));
                }
                to.insert(path.components().collect());
            }
        }
        Ok(grants)
    }

    pub fn program(&self, name: &str) -> Result<(), Refused> {
        self.require(self.programs.contains(name), || {
            (format!("running `{name}`"), format!("programs = [{name:?}]"))
        })
    }

    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.programs.iter().map(String::as_str)
    }

    /// By scheme, host and port.
    pub fn http(&self, url: &Url) -> Result<(), Refused> {
        let origin = normal_origin(url).unwrap_or_else(|| url.scheme().to_owned());
        self.require(self.origins.contains(&origin), || {
            (format!("fetching from {origin}"), format!("http = [{origin:?}]"))
        })
    }

    pub fn socket(&self, path: &Path) -> Result<(), Refused> {
        self.require(self.sockets.contains(path), || {
            (format!("connecting to {}", path.display()), format!("sockets = [{path:?}]"))
        })
    }

    /// `path` has to be canonical: no symbolic link and no `..` may be left in it.
    pub fn file(&self, path: &Path) -> Result<(), Refused> {
        // A granted path may itself lead through a symbolic link, such as /home on some systems.
        let covered = self.files.iter().any(|granted| {
            path.starts_with(granted)
                || granted.canonicalize().is_ok_and(|granted| path.starts_with(granted))
        });
        self.require(covered, || {
            (format!("reading {}", path.display()), format!("files = [{path:?}]"))
        })
    }

    pub fn loopback(&self) -> Result<(), Refused> {
        self.require(self.loopback, || {
            ("connecting to ports of this machine".to_owned(), "loopback = true".to_owned())
        })
    }

    fn require(
        &self,
        granted: bool,
        refusal: impl FnOnce() -> (String, String),
    ) -> Result<(), Refused> {
        if granted {
            return Ok(());
        }
        let (what, line) = refusal();
        Err(Refused { what, line, configuration_file: self.configuration_file.clone() })
    }
}

/// `scheme://host[:port]` with the usual port left out; absent for anything but HTTP.
fn normal_origin(url: &Url) -> Option<String> {
    matches!(url.scheme(), "http" | "https").then(|| url.origin().ascii_serialization())
}

/// The contents of a component's custom section, out of its outermost level.
fn custom_section<'a>(component: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ManifestError> {
    const PREAMBLE_BYTES: usize = 8;
    const CUSTOM: u8 = 0;
    let mut rest = component
        .get(PREAMBLE_BYTES..)
        .ok_or(ManifestError::Damaged("it is too short to be a component"))?;
    while let Some((&id, after)) = rest.split_first() {
        let (content, after) = sized(after)?;
        if id == CUSTOM {
            let (section_name, data) = sized(content)?;
            if section_name == name.as_bytes() {
                return Ok(Some(data));
            }
        }
        rest = after;
    }
    Ok(None)
}

/// Splits off what a LEB128 length in front announces.
fn sized(bytes: &[u8]) -> Result<(&[u8], &[u8]), ManifestError> {
    const DAMAGED: ManifestError = ManifestError::Damaged("a section is longer than the file");
    let mut length: u32 = 0;
    for (index, &byte) in bytes.iter().take(5).enumerate() {
        let part = u32::from(byte & 0x7f);
        length |= part.checked_shl(7 * index as u32).ok_or(DAMAGED)?;
        if byte & 0x80 == 0 {
            return bytes[index + 1..].split_at_checked(length as usize).ok_or(DAMAGED);
        }
    }
    Err(DAMAGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        toml::from_str(text).unwrap()
    }

    fn component_with(name: &str, data: &[u8]) -> Vec<u8> {
        let mut content = vec![name.len() as u8];
        content.extend(name.as_bytes());
        content.extend(data);
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.extend([1, 2, 0xaa, 0xbb]);
        bytes.push(0);
        assert!(content.len() < 16_384);
        bytes.extend([(content.len() & 0x7f) as u8 | 0x80, (content.len() >> 7) as u8]);
        bytes.extend(content);
        bytes
    }

    const ASKS_TWO: &str = r#"
        [[grants.programs]]
        name = "qemu-img"
        reason = "makes disks"
        [[grants.programs]]
        name = "rm"
        reason = "tidies up"
        [[grants.http]]
        origin = "https://images.example:443/"
        reason = "images"
        [grants.loopback]
        reason = "waits for SSH"
    "#;

    #[test]
    fn a_manifest_is_read_from_its_section() {
        let bytes = component_with(SECTION, ASKS_TWO.as_bytes());
        let manifest = Manifest::of_component(&bytes).unwrap();
        assert_eq!(manifest.asked().programs, ["qemu-img", "rm"]);
        assert!(
            Manifest::of_component(&component_with("other", b"x")).unwrap().asked()
                == GrantList::default()
        );
    }

    #[test]
    fn a_cut_component_is_an_error_and_not_a_panic() {
        let bytes = component_with(SECTION, ASKS_TWO.as_bytes());
        for end in 0..bytes.len() {
            let _ = Manifest::of_component(&bytes[..end]);
        }
        assert!(Manifest::of_component(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_bundled_plugin_gets_what_was_reviewed_and_its_replacement_no_more() {
        let reviewed = manifest("[[grants.programs]]\nname = \"qemu-img\"\nreason = \"disks\"");
        let grants = Grants::new(
            &manifest(ASKS_TWO),
            Some(&reviewed),
            &GrantList::default(),
            "/c/qemu.toml".into(),
        )
        .unwrap();
        assert!(grants.program("qemu-img").is_ok());
        let refusal = grants.program("rm").unwrap_err().to_string();
        assert_eq!(
            refusal,
            "running `rm` is not granted to this plugin; to allow it, add programs = [\"rm\"] under [grants] in /c/qemu.toml"
        );
        assert!(grants.loopback().is_err());
    }

    #[test]
    fn a_foreign_plugin_gets_only_what_the_operator_grants() {
        let operator: GrantList =
            toml::from_str("http = [\"https://images.example\"]\nfiles = [\"/images/\"]").unwrap();
        let grants = Grants::new(&manifest(ASKS_TWO), None, &operator, PathBuf::new()).unwrap();
        assert!(grants.program("qemu-img").is_err());
        assert!(grants.http(&Url::parse("https://images.example/a.qcow2").unwrap()).is_ok());
        assert!(grants.http(&Url::parse("http://images.example/a.qcow2").unwrap()).is_err());
        assert!(grants.http(&Url::parse("https://images.example:8443/").unwrap()).is_err());
        assert!(grants.http(&Url::parse("https://images.example.evil.net/").unwrap()).is_err());
        assert!(grants.file(Path::new("/images/a.qcow2")).is_ok());
        assert!(grants.file(Path::new("/images-of-others/a.qcow2")).is_err());
    }

    #[test]
    fn grants_that_make_no_sense_are_refused_when_they_are_read() {
        for wrong in [
            "programs = [\"/bin/sh\"]",
            "http = [\"example.com\"]",
            "files = [\"relative\"]",
            "http = [\"ftp://example.com\"]",
        ] {
            let operator: GrantList = toml::from_str(wrong).unwrap();
            assert!(
                Grants::new(&Manifest::default(), None, &operator, PathBuf::new()).is_err(),
                "{wrong}"
            );
        }
        assert!(
            toml::from_str::<Manifest>("[[grants.programs]]\nname = \"a\"").is_err(),
            "a reason is missing"
        );
    }
}
