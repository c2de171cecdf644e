//! What lingering saves a server of WebSockets, and what it costs in latency.
//!
//! `cargo bench -p lanecast-benches --features websocket --bench linger` measures each load without and with a linger,
//! in turns, in one run. The viewers are in a process of their own, so the processor time is the server's alone. The
//! latency is the time from the call to publish to the moment at which a viewer has read the message.
//!
//! `-- --rounds N` sets the number of rounds, `--seconds S` the length of a window, `--direct N` adds direct messages
//! to one viewer after the other, N a second, which end the gathering. With `--only TEXT` the loads whose name contains
//! TEXT are measured.

#[cfg(not(unix))]
fn main() {
    println!("skipped: the processor time of a process is read on Unix only");
}

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    unix::main()
}

#[cfg(unix)]
mod unix {
    use std::cell::RefCell;
    use std::error::Error;
    use std::net::SocketAddr;
    use std::process::{Child, Command, Stdio};
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    use hdrhistogram::Histogram;
    use lanecast::protocol::Frame;
    use lanecast::room::websocket::WebSocketRoom;
    use lanecast::telemetry::{AdvertisedChannel, Channel, Telemetry};
    use lanecast_benches::clock::{ClockId, clock};
    use lanecast_benches::quantile::quantile;
    use rustix::process::{Resource, getrlimit, setrlimit};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::runtime::{Builder, Runtime};
    use tokio::task::{JoinSet, LocalSet};

    type Fallible<T> = Result<T, Box<dyn Error>>;

    /// Channels, over which the messages are spread evenly.
    const CHANNELS: usize = 50;
    /// Bytes of a message's payload. It begins with the time at which it was published.
    const PAYLOAD: usize = 100;
    /// Bytes before the payload of a message: opcode, subscription id and log time.
    const HEAD: usize = 1 + 4 + 8;
    /// The time for which messages flow before they count.
    const WARM_UP: Duration = Duration::from_millis(500);

    /// What is published to whom.
    #[derive(Clone, Copy)]
    struct Load {
        viewers: usize,
        /// Messages a second.
        rate: u32,
        lingers: &'static [Duration],
    }

    const fn ms(lingers: u64) -> Duration {
        Duration::from_millis(lingers)
    }

    /// For a test that the bench works.
    const SMALL: Load = Load { viewers: 20, rate: 200, lingers: &[ms(0), ms(20)] };

    const LOADS: [Load; 2] = [
        Load { viewers: 1_000, rate: 200, lingers: &[ms(0), ms(20), ms(50)] },
        Load { viewers: 200, rate: 1_000, lingers: &[ms(0), ms(5), ms(20)] },
    ];

    impl Load {
        fn name(&self) -> String {
            format!("{} viewers, {} messages/s", self.viewers, self.rate)
        }
    }

    struct Options {
        rounds: usize,
        window: Duration,
        direct: u32,
        loads: Vec<Load>,
    }

    impl Options {
        fn parse(arguments: &[String]) -> Fallible<Self> {
            let value = |name: &str| arguments.iter().position(|given| given == name).map(|at| &arguments[at + 1]);
            let number = |name: &str, default: u32| value(name).map_or(Ok(default), |text| text.parse());
            let only = value("--only").map_or("", String::as_str);
            if arguments.iter().any(|argument| argument == "--test") {
                return Ok(Self { rounds: 1, window: ms(500), direct: 10, loads: vec![SMALL] });
            }
            Ok(Self {
                rounds: number("--rounds", 5)? as usize,
                window: Duration::from_secs(number("--seconds", 5)?.into()),
                direct: number("--direct", 0)?,
                loads: LOADS.into_iter().filter(|load| load.name().contains(only)).collect(),
            })
        }
    }

