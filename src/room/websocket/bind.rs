//! Listens on addresses.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the kernel keeps until they are accepted (`listen(2)`; Linux cuts it to `net.core.somaxconn`, which
/// is 4,096). When a server restarts, all its viewers come back within a second or two: those beyond are made to wait
/// for a second or more by their own kernel.
const BACKLOG: i32 = 4096;

/// How often another port is tried, if one that is free at one address is taken at another.
const ATTEMPTS: usize = 16;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) socket: TcpListener,
}

/// Listens on all of `addresses`, each once, and on one at least; those with port 0 get the same port. An error says
/// which address failed.
///
/// What this machine doesn't have is left out as long as something is left: a machine without IPv6 still has `::1`
/// among the addresses of `localhost`.
pub(super) fn listen(addresses: &[SocketAddr]) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        match try_listen(addresses) {
            Err(Failed { port_was_picked: true, .. }) if attempts > 0 => {}
            outcome => return outcome.map_err(|failed| (failed.address, failed.error)),
        }
    }
}

struct Failed {
    address: SocketAddr,
    error: io::Error,
    /// The port was free at an address before and is taken at this one: another may be free at both.
    port_was_picked: bool,
}

fn try_listen(addresses: &[SocketAddr]) -> Result<Vec<Listener>, Failed> {
    let mut listeners: Vec<Listener> = Vec::with_capacity(addresses.len());
    let mut picked = None;
    let mut missing = None;
    for (i, &given) in addresses.iter().enumerate() {
        if addresses[..i].contains(&given) {
            continue;
        }
        let port = picked.filter(|_| given.port() == 0);
        let mut address = given;
        address.set_port(port.unwrap_or(given.port()));
        // Where addresses of IPv4 are asked for by themselves, `::` must not take them as well.
        let only_v6 = given.is_ipv6() && given.ip().is_unspecified() && addresses.iter().any(SocketAddr::is_ipv4);
        match listen_on(address, only_v6) {
            Ok(listener) => {
                if given.port() == 0 {
                    picked = Some(listener.address.port());
                }
                listeners.push(listener);
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                tracing::info!(%address, "this machine doesn't have the address, it is left out");
                missing.get_or_insert((address, error));
            }
            Err(error) => {
                let port_was_picked = port.is_some() && error.kind() == ErrorKind::AddrInUse;
                return Err(Failed { address, error, port_was_picked });
            }
        }
    }
    match missing {
        Some((address, error)) if listeners.is_empty() => Err(Failed { address, error, port_was_picked: false }),
        _ => Ok(listeners),
    }
}

fn listen_on(address: SocketAddr, only_v6: bool) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP));
    // A kernel without IPv6 has no address of it.
    let socket = socket.map_err(|error| match address {
        SocketAddr::V6(_) if error.raw_os_error() == NO_SUCH_FAMILY => ErrorKind::AddrNotAvailable.into(),
        _ => error,
    })?;
    // Elsewhere it would let two programs listen on one port.
    if cfg!(unix) {
        socket.set_reuse_address(true)?;
    }
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from_std(socket.into())?;
    Ok(Listener { address: socket.local_addr()?, socket })
}

/// `EAFNOSUPPORT`, where it is known.
const NO_SUCH_FAMILY: Option<i32> = if cfg!(any(target_os = "linux", target_os = "android")) { Some(97) } else { None };
