//! Keeps a room connected to its server.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::driver::{Driver, Ended, Loss};
use super::error::LiveKitError;
use super::link::Link;
use super::shared::{Config, Connection};
use crate::room::RoomClosed;
use crate::time::Backoff;

/// The back-off of a room whose connection is lost. After a connection that lasted longer than the longest wait, it
/// starts again with the first.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

type Token = Pin<Box<dyn Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send>>;

/// The server's address, and the source of tokens.
pub(super) struct Tokens {
    url: String,
    mint: Box<dyn Fn() -> Token + Send + Sync>,
}

impl Tokens {
    pub(super) fn new<F, Fut, E>(url: String, mint: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mint = move || -> Token {
            let minted = mint();
            Box::pin(async move { minted.await.map_err(Into::into) })
        };
        Self { url, mint: Box::new(mint) }
    }

    pub(super) async fn connect(&self, config: &Config) -> Result<Link, LiveKitError> {
        let token = (self.mint)().await.map_err(LiveKitError::Token)?;
        Link::connect(&self.url, &token, config).await
    }
}

/// Serves one connection after the other until the room is closed or a loss is final; without `tokens`, serves only
/// `link`.
pub(super) async fn run(mut driver: Driver, mut link: Link, tokens: Option<Tokens>) {
    let shared = Arc::clone(&driver.shared);
    let _stopped = shared.stopped.clone().drop_guard();
    let mut attempts = 0;
    loop {
        let since = Instant::now();
        let lost = match driver.serve(&mut link).await {
            Ended::Stopped => {
                driver.leave(&link).await;
                break;
            }
            Ended::Lost(error) => error,
        };
        tracing::warn!(error = %lost, "the room is lost");
        let Some(tokens) = tokens.as_ref().filter(|_| !lost.is_final()) else {
            driver.remove_all(Loss::Final(RoomClosed::new(lost))).await;
            driver.leave(&link).await;
            break;
        };
        if since.elapsed() > BACKOFF.longest {
            attempts = 0;
        }
        shared.connection.send_replace(Connection::Down { attempts, error: Arc::new(lost) });
        driver.remove_all(Loss::Temporary).await;
        driver.leave(&link).await;
        let again = async {
            loop {
                sleep(BACKOFF.wait(attempts)).await;
                attempts += 1;
                match tokens.connect(&shared.config).await {
                    Ok(link) => return link,
                    Err(error) => {
                        tracing::warn!(%error, attempts, "not connected to the room");
                        shared.connection.send_replace(Connection::Down { attempts, error: Arc::new(error) });
                    }
                }
            }
        };
        let Some(next) = shared.stop.run_until_cancelled(again).await else { break };
        link = next;
        tracing::info!("connected to the room again");
        let here = driver.take_over(&link);
        driver.announce(here).await;
    }
    shared.link.store(None);
    shared.connection.send_replace(Connection::Closed);
}
