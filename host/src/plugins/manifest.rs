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

use golem_provider_sdk_pack::Identity;
use regex::Regex;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{limits, plugin::Description, text};

/// Name of the custom section that holds the manifest.
pub const SECTION: &str = golem_provider_sdk_pack::MANIFEST_SECTION;

/// A plugin's own list, as it stands in its component.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(default)]
    grants: Asked,
    /// Who the plugin is. Absent in components that were packed without it.
    plugin: Option<Identity>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    programs: Vec<AskedProgram>,
    http: Vec<AskedServer>,
    sockets: Vec<AskedPath>,
    files: Vec<AskedPath>,
    loopback: Option<AskedPlain>,
    messages: Option<AskedPlain>,
    evm: Vec<AskedChain>,
    transactions: Vec<AskedContract>,
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

/// A server by its origin, or the one that the operator names in a setting of the plugin, which holds a URL.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum AskedServer {
    Origin { origin: String, reason: String },
    Setting { setting: String, reason: String },
}

impl AskedServer {
    /// As it is granted.
    fn value(&self) -> String {
        match self {
            Self::Origin { origin, .. } => origin.clone(),
            Self::Setting { setting, .. } => format!("{SETTING}{setting}"),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Origin { reason, .. } | Self::Setting { reason, .. } => reason,
        }
    }
}

/// How a server is granted that a setting names: `setting:url` is the one in the setting `url`.
const SETTING: &str = "setting:";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedChain {
    chain: String,
    /// A regular expression that a method's name matches as a whole. Without one, everything that reads.
    methods: Option<String>,
    reason: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct AskedContract {
    chain: String,
    to: String,
    /// Decimal; none is none.
    max_value_wei: Option<String>,
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
    pub messages: bool,
    pub evm: Vec<String>,
    pub transactions: Vec<String>,
}

impl GrantList {
    /// # Errors
    /// Something in it is none of its kind.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        Grants::of_list(self).map(drop)
    }
}

/// What can be granted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum GrantKind {
    /// Running a program, by its name, or by its path where it is not on the PATH
    Programs,
    /// Exchanges with a server, by scheme, host and port; `setting:NAME` is the one that this setting of the plugin names
    Http,
    /// Connecting to a unix socket, by its path
    Sockets,
    /// Reading a file, or what is in a directory
    Files,
    /// Connecting to TCP ports of this machine; the value is `true`
    Loopback,
    /// Signing texts with the provider's key; the value is `true`
    Messages,
    /// Asking a chain, by its name
    Evm,
    /// Sending transactions with the provider's key: CHAIN:CONTRACT, or CHAIN:CONTRACT:WEI where each may carry so much money
    Transactions,
}

