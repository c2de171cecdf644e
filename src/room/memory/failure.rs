//! The error of a stream that a test's script lets fail.

/// The error of a stream whose script says that it fails. Without the feature `test-util` no stream fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream's script says that it fails")]
pub struct ScriptedFailure;
