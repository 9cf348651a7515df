//! The proxy of ../tokioproxy, which ends TLS by tokio-rustls. No timeouts, no limits,
//! no counts.
//!
//! Tuned for the one core that it is given: the current-thread runtime, which has no
//! second thread to wake or steal from. Session tickets are on, which they are not by
//! default.

use std::fs::File;
use std::io::{self, BufReader};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::rustls::{version::TLS13, Certificate, PrivateKey, ServerConfig, Ticketer, ALL_KX_GROUPS, DEFAULT_CIPHER_SUITES};
use tokio_rustls::TlsAcceptor;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, backend, certificate, key] = &arguments[..] else {
        panic!("the address of the backend, and the files of a certificate and its key");
    };
    let acceptor = TlsAcceptor::from(Arc::new(config(certificate, key)?));
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(serve(backend.parse().expect("an address and a port"), acceptor))
}

fn config(certificate: &str, key: &str) -> io::Result<ServerConfig> {
    let chain = rustls_pemfile::certs(&mut BufReader::new(File::open(certificate)?))?;
    let keys = rustls_pemfile::pkcs8_private_keys(&mut BufReader::new(File::open(key)?))?;
    let mut config = ServerConfig::builder()
        .with_cipher_suites(DEFAULT_CIPHER_SUITES)
        .with_kx_groups(&ALL_KX_GROUPS)
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain.into_iter().map(Certificate).collect(), PrivateKey(keys[0].clone()))
        .expect("a certificate and its key");
    config.ticketer = Ticketer::new().expect("random bytes");
    Ok(config)
}

async fn serve(backend: SocketAddr, acceptor: TlsAcceptor) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse().unwrap())?;
    let listener = socket.listen(1 << 16)?; // the kernel cuts it to somaxconn
    println!("Listening on {}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(proxy(client, backend, acceptor.clone()));
    }
}

/// What fails ends the connection, as what ends does; nobody asks why.
async fn proxy(client: TcpStream, backend: SocketAddr, acceptor: TlsAcceptor) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(backend).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
