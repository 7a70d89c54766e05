//! What a plugin asks for, and what the operator granted: two lists, and a call needs both.
//!
//! A component carries its manifest in the custom section [`SECTION`]: TOML, written by the plugin's author, with a reason
//! for people beside everything asked for. Of a bundled plugin the whole list is granted, since it was reviewed with the
//! provider. For any other, and for whatever a bundled one asks beyond its own list, the operator writes
//! grants into the plugin's configuration file. What the operator writes there is granted to that plugin whether its
//! manifest asks for it or not, such as the directory of an image that no author could know of.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use regex::Regex;
use serde::{Deserialize, Serialize};
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

// The reasons are for people who decide about grants; nothing is decided by them here, but none may be left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedProgram {
    name: String,
    /// A regular expression that all arguments, with a space between two, match as a whole. Without one, any arguments.
    arguments: Option<String>,
    reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedOrigin {
    origin: String,
    reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedPath {
    path: PathBuf,
    reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedPlain {
    reason: String,
}

/// The operator's list: the table `[grants]` of the plugin's configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrantList {
    pub programs: Vec<ProgramGrant>,
    pub http: Vec<String>,
    pub sockets: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
    pub loopback: bool,
}

impl GrantList {
    /// # Errors
    /// Something in it is none of its kind.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        Grants::of_list(self).map(drop)
    }
}

/// A program that may be run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ProgramGrant {
    /// Whatever file of that name the operator's shell would find.
    Named(String),
    /// Exactly this file.
    Pinned(Pin),
}

/// A file as it was when it was granted. One that was replaced, or given to another user, is another file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub name: String,
    pub path: PathBuf,
    pub inode: u64,
    /// The number of the user whose file it is.
    pub owner: u32,
}

impl ProgramGrant {
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Pinned(pin) => &pin.name,
        }
    }
}

impl Pin {
    /// The file as it is now, with no symbolic link left in its path.
    ///
    /// # Errors
    /// It is not there, or no file.
    pub fn of(name: &str, path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let metadata = path.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        Ok(Self { name: name.to_owned(), path, inode: metadata.ino(), owner: metadata.uid() })
    }

    /// The file, if it is the one that was granted.
    fn check(&self) -> Result<&Path, String> {
        let path = self.path.display();
        match Self::of(&self.name, &self.path) {
            Ok(now) if now == *self => Ok(&self.path),
            Ok(_) => Err(format!("{path} is another file than the one that was granted")),
            Err(error) => Err(format!("{path}, which was granted, cannot be used: {error}")),
        }
    }
}

/// One thing that a plugin asks for, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ask {
    /// As in the table of grants: `programs`, `http`, `sockets`, `files`, `loopback`.
    pub kind: &'static str,
    pub value: String,
    pub reason: String,
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
    #[error("`{pattern}` is no regular expression for the arguments of {program}: {source}")]
    Arguments { program: String, pattern: String, source: Box<regex::Error> },
}

impl Manifest {
    /// Reads the manifest out of a component. One without the section asks for nothing.
    pub fn of_component(component: &[u8]) -> Result<Self, ManifestError> {
        match custom_section(component, SECTION)? {
            None => Ok(Self::default()),
            Some(bytes) => {
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| ManifestError::Damaged("its manifest is not text"))?;
                toml::from_str(text).map_err(|error| ManifestError::Syntax(Box::new(error)))
            }
        }
    }

    /// Is all that it asks for something that can be granted?
    pub fn check(&self) -> Result<(), ManifestError> {
        Grants::of_list(&self.asked())?;
        self.argument_patterns().map(drop)
    }

    /// All that it asks for, sorted.
    pub fn asks(&self) -> Vec<Ask> {
        let asked = &self.grants;
        let ask =
            |kind, value: String, reason: &str| Ask { kind, value, reason: reason.to_owned() };
        let mut asks: Vec<Ask> = Vec::new();
        asks.extend(asked.programs.iter().map(|a| ask("programs", a.name.clone(), &a.reason)));
        asks.extend(asked.http.iter().map(|a| ask("http", a.origin.clone(), &a.reason)));
        asks.extend(
            asked.sockets.iter().map(|a| ask("sockets", a.path.display().to_string(), &a.reason)),
        );
        asks.extend(
            asked.files.iter().map(|a| ask("files", a.path.display().to_string(), &a.reason)),
        );
        asks.extend(asked.loopback.iter().map(|a| ask("loopback", "true".to_owned(), &a.reason)));
        asks.sort();
        asks
    }

    fn asked(&self) -> GrantList {
        let program = |asked: &AskedProgram| ProgramGrant::Named(asked.name.clone());
        GrantList {
            programs: self.grants.programs.iter().map(program).collect(),
            http: self.grants.http.iter().map(|asked| asked.origin.clone()).collect(),
            sockets: self.grants.sockets.iter().map(|asked| asked.path.clone()).collect(),
            files: self.grants.files.iter().map(|asked| asked.path.clone()).collect(),
            loopback: self.grants.loopback.is_some(),
        }
    }

    /// The patterns that the plugin binds itself to, by program.
    fn argument_patterns(&self) -> Result<BTreeMap<String, Regex>, ManifestError> {
        let patterns = self.grants.programs.iter().filter_map(|asked| {
            let pattern = asked.arguments.as_ref()?;
            let compiled = Regex::new(&format!("^(?:{pattern})$"));
            Some(match compiled {
                Ok(regex) => Ok((asked.name.clone(), regex)),
                Err(source) => Err(ManifestError::Arguments {
                    program: asked.name.clone(),
                    pattern: pattern.clone(),
                    source: Box::new(source),
                }),
            })
        });
        patterns.collect()
    }
}

