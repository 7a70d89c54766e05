//! Makes a plugin's file: the component of a compiled module, with the plugin's manifest in a section of its own.
//!
//! A Rust compiler makes a core module. The types of what it imports and exports lie in sections that `wit-bindgen` put
//! there; [`pack`] makes a component out of both. The tools of other languages make a component themselves, which then only
//! lacks its manifest. The command `golem-provider plugin pack` and the build of the bundled plugins use it, so that both make
//! the same. Pure: bytes in, bytes out.

mod identity;

use identity::Made;
pub use identity::{Identity, Package};
use wasm_encoder::{ComponentSection, CustomSection};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

/// Name of the custom section that the provider reads a plugin's manifest from.
pub const MANIFEST_SECTION: &str = "golem:plugin-manifest";

/// How the binary form of a component begins; a core module has another number there.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A module cannot be made a plugin.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(
        "it is no WebAssembly module that exports a plugin's functions: {0}; give what the compiler made, such as target/wasm32-unknown-unknown/release/NAME.wasm, or a finished component"
    )]
    Module(String),
    #[error("it is no valid component: {0}")]
    Component(String),
    #[error(
        "it has a manifest already; give the component as the tools of its language have made it"
    )]
    HasManifest,
    #[error("the component of it would not be valid: {0}")]
    Encode(String),
    #[error("its manifest is wrong: {0}")]
    Manifest(String),
    #[error(
        "it exports no interface that makes it a plugin of some kind; see the worlds in `wit/`"
    )]
    NoKind,
}

/// What goes into a plugin's manifest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manifest<'a> {
    /// The text of its `plugin.toml`.
    pub stated: Option<&'a str>,
    /// What its `Cargo.toml` says.
    pub package: Option<&'a Package>,
    /// The JSON Schema of its settings.
    pub settings_schema: Option<&'a str>,
}

/// Puts the manifest into a component. A core module is made one first.
///
/// # Errors
/// When it is neither, when a module lacks the functions of a plugin, or when a component has a manifest; when the manifest makes
/// no sense or lacks something.
pub fn pack(bytes: &[u8], manifest: Manifest<'_>) -> Result<Vec<u8>, PackError> {
    let (mut component, exports) = match bytes.starts_with(COMPONENT) {
        true => (bytes.to_vec(), exports_of_component(bytes)?),
        false => (encode(bytes)?, exports_of_module(bytes)?),
    };
    let Manifest { stated, package, settings_schema } = manifest;
    let made = Made::of(exports);
    if let Some(text) = identity::manifest(stated, package, made, settings_schema)? {
        CustomSection { name: MANIFEST_SECTION.into(), data: text.as_bytes().into() }
            .append_to_component(&mut component);
    }
    Ok(component)
}

fn encode(module: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut encoder = ComponentEncoder::default();
    encoder
        .validate(true)
        .module(module)
        .map_err(|error| PackError::Module(format!("{error:#}")))?;
    encoder.encode().map_err(|error| PackError::Encode(format!("{error:#}")))
}

/// The names of what it exports. It has to be whole, and without a manifest.
fn exports_of_component(component: &[u8]) -> Result<Vec<String>, PackError> {
    let invalid = |error: wasmparser::BinaryReaderError| PackError::Component(error.to_string());
    Validator::new().validate_all(component).map_err(invalid)?;
    // How many components and modules within each other: a manifest counts in the outermost one.
    let mut depth = 0_usize;
    let mut exports = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(invalid)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 0 && section.name() == MANIFEST_SECTION => {
                return Err(PackError::HasManifest);
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(invalid)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(exports)
}

/// The names of the interfaces that the component of this module exports.
fn exports_of_module(module: &[u8]) -> Result<Vec<String>, PackError> {
    let (_, found) = wit_component::metadata::decode(module)
        .map_err(|error| PackError::Module(format!("{error:#}")))?;
    let interfaces = found.resolve.worlds[found.world].exports.keys();
    Ok(interfaces.map(|key| found.resolve.name_world_key(key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused_with_what_to_give_instead() {
        let error = pack(b"no wasm", Manifest::default()).unwrap_err();
        assert!(matches!(error, PackError::Module(_) | PackError::Encode(_)), "{error}");
        let cut_off = [COMPONENT, &[1, 200]].concat();
        let error = pack(&cut_off, Manifest::default()).unwrap_err();
        assert!(matches!(error, PackError::Component(_)), "{error}");
    }

    #[test]
    fn a_component_of_another_languages_tools_gets_its_manifest_once() {
        let asks = Manifest { stated: Some("grants = {}"), ..Manifest::default() };
        let packed = pack(COMPONENT, asks).unwrap();
        assert!(packed.starts_with(COMPONENT) && packed.ends_with(b"grants = {}"));
        assert!(matches!(pack(&packed, asks), Err(PackError::HasManifest)));
        // One of a component inside is not its own.
        let mut around = COMPONENT.to_vec();
        wasm_encoder::RawSection { id: 4, data: &packed }.append_to_component(&mut around);
        assert!(pack(&around, asks).is_ok());
    }
}
