//! How far a long call has come.

use crate::bindings::golem::provider::progress as import;

/// Says what is being done now, such as `downloading image`.
pub fn stage(stage: &str) {
    import::report(stage, None);
}

/// The same, with percent of the stage.
pub fn percent(stage: &str, percent: u8) {
    import::report(stage, Some(percent));
}
