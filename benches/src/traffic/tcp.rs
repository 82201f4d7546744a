//! TCP connections: small turns over one, bulk over many, and one for each turn.

use std::{
    io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use oncache_testbed::Container;

use super::run::{PORT, Run, TURN, again};

/// A connection from the client to the server, both its ends.
pub fn connection(client: &Container, server: &Container) -> io::Result<(TcpStream, TcpStream)> {
    let listener = listener(server)?;
    let address = listener.local_addr()?;
    let here = client.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))?;
    let (there, _) = listener.accept()?;
    bounded(&here)?;
    bounded(&there)?;
    Ok((here, there))
}

/// Writes a byte and waits for its answer, again and again.
pub fn ask(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        stream.write_all(&byte)?;
        if read(run, &mut stream, &mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        run.count(1);
    }
    Ok(())
}

/// The other end of [`ask`].
pub fn answer(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while run.going() && read(run, &mut stream, &mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// What is written and read by one call.
const CHUNK: usize = 64 * 1024;

/// Writes as much as goes.
pub fn send(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let bytes = vec![0x5a; CHUNK];
    while run.going() {
        match stream.write(&bytes) {
            Err(error) if !again(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Counts the bytes that come.
pub fn receive(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    while run.going() {
        match read(run, &mut stream, &mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => run.count(length as u64),
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens what [`connect_and_ask`] connects to.
pub fn listener(server: &Container) -> io::Result<TcpListener> {
    server.enter(|| TcpListener::bind((server.ip, PORT)))
}

/// As [`ask`], over a new connection each time.
pub fn connect_and_ask(run: &Run, address: SocketAddr) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        let mut stream = TcpStream::connect(address)?;
        bounded(&stream)?;
        stream.write_all(&byte)?;
        if read(run, &mut stream, &mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        run.count(1);
    }
    Ok(())
}

/// The other end of [`connect_and_ask`].
pub fn accept_and_answer(run: &Run, listener: &TcpListener) -> io::Result<()> {
    let mut byte = [0];
    nix::sys::socket::setsockopt(
        listener,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(0, 100_000),
    )?;
    while run.going() {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if again(&error) => continue,
            Err(error) => return Err(error),
        };
        bounded(&stream)?;
        if read(run, &mut stream, &mut byte)? == 1 {
            stream.write_all(&byte)?;
            // The client closes first.
            read(run, &mut stream, &mut byte)?;
        }
    }
    Ok(())
}

/// Reads, and looks from time to time whether the run is over.
fn read(run: &Run, from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if again(&error) && run.going() => {}
            other => return other,
        }
    }
}

fn bounded(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TURN))?;
    stream.set_write_timeout(Some(TURN))
}
