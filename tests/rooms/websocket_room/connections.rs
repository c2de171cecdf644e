//! Which connection of an identity counts, and how connections end.

use super::*;

#[tokio::test]
async fn the_newest_connection_of_an_identity_counts() {
    let same = |_: &UpgradeRequest| Ok(Admission::new("ada".parse().unwrap()));
    let mut server = Server::start(WebSocketRoom::builder().on_upgrade(same)).await;
    let ada = ParticipantIdentity::new("ada").unwrap();
    // 1. The old connection comes, 2. the new one comes, 3. the old one leaves late.
    let old_client = server.connect().await;
    let (old, _a) = server.joined().await;
    assert_eq!(server.room.present(&ada), Some(old.clone()));
    let _old_sink = server.open(&old).await;
    let _new_client = server.connect().await;
    let (new, _b) = server.joined().await;
    assert!(new.joined_at > old.joined_at);
    assert_ne!(new.sid, old.sid);
    assert_eq!(server.room.present(&ada), Some(new.clone()));
    assert_eq!(server.room.participants(), std::slice::from_ref(&new));
    drop(old_client);
    server.left(&old).await;
    assert_eq!(server.room.present(&ada), Some(new.clone()));
    // 4. A newer one comes and leaves: the one before counts again.
    let newest_client = server.connect().await;
    let (newest, _c) = server.joined().await;
    assert_eq!(server.room.present(&ada), Some(newest.clone()));
    drop(newest_client);
    server.left(&newest).await;
    assert_eq!(server.room.present(&ada), Some(new));
}

#[tokio::test]
async fn opening_the_newer_connection_closes_an_unopened_older_one() {
    let same = |_: &UpgradeRequest| Ok(Admission::new("ada".parse().unwrap()));
    let mut server = Server::start(WebSocketRoom::builder().on_upgrade(same)).await;
    let mut old_client = server.connect().await;
    let (old, _a) = server.joined().await;
    let _new_client = server.connect().await;
    let (new, _b) = server.joined().await;
    let _sink = server.open(&new).await;
    assert_eq!(close_of(&mut old_client).await.0, 4000);
    server.left(&old).await;
    assert_eq!(server.room.present(&new.identity), Some(new));
}

#[tokio::test]
async fn a_connection_is_opened_once() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut client = server.connect().await;
    let (presence, _incoming) = server.joined().await;
    let not_present = async |presence: &Presence| {
        let second = server.room.open(presence, Progress::default()).await;
        matches!(second, Err(OpenError::NotPresent))
    };
    let stranger = Presence::new(presence.identity.clone(), "WS_x".parse().unwrap(), presence.joined_at);
    assert!(not_present(&stranger).await);
    let sink = server.open(&presence).await;
    assert!(not_present(&presence).await);
    drop(sink);
    assert_eq!(server.room.present(&presence.identity), None, "at once");
    assert!(not_present(&presence).await);
    assert_eq!(close_of(&mut client).await.0, 1001);
    server.left(&presence).await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let server = Server::start(WebSocketRoom::builder()).await;
    let taken = server.room.local_addr();
    let error = WebSocketRoom::builder().bind(taken).await.unwrap_err();
    assert!(matches!(&error, BindError::AddressInUse { address, .. } if *address == taken.to_string()));
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    let error = WebSocketRoom::builder().bind("192.0.2.1:1").await.unwrap_err();
    assert!(matches!(&error, BindError::Unavailable { .. }), "{error}");
    let contradiction = WebSocketRoom::builder().idle_timeout(Duration::from_secs(15)).bind("127.0.0.1:0").await;
    assert!(matches!(contradiction, Err(BindError::InvalidConfig(_))));
}

#[tokio::test]
async fn a_dropped_room_closes_everything() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let address = server.room.local_addr();
    let (mut opened, mut waiting) = (server.connect().await, server.connect().await);
    let (first, _a) = server.joined().await;
    let _sink = server.open(&first).await;
    let (_second, _b) = server.joined().await;
    let mut half_way = server.tcp().await;
    half_way.write_all(b"GET").await.unwrap();

    let Server { room, mut events } = server;
    drop(room);
    let mut closed = [close_of(&mut opened).await, close_of(&mut waiting).await];
    closed.sort();
    assert_eq!(closed.each_ref().map(|(code, _)| *code), [1001, 1001]);
    assert_eq!(half_way.read(&mut [0]).await.unwrap_or(0), 0);
    let both = [soon("leaving", events.next()).await, soon("leaving", events.next()).await];
    assert!(both.iter().all(|event| matches!(event, Some(RoomEvent::Disconnected { .. }))), "{both:?}");
    assert!(soon("the end", events.next()).await.is_none());
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn an_ended_session_stops_listening_and_closes_its_viewers() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut opened = server.connect().await;
    let (presence, _a) = server.joined().await;
    let mut sink = server.open(&presence).await;
    let mut waiting = server.connect().await;
    server.joined().await;
    // A second call is harmless: it returns none, and changes nothing.
    assert!(server.room.events().is_none());
    waiting.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    assert!(matches!(soon("the pong", waiting.next()).await, Some(Ok(Message::Pong(_)))));

    let Server { room, events } = server;
    drop(events);
    assert_eq!(close_of(&mut waiting).await, (1001, "the room is closed".to_owned()));
    assert!(TcpStream::connect(room.local_addr()).await.is_err(), "nobody listens");
    sink.send(Frame::text("the last word")).await.unwrap();
    assert_eq!(soon("the last word", opened.next()).await.unwrap().unwrap(), Message::text("the last word"));
    drop(sink);
    assert_eq!(close_of(&mut opened).await.0, 1001);
    soon("the room", room.shutdown()).await;
    assert_eq!(room.connections(), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_is_noticed() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let client = server.connect().await;
    let (presence, _incoming) = server.joined().await;
    let mut sink = server.open(&presence).await;
    drop(client);
    server.left(&presence).await;
    soon("a failure", async { while sink.send(Frame::text("?")).await.is_ok() {} }).await;
    assert_eq!(server.room.connections(), 0);
}

#[tokio::test]
async fn shutting_a_room_down_waits_for_its_connections() {
    let mut server = Server::start(WebSocketRoom::builder()).await;
    let mut client = server.connect().await;
    server.joined().await;
    let (closed, ()) = tokio::join!(close_of(&mut client), soon("the room", server.room.shutdown()));
    assert_eq!(closed.0, 1001);
    assert_eq!(server.room.connections(), 0);
    assert!(matches!(server.event().await, RoomEvent::Disconnected { .. }));
    assert!(soon("the end", server.events.next()).await.is_none());
}
