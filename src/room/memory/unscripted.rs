//! Stands in for the scripts of tests without the feature `test-util`: every stream opens, and takes every message.

use std::task::{Context, Poll};

use super::failure::ScriptedFailure;

#[derive(Debug, Default)]
pub(super) struct Script {}

impl Script {
    pub(super) fn poll_open(&self) -> Poll<Result<(), ScriptedFailure>> {
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_ready(&self, _: usize, _: usize, _: &Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        Poll::Ready(Ok(()))
    }

    pub(super) fn start_send(&self) -> Result<(), ScriptedFailure> {
        Ok(())
    }

    pub(super) fn poll_flush(&self, _: usize, _: &Context<'_>) -> Poll<Result<(), ScriptedFailure>> {
        Poll::Ready(Ok(()))
    }

    pub(super) fn closed(&self, _: usize) {}
}