impl GrantKind {
    pub const ALL: [Self; 8] = [
        Self::Programs,
        Self::Http,
        Self::Sockets,
        Self::Files,
        Self::Loopback,
        Self::Messages,
        Self::Evm,
        Self::Transactions,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Programs => "programs",
            Self::Http => "http",
            Self::Sockets => "sockets",
            Self::Files => "files",
            Self::Loopback => "loopback",
            Self::Messages => "messages",
            Self::Evm => "evm",
            Self::Transactions => "transactions",
        }
    }

    /// What follows `golem-provider plugin grant NAME` to grant this.
    ///
    /// The value may be a hostile plugin's, which hopes that somebody pastes it into a shell.
    pub fn arguments(self, value: &str) -> String {
        // Only NUL cannot be quoted, and nothing that has one can be granted.
        let printable = value.replace('\0', "");
        let value = shlex::try_quote(&printable).unwrap_or_default();
        format!("{} {value}", self.as_str())
    }

    /// Granted or not, without a choice in it.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Loopback | Self::Messages)
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
    pub kind: GrantKind,
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
    #[error("`{pattern}` is no regular expression for the {what} of {of}: {source}")]
    Pattern { what: &'static str, of: String, pattern: String, source: Box<regex::Error> },
    #[error("`{0}` is no chain's name, which has lower-case letters, digits and dashes")]
    Chain(String),
    #[error(
        "`{0}` names no contract: write CHAIN:0x… with 40 hex digits, and :WEI where it may carry money"
    )]
    Contract(String),
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

    /// Who the plugin is, as it stands there: whoever wrote it may have written anything.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.plugin.as_ref()
    }

    /// The same, as the plugin itself would say it.
    pub fn description(&self) -> Option<Description> {
        let identity = self.identity()?;
        let name = |text: &str| text::plain(text, limits::NAME_BYTES);
        Some(Description {
            name: name(&identity.name),
            version: name(&identity.version),
            summary: name(&identity.summary),
            license: name(&identity.license),
            settings_schema: identity.settings_schema.clone().unwrap_or_default(),
        })
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
        let path = |asked: &AskedPath| asked.path.display().to_string();
        let mut asks: Vec<Ask> = Vec::new();
        asks.extend(
            asked.programs.iter().map(|a| ask(GrantKind::Programs, a.name.clone(), &a.reason)),
        );
        asks.extend(asked.http.iter().map(|a| ask(GrantKind::Http, a.value(), a.reason())));
        asks.extend(asked.sockets.iter().map(|a| ask(GrantKind::Sockets, path(a), &a.reason)));
        asks.extend(asked.files.iter().map(|a| ask(GrantKind::Files, path(a), &a.reason)));
        asks.extend(asked.evm.iter().map(|a| ask(GrantKind::Evm, a.chain.clone(), &a.reason)));
        asks.extend(
            asked.transactions.iter().map(|a| ask(GrantKind::Transactions, a.value(), &a.reason)),
        );
        for (kind, plain) in
            [(GrantKind::Loopback, &asked.loopback), (GrantKind::Messages, &asked.messages)]
        {
            asks.extend(plain.iter().map(|a| ask(kind, "true".to_owned(), &a.reason)));
        }
        asks.sort();
        asks
    }

    fn asked(&self) -> GrantList {
        let program = |asked: &AskedProgram| ProgramGrant::Named(asked.name.clone());
        GrantList {
            programs: self.grants.programs.iter().map(program).collect(),
            http: self.grants.http.iter().map(AskedServer::value).collect(),
            sockets: self.grants.sockets.iter().map(|asked| asked.path.clone()).collect(),
            files: self.grants.files.iter().map(|asked| asked.path.clone()).collect(),
            loopback: self.grants.loopback.is_some(),
            messages: self.grants.messages.is_some(),
            evm: self.grants.evm.iter().map(|asked| asked.chain.clone()).collect(),
            transactions: self.grants.transactions.iter().map(AskedContract::value).collect(),
        }
    }

    /// The patterns for arguments that the plugin binds itself to, by program.
    fn argument_patterns(&self) -> Result<BTreeMap<String, Regex>, ManifestError> {
        let programs = self.grants.programs.iter();
        patterns("arguments", programs.map(|asked| (&asked.name, asked.arguments.as_ref())))
    }

    /// The same for methods, by chain.
    fn method_patterns(&self) -> Result<BTreeMap<String, Regex>, ManifestError> {
        let chains = self.grants.evm.iter();
        patterns("methods", chains.map(|asked| (&asked.chain, asked.methods.as_ref())))
    }
}

fn patterns<'a>(
    what: &'static str,
    asked: impl Iterator<Item = (&'a String, Option<&'a String>)>,
) -> Result<BTreeMap<String, Regex>, ManifestError> {
    let compiled = asked.filter_map(|(of, pattern)| {
        let pattern = pattern?;
        Some(match Regex::new(&format!("^(?:{pattern})$")) {
            Ok(regex) => Ok((of.clone(), regex)),
            Err(source) => Err(ManifestError::Pattern {
                what,
                of: of.clone(),
                pattern: pattern.clone(),
                source: Box::new(source),
            }),
        })
    });
    compiled.collect()
}

