//! Opens listening sockets.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The kernel's queue of connections that are not accepted yet (`listen(2)`; Linux caps it at `net.core.somaxconn`,
/// 4,096). When a server restarts, all its viewers reconnect within a second or two. Those that the queue can't hold
/// are delayed by their own kernel for a second or more.
const BACKLOG: i32 = 4096;

/// How many ports are tried if one that is free at one address is taken at another.
const ATTEMPTS: usize = 16;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) socket: TcpListener,
}

/// Listens on each distinct address of `addresses`, on at least one in all. Addresses with port 0 get the same port.
/// The error names the address that failed.
///
/// An address that this machine doesn't have is left out as long as another one remains: a machine without IPv6 still
/// has `::1` among the addresses of `localhost`.
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

/// Takes over a socket that listens already. The error names its address, as far as that is known.
pub(super) fn take_over(listener: StdListener) -> Result<Listener, (String, io::Error)> {
    let local = listener.local_addr();
    let name = local.as_ref().map_or_else(|_| "a socket without an address".to_owned(), SocketAddr::to_string);
    let taken = || {
        let address = local?;
        check_listens(&listener)?;
        listener.set_nonblocking(true)?;
        Ok(Listener { address, socket: TcpListener::from_std(listener)? })
    };
    taken().map_err(|error| (name, error))
}

/// A socket that doesn't listen would never accept anything.
fn check_listens(listener: &StdListener) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    if !socket2::SockRef::from(listener).is_listener()? {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the socket doesn't listen: call `listen` on it first"));
    }
    // Elsewhere the kernel can't be asked.
    let _ = listener;
    Ok(())
}

struct Failed {
    address: SocketAddr,
    error: io::Error,
    /// The picked port was free at an earlier address and is taken at this one: another port may be free at both.
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
        // If IPv4 addresses are listed too, `::` must not take them as well.
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
    // A kernel without IPv6 has no IPv6 address.
    let socket = socket.map_err(|error| match address {
        SocketAddr::V6(_) if error.raw_os_error() == NO_SUCH_FAMILY => ErrorKind::AddrNotAvailable.into(),
        _ => error,
    })?;
    // On other systems the option would let two programs listen on one port.
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

/// `EAFNOSUPPORT`, on systems where its number is known.
const NO_SUCH_FAMILY: Option<i32> = if cfg!(any(target_os = "linux", target_os = "android")) { Some(97) } else { None };