/// What one plugin may use. Every import asks here, and nothing else decides.
#[derive(Debug, Default)]
pub struct Grants {
    /// For the text of refusals.
    plugin: String,
    /// With the file, where it was granted as such.
    programs: BTreeMap<String, Option<Pin>>,
    arguments: BTreeMap<String, Regex>,
    origins: BTreeSet<String>,
    sockets: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    loopback: bool,
}

/// The plugin asked for something it was not granted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} is not granted to the plugin {plugin}; to allow it: golem-provider plugin grant {plugin} {kind} {value}"
)]
pub struct Refused {
    what: String,
    plugin: String,
    kind: &'static str,
    value: String,
}

impl Grants {
    /// `reviewed` is the manifest that the provider was shipped with for a plugin of this name. Of what the plugin asks for
    /// it gets what stands there too, but for what the operator `revoked`, and in any case what the operator granted.
    pub fn new(
        plugin: &str,
        asked: &Manifest,
        reviewed: Option<&Manifest>,
        operator: &GrantList,
        revoked: &GrantList,
    ) -> Result<Self, ManifestError> {
        let arguments = asked.argument_patterns()?;
        let asked = Self::of_list(&asked.asked())?;
        let mut reviewed = match reviewed {
            Some(reviewed) => Self::of_list(&reviewed.asked())?,
            None => Self::default(),
        };
        let revoked = Self::of_list(revoked)?;
        reviewed.programs.retain(|name, _| !revoked.programs.contains_key(name));
        reviewed.origins.retain(|origin| !revoked.origins.contains(origin));
        reviewed.sockets.retain(|path| !revoked.sockets.contains(path));
        reviewed.files.retain(|path| !revoked.files.contains(path));
        reviewed.loopback &= !revoked.loopback;

        let mut grants = Self::of_list(operator)?;
        grants.plugin = plugin.to_owned();
        grants.arguments = arguments;
        for name in asked.programs.keys().filter(|name| reviewed.programs.contains_key(*name)) {
            // What the operator pinned stays pinned.
            grants.programs.entry(name.clone()).or_default();
        }
        grants.origins.extend(asked.origins.intersection(&reviewed.origins).cloned());
        grants.sockets.extend(asked.sockets.intersection(&reviewed.sockets).cloned());
        grants.files.extend(asked.files.intersection(&reviewed.files).cloned());
        grants.loopback |= asked.loopback && reviewed.loopback;
        Ok(grants)
    }