impl AskedContract {
    /// As it is granted.
    fn value(&self) -> String {
        match &self.max_value_wei {
            Some(most) => format!("{}:{}:{most}", self.chain, self.to),
            None => format!("{}:{}", self.chain, self.to),
        }
    }
}

/// A contract that may be sent transactions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Contract {
    chain: String,
    /// 20 bytes as lower-case hex, without `0x`.
    address: String,
}

impl Contract {
    fn new(chain: &str, address: &str) -> Option<Self> {
        let digits = address.strip_prefix("0x")?;
        let is_address = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_address && is_chain(chain))
            .then(|| Self { chain: chain.to_owned(), address: digits.to_ascii_lowercase() })
    }

    /// With how many wei one transaction may carry.
    fn granted(text: &str) -> Option<(Self, u128)> {
        let (chain, rest) = text.split_once(':')?;
        let (address, most) = match rest.split_once(':') {
            Some((address, most)) => (address, most.parse().ok()?),
            None => (rest, 0),
        };
        Some((Self::new(chain, address)?, most))
    }
}

fn is_chain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(allowed)
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
    /// Settings of the plugin that hold the URL of a server.
    server_settings: BTreeSet<String>,
    sockets: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    loopback: bool,
    messages: bool,
    chains: BTreeSet<String>,
    methods: BTreeMap<String, Regex>,
    /// With how many wei one transaction may carry.
    contracts: BTreeMap<Contract, u128>,
}

/// The plugin asked for something it was not granted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} is not granted to the plugin {plugin}; to allow it: golem-provider plugin grant {plugin} {arguments}", arguments = kind.arguments(value)
)]
pub struct Refused {
    what: String,
    plugin: String,
    kind: GrantKind,
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
        let methods = asked.method_patterns()?;
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
        reviewed.messages &= !revoked.messages;
        reviewed.server_settings.retain(|setting| !revoked.server_settings.contains(setting));
        reviewed.chains.retain(|chain| !revoked.chains.contains(chain));
        reviewed.contracts.retain(|contract, _| !revoked.contracts.contains_key(contract));

