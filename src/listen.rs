//! What the service listens on.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::net::TcpSocket;

/// Connections that may wait to be accepted: a page and its tools after a restart, all at once.
const BACKLOG: u32 = 1024;

/// Takes a TCP address. Must run inside a tokio runtime.
pub(crate) fn tcp(address: SocketAddr) -> Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A port whose last connections are still being forgotten may be taken again.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    bind().with_context(|| format!("cannot listen on {address}"))
}

/// The address under which this machine reaches a listener.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// A socket file of ours, gone when dropped.
pub(crate) struct UnixSocket {
    path: PathBuf,
    listener: UnixListener,
    inode: u64,
}

impl UnixSocket {
    /// Another handle of the listener.
    pub(crate) fn listener(&self) -> Result<UnixListener> {
        self.listener.try_clone().with_context(|| format!("socket {}", self.path.display()))
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // By now a successor may have put its own in this place.
        if self.path.symlink_metadata().is_ok_and(|now| now.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket that only this user can open. One that a dead service left is replaced; a live one is not.
pub(crate) fn unix(path: &Path) -> Result<UnixSocket> {
    let shown = path.display();
    match path.symlink_metadata() {
        Err(missing) if missing.kind() == ErrorKind::NotFound => {}
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                bail!("socket {shown} is served by another program");
            }
        }
        Ok(_) => bail!("socket {shown} cannot be made, another kind of file is there"),
        Err(problem) => return Err(problem).with_context(|| format!("socket {shown} cannot be made")),
    }
    bind_private(path).with_context(|| format!("socket {shown} cannot be made"))
}

/// A socket is open to all from its making until its mode is set, so it is made where nobody else gets to.
fn bind_private(path: &Path) -> std::io::Result<UnixSocket> {
    let beside = path.with_file_name(format!(".optio-codex-{}", std::process::id()));
    // In a container every service has the same number, also the one that crashed here.
    match std::fs::remove_dir_all(&beside) {
        Err(problem) if problem.kind() != ErrorKind::NotFound => return Err(problem),
        _ => DirBuilder::new().mode(0o700).create(&beside)?,
    }
    let making = || {
        let inside = beside.join("s");
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        let inode = inside.symlink_metadata()?.ino();
        std::fs::rename(&inside, path)?;
        Ok(UnixSocket { path: path.to_owned(), listener, inode })
    };
    let made: std::io::Result<_> = making();
    std::fs::remove_dir_all(&beside)?;
    made
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_replaces_a_dead_one_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = unix(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(unix(&path).err().unwrap().to_string().contains("another program"));
        drop(socket);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        std::fs::write(&path, "mine").unwrap();
        assert!(unix(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_listener_on_every_address_is_reached_through_loopback() {
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()).to_string(), "10.0.0.1:80");
    }
}
