//! Publishes a machine's temperature at 2 Hz to everybody in a LiveKit room. The environment names the server and the
//! token:
//!
//! ```sh
//! export LIVEKIT_URL=ws://127.0.0.1:7880 LIVEKIT_TOKEN=…
//! cargo run --features livekit --example livekit
//! ```

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use lanecast::room::livekit::LiveKitRoom;
use lanecast::telemetry::{Channel, Schema, Telemetry};

const TEMPERATURE: &str = r#"{ "type": "object", "properties": { "celsius": { "type": "number" } } }"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (url, token) = (env::var("LIVEKIT_URL")?, env::var("LIVEKIT_TOKEN")?);
    // With `connect_supervised` instead, the room is joined again, with a new token, when the connection is lost.
    let room = LiveKitRoom::builder(url).connect(&token).await?;
    let telemetry = Telemetry::builder(room.clone()).name("example").build()?;

    let schema = Schema::new("Temperature", "jsonschema", TEMPERATURE);
    let temperature = telemetry.advertise(Channel::new("/temperature", "json").schema(schema)).await?;
    println!("publishing /temperature");

    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
            ended = telemetry.session().ended() => {
                ended?;
                return Err("the LiveKit room was closed".into());
            }
        }
        if temperature.has_subscribers() {
            let celsius = 20.0 + began.elapsed().as_secs_f64().sin();
            temperature.publish(format!(r#"{{"celsius":{celsius:.3}}}"#)).await?;
        }
    }
    telemetry.close(Duration::from_secs(1)).await?;
    room.close().await;
    Ok(())
}
