//! The credentials for `--livekit`: a token, or the key and secret to mint one. They come from the environment, or from
//! a file that it names.
//!
//! They never come from the command line, which everybody on the host can read.

use std::time::Duration;

use lanecast::ParticipantIdentity;
use lanecast::room::livekit::TokenRequest;

use crate::Failure;

/// How long after it was minted a token may be used to connect.
const VALID: Duration = Duration::from_secs(600);

/// The environment variables, for `--help` and for the error if one is missing.
macro_rules! livekit_variables {
    () => {
        "LIVEKIT_TOKEN, or LIVEKIT_API_KEY and LIVEKIT_API_SECRET; append _FILE to a name to give a file that holds \
         the value. LIVEKIT_ROOM names the room [default: lanecast], LIVEKIT_IDENTITY this participant"
    };
}
pub(crate) use livekit_variables;

/// Where a token comes from.
#[derive(Clone)]
pub(crate) enum Access {
    Token(Secret),
    Key { key: String, secret: Secret, room: String, identity: ParticipantIdentity },
}

/// A secret, or the name of a file that holds it. The file is read each time the secret is needed.
#[derive(Clone)]
pub(crate) enum Secret {
    Text(String),
    File(String),
}

impl Access {
    /// Reads the environment. `identity` is the participant's identity, unless the environment names another one.
    pub(crate) fn of_environment(identity: &str) -> Result<Self, Failure> {
        if let Some(token) = Secret::of_environment("LIVEKIT_TOKEN") {
            return Ok(Self::Token(token));
        }
        let key = Secret::of_environment("LIVEKIT_API_KEY");
        let (Some(key), Some(secret)) = (key, Secret::of_environment("LIVEKIT_API_SECRET")) else {
            let say = "--livekit needs credentials in the environment";
            return Err(Failure::new(format!("{say}: {}", livekit_variables!())));
        };
        let room = variable("LIVEKIT_ROOM").unwrap_or_else(|| "lanecast".to_owned());
        let identity = variable("LIVEKIT_IDENTITY").unwrap_or_else(|| identity.to_owned());
        let identity = identity.parse().map_err(|error| Failure::new(format!("LIVEKIT_IDENTITY: {error}")))?;
        Ok(Self::Key { key: key.read().map_err(Failure::new)?, secret, room, identity })
    }

    /// The room that the credentials are for, in words.
    pub(crate) fn room(&self) -> String {
        match self {
            Self::Token(_) => "the token's room".to_owned(),
            Self::Key { room, .. } => format!("room {room:?}"),
        }
    }

    /// Returns a token to connect with now.
    pub(crate) fn token(&self) -> Result<String, String> {
        match self {
            Self::Token(token) => token.read(),
            Self::Key { key, secret, room, identity } => {
                let request = TokenRequest { key, secret: &secret.read()?, room, identity, valid_for: VALID };
                request.mint().map_err(|error| error.to_string())
            }
        }
    }
}

impl Secret {
    fn of_environment(name: &str) -> Option<Self> {
        variable(name).map(Self::Text).or_else(|| variable(&format!("{name}_FILE")).map(Self::File))
    }

    fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.trim().to_owned()),
            Self::File(file) => match std::fs::read_to_string(file) {
                Ok(text) if text.trim().is_empty() => Err(format!("{file} is empty")),
                Ok(text) => Ok(text.trim().to_owned()),
                Err(error) => Err(format!("{file} can't be read: {error}")),
            },
        }
    }
}

/// The value of an environment variable, unless it is empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