        let mut grants = Self::of_list(operator)?;
        grants.plugin = plugin.to_owned();
        grants.arguments = arguments;
        grants.methods = methods;
        for name in asked.programs.keys().filter(|name| reviewed.programs.contains_key(*name)) {
            // What the operator pinned stays pinned.
            grants.programs.entry(name.clone()).or_default();
        }
        grants.origins.extend(asked.origins.intersection(&reviewed.origins).cloned());
        grants.sockets.extend(asked.sockets.intersection(&reviewed.sockets).cloned());
        grants.files.extend(asked.files.intersection(&reviewed.files).cloned());
        grants.loopback |= asked.loopback && reviewed.loopback;
        grants.messages |= asked.messages && reviewed.messages;
        let both = asked.server_settings.intersection(&reviewed.server_settings);
        grants.server_settings.extend(both.cloned());
        grants.chains.extend(asked.chains.intersection(&reviewed.chains).cloned());
        for (contract, most_wei) in asked.contracts {
            if let Some(reviewed_wei) = reviewed.contracts.get(&contract) {
                let most_wei = most_wei.min(*reviewed_wei);
                let granted = grants.contracts.entry(contract).or_default();
                *granted = most_wei.max(*granted);
            }
        }
        Ok(grants)
    }

    /// Adds the servers that the operator named in the plugin's settings, where the plugin may have those.
    #[must_use]
    pub fn with_settings(mut self, settings: &serde_json::Value) -> Self {
        let named =
            self.server_settings.iter().filter_map(|setting| settings.get(setting)?.as_str());
        let origins = named.filter_map(|url| normal_origin(&Url::parse(url).ok()?));
        self.origins.extend(origins.collect::<Vec<_>>());
        self
    }

    fn of_list(list: &GrantList) -> Result<Self, ManifestError> {
        let mut grants =
            Self { loopback: list.loopback, messages: list.messages, ..Self::default() };
        for chain in &list.evm {
            if !is_chain(chain) {
                return Err(ManifestError::Chain(chain.clone()));
            }
            grants.chains.insert(chain.clone());
        }
        for text in &list.transactions {
            let (contract, most_wei) =
                Contract::granted(text).ok_or_else(|| ManifestError::Contract(text.clone()))?;
            grants.contracts.insert(contract, most_wei);
        }
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
            if let Some(setting) = origin.strip_prefix(SETTING) {
                grants.server_settings.insert(setting.to_owned());
                continue;
            }
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
            GrantKind::Programs => !self.programs.contains_key(&ask.value),
            GrantKind::Http => {
                if let Some(setting) = ask.value.strip_prefix(SETTING) {
                    return !self.server_settings.contains(setting);
                }
                let origin = Url::parse(&ask.value).ok().and_then(|url| normal_origin(&url));
                !origin.is_some_and(|origin| self.origins.contains(&origin))
            }
            GrantKind::Sockets => !self.sockets.contains(Path::new(&ask.value)),
            GrantKind::Files => !self.files.contains(Path::new(&ask.value)),
            GrantKind::Loopback => !self.loopback,
            GrantKind::Messages => !self.messages,
            GrantKind::Evm => !self.chains.contains(&ask.value),
            GrantKind::Transactions => {
                Contract::granted(&ask.value).is_none_or(|(contract, most_wei)| {
                    self.contracts.get(&contract).is_none_or(|granted| *granted < most_wei)
                })
            }
        };
        asks.iter().filter(missing).cloned().collect()
    }

    /// May this program be run? Its file, where one was granted; whatever its name leads to elsewhere.
    pub fn program(&self, name: &str) -> Result<Option<PathBuf>, Refused> {
        match self.programs.get(name) {
            Some(None) => Ok(None),
            Some(Some(pin)) => match pin.check() {
                Ok(path) => Ok(Some(path.to_owned())),
                Err(what) => Err(self.refused(
                    format!("running `{name}`: {what}; it"),
                    GrantKind::Programs,
                    name,
                )),
            },
            None => Err(self.refused(format!("running `{name}`"), GrantKind::Programs, name)),
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
            (format!("fetching from {origin}"), GrantKind::Http, origin.clone())
        })
    }

    /// By the path as the plugin says it: looking where it leads would tell the plugin what there is on this machine. What
    /// a granted path leads to is the operator's choice.
    pub fn socket(&self, path: &Path) -> Result<(), Refused> {
        self.require(self.sockets.contains(path), || {
            let path = path.display().to_string();
            (format!("connecting to {path}"), GrantKind::Sockets, path)
        })
    }

    /// To be asked twice: first about the path as the plugin says it, since looking where it leads would tell the plugin
    /// what there is on this machine; then about where it leads, with no symbolic link left in it.
    ///
    /// `path` has no `..` in it.
    pub fn file(&self, path: &Path) -> Result<(), Refused> {
        // A granted path may itself lead through a symbolic link, such as /home on some systems.
        let covered = self.files.iter().any(|granted| {
            path.starts_with(granted)
                || granted.canonicalize().is_ok_and(|granted| path.starts_with(granted))
        });
        self.require(covered, || {
            let path = path.display().to_string();
            (format!("reading {path}"), GrantKind::Files, path)
        })
    }

    pub fn loopback(&self) -> Result<(), Refused> {
        self.require(self.loopback, || {
            let what = "connecting to ports of this machine";
            (what.to_owned(), GrantKind::Loopback, "true".to_owned())
        })
    }

    pub fn messages(&self) -> Result<(), Refused> {
        self.require(self.messages, || {
            let what = "signing with the provider's key";
            (what.to_owned(), GrantKind::Messages, "true".to_owned())
        })
    }

    /// May this be asked of the chain? Never anything that signs or sends: that has a way of its own.
    pub fn evm(&self, chain: &str, method: &str) -> Result<(), EvmRefused> {
        self.require(self.chains.contains(chain), || {
            (format!("asking the chain {chain}"), GrantKind::Evm, chain.to_owned())
        })?;
        if !reads(method) {
            return Err(EvmRefused::Method(format!(
                "`{method}` does more than read, and is asked on nobody's behalf; to send a transaction there is `signer`"
            )));
        }
        match self.methods.get(chain).filter(|pattern| !pattern.is_match(method)) {
            None => Ok(()),
            Some(pattern) => Err(EvmRefused::Method(format!(
                "`{method}` does not fit the methods that the plugin's manifest says it uses: {pattern}"
            ))),
        }
    }

    /// May this be sent with the provider's key?
    pub fn transaction(&self, chain: &str, to: &str, value_wei: u128) -> Result<(), Refused> {
        let granted = Contract::new(chain, to).and_then(|contract| self.contracts.get(&contract));
        self.require(granted.is_some_and(|most_wei| value_wei <= *most_wei), || {
            let value = match value_wei {
                0 => format!("{chain}:{to}"),
                _ => format!("{chain}:{to}:{value_wei}"),
            };
            (format!("a transaction to {to} with {value_wei} wei"), GrantKind::Transactions, value)
        })
    }

    fn require(
        &self,
        granted: bool,
        refusal: impl FnOnce() -> (String, GrantKind, String),
    ) -> Result<(), Refused> {
        if granted {
            return Ok(());
        }
        let (what, kind, value) = refusal();
        Err(self.refused(what, kind, &value))
    }

    fn refused(&self, what: String, kind: GrantKind, value: &str) -> Refused {
        Refused { what, plugin: self.plugin.clone(), kind, value: value.to_owned() }
    }
}

