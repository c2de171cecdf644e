//! Tokens, for hosts that have the server's key and secret.

use std::fmt;
use std::time::Duration;

use livekit_api::access_token::{AccessToken, AccessTokenError, VideoGrants};

use crate::ids::ParticipantIdentity;

/// Why no token was minted: the key or the secret is empty, or signing with them failed.
#[derive(Debug, thiserror::Error)]
#[error("no token could be minted: {0}")]
pub struct TokenError(#[from] AccessTokenError);

/// What a token is for, and the server's key and secret to sign it with.
///
/// With the token, [`identity`](Self::identity) may join [`room`](Self::room), send and receive data, and change its
/// own attributes. It may publish no media.
#[derive(Clone, Copy)]
pub struct TokenRequest<'a> {
    /// The server's API key.
    pub key: &'a str,
    /// The secret of that key.
    pub secret: &'a str,
    /// The name of the room.
    pub room: &'a str,
    /// The identity under which this host joins. A participant that is in the room under it already is displaced.
    pub identity: &'a ParticipantIdentity,
    /// How long the token may be used to connect. A connection outlasts its token; a
    /// [supervised](super::LiveKitRoomBuilder::connect_supervised) room asks for a fresh one each time it connects.
    pub valid_for: Duration,
}

impl TokenRequest<'_> {
    /// Mints the token.
    ///
    /// # Errors
    /// [`TokenError`] if no token could be minted.
    pub fn mint(&self) -> Result<String, TokenError> {
        let grants = VideoGrants {
            room_join: true,
            room: self.room.to_owned(),
            can_publish: Some(false),
            can_subscribe: Some(true),
            can_publish_data: Some(true),
            can_update_own_metadata: Some(true),
            ..VideoGrants::default()
        };
        let token = AccessToken::with_api_key(self.key, self.secret);
        let token = token.with_identity(self.identity.as_str()).with_grants(grants).with_ttl(self.valid_for);
        Ok(token.to_jwt()?)
    }
}

/// Shows everything but the secret.
impl fmt::Debug for TokenRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRequest")
            .field("key", &self.key)
            .field("room", &self.room)
            .field("identity", &self.identity)
            .field("valid_for", &self.valid_for)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let identity = "ada".parse().unwrap();
        let valid_for = Duration::from_secs(1);
        let request = TokenRequest { key: "devkey", secret: "hush", room: "yard", identity: &identity, valid_for };
        let shown = format!("{request:?}");
        assert!(shown.contains("devkey") && !shown.contains("hush"), "{shown}");
    }
}
