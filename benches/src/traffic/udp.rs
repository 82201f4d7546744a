//! Datagrams of one flow: in turn, or bursts one way.

use std::{io, net::UdpSocket};

use oncache_testbed::Container;

use super::run::{PORT, Run, TURN, again};

/// Two sockets that speak to each other.
pub fn ends(client: &Container, server: &Container) -> io::Result<(UdpSocket, UdpSocket)> {
    let there = server.enter(|| UdpSocket::bind((server.ip, PORT)))?;
    let here = client.enter(|| UdpSocket::bind((client.ip, 0)))?;
    here.connect((server.ip, PORT))?;
    there.connect(here.local_addr()?)?;
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(TURN))?;
    }
    Ok((here, there))
}

/// Sends a byte and waits for its answer, again and again.
pub fn ask(run: &Run, socket: &UdpSocket) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        socket.send(&byte)?;
        match socket.recv(&mut byte) {
            Ok(_) => run.count(1),
            // One was lost: ask again.
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The other end of [`ask`].
pub fn answer(run: &Run, socket: &UdpSocket) -> io::Result<()> {
    let mut byte = [0];
    while run.going() {
        match socket.recv(&mut byte) {
            Ok(_) => drop(socket.send(&byte)?),
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends some and then receives them, by one thread: each has arrived before the next is sent, so
/// nothing is lost and nobody waits for the scheduler. An answer from time to time, as flows have.
pub fn bursts(run: &Run, here: &UdpSocket, there: &UdpSocket, size: usize) -> io::Result<()> {
    const BURST: usize = 32;
    const BURSTS_PER_ANSWER: usize = 32;
    let packet = vec![0x5a; size];
    let mut buffer = vec![0; size];
    let answered = |there: &UdpSocket, here: &UdpSocket, buffer: &mut [u8]| -> io::Result<()> {
        there.send(&buffer[..1])?;
        match here.recv(buffer) {
            Err(error) if !again(&error) => Err(error),
            _ => Ok(()),
        }
    };
    // So that both directions are known before anything is counted.
    for _ in 0..20 {
        here.send(&packet)?;
        there.recv(&mut buffer)?;
        answered(there, here, &mut buffer)?;
    }
    while run.going() {
        for _ in 0..BURSTS_PER_ANSWER {
            for _ in 0..BURST {
                here.send(&packet)?;
            }
            for _ in 0..BURST {
                match there.recv(&mut buffer) {
                    Ok(_) => run.count(1),
                    Err(error) if again(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        answered(there, here, &mut buffer)?;
    }
    Ok(())
}
