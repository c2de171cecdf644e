//! Publishes a machine's position at 20 Hz on ws://127.0.0.1:8765. Open it in Lichtblick or Foxglove, or watch it in a
//! terminal.
//!
//! ```sh
//! cargo run --features websocket --example telemetry
//! cargo run --features server -- watch            # in a second terminal
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use lanecast::room::websocket::WebSocketRoom;
use lanecast::telemetry::{Channel, Schema, Telemetry};
use serde::Serialize;

/// The messages of the channel `/position`.
#[derive(Serialize)]
struct Position {
    x_m: f64,
    y_m: f64,
}

/// The JSON Schema of [`Position`], which a viewer needs to plot the fields.
const POSITION: &str = r#"{
    "type": "object",
    "properties": {
        "x_m": { "type": "number", "description": "metres to the east" },
        "y_m": { "type": "number", "description": "metres to the north" }
    }
}"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8765".to_owned());
    // Desktop viewers send this origin. The origin of a web page would have to be allowed as well.
    let room = WebSocketRoom::builder().allow_origin("file://").bind(address).await?;
    println!("ws://{}", room.local_addr());
    let telemetry = Telemetry::builder(room).name("example").build()?;

    let schema = Schema::new("Position", "jsonschema", POSITION);
    let position = telemetry.advertise(Channel::new("/position", "json").schema(schema)).await?;

    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        if position.has_subscribers() {
            let (y_m, x_m) = began.elapsed().as_secs_f64().sin_cos();
            position.publish(serde_json::to_vec(&Position { x_m, y_m })?).await?;
        }
    }
    // Viewers receive their backlog, for one second at most.
    telemetry.close(Duration::from_secs(1)).await?;
    Ok(())
}
