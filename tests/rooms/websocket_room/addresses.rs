//! The addresses a room listens on, and those its viewers come from.

use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};

use super::*;

#[tokio::test]
async fn the_room_listens_on_all_addresses_of_a_name() {
    let resolved: Vec<_> = tokio::net::lookup_host("localhost:0").await.unwrap().collect();
    let has = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let expected: std::collections::BTreeSet<_> =
        resolved.into_iter().filter(has).map(|address| address.ip()).collect();
    let room = WebSocketRoom::builder().bind("localhost:0").await.unwrap();
    let ips: std::collections::BTreeSet<_> = room.local_addrs().iter().map(SocketAddr::ip).collect();
    assert_eq!(ips, expected);
    assert!(room.local_addrs().iter().all(|address| address.port() == room.local_addr().port()));
    assert_eq!(room.local_addr(), room.local_addrs()[0]);
}

/// Addresses to listen on; a machine without IPv6 leaves one of them out.
fn loopbacks() -> Vec<SocketAddr> {
    ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"].map(|address| address.parse().unwrap()).to_vec()
}

#[tokio::test]
async fn viewers_of_all_addresses_are_served_and_closed() {
    let room = WebSocketRoom::builder().bind_all(&loopbacks()).unwrap();
    let mut server = Server { events: Box::pin(room.events().expect("it is asked for once")), room };
    let addresses = server.room.local_addrs().to_vec();
    if addresses.len() == 1 {
        eprintln!("left out in part: this machine has no ::1");
    }
    assert!(addresses.len() <= 2, "an address given twice counts once: {addresses:?}");
    let mut clients = Vec::new();
    for address in &addresses {
        let mut request = format!("ws://{address}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", SDK.parse().unwrap());
        clients.push(soon("the hand-shake", connect_async(request)).await.unwrap().0);
        server.joined().await;
    }
    let (_, closed) = tokio::join!(
        soon("the room", server.room.shutdown()),
        futures_util::future::join_all(clients.iter_mut().map(close_of))
    );
    assert!(closed.iter().all(|(code, _)| *code == 1001), "{closed:?}");
    for address in addresses {
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    }
}

/// A port in use at one address is an error, which names the address; the addresses bound before are released.
#[tokio::test]
async fn an_address_in_use_among_several_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let addresses = [SocketAddr::from(([127, 0, 0, 2], port)), taken.local_addr().unwrap()];
    if TcpListener::bind(addresses[0]).is_err() {
        return eprintln!("left out: this machine has one loopback address only");
    }
    let error = WebSocketRoom::builder().bind_all(&addresses).unwrap_err();
    assert!(
        matches!(&error, BindError::AddressInUse { address, .. } if *address == addresses[1].to_string()),
        "{error}"
    );
    assert!(TcpListener::bind(addresses[0]).is_ok());
    let none = WebSocketRoom::builder().bind_all(&[]).unwrap_err();
    assert!(matches!(none, BindError::InvalidConfig(_)), "{none}");
    // The error names both the address and the host name that resolved to it.
    let error = WebSocketRoom::builder().bind(format!("localhost:{port}")).await.unwrap_err();
    assert!(error.to_string().contains(&format!("127.0.0.1:{port} (localhost:{port})")), "{error}");
}

#[tokio::test]
async fn sockets_of_somebody_else_are_listened_on() {
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    // A connection that came before the room did waits in the kernel's queue.
    let early = StdStream::connect(addresses[0]).unwrap();
    early.set_nonblocking(true).unwrap();
    let room = WebSocketRoom::builder().listen_on(listeners).unwrap();
    assert_eq!(room.local_addrs(), addresses);
    let mut server = Server { events: Box::pin(room.events().expect("it is asked for once")), room };
    let mut clients = Vec::new();
    let later = TcpStream::connect(addresses[1]).await.unwrap();
    for (stream, address) in [TcpStream::from_std(early).unwrap(), later].into_iter().zip(&addresses) {
        let mut request = format!("ws://{address}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", SDK.parse().unwrap());
        clients.push(soon("the hand-shake", tokio_tungstenite::client_async(request, stream)).await.unwrap());
        server.joined().await;
    }
    soon("the room", server.room.shutdown()).await;
    for address in addresses {
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    }
}

