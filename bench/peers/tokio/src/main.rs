//! The echo of Tokio's own documentation: bind, an accept loop, a task for each
//! connection. No timeouts, no limits, no counts.
//!
//! Tuned for the one core that it is given: the current-thread runtime, which has no
//! second thread to wake or steal from, and a buffer that holds the largest message
//! of any work but is not cleared, so that of an idle one only a page is in memory.
//! Reading into a buffer of the task's own is faster than `readable` and `try_read`
//! into a shared one: only the former knows that a short read leaves the socket
//! empty, the latter asks the kernel once more.

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const BUFFER: usize = 16 << 10;

fn main() -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(serve())
}

async fn serve() -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse().unwrap())?;
    let listener = socket.listen(1 << 16)?; // the kernel cuts it to somaxconn
    println!("Listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if stream.write_all(&buffer).await.is_err() {
                    return;
                }
                buffer.clear();
            }
        }
    }
}
