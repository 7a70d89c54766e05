//! What a developer's machine may lack. Continuous integration lacks nothing.

/// Passes on whether a test can be made, and says what it takes where it cannot.
///
/// # Panics
/// When it cannot be made in continuous integration, where everything has to be tested.
pub(crate) fn tell(possible: bool, needed: &str) -> bool {
    if !possible {
        let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        assert!(!in_ci, "{needed}, and everything is tested here");
        eprintln!("nothing is tested: {needed}");
    }
    possible
}
