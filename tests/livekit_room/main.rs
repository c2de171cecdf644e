//! The LiveKit room over real connections to a real server, the one that `LIVEKIT_URL`, `LIVEKIT_API_KEY` and
//! `LIVEKIT_API_SECRET` name. Without `LIVEKIT_URL` these tests are left out, and say so.

mod basics;
#[cfg(feature = "server-livekit")]
mod cli;
mod faults;
mod kit;
mod others;
mod protocol;
mod reconnect;
mod rigged;
mod uplink;