/// Something was asked of a chain that may not be.
#[derive(Debug, thiserror::Error)]
pub enum EvmRefused {
    #[error(transparent)]
    NotGranted(#[from] Refused),
    #[error("{0}")]
    Method(String),
}

/// Does a method of a node only read? Those that sign, send or change the node do not, whatever a node calls them.
fn reads(method: &str) -> bool {
    let Some((namespace, name)) = method.split_once('_') else { return false };
    let acts = ["send", "sign", "submit", "accounts", "coinbase", "mining", "subscribe", "new"];
    let changes_the_node =
        ["personal", "admin", "miner", "debug", "engine", "clique", "hardhat", "anvil", "evm"];
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain(method)
        && !changes_the_node.contains(&namespace)
        && !acts.iter().any(|act| name.starts_with(act))
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
        let missing: Vec<_> =
            missing.iter().map(|ask| (ask.kind.as_str(), ask.value.as_str())).collect();
        assert_eq!(
            missing,
            [("programs", "rm"), ("http", "https://images.example:443/"), ("loopback", "true")]
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
    fn a_server_in_a_setting_is_whatever_the_operator_named_there() {
        let asked = manifest("[[grants.http]]\nsetting = \"url\"\nreason = \"the market\"");
        let none = GrantList::default();
        let settings =
            serde_json::json!({ "url": "http://127.0.0.1:9001/x", "other": "http://b.example" });
        let url = |text: &str| Url::parse(text).unwrap();
        let grants = Grants::new("m", &asked, Some(&asked), &none, &none).unwrap();
        assert!(grants.missing(&asked.asks()).is_empty());
        assert!(grants.http(&url("http://127.0.0.1:9001/")).is_err(), "before settings are known");
        let grants = grants.with_settings(&settings);
        assert!(grants.http(&url("http://127.0.0.1:9001/api")).is_ok());
        assert!(grants.http(&url("http://127.0.0.1:9002/api")).is_err());
        assert!(grants.http(&url("http://b.example/")).is_err(), "another setting");
        // A plugin that nobody reviewed needs the operator's word, and may have it.
        let grants = Grants::new("m", &asked, None, &none, &none).unwrap().with_settings(&settings);
        assert!(grants.http(&url("http://127.0.0.1:9001/")).is_err());
        assert_eq!(grants.missing(&asked.asks())[0].value, "setting:url");
        let operator: GrantList = toml::from_str("http = [\"setting:url\"]").unwrap();
        let grants = Grants::new("m", &asked, None, &operator, &none).unwrap();
        assert!(grants.with_settings(&settings).http(&url("http://127.0.0.1:9001/")).is_ok());
    }

    #[test]
    fn a_plugin_reads_a_chain_as_it_said_and_never_signs_by_that_way() {
        let asked = manifest(
            "[[grants.evm]]\nchain = \"golem-base\"\nmethods = \"eth_.*|golembase_.*\"\nreason = \"listings\"",
        );
        let none = GrantList::default();
        let grants = Grants::new("m", &asked, Some(&asked), &none, &none).unwrap();
        assert!(grants.evm("golem-base", "golembase_queryEntities").is_ok());
        assert!(grants.evm("golem-base", "eth_call").is_ok());
        assert!(grants.evm("golem-base", "net_version").is_err(), "not in its manifest");
        for acting in [
            "eth_sendRawTransaction",
            "eth_sign",
            "eth_signTransaction",
            "eth_accounts",
            "eth\u{0}_call",
        ] {
            assert!(grants.evm("golem-base", acting).is_err(), "{acting}");
        }
        let refusal = grants.evm("payments", "eth_call").unwrap_err().to_string();
        assert!(refusal.ends_with("golem-provider plugin grant m evm payments"), "{refusal}");
        for method in ["personal_unlockAccount", "anvil_setBalance", "eth", "debug_traceCall"] {
            assert!(!reads(method), "{method}");
        }
    }

    #[test]
    fn money_moves_only_to_a_granted_contract_and_no_more_than_granted() {
        let to = "0x00000000000000000000000000000000000000Aa";
        let asked = manifest(&format!(
            "[[grants.transactions]]\nchain = \"payments\"\nto = \"{to}\"\nmax-value-wei = \"10\"\nreason = \"x\""
        ));
        let none = GrantList::default();
        let reviewed = Grants::new("m", &asked, Some(&asked), &none, &none).unwrap();
        assert!(reviewed.transaction("payments", &to.to_lowercase(), 10).is_ok());
        assert!(reviewed.transaction("payments", to, 11).is_err());
        assert!(reviewed.transaction("golem-base", to, 0).is_err());
        let operator: GrantList =
            toml::from_str(&format!("transactions = [\"payments:{to}\"]")).unwrap();
        let foreign = Grants::new("m", &asked, None, &operator, &none).unwrap();
        assert!(foreign.transaction("payments", to, 0).is_ok());
        let refusal = foreign.transaction("payments", to, 1).unwrap_err().to_string();
        assert!(refusal.ends_with(&format!("plugin grant m transactions payments:{to}:1")));
        assert_eq!(foreign.missing(&asked.asks()).len(), 1, "ten wei were asked for, none granted");
        let revoked = Grants::new("m", &asked, Some(&asked), &none, &operator).unwrap();
        assert!(revoked.transaction("payments", to, 0).is_err());
    }

    #[test]
    fn grants_that_make_no_sense_are_refused_when_they_are_read() {
        for wrong in [
            "programs = [\"/bin/sh\"]",
            "http = [\"example.com\"]",
            "files = [\"relative\"]",
            "http = [\"ftp://example.com\"]",
            "evm = [\"Some Chain\"]",
            "transactions = [\"payments\"]",
            "transactions = [\"payments:0x12\"]",
            "transactions = [\"payments:0x00000000000000000000000000000000000000aa:-1\"]",
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