#[tokio::test]
async fn a_room_without_a_socket_is_an_error() {
    let none = WebSocketRoom::builder().listen_on([]).unwrap_err();
    assert!(matches!(none, BindError::InvalidConfig(_)), "{none}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_that_does_not_listen_is_an_error() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let error = WebSocketRoom::builder().listen_on([socket.into()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {address}: the socket doesn't listen: call `listen` on it first")
    );
}

// 1. The runtime's only thread is busy, so that nothing is accepted. 2. More connections arrive at once than the usual
// listen backlog of 128. 3. The kernel makes none of them wait.
#[tokio::test]
async fn more_connections_than_128_may_arrive_at_once() {
    const MANY: usize = 600;
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|most| most.trim().parse().ok());
    if most.is_none_or(|most: usize| most < 1024) {
        return eprintln!("left out: this kernel keeps fewer connections, or doesn't say how many");
    }
    let room = WebSocketRoom::builder().bind("127.0.0.1:0").await.unwrap();
    let address = room.local_addr();
    let come = || StdStream::connect_timeout(&address, Duration::from_millis(900));
    let waited: Vec<_> = (0..MANY).map(|_| come()).filter(Result::is_err).collect();
    assert_eq!(waited.len(), 0, "of {MANY}: {:?}", waited.first());
}

// 1. An address that isn't this machine's loopback takes as many places as it gets. 2. The last tenth is refused to it,
// with the time to come back. 3. Other addresses get that tenth: this machine's own programs. 4. Places that are given
// back can be taken.
#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let Some(own) = own_address() else { return };
    let room = WebSocketRoom::builder().max_connections(20).bind("0.0.0.0:0").await.unwrap();
    let mut server = Server { events: Box::pin(room.events().expect("it is asked for once")), room };
    let from = async |ip: IpAddr| {
        let mut stream = TcpStream::connect((ip, server.room.local_addr().port())).await.unwrap();
        stream.write_all(request("GET / HTTP/1.1", "").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        soon("the answer", stream.read_exact(&mut answer)).await.unwrap();
        (String::from_utf8_lossy(&answer[9..]).into_owned(), stream)
    };
    let mut greedy = Vec::new();
    for _ in 0..18 {
        let (status, stream) = from(own).await;
        assert_eq!(status, "101", "{}", greedy.len());
        greedy.push(stream);
    }
    let (status, mut stream) = from(own).await;
    assert_eq!(status, "503");
    let mut rest = String::new();
    soon("the rest", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.contains("\r\nRetry-After: ") && rest.contains(&format!("--trusted-proxy {own}")), "{rest}");
    drop(stream);
    let others = [from([127, 0, 0, 1].into()).await, from([127, 0, 0, 1].into()).await];
    assert!(others.iter().all(|(status, _)| status == "101"));
    assert_eq!(from([127, 0, 0, 1].into()).await.0, "503", "now the room is full");
    drop((greedy.pop(), greedy.pop(), others));
    soon("a free place", async { while from(own).await.0 != "101" {} }).await;
    while server.events.next().now_or_never().is_some() {}
}

#[tokio::test]
async fn a_trusted_proxy_may_take_all_places() {
    let Some(own) = own_address() else { return };
    let room = WebSocketRoom::builder().max_connections(20).trusted_proxy(own).bind("0.0.0.0:0").await.unwrap();
    let mut server = Server { events: Box::pin(room.events().expect("it is asked for once")), room };
    let mut viewers = Vec::new();
    for _ in 0..20 {
        let url = format!("ws://{}", SocketAddr::new(own, server.room.local_addr().port()));
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", SDK.parse().unwrap());
        viewers.push(soon("the hand-shake", connect_async(request)).await.unwrap());
        server.joined().await;
    }
    assert_eq!(server.room.connections(), 20);
}
