//! The plugins inside the binary: `(name, component)`, put together by `build.rs` out of what `cargo xtask plugins` built.

/// In the order of preference: the first one of a kind that can work on this machine is the default.
pub const BUNDLED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// The bundled component of this name.
pub fn find(name: &str) -> Option<&'static [u8]> {
    BUNDLED.iter().find(|(bundled, _)| *bundled == name).map(|(_, component)| *component)
}