    fn of_list(list: &GrantList) -> Result<Self, ManifestError> {
        let mut grants = Self { loopback: list.loopback, ..Self::default() };
        for program in &list.programs {
            let name = program.name();
            if name.is_empty() || name.contains('/') {
                return Err(ManifestError::Program(name.to_owned()));
            }
            let pin = match program {
                ProgramGrant::Named(_) => None,
                ProgramGrant::Pinned(pin) => Some(pin.clone()),
            };
            grants.programs.insert(name.to_owned(), pin);
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

    /// Those of `asks` that are not granted.
    pub fn missing(&self, asks: &[Ask]) -> Vec<Ask> {
        let missing = |ask: &&Ask| match ask.kind {
            "programs" => !self.programs.contains_key(&ask.value),
            "http" => {
                let origin = Url::parse(&ask.value).ok().and_then(|url| normal_origin(&url));
                !origin.is_some_and(|origin| self.origins.contains(&origin))
            }
            "sockets" => !self.sockets.contains(Path::new(&ask.value)),
            "files" => !self.files.contains(Path::new(&ask.value)),
            _ => !self.loopback,
        };
        asks.iter().filter(missing).cloned().collect()
    }

    /// May this program be run? Its file, where one was granted; whatever its name leads to elsewhere.
    pub fn program(&self, name: &str) -> Result<Option<PathBuf>, Refused> {
        match self.programs.get(name) {
            Some(None) => Ok(None),
            Some(Some(pin)) => match pin.check() {
                Ok(path) => Ok(Some(path.to_owned())),
                Err(what) => {
                    Err(self.refused(format!("running `{name}`: {what}; it"), "programs", name))
                }
            },
            None => Err(self.refused(format!("running `{name}`"), "programs", name)),
        }
    }

    /// May the program be run like this? By the pattern that the plugin itself gave.
    pub fn arguments(&self, program: &str, arguments: &[String]) -> Result<(), String> {
        let Some(pattern) = self.arguments.get(program) else { return Ok(()) };
        let line = arguments.join(" ");
        if pattern.is_match(&line) {
            return Ok(());
        }
        Err(format!(
            "`{program} {line}` does not fit the arguments that the plugin's manifest says it uses: {pattern}"
        ))
    }

    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }

    /// By scheme, host and port.
    pub fn http(&self, url: &Url) -> Result<(), Refused> {
        let origin = normal_origin(url).unwrap_or_else(|| url.scheme().to_owned());
        self.require(self.origins.contains(&origin), || {
            (format!("fetching from {origin}"), "http", origin.clone())
        })
    }

    pub fn socket(&self, path: &Path) -> Result<(), Refused> {
        self.require(self.sockets.contains(path), || {
            let path = path.display().to_string();
            (format!("connecting to {path}"), "sockets", path)
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
            let path = path.display().to_string();
            (format!("reading {path}"), "files", path)
        })
    }

    pub fn loopback(&self) -> Result<(), Refused> {
        self.require(self.loopback, || {
            let what = "connecting to ports of this machine";
            (what.to_owned(), "loopback", "true".to_owned())
        })
    }

    fn require(
        &self,
        granted: bool,
        refusal: impl FnOnce() -> (String, &'static str, String),
    ) -> Result<(), Refused> {
        if granted {
            return Ok(());
        }
        let (what, kind, value) = refusal();
        Err(self.refused(what, kind, &value))
    }

    fn refused(&self, what: String, kind: &'static str, value: &str) -> Refused {
        Refused { what, plugin: self.plugin.clone(), kind, value: value.to_owned() }
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
        let names: Vec<_> = manifest.asked().programs.iter().map(|p| p.name().to_owned()).collect();
        assert_eq!(names, ["qemu-img", "rm"]);
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
        let none = GrantList::default();
        let grants =
            Grants::new("qemu", &manifest(ASKS_TWO), Some(&reviewed), &none, &none).unwrap();
        assert!(grants.program("qemu-img").is_ok());
        let refusal = grants.program("rm").unwrap_err().to_string();
        assert_eq!(
            refusal,
            "running `rm` is not granted to the plugin qemu; to allow it: golem-provider plugin grant qemu programs rm"
        );
        assert!(grants.loopback().is_err());
        let missing = grants.missing(&manifest(ASKS_TWO).asks());
        let missing: Vec<_> = missing.iter().map(|ask| (ask.kind, ask.value.as_str())).collect();
        assert_eq!(
            missing,
            [("http", "https://images.example:443/"), ("loopback", "true"), ("programs", "rm")]
        );
        let revoked: GrantList = toml::from_str("programs = [\"qemu-img\"]").unwrap();
        let grants =
            Grants::new("qemu", &manifest(ASKS_TWO), Some(&reviewed), &none, &revoked).unwrap();
        assert!(grants.program("qemu-img").is_err());
    }

    #[test]
    fn a_granted_file_that_was_replaced_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "one").unwrap();
        let pin = Pin::of("tool", &file).unwrap();
        let text = toml::to_string(&BTreeMap::from([("programs", vec![&pin])])).unwrap();
        let operator: GrantList = toml::from_str(&text).unwrap();
        assert_eq!(operator.programs, [ProgramGrant::Pinned(pin)]);
        let none = GrantList::default();
        let grants = Grants::new("x", &Manifest::default(), None, &operator, &none).unwrap();
        assert_eq!(grants.program("tool").unwrap(), Some(file.canonicalize().unwrap()));
        std::fs::write(directory.path().join("other"), "two").unwrap();
        std::fs::rename(directory.path().join("other"), &file).unwrap();
        let refusal = grants.program("tool").unwrap_err().to_string();
        assert!(refusal.contains("another file than the one that was granted"), "{refusal}");
        assert!(refusal.ends_with("golem-provider plugin grant x programs tool"), "{refusal}");
    }

    #[test]
    fn a_program_is_run_only_with_arguments_that_the_manifest_names() {
        let asked = manifest(
            "[[grants.programs]]\nname = \"qemu-img\"\nreason = \"disks\"\narguments = \"(create|info) .*\"",
        );
        let none = GrantList::default();
        let grants = Grants::new("qemu", &asked, Some(&asked), &none, &none).unwrap();
        let run = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            grants.arguments("qemu-img", &words)
        };
        assert!(run("info disk").is_ok());
        assert!(run("convert disk /etc/shadow").unwrap_err().contains("(create|info) .*"));
        assert!(run("-x info disk").is_err(), "the whole line has to match");
    }

    #[test]
    fn a_foreign_plugin_gets_only_what_the_operator_grants() {
        let operator: GrantList =
            toml::from_str("http = [\"https://images.example\"]\nfiles = [\"/images/\"]").unwrap();
        let grants =
            Grants::new("x", &manifest(ASKS_TWO), None, &operator, &GrantList::default()).unwrap();
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
            let none = GrantList::default();
            assert!(
                Grants::new("x", &Manifest::default(), None, &operator, &none).is_err(),
                "{wrong}"
            );
        }
        assert!(
            toml::from_str::<Manifest>("[[grants.programs]]\nname = \"a\"").is_err(),
            "a reason is missing"
        );
    }
}
