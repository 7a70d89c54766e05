//! Makes a plugin's file: the component of a compiled module, with the plugin's manifest in a section of its own.
//!
//! A Rust compiler makes a core module. The types of what it imports and exports lie in sections that `wit-bindgen` put
//! there; [`pack`] makes a component out of both. The tools of other languages make a component themselves, which then only
//! lacks its manifest. The command `golem-provider plugin pack` and the build of the bundled plugins use it, so that both make
//! the same. Pure: bytes in, bytes out.

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
}

/// Puts the text of the manifest into a component. A core module is made one first.
///
/// # Errors
/// When it is neither, when a module lacks the functions of a plugin, or when a component has a manifest.
pub fn pack(bytes: &[u8], manifest: Option<&str>) -> Result<Vec<u8>, PackError> {
    let mut component = if bytes.starts_with(COMPONENT) {
        check(bytes)?;
        bytes.to_vec()
    } else {
        encode(bytes)?
    };
    if let Some(text) = manifest {
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

/// Is it whole, and without a manifest?
fn check(component: &[u8]) -> Result<(), PackError> {
    let invalid = |error: wasmparser::BinaryReaderError| PackError::Component(error.to_string());
    Validator::new().validate_all(component).map_err(invalid)?;
    // How many components and modules within each other: a manifest counts in the outermost one.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(invalid)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 0 && section.name() == MANIFEST_SECTION => {
                return Err(PackError::HasManifest);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused_with_what_to_give_instead() {
        let error = pack(b"no wasm", None).unwrap_err();
        assert!(matches!(error, PackError::Module(_) | PackError::Encode(_)), "{error}");
        let cut_off = [COMPONENT, &[1, 200]].concat();
        assert!(matches!(pack(&cut_off, None), Err(PackError::Component(_))));
    }

    #[test]
    fn a_component_of_another_languages_tools_gets_its_manifest_once() {
        let packed = pack(COMPONENT, Some("grants = {}")).unwrap();
        assert!(packed.starts_with(COMPONENT) && packed.ends_with(b"grants = {}"));
        assert!(matches!(pack(&packed, Some("grants = {}")), Err(PackError::HasManifest)));
        // One of a component inside is not its own.
        let mut around = COMPONENT.to_vec();
        wasm_encoder::RawSection { id: 4, data: &packed }.append_to_component(&mut around);
        assert!(pack(&around, Some("grants = {}")).is_ok());
    }
}
