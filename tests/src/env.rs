//! The only place of the tests that reads the environment.

/// The variable's value, if it is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "a test run is configured by CI and KUBEBUILDER_ASSETS"
)]
pub fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
