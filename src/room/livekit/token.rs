//! Tokens, for hosts that have the server's key and secret.

use std::time::Duration;

use livekit_api::access_token::{AccessToken, AccessTokenError, VideoGrants};

use crate::ids::ParticipantIdentity;

/// Why no token was minted: the key or the secret is empty, or signing with them failed.
#[derive(Debug, thiserror::Error)]
#[error("no token could be minted: {0}")]
pub struct TokenError(#[from] AccessTokenError);

/// Mints a token with which `identity` may join `room` for the next `valid_for`, send and receive data, and change its
/// own attributes. It may publish no media.
///
/// A connection outlasts its token. A [supervised](super::LiveKitRoom::supervised) room asks for a fresh token each
/// time it connects.
///
/// # Errors
/// [`TokenError`] if no token could be minted.
pub fn mint_token(
    key: &str,
    secret: &str,
    room: &str,
    identity: &ParticipantIdentity,
    valid_for: Duration,
) -> Result<String, TokenError> {
    let grants = VideoGrants {
        room_join: true,
        room: room.to_owned(),
        can_publish: Some(false),
        can_subscribe: Some(true),
        can_publish_data: Some(true),
        can_update_own_metadata: Some(true),
        ..VideoGrants::default()
    };
    let token = AccessToken::with_api_key(key, secret).with_identity(identity.as_str()).with_grants(grants);
    Ok(token.with_ttl(valid_for).to_jwt()?)
}
