//! Makes a plugin's file: the component of a compiled module, with the plugin's manifest in a section of its own.
//!
//! A Rust compiler makes a core module. The types of what it imports and exports lie in sections that `wit-bindgen` put
//! there; [`pack`] makes a component out of both. The command `golem-provider plugin pack` and the build of the bundled
//! plugins use it, so that both make the same. Pure: bytes in, bytes out.

mod identity;

use identity::Made;
pub use identity::{Identity, Package};
use wasm_encoder::{ComponentSection, CustomSection};
use wit_component::ComponentEncoder;

/// Name of the custom section that the provider reads a plugin's manifest from.
pub const MANIFEST_SECTION: &str = "golem:plugin-manifest";

/// How the binary form of a component begins; a core module has another number there.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A module cannot be made a plugin.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(
        "it is a component already; give the module that the compiler made, such as target/wasm32-unknown-unknown/release/NAME.wasm"
    )]
    Component,
    #[error("it is no WebAssembly module that exports a plugin's functions: {0}")]
    Module(String),
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

/// Makes a component of a core module, and puts the manifest into it.
///
/// # Errors
/// When the module is none, or lacks the functions of a plugin; when the manifest makes no sense or lacks something.
pub fn pack(module: &[u8], manifest: Manifest<'_>) -> Result<Vec<u8>, PackError> {
    if module.starts_with(COMPONENT) {
        return Err(PackError::Component);
    }
    let mut encoder = ComponentEncoder::default();
    encoder
        .validate(true)
        .module(module)
        .map_err(|error| PackError::Module(format!("{error:#}")))?;
    let mut component =
        encoder.encode().map_err(|error| PackError::Encode(format!("{error:#}")))?;
    let Manifest { stated, package, settings_schema } = manifest;
    let made = Made::of(exports(module)?);
    if let Some(text) = identity::manifest(stated, package, made, settings_schema)? {
        CustomSection { name: MANIFEST_SECTION.into(), data: text.as_bytes().into() }
            .append_to_component(&mut component);
    }
    Ok(component)
}

/// The names of the interfaces that the component of this module exports.
fn exports(module: &[u8]) -> Result<Vec<String>, PackError> {
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
        let error = pack(COMPONENT, Manifest::default()).unwrap_err().to_string();
        assert!(error.contains("wasm32-unknown-unknown"), "{error}");
        assert!(matches!(
            pack(b"no wasm", Manifest::default()),
            Err(PackError::Module(_) | PackError::Encode(_))
        ));
    }
}
