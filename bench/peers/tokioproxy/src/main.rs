//! The proxy of Tokio's own documentation: an accept loop, a task for each
//! connection, `copy_bidirectional` between its two sockets. No timeouts, no limits,
//! no counts.
//!
//! Tuned for the one core that it is given: the current-thread runtime, which has no
//! second thread to wake or steal from. The 8 KiB buffers are `copy_bidirectional`'s
//! own: before Tokio 1.38 their size cannot be chosen.

use std::io;
use std::net::SocketAddr;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};

fn main() -> io::Result<()> {
    let backend = std::env::args().nth(1).expect("the address of the backend");
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(serve(backend.parse().expect("an address and a port")))
}

async fn serve(backend: SocketAddr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse().unwrap())?;
    let listener = socket.listen(1 << 16)?; // the kernel cuts it to somaxconn
    println!("Listening on {}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(proxy(client, backend));
    }
}

/// What fails ends the connection, as what ends does; nobody asks why.
async fn proxy(mut client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(backend).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