    pub(super) fn main() -> Fallible<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        if let [mode, address, viewers, ..] = &arguments[..]
            && mode == "--view"
        {
            return view_all(address.parse()?, viewers.parse()?);
        }
        let options = Options::parse(&arguments)?;
        for load in &options.loads {
            measure(load, &options)?;
        }
        Ok(())
    }

    /// What one window showed.
    struct Seen {
        /// Cores that the server's process kept busy.
        cores: f64,
        /// Processor time of the server for each message that a viewer got, in microseconds.
        delivery: f64,
        viewed: Viewed,
    }

    /// What the viewers' process reports.
    struct Viewed {
        messages: u64,
        p50: f64,
        p99: f64,
    }

    fn measure(load: &Load, options: &Options) -> Fallible<()> {
        println!("\n{}, over {CHANNELS} channels; {} direct messages/s", load.name(), options.direct);
        let mut rounds: Vec<Vec<Seen>> = Vec::new();
        for round in 0..options.rounds {
            let mut seen: Vec<Option<Seen>> = load.lingers.iter().map(|_| None).collect();
            // Another linger begins each round.
            for turn in 0..load.lingers.len() {
                let at = (round + turn) % load.lingers.len();
                seen[at] = Some(window(load, load.lingers[at], options)?);
            }
            rounds.push(seen.into_iter().flatten().collect());
        }
        println!(
            "| linger | cores | per delivery | of none's | p50 | p99 | above none's |\n|---|---|---|---|---|---|---|"
        );
        for (at, linger) in load.lingers.iter().enumerate() {
            let over = |value: &dyn Fn(&Seen, &Seen) -> f64| {
                let values: Vec<f64> = rounds.iter().map(|round| value(&round[at], &round[0])).collect();
                let at = |place| quantile(values.iter().copied(), place);
                format!("{:.2} ({:.2}-{:.2})", at(0.5), at(0.0), at(1.0))
            };
            println!(
                "| {linger:?} | {} | {} µs | {} | {} ms | {} ms | {} ms |",
                over(&|seen, _| seen.cores),
                over(&|seen, _| seen.delivery),
                over(&|seen, none| seen.delivery / none.delivery),
                over(&|seen, _| seen.viewed.p50),
                over(&|seen, _| seen.viewed.p99),
                over(&|seen, none| seen.viewed.p99 - none.viewed.p99),
            );
        }
        Ok(())
    }

    /// Runs a server with this linger and its viewers, and measures one window.
    fn window(load: &Load, linger: Duration, options: &Options) -> Fallible<Seen> {
        allow_open_files(load.viewers as u64 + 200)?;
        let server = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (address, telemetry) = server.block_on(async {
            let room = WebSocketRoom::builder().bind("127.0.0.1:0").await?;
            let address = room.local_addr();
            let telemetry = Telemetry::builder(room).configure(|session| session.linger(linger)).build()?;
            Ok::<_, Box<dyn Error>>((address, telemetry))
        })?;
        let mut channels = Vec::new();
        for number in 0..CHANNELS {
            channels.push(server.block_on(telemetry.advertise(Channel::new(format!("/c{number}"), "raw")))?);
        }
        let viewers = Command::new(std::env::current_exe()?)
            .args(["--view", &address.to_string(), &load.viewers.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut viewers = Killed(viewers);
        while channels.iter().any(|channel| channel.subscribers() < load.viewers) {
            assert!(viewers.0.try_wait()?.is_none(), "the viewers ended early");
            std::thread::sleep(ms(20));
        }
        let mut publisher = Pacer { channels: &channels, server: &server, telemetry: &telemetry, load, options };
        publisher.publish(WARM_UP, false)?;
        let before = clock(ClockId::ProcessCPUTime);
        let begun = Instant::now();
        let published = publisher.publish(options.window, true)?;
        // The last messages are on their way.
        std::thread::sleep(linger);
        let used = (clock(ClockId::ProcessCPUTime) - before).as_secs_f64();
        let cores = used / begun.elapsed().as_secs_f64();
        server.block_on(telemetry.close(Duration::from_secs(10)))?;
        let viewed = viewers.report()?;
        assert_eq!(viewed.messages, published * load.viewers as u64, "every viewer gets every message");
        Ok(Seen { cores, delivery: used * 1e6 / viewed.messages as f64, viewed })
    }

    /// Raises the limit of open files to `wanted`, as far as the system allows.
    fn allow_open_files(wanted: u64) -> Fallible<()> {
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < wanted) {
            limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
            setrlimit(Resource::Nofile, limit)?;
        }
        Ok(())
    }

    /// Publishes at an even pace, from a thread outside the server's runtime.
    struct Pacer<'a> {
        channels: &'a [AdvertisedChannel],
        server: &'a Runtime,
        telemetry: &'a Telemetry,
        load: &'a Load,
        options: &'a Options,
    }

    impl Pacer<'_> {
        /// Publishes for `span`. The viewers count the messages if they `count`. Returns the number of messages.
        fn publish(&mut self, span: Duration, count: bool) -> Fallible<u64> {
            let _inside = self.server.enter();
            let begun = Instant::now();
            let (rate, direct) = (f64::from(self.load.rate), f64::from(self.options.direct));
            let (mut published, mut sent) = (0_u64, 0_u64);
            loop {
                let elapsed = begun.elapsed();
                if elapsed >= span {
                    return Ok(published);
                }
                while published as f64 <= elapsed.as_secs_f64() * rate {
                    let mut payload = vec![0; PAYLOAD];
                    let now = if count { nanos(clock(ClockId::Monotonic)) } else { 0 };
                    payload[..8].copy_from_slice(&now.to_le_bytes());
                    let channel = &self.channels[published as usize % self.channels.len()];
                    self.server.block_on(channel.publish(payload))?;
                    published += 1;
                }
                while direct > 0.0 && sent as f64 <= elapsed.as_secs_f64() * direct {
                    self.send_one(sent);
                    sent += 1;
                }
                let next = Duration::from_secs_f64(published as f64 / rate);
                let next = if direct > 0.0 { next.min(Duration::from_secs_f64(sent as f64 / direct)) } else { next };
                std::thread::sleep(next.saturating_sub(begun.elapsed()));
            }
        }

        /// Sends a message that no viewer counts to one of the viewers.
        fn send_one(&self, number: u64) {
            let participants = self.telemetry.session().participants();
            let to = &participants[number as usize % participants.len()];
            to.send(Frame::text("{}")).expect("the viewer keeps up");
        }
    }

    fn nanos(span: Duration) -> u64 {
        u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The viewers' process, which ends with this.
    struct Killed(Child);

    impl Killed {
        fn report(&mut self) -> Fallible<Viewed> {
            let mut text = String::new();
            let mut out = self.0.stdout.take().ok_or("the output was taken")?;
            std::io::Read::read_to_string(&mut out, &mut text)?;
            self.0.wait()?;
            let mut words = text.split_whitespace();
            let mut next = || words.next().ok_or_else(|| format!("the viewers say {text:?}"));
            Ok(Viewed { messages: next()?.parse()?, p50: next()?.parse()?, p99: next()?.parse()? })
        }
    }

    impl Drop for Killed {
        fn drop(&mut self) {
            // It is not an error that the process has ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The viewers' process: connects them, and reports what they have read when the server has closed all connections.
    fn view_all(address: SocketAddr, viewers: usize) -> Fallible<()> {
        allow_open_files(viewers as u64 + 200)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let latencies = Rc::new(RefCell::new(Histogram::<u64>::new(3)?));
        LocalSet::new().block_on(&runtime, async {
            let mut tasks = JoinSet::new();
            for _ in 0..viewers {
                let latencies = Rc::clone(&latencies);
                tasks.spawn_local(async move { view(address, &latencies).await.map_err(|error| error.to_string()) });
            }
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok::<_, Box<dyn Error>>(())
        })?;
        let latencies = latencies.borrow();
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        println!("{} {} {}", latencies.len(), at(0.5), at(0.99));
        Ok(())
    }

    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n";

    /// One viewer. It reads as much as there is with each call, and costs far less than the server.
    async fn view(address: SocketAddr, latencies: &RefCell<Histogram<u64>>) -> Fallible<()> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(UPGRADE.as_bytes()).await?;
        let (mut buffer, mut upgraded, mut subscribed) = (Vec::with_capacity(16 << 10), false, false);
        loop {
            buffer.reserve(4 << 10);
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            let read = clock(ClockId::Monotonic);
            let mut at = 0;
            if !upgraded {
                let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
                upgraded = true;
                at = end + 4;
            }
            while let Some((opcode, payload, next)) = frame(&buffer, at) {
                match opcode {
                    0x1 if !subscribed && contains(payload, b"\"advertise\"") => {
                        subscribed = true;
                        stream.write_all(&masked(0x1, subscription().as_bytes())).await?;
                    }
                    0x2 if payload.first() == Some(&1) && payload.len() == HEAD + PAYLOAD => {
                        let published = u64::from_le_bytes(payload[HEAD..HEAD + 8].try_into()?);
                        if published > 0 {
                            latencies.borrow_mut().record(nanos(read).saturating_sub(published))?;
                        }
                    }
                    0x8 => {
                        stream.write_all(&masked(0x8, payload)).await?;
                    }
                    0x9 => stream.write_all(&masked(0xA, payload)).await?,
                    _ => {}
                }
                at = next;
            }
            buffer.drain(..at);
        }
    }

    /// The frame at `at`, if it is complete: its opcode, its payload, and where the next one begins. A server's frames
    /// aren't masked.
    fn frame(buffer: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
        let head = buffer.get(at..at + 2)?;
        let (begin, length) = match head[1] {
            126 => (at + 4, usize::from(u16::from_be_bytes(buffer.get(at + 2..at + 4)?.try_into().ok()?))),
            127 => {
                let length = u64::from_be_bytes(buffer.get(at + 2..at + 10)?.try_into().ok()?);
                (at + 10, usize::try_from(length).ok()?)
            }
            short => (at + 2, usize::from(short)),
        };
        Some((head[0] & 0xF, buffer.get(begin..begin + length)?, begin + length))
    }

    /// A client's frame, whose mask changes nothing.
    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                let length = u16::try_from(payload.len()).expect("a viewer sends nothing longer");
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    fn subscription() -> String {
        let each = |id| format!(r#"{{"id":{id},"channelId":{id}}}"#);
        let all: Vec<String> = (1..=CHANNELS).map(each).collect();
        format!(r#"{{"op":"subscribe","subscriptions":[{}]}}"#, all.join(","))
    }

    fn contains(text: &[u8], part: &[u8]) -> bool {
        text.windows(part.len()).any(|bytes| bytes == part)
    }
}
