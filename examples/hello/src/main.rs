//! A small web server: answers every request with the name of its pod, its node, its version and its caller's address.
//!
//! Linked statically, it is the whole of the example's image. It reads POD_NAME, NODE_NAME, VERSION and PORT (8080);
//! `GET /healthz` answers `ok`. SIGTERM ends it at once: as process 1 of a container nothing else would.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Longest request line or header that is read, in bytes.
const MAX_LINE_BYTES: u64 = 8 * 1024;
/// A client that says nothing for this long is hung up on.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            std::process::exit(0);
        }
    });

    let port = env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080);
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => drop(thread::Builder::new().spawn(move || serve(stream))),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

/// Answers the requests of one connection until the client goes.
fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let caller = stream.peer_addr()?.ip().to_canonical();
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(path) = read_request(&mut reader)? {
        let body = if path == "/healthz" {
            "ok\n".to_owned()
        } else {
            greeting(caller)
        };
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

/// Reads one request without a body and returns its path, or None at the end of the connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut path = None;
    loop {
        let mut line = String::new();
        let mut limited = io::Read::take(&mut *reader, MAX_LINE_BYTES);
        if limited.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if !line.ends_with('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "line too long"));
        }
        match (&path, line.trim_end()) {
            (None, request) => path = Some(request.split(' ').nth(1).unwrap_or("/").to_owned()),
            (Some(_), "") => return Ok(path),
            (Some(_), _) => {}
        }
    }
}

fn greeting(caller: IpAddr) -> String {
    let get = |name: &str| env::var(name).unwrap_or_else(|_| "?".to_owned());
    format!(
        "Hello from pod {} on node {}, version {} (you are {caller})\n",
        get("POD_NAME"),
        get("NODE_NAME"),
        get("VERSION")
    )
}
